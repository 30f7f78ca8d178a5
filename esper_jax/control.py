"""The control of a run: the same run without growth."""

from ml_collections import ConfigDict


def never_grown(config: ConfigDict) -> ConfigDict:
  """Copies a config, its policy one that never grows and reads no file."""
  control = config.copy_and_resolve_references()
  with control.ignore_type():
    control.tamiyo.policy = "never"
    control.tamiyo.policy_path = ""
    control.tamiyo.replay = control.tamiyo.replay_permute = ""
    control.tamiyo.replay_final = False
  return control.lock()
