"""From a config to Tamiyo's policy, a learned one read from where it lies."""

import os

from ml_collections import ConfigDict

from esper_jax.tamiyo import learned, policy_file, traits
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo.policy import LEARNED, Policy
from esper_jax.tamiyo.policy_file import PolicyFile
from esper_jax.tamiyo.rules import Settings
from esper_jax.tolaria.growth_options import GrowthOptions
from esper_jax.types import InputError
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.registry import open_registry

FALLBACK = "heuristic"  # goes on where a learned policy cannot


def make_policy(
  config: ConfigDict,
  growth: GrowthOptions,
  given: Policy | str | None = None,
) -> tuple[Policy, str]:
  """Makes the policy that a config names.

  Args:
    config: validated.
    growth: what the run fixes about growth.
    given: in its place, itself or the name that it was registered under.

  Returns:
    (the policy, why a learned one cannot be used; "" where nothing is wrong).

  Raises:
    InputError: a setting is wrong; or the learned policy cannot be used and
      tamiyo.on_policy_error is "stop".
  """
  if isinstance(given, Policy):
    return given, ""
  t = config.tamiyo
  sections = {**t, **config.kasmina}
  settings = {n: sections[n] for n in Settings._fields if n in sections}
  settings["schedule"] = policies.resolve_schedule(
    tuple(t.schedule),
    list(growth.slots),
    growth.blueprints,
    growth.fits[:: growth.lanes].tolist(),
  )
  if t.policy != LEARNED:
    return policies.make(given or t.policy, **settings), ""
  file, error = None, ""
  try:
    file = _load(config)
  except InputError as refusal:
    if growth.stop_on_policy_error:
      raise
    error = str(refusal)
  lanes = growth.lanes
  specs = [spec for spec in growth.slots.values() for _ in range(lanes)]
  described = traits.unknown(growth.rows, len(growth.blueprints))
  if file is not None:
    described = traits.describe(specs, growth.blueprints)
  fallback = policies.make(FALLBACK, **settings)
  return learned.make(file, described, Settings(**settings), fallback), error


def _load(config: ConfigDict) -> PolicyFile:
  """Reads the policy that a config names: shipped, a path, or kept by Urza."""
  name, u = config.tamiyo.policy_path, config.urza
  if not name:
    return policy_file.load(policy_file.SHIPPED)
  if os.sep in name or name.endswith(".safetensors") or os.path.exists(name):
    return policy_file.load(name)
  registry = open_registry(u.dir, trusted=u.trusted)
  try:
    kept = registry.kept("policies", name)
  except KeyError:
    there = ", ".join(registry.names("policies")) or "none"
    raise InputError(
      f"--config.tamiyo.policy_path={name}: no such file, and Urza keeps no"
      f" policy of that name (it keeps {there})"
    ) from None
  except Damaged as error:
    raise InputError(
      f"--config.tamiyo.policy_path={name}: damaged in Urza: {error}"
    ) from error
  return policy_file.from_bytes(kept.blob or b"", f"Urza's policy '{name}'")
