"""cifar10: the headline suite, ResNet-18 on all of CIFAR-10, for one GPU.

ResNet-18 of width 64 whose blocks have 8 channels inside at the start, 100
epochs. A conv3x3 seed costs as much as an identity block of the full width:
one brings the step's FLOPs to about 2.9 times those at the start, three to
6.7 times, so r >= 3 is reached by two. Growth begins after 50 epochs, so t
is at least 0.5. The claims were written before its first run.
"""

from benchmarks.evidence.claims import Claim
from benchmarks.evidence.suites import StaticHost, Suite

_MARGIN = 0.2  # points

# Shared with the suites of the same kind, which differ in host and data.
CLAIMS = (
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
)  # fmt: skip

# The widths are not among these: a tuple that is given twice is joined.
GROWTH = (
  "--config.kasmina.blueprints=conv3x3",
  "--config.tamiyo.warmup_epochs=50",
  "--config.tamiyo.plateau_delta=0.15",
  "--config.tamiyo.max_growths=6",
  "--config.checkpoint.every_epochs=10",
)

SUITE = Suite(
  name="cifar10",
  says="ResNet-18 on CIFAR-10, one GPU, 10 paired seeds",
  source="configs/cifar10.py:gpu",
  flags=("--config.host.inner_widths=(8, 8, 8, 8)", *GROWTH),
  seeds=10,
  arms=("A0", "A1", "A1p", "A2", "A3", "A4", "A5", "B1", "B2", "B3", "B4"),
  periodic={"tamiyo.period_epochs": 6},  # 6 growths from epoch 54 on
  static=StaticHost("resnet18", tuple(range(4, 129, 4)), (32, 32, 3), 10),
  look_ahead=0,
  targets=(0.90, 0.92, 0.93),
  claims=CLAIMS,
)
