"""Handwritten digits of scikit-learn: real 8x8 images, nothing to download.

Command: python main.py --config=configs/digits.py

Profiles:
  :gpu    (default) the same as :cpu; no accelerator is needed
  :cpu    a ResNet-8 of width 8, 30 epochs, 2 CPU cores
  :smoke  two training steps, 2 CPU cores: does it all run?
"""

from ml_collections import ConfigDict

from configs import base
from esper_jax.config import check_profile


def get_config(profile: str = "gpu") -> ConfigDict:
  """Returns the config of one profile."""
  check_profile(profile, ("gpu", "cpu", "smoke"))
  config = base.get_config()
  config.data.name = "digits"
  config.host.name = "resnet8"
  config.host.width = 8
  config.data.batch_size = 32
  config.optimizer.learning_rate = 2e-3
  config.train.epochs = 30
  config.train.log_every = 10
  if profile == "smoke":
    base.shrink_to_smoke(config)
  return config
