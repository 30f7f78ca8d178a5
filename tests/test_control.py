"""The control of a run: all of its config but what grows."""

from pathlib import Path

from ml_collections import ConfigDict

from esper_jax import config as config_lib
from esper_jax import defaults
from esper_jax.control import never_grown

RECORDED = Path(__file__).parent / "integration" / "recorded" / "slot1.jsonl"


def make_config(**tamiyo) -> ConfigDict:
  """The defaults with some keys of tamiyo changed."""
  config = defaults.get_config()
  config.tamiyo.update(tamiyo)
  return config_lib.validate(config)


def test_control_differs_in_its_policy_alone():
  config = make_config()
  assert config_lib.differences(config, never_grown(config)) == {
    "tamiyo.policy": ("heuristic", "never")
  }
  assert config.tamiyo.policy == "heuristic"


def test_control_of_a_replay_replays_nothing():
  config = make_config(policy="replay", replay=str(RECORDED), replay_final=True)
  control = config_lib.validate(never_grown(config))
  assert config_lib.config_hash(control) == config_lib.config_hash(
    never_grown(make_config())
  )


def test_the_control_of_a_learned_policy_reads_no_file():
  config = make_config(policy="learned", policy_path="a-name")
  control = config_lib.validate(never_grown(config))
  assert control.tamiyo.policy_path == ""
