"""A play by Shakespeare, character by character: a small GPT that grows.

Command: .venv/bin/python main.py --config=configs/char_gpt.py

Profiles:
  :gpu    (default) the same as :cpu; no accelerator is needed
  :cpu    a GPT of one block, width 32, 24 epochs; see docs/char_gpt.md
  :smoke  two training steps, 2 CPU cores: does it all run?
"""

from ml_collections import ConfigDict

from configs import base
from esper_jax.config_file import check_profile


def get_config(profile: str = "gpu") -> ConfigDict:
  """Returns the config of one profile."""
  check_profile(profile, ("gpu", "cpu", "smoke"))
  config = base.get_config()
  config.data.name = "as_you_like_it"
  config.data.context = 64
  config.data.batch_size = 32
  config.host.name = "gpt"
  config.host.width = 32
  config.host.depth = 1
  config.host.heads = 2
  config.optimizer.learning_rate = 5e-3
  config.optimizer.schedule = "wsd"  # a late seed still meets a high rate
  config.optimizer.warmup_epochs = 1.0
  config.train.epochs = 24
  config.train.log_every = 49  # steps of an epoch
  config.checkpoint.every_epochs = 5
  config.kasmina.blueprints = ("causal_attention", "dense")
  config.kasmina.blend_epochs = 2
  # The loss is a mean over the context's characters, and so is its gradient.
  config.kasmina.proximal = 1 / 64
  config.tamiyo.policy = "heuristic"  # the learned one plants nothing here
  config.tamiyo.warmup_epochs = 4
  config.tamiyo.plateau_delta = 0.1
  config.tamiyo.max_growths = 4
  if profile == "smoke":
    base.shrink_to_smoke(config)
  return config
