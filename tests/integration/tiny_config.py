"""A run of a second or two on real data.

Profiles:
  :grow    15 steps an epoch, 12 epochs; germinates, culls and fossilizes
  :bomb    a seed that gives NaN once it is blended in
  :static  never grows, 3 epochs
"""

from configs import base


def get_config(profile: str = "grow"):
  """Returns the config of one profile."""
  config = base.get_config()
  config.data.name = "digits"
  config.data.validation_fraction = 0.3
  config.data.batch_size = 64
  config.host.name = "mlp"
  config.host.width = 8
  config.optimizer.learning_rate = 5e-3
  config.train.epochs = 12
  config.train.log_every = 4
  config.urza.modules = ("tiny_blueprints",)
  config.kasmina.min_training_epochs = 1
  config.kasmina.max_training_epochs = 2
  config.kasmina.blend_epochs = 2
  config.kasmina.embargo_epochs = 1
  config.kasmina.gain_sigmas = 0.0  # any gain is enough
  config.kasmina.measure_examples = 128
  config.tamiyo.policy = "schedule"
  config.tamiyo.probe_examples = 64
  config.tamiyo.schedule = (
    (1, "slot1", "tiny_idle"),  # is culled
    (1, "slot2", "dense"),  # fossilizes
    (6, "slot1", "dense"),
  )
  if profile == "bomb":
    config.train.epochs = 8
    config.tamiyo.schedule = ((1, "slot1", "tiny_bomb"),)
  elif profile == "static":
    config.train.epochs = 3
    config.tamiyo.policy = "never"
    config.tamiyo.schedule = ()
  return config
