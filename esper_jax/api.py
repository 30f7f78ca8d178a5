"""The front door for notebooks: `esper_jax.grow(model, data)`.

It makes what `main.py` makes of a config, and runs the same trainer.
"""

import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from esper_jax import config as config_lib
from esper_jax import defaults
from esper_jax.data import given as given_data
from esper_jax.data.datasets import NAMES
from esper_jax.data.inputs import check_examples
from esper_jax.hosts.host import Host, from_model
from esper_jax.kasmina import blueprints as kasmina
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.knobs import GIVEN, KNOBS, SOURCES
from esper_jax.nissa import displays
from esper_jax.nissa.console import NORMAL
from esper_jax.oona.bus import Sink
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo.policy import Policy
from esper_jax.tolaria.given import Given
from esper_jax.tolaria.objective import Objective, PerExample, classification
from esper_jax.tolaria.state import evaluation_view
from esper_jax.tolaria.trainer import Callback, Trainer
from esper_jax.types import InputError, PyTree, RunFailedError

if TYPE_CHECKING:
  from esper_jax.export.writing import Exported

P = ParamSpec("P")
T = TypeVar("T")
RUNS = Path("runs")  # where fresh run directories are made
_ACCURACY = "accuracy"  # the metric that growth and the governor look at
# Keys of the config -> the argument of `grow` that sets them.
_ARGUMENTS = {
  "data.name": "data",
  "data.source": "data",
  "kasmina.blueprints": "blueprints",
  "tamiyo.policy": "policy",
}
_KEY_FLAG = re.compile(r"--config\.(\w+(?:\.\w+)*)")
_KEY_FIRST = re.compile(rf"^({'|'.join(map(re.escape, _ARGUMENTS))})\b")


@dataclasses.dataclass(frozen=True)
class Grown:
  """What a run came to.

  Attributes:
    workdir: the run directory; its checkpoints are of the whole run.
    result: what result.json holds: status, accuracies, parameters, slots ...
    variables: of the grown network, the moving average where the run keeps one:
      {"params": ..., its other collections, "seeds": slot -> key -> Seed}. A
      Linen model takes them: `model.apply(variables, x, train=False)`.
    host: the network as functions.
    preprocess: examples as they were given -> what the network reads.
  """

  workdir: Path
  result: dict[str, Any] = dataclasses.field(repr=False)
  variables: dict[str, PyTree] = dataclasses.field(repr=False)
  host: Host = dataclasses.field(repr=False)
  preprocess: Callable[[jax.Array], jax.Array] = dataclasses.field(repr=False)
  _given: Given = dataclasses.field(repr=False)
  _check: Callable[[Any], jax.Array] = dataclasses.field(repr=False)

  def predict(self, examples: Any) -> jax.Array:
    """Outputs of the grown network, [n, ...], for examples [n, ...] as given.

    One program is compiled for each number of examples.

    Raises:
      InputError: the examples have another dtype or shape than the data.
    """
    return self._predict(self.variables, self._check(examples))

  def export(self, to: str | Path) -> "Exported":
    """Takes the network home, as `python -m esper_jax.export` does.

    What is written is the newest whole checkpoint of `workdir`, checked on the
    CPU, in float32 to 1e-4 of the largest output; see docs/export.md.

    Args:
      to: the folder to make. It must not be there, or be empty, or hold an
        export of the same network, which is left as it is.

    Returns:
      The folder, the content of export.json, the head of the lineage, and
      notes: what could not be written, and why.

    Raises:
      InputError: the folder or the run directory cannot be used.
      RunFailedError: a format does not give what training gives; nothing is
        left of the folder.
    """
    from esper_jax.export import writing  # flatbuffers, safetensors ...

    return writing.export_run(self.workdir, to, given=self._given)

  @functools.cached_property
  def _predict(self) -> Callable[[dict[str, PyTree], jax.Array], jax.Array]:
    def predict(variables: dict[str, PyTree], x: jax.Array) -> jax.Array:
      collections = dict(variables)
      params, seeds = collections.pop("params"), collections.pop("seeds", {})
      x = self.preprocess(x)
      apply = self.host.apply
      return apply(params, collections, seeds, x, train=False, key=None)[0]

    return jax.jit(predict)


def _briefly(function: Callable[P, T]) -> Callable[P, T]:
  """Has bad input end in a traceback of the caller's lines and one of ours."""

  @functools.wraps(function)
  def call(*args: P.args, **kwargs: P.kwargs) -> T:
    try:
      return function(*args, **kwargs)
    except InputError as error:
      raise error.with_traceback(None) from None

  return call


@_briefly
def grow(
  model: nn.Module | Host,
  data: Any,
  *,
  config: Mapping[str, Any] | None = None,
  variables: Mapping[str, PyTree] | None = None,
  policy: str | Policy | None = None,
  blueprints: Sequence[str | Blueprint] = (),
  loss: PerExample | None = None,
  metrics: Mapping[str, PerExample] | None = None,
  workdir: str | Path | None = None,
  callbacks: Sequence[Callback] = (),
  events: Sequence[Sink] = (),
  verbosity: int = NORMAL,
) -> Grown:
  """Trains a network that grows while it trains.

  Args:
    model: a Flax Linen module with `Slot`s in it, called as `model(x,
      train=...)`; or a host, such as `from_nnx` makes.
    data: examples of yours in any form that `data.given.read` takes; or
      "folder:PATH", images in a folder per class; or "text:PATH", a text; or
      the name of a data set, such as "digits".
    config: "section.key" -> value, as on the command line; all keys are in
      esper_jax/defaults.py.
    variables: start from these, {"params": ..., other collections}, as
      `model.init` gives them.
    policy: by name, or one of your own; None: as the config says.
    blueprints: what may be planted: names, or blueprints of your own, which are
      registered (and replace one of that name that is not built in). Empty: as
      the config says, by default all that fit.
    loss: (outputs, labels) -> float32 [batch]; None: softmax cross-entropy.
    metrics: name -> (outputs, labels) -> float32 [batch]. "accuracy", 0 to 1,
      takes the place of the share of right guesses; the means of others over
      validation and test stand in `result["metrics"]`.
    workdir: the run directory. One that holds a run of the same config and data
      is resumed, as by main.py. None: a fresh one, runs/MODEL-DATE-TIME.
    callbacks: called as callback(trainer, epoch's metrics) after each epoch;
      `trainer.stop()` ends the run.
    events: called with each event, once it is in events.jsonl; the run fails
      where one raises.
    verbosity: 0 prints nothing, 1 the course of the run, 2 every event.

  Returns:
    See `Grown`. Ctrl-C ends a run in order; `result["status"]` is then
    "interrupted", and the same call with its `workdir` resumes it.

  Raises:
    InputError: bad input; nothing was started. It names arguments, where that
      of main.py names flags.
    RunFailedError: the run could not go on.
  """
  with _naming_arguments(config or {}):
    changes, given = dict(config or {}), {}
    _take_model(model, changes, given)
    _take_data(data, changes, given)
    _take_policy(policy, changes, given)
    if blueprints:
      _set(changes, "kasmina.blueprints", _named(blueprints), "blueprints")
    whole = make_config(changes)
    given["objective"] = _objective(loss, metrics, whole)
    instead = Given(**given, variables=variables)
    with _directory(workdir, given["title"]) as path:
      shown = displays.of_run(
        path,
        verbosity=verbosity,
        settings=config_lib.flatten(whole),
        **config_lib.shown(whole),
      )
      trainer = Trainer(
        whole,
        path,
        display=shown,
        callbacks=[*callbacks, *shown.callbacks],
        given=instead,
        sinks=events,
      )
    result = trainer.train()
    params, collections, seeds = evaluation_view(trainer.run.state)
    preprocess = trainer.parts.steps.preprocess
    raw = trainer.parts.data.train_images

    def check(examples: Any) -> jax.Array:
      return check_examples(examples, str(raw.dtype), raw.shape[1:])

    return Grown(
      path,
      result,
      {"params": params, **collections, **({"seeds": seeds} if seeds else {})},
      trainer.parts.host,
      lambda examples: preprocess(check(examples), None),
      instead,
      check,
    )


def make_config(changes: Mapping[str, Any]) -> ConfigDict:
  """The defaults with some keys changed.

  Args:
    changes: "section.key" -> value.

  Raises:
    InputError: as the command line says it; `grow` has it name arguments.
  """
  config_lib.check_keys(changes)
  config = defaults.get_config()
  with config.ignore_type():
    for key, value in changes.items():
      section, _, name = key.rpartition(".")
      place = config[section] if section else config
      if isinstance(place[name], float) and type(value) is int:
        value = float(value)  # or the same run had another hash
      place[name] = value
  return config_lib.validate(config)


@contextlib.contextmanager
def _naming_arguments(config: Mapping[str, Any]) -> Iterator[None]:
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


def _set(changes: dict[str, Any], key: str, value: Any, argument: str) -> None:
  if key in changes:
    raise InputError(
      f"grow(): the argument {argument} and config['{key}'] say the same thing;"
      " give one of the two"
    )
  changes[key] = value


def _take_model(
  model: Any, changes: dict[str, Any], given: dict[str, Any]
) -> None:
  of_host = [key for key in changes if key.startswith("host.")]
  if of_host:
    raise InputError(
      f"grow(): config['{of_host[0]}'] is for the hosts of main.py; build the"
      " model as you want it"
    )
  given["host"] = from_model(model)
  own = isinstance(model, nn.Module)
  given["title"] = type(model).__name__ if own else "host"
  changes["host.name"] = GIVEN


def _take_data(
  data: Any, changes: dict[str, Any], given: dict[str, Any]
) -> None:
  if not isinstance(data, str | Path):
    given["splits"] = given_data.read(data)
    _set(changes, "data.source", GIVEN, "data")
  elif str(data) in NAMES:
    _set(changes, "data.name", str(data), "data")
  elif str(data).startswith(SOURCES):
    kind, _, path = str(data).partition(":")
    place = Path(path).expanduser().absolute()  # a notebook changes folders
    _set(changes, "data.source", f"{kind}:{place}", "data")
  else:
    place = Path(data).expanduser()
    kind = "folder" if place.is_dir() else "text" if place.is_file() else ""
    hint = f"did you mean '{kind}:{data}'? Or " if kind else ""
    raise InputError(
      f"grow(): data is '{data}'; {hint}give arrays, 'folder:PATH',"
      f" 'text:PATH', or one of {', '.join(NAMES)}"
    )


def _take_policy(
  policy: str | Policy | None, changes: dict[str, Any], given: dict[str, Any]
) -> None:
  if policy is None:
    return
  own = isinstance(policy, Policy)
  if own or (
    policy not in KNOBS["tamiyo.policy"].choices and policy in policies.names()
  ):
    given["policy"], policy = policy, GIVEN
  _set(changes, "tamiyo.policy", policy, "policy")


def _named(blueprints: Sequence[str | Blueprint]) -> tuple[str, ...]:
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


def _objective(
  loss: PerExample | None,
  metrics: Mapping[str, PerExample] | None,
  config: ConfigDict,
) -> Objective:
  smoothing = config.train.label_smoothing
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


@contextlib.contextmanager
def _directory(workdir: str | Path | None, title: str) -> Iterator[Path]:
  """The run directory; a fresh one is gone again where no run was started."""
  if workdir is not None:
    yield Path(workdir)
    return
  path = _fresh(RUNS / f"{title.lower()}-{time.strftime('%Y%m%d-%H%M%S')}")
  try:
    yield path
  except BaseException:
    with contextlib.suppress(OSError):
      path.rmdir()
    raise


def _fresh(path: Path) -> Path:
  numbered, n = path, 1
  while True:
    try:
      numbered.mkdir(parents=True)
      return numbered
    except FileExistsError:
      n += 1
      numbered = path.with_name(f"{path.name}-{n}")
    except OSError as error:
      raise InputError(
        f"cannot write {numbered}: {error.strerror}; give a workdir"
      ) from error
