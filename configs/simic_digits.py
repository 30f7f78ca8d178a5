"""Trains a policy on MLPs that grow on scikit-learn's handwritten digits.

Command: .venv/bin/python -m esper_jax.simic train \\
    --config=configs/simic_digits.py

With ":smoke" appended: two iterations of each learner, to see that all runs.
What each key means, and every default, is in the record of its section:
training, population, kasmina, reward, network, imitation, monte_carlo, ppo,
evolution, tamiyo (see DEFAULTS in esper_jax/simic/assembly.py).
"""

from ml_collections import ConfigDict

from esper_jax.config_file import check_profile


def get_config(profile: str = "full") -> ConfigDict:
  """Returns the config of one profile: "full" or "smoke"."""
  check_profile(profile, ("full", "smoke"))
  config = ConfigDict()
  config.training = ConfigDict({"seed": 0, "learner": "ppo"})
  if profile == "smoke":
    config.training.imitate = 1
    config.training.explore = 1
    config.training.iterations = 2
    config.training.environments = 4
    config.training.held_out = 4
    config.training.test_every = 1
    config.population = ConfigDict(
      {"steps": 2, "width": 8, "depth": 1, "units": (8,), "layers": (1,)}
    )
    config.population.blueprints = ("bottleneck_dense",)
    config.population.missing = 0
    config.kasmina = ConfigDict({"epochs": 7})
    config.network = ConfigDict(
      {"width": 8, "layers": 1, "heads": 1, "hidden": 8}
    )
    config.imitation = ConfigDict({"environments": 4, "steps": 2})
    config.monte_carlo = ConfigDict(
      {"environments": 4, "minibatches": 2, "passes": 1}
    )
    config.ppo = ConfigDict({"environments": 4, "minibatches": 2, "passes": 1})
    config.evolution = ConfigDict({"pairs": 2, "environments": 2})
  return config
