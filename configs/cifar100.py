"""CIFAR-100: 32x32 colour images in 100 classes, downloaded once.

Command: .venv/bin/python main.py --config=configs/cifar100.py

Profiles:
  :gpu    (default) ResNet-18, 100 epochs, one GPU; not timed yet
  :cpu    ResNet-8, width 8, 24 epochs, 10,000 images; 10 min, 2 CPU cores
  :smoke  two training steps of ResNet-8, 2 CPU cores: does it all run?
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config(profile: str = "gpu") -> ConfigDict:
  """Returns the config of one profile: that of CIFAR-10 on other data."""
  config = cifar10.get_config(profile)
  config.data.name = "cifar100"
  return config
