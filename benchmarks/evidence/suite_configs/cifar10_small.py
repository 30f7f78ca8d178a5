"""cifar10-small: ResNet-18, static against growing, for a few CPU hours.

ResNet-18 of width 8 whose blocks have 2 channels inside at the start, 4,000
training and 2,000 validation images, 20 epochs. A conv3x3 seed costs as much
as an identity block of the full width, so 3 growths bring the step's FLOPs to
about 3.6 times those at the start: it can reach r >= 3. Growth begins after 8
epochs; a seed lives at least 5 epochs before it is permanent, so t can be at
most 0.75. The claims were written before its first run.
"""

from benchmarks.evidence.claims import Claim
from benchmarks.evidence.suites import Suite

_MARGIN = 1.0  # points

SUITE = Suite(
  name="cifar10-small",
  says="a thin ResNet-18 on 4,000 CIFAR-10 images, 5 paired seeds",
  source="configs/cifar10.py:cpu",
  flags=(
    "--config.host.name=resnet18",
    "--config.host.width=8",
    "--config.host.inner_widths=(2, 2, 2, 2)",
    "--config.data.train_limit=4000",
    "--config.data.validation_fraction=0.04",
    "--config.train.epochs=20",
    "--config.tamiyo.warmup_epochs=8",
    "--config.tamiyo.max_growths=3",
    "--config.checkpoint.every_epochs=5",
  ),
  seeds=5,
  arms=("A0", "A1", "A2", "B1", "B2", "B4"),
  periodic={"tamiyo.period_epochs": 2},  # 3 growths from epoch 8 on
  static=None,
  look_ahead=0,
  targets=(0.40, 0.45, 0.50),
  claims=(
    Claim(
      "off switch", "identical", "A0", "A1", 0.0,
      "growth code that is switched off changes nothing",
    ),
    Claim(
      "more than small", "better", "B4", "A1", 0.0,
      "growing beats the small network for as many epochs (no win by itself)",
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
      "place", "better", "B4", "B2", 0.0,
      "the heuristic's places beat the same growth at permuted places",
    ),
    Claim(
      "clock", "better", "B4", "B1", 0.0,
      "the heuristic beats growth by the clock",
    ),
  ),
)  # fmt: skip
