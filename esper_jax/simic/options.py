"""What a Simic config may say: sections, each the settings of one part.

A section names only what differs from the defaults; those, and what each key
means, are in the record of the section.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from esper_jax.knobs import nearest
from esper_jax.types import InputError

_LEAST: dict[str, int] = {
  "training.environments": 1,
  "training.held_out": 2,
  "training.test_every": 1,
  "training.checkpoint_every": 1,
  "ppo.environments": 1,
  "ppo.minibatches": 1,
  "ppo.passes": 1,
  "monte_carlo.environments": 1,
  "monte_carlo.minibatches": 1,
  "monte_carlo.passes": 1,
  "evolution.pairs": 1,
  "evolution.environments": 1,
  "imitation.environments": 1,
  "imitation.steps": 1,
  "population.batch": 1,
  "population.steps": 1,
  "population.probe": 1,
  "population.pool": 1,
  "kasmina.epochs": 1,
  "kasmina.blend_epochs": 1,
  "network.heads": 1,
}
_WORDS = {
  "training.learner": ("ppo", "evolution"),
  "population.host": ("mlp", "cnn"),
}
_ONE_OR_NONE = ("tamiyo.temperature",)
_AT_MOST_ONE = (
  *("ppo.discount", "ppo.trace", "ppo.moments_rate"),
  *("monte_carlo.least", "monte_carlo.most", "monte_carlo.own"),
  *("monte_carlo.stray", "monte_carlo.follow"),
)
_ANY_SIGN = ("kasmina.training_gain_sigmas", "tamiyo.plateau_delta")
_ABOVE_ZERO = (
  *("evolution.deviation", "ppo.clip"),
  *("monte_carlo.least", "monte_carlo.unit", "monte_carlo.scale"),
  "monte_carlo.follow",
)


def read(
  config: Mapping[str, Mapping[str, Any]],
  overrides: Iterable[str],
  defaults: Mapping[str, Any],
) -> dict[str, Any]:
  """Makes the settings of every section.

  Args:
    config: section -> key -> value.
    overrides: "section.key=value", a Python literal or a word.
    defaults: section -> NamedTuple.

  Returns:
    section -> NamedTuple of the same class.

  Raises:
    InputError: a key that does not exist, or a value that is not valid.
  """
  known = {
    f"{section}.{key}": value
    for section, record in defaults.items()
    for key, value in record._asdict().items()
  }
  given: dict[str, Any] = {}
  for section, values in config.items():
    if not isinstance(values, Mapping):
      raise InputError(
        f"config.{section} is no section; the sections are"
        f" {', '.join(defaults)}"
      )
    given |= {f"{section}.{key}": value for key, value in values.items()}
  for text in overrides:
    key, equals, value = text.partition("=")
    if not equals:
      raise InputError(f"--config.{key} needs a value: --config.{key}=VALUE")
    given[key] = _literal(value)
  for key, value in given.items():
    if key not in known:
      raise InputError(
        f"--config.{key}: no such key; the nearest is"
        f" --config.{nearest(key, known)}"
      )
    known[key] = _checked(key, value, known[key])
  out = {
    section: record._replace(
      **{key: known[f"{section}.{key}"] for key in record._fields}
    )
    for section, record in defaults.items()
  }
  _check_together(out)
  return _with_life(out, given)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Gives "section.key" -> value of all settings."""
  return {
    f"{section}.{key}": value
    for section, record in settings.items()
    for key, value in record._asdict().items()
  }


def digest(settings: Mapping[str, Any]) -> str:
  """Computes the SHA-256, in hex, of all settings."""
  text = json.dumps(flat(settings), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text  # a word


def _checked(key: str, value: Any, default: Any) -> Any:
  def require(holds: bool, what: str) -> None:
    if not holds:
      raise InputError(f"--config.{key}={value}: must be {what}")

  if isinstance(value, list):
    value = tuple(value)
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  kind = type(default)
  require(type(value) is kind, f"of type {kind.__name__}, like {default!r}")
  if key in _WORDS:
    require(value in _WORDS[key], f"one of {', '.join(_WORDS[key])}")
  if kind in (int, float):
    least = _LEAST.get(key, 0)
    signed = key in _ANY_SIGN
    require(signed or value >= least, f"{least} or more")
    require(abs(value) < float("inf"), "finite")
  if key in _AT_MOST_ONE:
    require(value <= 1, "at most 1")
  if key in _ONE_OR_NONE:
    require(value in (0, 1), "0, the likeliest, or 1, as likely as it is")
  if key in _ABOVE_ZERO:
    require(value > 0, "above 0")
  return value


def _check_together(settings: Mapping[str, Any]) -> None:
  training = settings.get("training")
  if training is not None and not (
    training.imitate or training.explore or training.iterations
  ):
    raise InputError(
      "--config.training.iterations=0: nothing would be learned; give some, or"
      " training.explore, or training.imitate"
    )
  for name in ("ppo", "monte_carlo"):
    own = settings.get(name)
    if own is not None and own.environments % own.minibatches:
      raise InputError(
        f"--config.{name}.minibatches={own.minibatches}: must divide"
        f" --config.{name}.environments={own.environments}"
      )
  coin = settings.get("monte_carlo")
  if coin is not None and coin.most < coin.least:
    raise InputError(
      f"--config.monte_carlo.most={coin.most}: must be at least"
      f" --config.monte_carlo.least={coin.least}"
    )
  ppo = settings.get("ppo")
  if ppo is not None and ppo.dense and ppo.discount < 1:
    raise InputError(
      f"--config.ppo.discount={ppo.discount}: must be 1 with"
      " --config.ppo.dense=True, or the rewards do not add up to the return"
    )


def _with_life(
  settings: dict[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
  """Gives policies the numbers of the lifecycle that their settings repeat."""
  if not {"tamiyo", "kasmina"} <= settings.keys():
    return settings
  tamiyo, life = settings["tamiyo"], settings["kasmina"]._asdict()
  shared = {key: life[key] for key in tamiyo._fields if key in life}
  for key, value in shared.items():
    if given.get(f"tamiyo.{key}", value) != value:
      raise InputError(
        f"--config.tamiyo.{key}: the lifecycle decides; set"
        f" --config.kasmina.{key}, which policies are given"
      )
  return {**settings, "tamiyo": tamiyo._replace(**shared)}
