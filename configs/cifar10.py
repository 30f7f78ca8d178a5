"""CIFAR-10: 32x32 colour images in 10 classes, downloaded once.

Command: .venv/bin/python main.py --config=configs/cifar10.py

Profiles:
  :gpu    (default) ResNet-18, 100 epochs, one GPU; an H200: 1.3 s an epoch
  :cpu    ResNet-8, width 8, 24 epochs, 10,000 images; 10 min, 2 CPU cores
  :smoke  two training steps of ResNet-8, 2 CPU cores: does it all run?
"""

from ml_collections import ConfigDict

from configs import base
from esper_jax.config_file import check_profile


def get_config(profile: str = "gpu") -> ConfigDict:
  """Returns the config of one profile."""
  check_profile(profile, ("gpu", "cpu", "smoke"))
  config = base.get_config()
  config.data.name = "cifar10"
  config.data.batch_size = 128
  config.data.augment = ("crop", "flip")
  config.host.name = "resnet18"
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "wsd"  # a late seed still meets a high rate
  config.optimizer.decay_fraction = 0.3
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.weight_decay = 0.05
  config.train.epochs = 100
  config.train.precision = "auto"
  if profile in ("cpu", "smoke"):
    config.host.name = "resnet8"
    config.host.width = 8
    config.data.train_limit = 10_000
    config.train.epochs = 24
    config.optimizer.learning_rate = 4e-3
    config.train.precision = "float32"
    config.kasmina.blend_epochs = 2
    config.kasmina.blueprints = ("conv3x3",)
    config.tamiyo.plateau_delta = 0.15  # the heuristic alone reads it
    config.tamiyo.warmup_epochs = 2
    config.tamiyo.max_growths = 4
  if profile == "smoke":
    base.shrink_to_smoke(config)
  return config
