"""Where config files start: the defaults, and what a smoke test shrinks."""

from ml_collections import ConfigDict

from esper_jax import defaults


def get_config() -> ConfigDict:
  """Returns the defaults, with the learned policy in place of the heuristic."""
  config = defaults.get_config()
  config.tamiyo.policy = "learned"
  return config


def shrink_to_smoke(config: ConfigDict) -> None:
  """Cuts a config down to two training steps, in place (profile :smoke)."""
  config.train.epochs = 1
  config.train.max_steps = 2
  config.train.log_every = 1
  config.data.batch_size = 16
  config.data.train_limit = 256
  config.optimizer.warmup_epochs = 0.0
  config.kasmina.measure_examples = 64
  config.tamiyo.probe_examples = 16
