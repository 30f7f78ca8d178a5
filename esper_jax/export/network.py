"""A grown network read back: what `esper_jax.load_grown` returns."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from esper_jax.data import augment
from esper_jax.export import layout
from esper_jax.export.lineage import TOPOLOGY, WEIGHTS
from esper_jax.hosts.registry import make_host
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.slot import Seed, Slot, contribution
from esper_jax.types import InputError, PyTree, SlotSpec

SCHEMA = 1


class GrownNetwork:
  """An exported network: `network(inputs)` gives logits.

  Attributes:
    topology: what topology.json holds.
    variables: collection -> nested modules: those of the host, and of each
      seed beside them.
  """

  def __init__(
    self, topology: Mapping[str, Any], variables: Mapping[str, PyTree]
  ):
    """Builds the network.

    Args:
      topology: see the attribute.
      variables: see the attribute.

    Raises:
      InputError: a blueprint is not registered.
    """
    self.topology = topology
    self.variables = variables
    host = dict(topology["host"])
    self._dtype = jnp.dtype(host.pop("dtype"))
    by_slot: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for record in topology["seeds"]:
      blueprints.get(record["blueprint"])
      depths = by_slot.setdefault(record["slot"], {})
      depths.setdefault(record["depth"], []).append(record)
    self._by_slot = by_slot
    self._own = {record["name"] for record in topology["seeds"]}
    self._own |= {layout.gate_name(name) for name in self._own}
    self._module = make_host(**host, slots=tuple(by_slot), dtype=self._dtype)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the logits, float32 [batch, classes].

    Args:
      inputs: uint8 [batch, height, width, channels], images as the data set
        has them; they are normalized here. Of a network that reads text:
        tokens int32 [batch, time], places in `topology["input"]["vocabulary"]`,
        which give the logits of each next one, [batch, time, classes].
    """
    return self.apply(self.variables, inputs)

  def apply(
    self, variables: Mapping[str, PyTree], inputs: jax.Array
  ) -> jax.Array:
    """As calling it, with other variables of the same form; to be jitted."""
    reads, x = self.topology["input"], inputs
    if "mean" in reads:
      x = augment.normalize(x, reads["mean"], reads["std"], dtype=self._dtype)
    host = {
      collection: {k: v for k, v in tree.items() if k not in self._own}
      for collection, tree in variables.items()
      if collection != layout.SEED_STATE
    }

    def at_slot(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
      if not isinstance(context.module, Slot):
        return following(*args, **kwargs)
      return self._grow("/".join(context.module.path), args[0], variables)

    with nn.intercept_methods(at_slot):
      logits: Any = self._module.apply(host, x, train=False)
    return logits

  def _grow(
    self, slot: str, x: jax.Array, variables: Mapping[str, PyTree]
  ) -> jax.Array:
    """The slot's seeds without what only training needs."""
    for beside in self._by_slot[slot].values():
      outputs = [_contribution(record, variables, x) for record in beside]
      for record, y in zip(beside, outputs, strict=True):
        strength = record["strength"]
        x = x + (y if strength == 1 else jnp.asarray(strength, y.dtype) * y)
    return x


def _contribution(
  record: Mapping[str, Any], variables: Mapping[str, PyTree], x: jax.Array
) -> jax.Array:
  name, blueprint = record["name"], record["blueprint"]
  entry: dict[str, Any] = dict(record["input"])
  spec = SlotSpec(**entry | {"shape": tuple(entry["shape"])})
  shapes = blueprints.abstract_init(blueprints.get(blueprint), spec)

  def read(collection: str, tree: PyTree) -> PyTree:
    named = layout.flat(variables.get(collection, {}).get(name, {}))
    return layout.from_named(tree, named, blueprint)

  params = {"branch": read("params", shapes[0])}
  if record["blend"] == "gate":
    params["gate"] = variables["params"][layout.gate_name(name)]
  one = jnp.ones((), jnp.float32)
  seed = Seed(
    params=params,
    state=read(layout.SEED_STATE, shapes[1]),
    alpha=one,
    isolation=one - one,
    proximal=one,
    updates=one,
    blueprint=blueprint,
    blend=record["blend"],
  )
  y, _ = contribution(seed, x, train=False, key=None)
  return y


def load_grown(path: str | Path) -> GrownNetwork:
  """Loads a network that `python -m esper_jax.export` wrote.

  Args:
    path: the folder.

  Returns:
    A network to call: `load_grown(path)(inputs)`; for a program of your own,
    `network.apply(network.variables, images)` under `jax.jit`.

  Raises:
    InputError: a file is missing or damaged, of another schema, or a blueprint
      is not registered. `python -m esper_jax.export verify` says more.
  """
  folder = Path(path)
  topology = json.loads(_read(folder / TOPOLOGY))
  if topology.get("schema") != SCHEMA:
    raise InputError(
      f"{folder / TOPOLOGY} has schema {topology.get('schema')!r}, this version"
      f" reads {SCHEMA}; export the run again, or use the version that wrote it"
    )
  weights = folder / WEIGHTS
  variables = layout.from_bytes(_read(weights), str(weights))
  try:
    return GrownNetwork(topology, jax.tree.map(jnp.asarray, variables))
  except InputError as error:
    modules = ", ".join(topology["modules"])
    hint = f" (import what registers it first: {modules})" if modules else ""
    raise InputError(f"{folder / TOPOLOGY}: {error}{hint}") from error


def _read(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise InputError(
      f"cannot read {path}: {error.strerror}; give a folder that"
      " `python -m esper_jax.export RUN --to=DIR` wrote"
    ) from error
