"""The front door for notebooks: `esper_jax.grow(model, data)`.

It makes what `main.py` makes of a config, and runs the same trainer.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from esper_jax import arguments, defaults
from esper_jax import config as config_lib
from esper_jax.data.inputs import check_examples
from esper_jax.data.splits import Dataset
from esper_jax.export.network import GrownNetwork
from esper_jax.hosts import grown
from esper_jax.hosts.host import Host
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.nissa import displays
from esper_jax.nissa.console import NORMAL
from esper_jax.oona.bus import Sink
from esper_jax.tamiyo.policy import Policy
from esper_jax.tolaria.given import Given, shapes_of
from esper_jax.tolaria.objective import PerExample
from esper_jax.tolaria.state import evaluation_view
from esper_jax.tolaria.trainer import Callback, Trainer
from esper_jax.types import InputError, PyTree

if TYPE_CHECKING:
  from esper_jax.export.writing import Exported

P = ParamSpec("P")
T = TypeVar("T")
RUNS = Path("runs")  # where fresh run directories are made


@dataclasses.dataclass(frozen=True)
class Grown:
  """What a run came to.

  Attributes:
    workdir: the run directory; its checkpoints are of the whole run.
    result: what result.json holds: status, accuracies, parameters, slots ...
    variables: of the grown network, the moving average where the run keeps one:
      {"params": ..., its other collections, "seeds": slot -> key -> Seed}. A
      Linen model takes them: `model.apply(variables, x, train=False)`. A seed
      of a run before this one has its generation in its key: "0:dense".
    host: the network as functions.
    preprocess: examples as they were given -> what the network reads.
    data: the three splits as the run had them: `data.validation_images`,
      `data.validation_labels`, `data.test_images` ..., in the order in which
      they were given; gray images have a channel axis. Labels that were texts
      are places in `data.classes`.
  """

  workdir: Path
  result: dict[str, Any] = dataclasses.field(repr=False)
  variables: dict[str, PyTree] = dataclasses.field(repr=False)
  host: Host = dataclasses.field(repr=False)
  preprocess: Callable[[jax.Array], jax.Array] = dataclasses.field(repr=False)
  data: Dataset = dataclasses.field(repr=False)
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
  model: nn.Module | Host | GrownNetwork,
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
      train=...)`; or a host, such as `from_nnx` makes; or what `load_grown`
      gave: the run goes on with that network, from its files, and every slot
      may grow again.
    data: examples of yours in any form that `data.given.read` takes; or
      "folder:PATH", images in a folder per class; or "text:PATH", a text; or
      the name of a data set, such as "digits".
    config: "section.key" -> value, as on the command line; all keys are in
      esper_jax/defaults.py.
    variables: start from these, {"params": ..., other collections}, as
      `model.init` gives them; None where the model has grown before.
    policy: by name, or one of your own; None: as the config says,
      by default the heuristic.
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
  with arguments.naming_arguments(config or {}):
    changes, given = dict(config or {}), {}
    arguments.take_model(model, variables, changes, given)
    arguments.take_data(data, changes, given)
    arguments.take_policy(policy, changes, given)
    if blueprints:
      arguments.set_key(
        changes,
        "kasmina.blueprints",
        arguments.names_of(blueprints),
        "blueprints",
      )
    whole = make_config(changes)
    given["objective"] = arguments.make_objective(
      loss, metrics, whole.train.label_smoothing
    )
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
    host, (params, collections, seeds) = _grown(trainer, instead)
    preprocess = trainer.parts.steps.preprocess
    raw = trainer.parts.data.train_images

    def check(examples: Any) -> jax.Array:
      return check_examples(examples, str(raw.dtype), raw.shape[1:])

    return Grown(
      path,
      result,
      {"params": params, **collections, **({"seeds": seeds} if seeds else {})},
      host,
      lambda examples: preprocess(check(examples), None),
      trainer.parts.data,
      instead,
      check,
    )


def _grown(
  trainer: Trainer, given: Given
) -> tuple[Host, tuple[PyTree, dict[str, PyTree], dict[str, Any]]]:
  """(The host, its variables as it takes them) at the end of a run."""
  parts, view = trainer.parts, evaluation_view(trainer.run.state)
  if given.host is None or parts.before is None:
    return parts.host, view
  params, collections, seeds = view
  return given.host, grown.united(
    {"params": params, **collections},
    seeds,
    shapes_of(given.host, parts.example),
    parts.before.topology["seeds"],
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
