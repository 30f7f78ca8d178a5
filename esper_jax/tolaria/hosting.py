"""The host that a config names, and what must hold of any host."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import NameInUseError
from ml_collections import ConfigDict

from esper_jax.data import augment, doubts
from esper_jax.data.splits import Dataset
from esper_jax.hosts import grown
from esper_jax.hosts.host import Host, from_linen
from esper_jax.hosts.registry import (
  host_names,
  make_host,
  reads_tokens,
  slot_names,
)
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import with_seeds_at
from esper_jax.knobs import GIVEN
from esper_jax.tolaria import objective as objectives
from esper_jax.tolaria.given import shapes_of
from esper_jax.tolaria.growth_options import GrowthOptions
from esper_jax.tolaria.steps import StepOptions
from esper_jax.types import InputError, PyTree, SlotTable, counted


class Before(NamedTuple):
  """The network that a run goes on with.

  Attributes:
    folder: of its export.
    topology: what topology.json holds.
  """

  folder: Path
  topology: Mapping[str, Any]


class Named(NamedTuple):
  """The host of a run.

  Attributes:
    host: two functions.
    data: as the host is to read it.
    title: for people; "" is the config's host.name.
    variables: those at the start; None: drawn.
    before: the network that the run goes on with, if it does.
  """

  host: Host
  data: Dataset
  title: str = ""
  variables: Mapping[str, PyTree] | None = None
  before: Before | None = None


def host_arguments(config: ConfigDict, num_classes: int) -> dict[str, Any]:
  """What `hosts.registry.make_host` takes for a config, slots left out.

  Args:
    config: validated.
    num_classes: of the data.

  Returns:
    Plain values; "dtype" is a name.
  """
  h = config.host
  return {
    "name": h.name,
    "num_classes": num_classes,
    "width": h.width,
    "depth": h.depth,
    "heads": h.heads,
    "context": config.data.context,
    "norm": h.norm,
    "inner_widths": tuple(h.inner_widths),
    "dtype": dtype_of(config),
  }


def dtype_of(config: ConfigDict) -> str:
  """The dtype of the computation: train.precision, "auto" by the device."""
  if config.train.precision != "auto":
    return config.train.precision
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def named_host(config: ConfigDict, data: Dataset) -> Named:
  """Builds the host that a config names, or reads the one that it goes on with.

  Raises:
    InputError: it does not read such data, or the network of host.from is not
      the one that the config describes.
  """
  _check_kind(config, data)
  arguments = host_arguments(config, data.num_classes)
  dtype = jnp.dtype(arguments.pop("dtype"))
  chosen = config.host.slots
  slots = chosen if isinstance(chosen, str) else tuple(chosen)
  folder = config.host["from"]
  if not folder:
    module = make_host(**arguments, slots=slots, dtype=dtype)
    return Named(from_linen(module), data)
  topology, variables = grown.read(Path(folder))
  _check_topology(topology, arguments, data, folder)
  records = topology["seeds"]
  every = slot_names(config.host.name, depth=config.host.depth)
  growing = every if slots == "all" else slots
  holding = {record["slot"] for record in records}
  module = make_host(
    **arguments, slots=tuple({*growing, *holding}), dtype=dtype
  )
  return Named(
    host=grown.as_host(module, records, growing),
    data=_normalized_as(data, topology["input"]),
    title=_title(config.host.name, folder, topology),
    variables=variables,
    before=Before(Path(folder), topology),
  )


def given_host(
  config: ConfigDict, data: Dataset, model: Host, title: str
) -> Named:
  """A user's host, with what grew in it where host.from says so.

  Args:
    config: validated.
    data: as it was given.
    model: the host.
    title: of the model, for people.

  Raises:
    InputError: the network of host.from reads other examples, or tells other
      classes apart.
  """
  folder = config.host["from"]
  if not folder:
    return Named(model, data, title)
  topology, variables = grown.read(Path(folder))
  _check_examples(topology, data, folder)
  data = _normalized_as(data, topology["input"])
  examples, dtype = data.train_images, jnp.dtype(dtype_of(config))
  example = jax.eval_shape(
    lambda x: augment.to_input(x, data.mean, data.std, dtype),
    jax.ShapeDtypeStruct((1, *examples.shape[1:]), examples.dtype),
  )
  shapes = shapes_of(model, example)
  return Named(
    host=grown.with_seeds(model, shapes, topology["seeds"]),
    data=data,
    title=_title(title, folder, topology),
    variables=variables,
    before=Before(Path(folder), topology),
  )


def _title(name: str, folder: str, topology: Mapping[str, Any]) -> str:
  count = len(topology["seeds"]) + len(topology["merged"])
  return f"{name} of {folder} ({counted(count, 'seed')} grown before)"


def _check_examples(
  topology: Mapping[str, Any], data: Dataset, folder: str
) -> None:
  """Refuses data that a user's grown model does not know."""
  form, where = topology["input"], f"--config.host.from={folder}"
  wanted = f"{form['dtype']} {form['shape'][1:]}"
  found = f"{data.train_images.dtype} {list(data.train_images.shape[1:])}"
  if found != wanted:
    raise InputError(
      f"{where} reads examples {wanted}, and the data has {found}"
      f" ({data.source}); give data of that form"
    )
  classes = topology["output"].get("classes", [])
  if classes and data.classes and classes != list(data.classes):
    raise InputError(
      f"{where} tells apart {', '.join(classes)}, and the data has"
      f" {', '.join(data.classes)} ({data.source}); give the same classes, or"
      " labels as numbers"
    )


def _check_kind(config: ConfigDict, data: Dataset) -> None:
  name, is_text = config.host.name, data.train_images.dtype == np.int32
  if is_text != reads_tokens(name):
    fitting = [n for n in host_names() if reads_tokens(n) == is_text]
    raise InputError(
      f"host.name is {name}, which reads {'images' if is_text else 'text'},"
      f" but the data is {data.source}: set --config.host.name to one of"
      f" {', '.join(fitting)}, or --config.data.source=text:PATH, or"
      " --config.data.name"
    )


def _check_topology(
  topology: Mapping[str, Any],
  arguments: Mapping[str, Any],
  data: Dataset,
  folder: str,
) -> None:
  """Refuses a network that is not the one that the config describes."""
  host, where = topology["host"], f"--config.host.from={folder}"
  if host["name"] == GIVEN:
    raise InputError(
      f"{where} is a network of a model of yours ({host['title']}); in Python,"
      f" go on with it by grow(load_grown('{folder}', model=...), ...)"
    )
  for name, value in arguments.items():
    there = host[name]
    if (tuple(there) if isinstance(there, list) else there) == value:
      continue
    if name == "num_classes":
      raise InputError(
        f"{where} tells {there} classes apart, and the data has {value}"
        f" ({data.source}); give data of as many"
      )
    key = "data.context" if name == "context" else f"host.{name}"
    text = str(there)
    if isinstance(there, list):
      text = ",".join(map(str, there)) or "()"
    raise InputError(
      f"{where} is a network of {key} {text}, and the config has {value};"
      f" give --config.{key}={shlex.quote(text)}"
    )
  form = topology["input"]
  if reads_tokens(host["name"]):
    if form["vocabulary"] != data.vocabulary:
      raise InputError(
        f"{where} reads a text of {len(form['vocabulary'])} characters, and"
        f" the data has others ({data.source}); give the text it was trained on"
      )
    return
  shape = list(data.train_images.shape[1:])
  if form["shape"][1:] != shape:
    raise InputError(
      f"{where} reads images of {_size(form['shape'][1:])}, and the data has"
      f" {_size(shape)} ({data.source}); give data of that size"
    )


def _size(shape: Sequence[int]) -> str:
  return "x".join(map(str, shape))


def _normalized_as(data: Dataset, form: Mapping[str, Any]) -> Dataset:
  """The data, normalized as that of the network was: it goes on from there."""
  if "mean" not in form:
    return data
  return dataclasses.replace(
    data, mean=tuple(form["mean"]), std=tuple(form["std"])
  )


def slots_of(host: Host, example: jax.Array) -> SlotTable:
  """The host's slot table, from one abstract trace."""

  def forward():
    params, collections = host.init(jax.random.key(0), example)
    return host.apply(params, collections, {}, example, train=False, key=None)

  # Flax runs the module once in init and once in apply: same slots.
  try:
    return surgery.slot_table(forward)
  except NameInUseError as error:
    what = str(error).partition(": Name in use")[0].rstrip(".")
    raise InputError(
      f"two parts of the model have one name ({what}); give each slot and each"
      " layer its own"
    ) from error


def check_readable(
  host: Host, example: jax.Array, growth: GrowthOptions
) -> None:
  """Refuses a host whose program would ignore a planted seed.

  One abstract trace with a seed in every slot; nothing is computed.

  Raises:
    InputError: names the slot and the cause.
  """
  chosen = {}
  for row, path in enumerate(growth.slots):
    column = np.flatnonzero(growth.fits[row * growth.lanes])
    if len(column):
      chosen[path] = growth.blueprints[int(column[0])]

  def forward():
    params, collections = host.init(jax.random.key(0), example)
    seeds: dict[str, Any] = {}
    for path, name in chosen.items():
      seed = surgery.make_seed(growth.slots[path], name, key=jax.random.key(0))
      seeds = with_seeds_at(seeds, path, {name: seed})
    expected.update(seeds)
    return host.apply(
      params, collections, seeds, example, train=False, key=None
    )

  expected: dict[str, Any] = {}
  surgery.check_consumed(forward, expected)


def check_figures(
  host: Host, example: jax.Array, data: Dataset, steps: StepOptions
) -> tuple[str, ...]:
  """Refuses a host whose outputs give no loss; nothing is computed.

  Returns:
    What is odd and not wrong: see `objective.spare_logits` and
    `doubts.of_shape`.

  Raises:
    InputError: see `objective.check`.
  """

  def forward(images):
    params, collections = host.init(jax.random.key(0), example)
    x = steps.preprocess(images, None)
    return host.apply(params, collections, {}, x, train=False, key=None)

  outputs = jax.eval_shape(forward, data.train_images[:2])[0]
  objectives.check(
    steps.objective,
    outputs,
    jax.eval_shape(jnp.asarray, data.train_labels[:2]),
    num_classes=data.num_classes,
    doubt=lambda: doubts.of_labels(data),
  )
  spare = objectives.spare_logits(steps.objective, outputs, data.num_classes)
  return tuple(filter(None, (spare, doubts.of_shape(data))))
