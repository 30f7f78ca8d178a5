"""cifar10-resnet20: the second host of the headline, for one GPU.

ResNet-20 of width 16 whose blocks have 2 channels inside at the start, which
can reach r >= 3 by two growths (a seed costs 1.3 times the first step). The
margin and the claims are those of the suite cifar10, written with them.
"""

from benchmarks.evidence.suite_configs.cifar10 import CLAIMS, GROWTH
from benchmarks.evidence.suite_configs.cifar10 import SUITE as RESNET18
from benchmarks.evidence.suites import StaticHost

SUITE = RESNET18._replace(
  name="cifar10-resnet20",
  says="ResNet-20 on CIFAR-10, one GPU, 10 paired seeds",
  flags=(
    "--config.host.name=resnet20",
    "--config.host.inner_widths=(2, 2, 2)",
    *GROWTH,
  ),
  static=StaticHost("resnet20", tuple(range(2, 65, 2)), (32, 32, 3), 10),
  targets=(0.85, 0.88, 0.90),
  claims=CLAIMS,
)
