"""What `esper_jax.grow` is called with, as keys of a config and a `Given`."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from esper_jax.data import given as given_data
from esper_jax.data.datasets import NAMES
from esper_jax.export.network import GrownNetwork
from esper_jax.hosts.host import from_model
from esper_jax.kasmina import blueprints as kasmina
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.knobs import GIVEN, KNOBS, SOURCES
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo.policy import Policy
from esper_jax.tolaria.objective import Objective, PerExample, classification
from esper_jax.types import InputError, RunFailedError

_ACCURACY = "accuracy"  # the metric that growth and the governor look at
# Keys of the config -> the argument of `grow` that sets them.
_ARGUMENTS = {
  "data.name": "data",
  "data.source": "data",
  "host.from": "model",
  "kasmina.blueprints": "blueprints",
  "tamiyo.policy": "policy",
}
_KEY_FLAG = re.compile(r"--config\.(\w+(?:\.\w+)*)")
_KEY_FIRST = re.compile(rf"^({'|'.join(map(re.escape, _ARGUMENTS))})\b")


@contextlib.contextmanager
def naming_arguments(config: Mapping[str, Any]) -> Iterator[None]:
  """Has errors name what `grow` takes, in place of the flags of main.py."""

  def name(flag: re.Match[str]) -> str:
    key = flag[1]
    by_argument = key in _ARGUMENTS and key not in config
    return _ARGUMENTS[key] if by_argument else f"config['{key}']"

  try:
    yield
  except (InputError, RunFailedError) as error:
    told = _KEY_FLAG.sub(name, _KEY_FIRST.sub(name, str(error)))
    told = told.replace("--workdir", "workdir")
    error.args = (told,)
    raise


def set_key(
  changes: dict[str, Any], key: str, value: Any, argument: str
) -> None:
  """Sets a key of the config by an argument, where the config does not."""
  if key in changes:
    raise InputError(
      f"grow(): the argument {argument} and config['{key}'] say the same thing;"
      " give one of the two"
    )
  changes[key] = value


def take_model(
  model: Any, variables: Any, changes: dict[str, Any], given: dict[str, Any]
) -> None:
  """Takes `grow`'s model: adds to what is changed and given, in place.

  Raises:
    InputError: it is no model, not the one that grew, or the config or the
      variables say otherwise.
  """
  of_host = [key for key in changes if key.startswith("host.")]
  if of_host:
    raise InputError(
      f"grow(): config['{of_host[0]}'] is for the hosts of main.py; build the"
      " model as you want it, or go on with a grown one,"
      " grow(load_grown(DIR, model=...), ...)"
    )
  if isinstance(model, GrownNetwork):
    _take_grown(model, variables, changes, given)
    return
  given["host"] = from_model(model)
  given["title"] = given["host"].title
  changes["host.name"] = GIVEN


def _take_grown(
  network: GrownNetwork,
  variables: Any,
  changes: dict[str, Any],
  given: dict[str, Any],
) -> None:
  if variables is not None:
    raise InputError(
      f"grow(): the network of {network.folder} starts from its own variables;"
      " leave variables out"
    )
  host = network.topology["host"]
  changes["host.from"] = str(network.folder)
  changes["host.name"] = host["name"]
  given["title"] = host.get("title", host["name"])
  if network.model is not None:
    from esper_jax.export import stablehlo  # flatbuffers

    stablehlo.check_model(network)
    given["host"] = network.model
    return
  for name in ("width", "depth", "heads", "norm", "inner_widths"):
    value = host[name]
    changes[f"host.{name}"] = tuple(value) if type(value) is list else value
  changes.setdefault("data.context", host["context"])


def take_data(
  data: Any, changes: dict[str, Any], given: dict[str, Any]
) -> None:
  """Takes `grow`'s data: adds to what is changed and given, in place."""
  if not isinstance(data, str | Path):
    given["splits"] = given_data.read(data)
    set_key(changes, "data.source", GIVEN, "data")
  elif str(data) in NAMES:
    set_key(changes, "data.name", str(data), "data")
  elif str(data).startswith(SOURCES):
    kind, _, path = str(data).partition(":")
    place = Path(path).expanduser().absolute()  # a notebook changes folders
    set_key(changes, "data.source", f"{kind}:{place}", "data")
  else:
    place = Path(data).expanduser()
    kind = "folder" if place.is_dir() else "text" if place.is_file() else ""
    hint = f"did you mean '{kind}:{data}'? Or " if kind else ""
    raise InputError(
      f"grow(): data is '{data}'; {hint}give arrays, 'folder:PATH',"
      f" 'text:PATH', or one of {', '.join(NAMES)}"
    )


def take_policy(
  policy: str | Policy | None, changes: dict[str, Any], given: dict[str, Any]
) -> None:
  """Takes `grow`'s policy: adds to what is changed and given, in place."""
  if policy is None:
    return
  own = isinstance(policy, Policy)
  if own or (
    policy not in KNOBS["tamiyo.policy"].choices and policy in policies.names()
  ):
    given["policy"], policy = policy, GIVEN
  set_key(changes, "tamiyo.policy", policy, "policy")


def names_of(blueprints: Sequence[str | Blueprint]) -> tuple[str, ...]:
  """Their names, once all of them are registered."""
  if isinstance(blueprints, str | Blueprint):  # both are sequences
    blueprints = [blueprints]
  for blueprint in blueprints:
    if not isinstance(blueprint, Blueprint):
      continue
    name = blueprint.name
    if name in kasmina.names() and name not in kasmina.BUILT_IN:
      if kasmina.get(name) == blueprint:
        continue
      kasmina.unregister(name)  # a notebook's cell that was run again
    kasmina.register(blueprint)
  return tuple(b.name if isinstance(b, Blueprint) else b for b in blueprints)


def make_objective(
  loss: PerExample | None,
  metrics: Mapping[str, PerExample] | None,
  smoothing: float,
) -> Objective:
  """What is minimized and counted.

  Args:
    loss, metrics: see `api.grow`.
    smoothing: of the labels, for the loss that is built in.

  Raises:
    InputError: there is a loss and a smoothing.
  """
  if loss is not None and smoothing:
    raise InputError(
      f"--config.train.label_smoothing={smoothing}: it is for the loss that is"
      " built in; smooth the labels in yours, or set it to 0"
    )
  own = dict(metrics or {})
  objective = classification(label_smoothing=smoothing)
  if loss is not None:
    objective = objective._replace(train_loss=loss, loss=loss)
  hits = own.pop(_ACCURACY, objective.hits)
  return objective._replace(hits=hits, metrics=own)
