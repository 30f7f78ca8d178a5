"""cifar100: the headline suite on CIFAR-100, for one GPU.

Host, growth, margin and claims are those of the suite cifar10, written with
them before either was run.
"""

from benchmarks.evidence.suite_configs.cifar10 import CLAIMS
from benchmarks.evidence.suite_configs.cifar10 import SUITE as CIFAR10
from benchmarks.evidence.suites import StaticHost

SUITE = CIFAR10._replace(
  name="cifar100",
  says="ResNet-18 on CIFAR-100, one GPU, 10 paired seeds",
  source="configs/cifar100.py:gpu",
  static=StaticHost("resnet18", tuple(range(4, 129, 4)), (32, 32, 3), 100),
  targets=(0.60, 0.65, 0.70),
  claims=CLAIMS,
)
