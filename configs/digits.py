"""Handwritten digits of scikit-learn: real 8x8 images, nothing to download.

Command: .venv/bin/python main.py --config=configs/digits.py

Profiles:
  :gpu    (default) the same as :cpu; no accelerator is needed
  :cpu    a thin ResNet-8, 30 epochs, 2 CPU cores
  :smoke  two training steps, 2 CPU cores: does it all run?
"""

from ml_collections import ConfigDict

from configs import base
from esper_jax.config_file import check_profile


def get_config(profile: str = "gpu") -> ConfigDict:
  """Returns the config of one profile."""
  check_profile(profile, ("gpu", "cpu", "smoke"))
  config = base.get_config()
  config.data.name = "digits"
  config.data.validation_fraction = 0.3  # 431 examples to judge seeds by
  config.host.name = "resnet8"
  config.host.width = 4
  config.host.inner_widths = (1, 1, 1)  # too thin: it has reason to grow
  config.data.batch_size = 32
  config.optimizer.learning_rate = 5e-3
  config.optimizer.schedule = "wsd"  # a late seed still meets a high rate
  config.train.epochs = 30
  config.train.log_every = 31  # an epoch takes a tenth of a second
  config.checkpoint.every_epochs = 5
  config.kasmina.blueprints = ("conv3x3",)
  config.kasmina.blend_epochs = 2
  config.tamiyo.warmup_epochs = 4
  config.tamiyo.plateau_delta = 0.3  # the heuristic alone reads it
  config.tamiyo.max_growths = 4
  if profile == "smoke":
    base.shrink_to_smoke(config)
  return config
