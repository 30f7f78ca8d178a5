"""Images of yours, in a folder per class: a small ResNet that grows.

Command: .venv/bin/python main.py --config=configs/folder.py \\
    --config.data.source=folder:PATH

PATH/CLASS/*.png, or PATH/train/CLASS/... with test/; sizes and classes are
found there. Sizes that differ: --config.data.image_size=32. It needs Pillow:
.venv/bin/pip install -e '.[images]'.

Profiles:
  :gpu    (default) the same as :cpu; no accelerator is needed
  :cpu    ResNet-8, width 8, 30 epochs; 6 min (1,150 of 8x8, busy CPU)
  :smoke  two training steps, 2 CPU cores: does it all run?
"""

from ml_collections import ConfigDict

from configs import base
from esper_jax.config_file import check_profile


def get_config(profile: str = "gpu") -> ConfigDict:
  """Returns the config of one profile."""
  check_profile(profile, ("gpu", "cpu", "smoke"))
  config = base.get_config()
  config.data.source = "folder:images"  # in the working directory
  config.data.validation_fraction = 0.2  # enough to judge seeds by
  config.data.batch_size = 32
  config.host.name = "resnet8"
  config.host.width = 8
  config.optimizer.learning_rate = 4e-3
  config.optimizer.schedule = "wsd"  # a late seed still meets a high rate
  config.train.epochs = 30
  config.kasmina.blueprints = ("conv3x3", "bottleneck", "depthwise")
  config.kasmina.blend_epochs = 2
  config.tamiyo.plateau_delta = 0.15  # the heuristic alone reads it
  config.tamiyo.max_growths = 4
  if profile == "smoke":
    base.shrink_to_smoke(config)
  return config
