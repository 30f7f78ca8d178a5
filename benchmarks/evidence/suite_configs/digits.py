"""digits: all arms on scikit-learn's handwritten digits, minutes on 2 cores.

The host is the thin ResNet-8 of configs/digits.py. Small: it shows that every
arm runs and how the comparison works; margins are wide because 359 test
images resolve 0.28 points. The claims were written before its first run.
"""

from benchmarks.evidence.claims import Claim
from benchmarks.evidence.suites import StaticHost, Suite

_MARGIN = 1.0  # points

SUITE = Suite(
  name="digits",
  says="a thin ResNet-8 on 8x8 digits, all arms, 10 paired seeds",
  source="configs/digits.py",
  flags=(),
  seeds=10,
  arms=(
    "A0", "A1", "A1p", "A2", "A3", "A4", "A5",
    "B1", "B2", "B3", "B4", "B5",
  ),
  # 4 growths after the same warm-up as the heuristic's.
  periodic={"tamiyo.period_epochs": 5},
  static=StaticHost("resnet8", tuple(range(1, 17)), (8, 8, 1), 10),
  look_ahead=6,  # from planting to alpha = 1, and an epoch more
  targets=(0.90, 0.93, 0.95),
  claims=(
    Claim(
      "off switch", "identical", "A0", "A1", 0.0,
      "growth code that is switched off changes nothing",
    ),
    Claim(
      "final network", "matches", "B4", "A2", _MARGIN,
      "growing reaches what its final network reaches from scratch",
    ),
    Claim(
      "cost", "cheaper", "B4", "A2", 0.6,
      "growing takes at most 60 % of the final network's FLOPs",
    ),
    Claim(
      "equal cost", "better", "B4", "A3", 0.0,
      "growing beats its final network trained for as many FLOPs",
    ),
    Claim(
      "more of the same", "better", "B4", "A1p", 0.0,
      "growing beats the small network trained for as many FLOPs",
    ),
    Claim(
      "by hand", "matches", "B4", "A4", _MARGIN,
      "growing reaches a hand-designed network of as many parameters",
    ),
    Claim(
      "ramp", "better", "B4", "A5", 0.0,
      "growing beats the same seeds present from the start",
    ),
    Claim(
      "place", "better", "B4", "B2", 0.0,
      "the heuristic's places beat the same growth at permuted places",
    ),
    Claim(
      "time", "better", "B4", "B3", 0.0,
      "the heuristic's times beat the same growth at permuted times",
    ),
    Claim(
      "clock", "better", "B4", "B1", 0.0,
      "the heuristic beats growth by the clock",
    ),
    Claim(
      "head-room", "matches", "B4", "B5", _MARGIN,
      "the heuristic reaches what one-step look-ahead reaches",
    ),
  ),
)  # fmt: skip
