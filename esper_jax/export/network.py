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
from esper_jax.export.lineage import PROGRAM, TOPOLOGY, WEIGHTS
from esper_jax.hosts.host import Host, from_model
from esper_jax.hosts.registry import make_host
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.slot import Seed, Slot, contribution, with_seeds_at
from esper_jax.knobs import GIVEN
from esper_jax.tolaria.given import misfit, shapes_of
from esper_jax.types import InputError, PyTree, SlotSpec

SCHEMA = 1


class GrownNetwork:
  """An exported network: `network(inputs)` gives logits.

  A user's model takes examples and gives outputs of any kind.

  Attributes:
    topology: what topology.json holds.
    variables: collection -> nested modules: those of the host, and of each
      seed beside them.
  """

  def __init__(
    self,
    topology: Mapping[str, Any],
    variables: Mapping[str, PyTree],
    given: Host | None = None,
  ):
    """Builds the network.

    Args:
      topology: see the attribute.
      variables: see the attribute.
      given: the host, where it is a user's.

    Raises:
      InputError: a blueprint is not registered, or the given host has other
        variables.
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
    self._given = given
    if given is not None:
      self._shapes = self._fitting(given)
      return
    self._module = make_host(**host, slots=tuple(by_slot), dtype=self._dtype)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the logits, float32 [batch, classes].

    Args:
      inputs: uint8 [batch, height, width, channels], images as the data set
        has them; they are normalized here. Of a network that reads text:
        tokens int32 [batch, time], places in `topology["input"]["vocabulary"]`,
        which give the logits of each next one, [batch, time, classes]. Of a
        user's model: raw examples, as topology["input"] says.
    """
    return self.apply(self.variables, inputs)

  def apply(
    self, variables: Mapping[str, PyTree], inputs: jax.Array
  ) -> jax.Array:
    """As calling it, with other variables of the same form; to be jitted."""
    x = self._prepare(inputs)
    host = self._of_host(variables)
    if self._given is not None:
      named = {k: layout.flat(tree) for k, tree in host.items()}
      host = {
        name: layout.from_named(tree, named.get(name, {}), "")
        for name, tree in self._shapes.items()
      }
      seeds = self._seeds(variables)
      params = host.pop("params")
      return self._given.apply(params, host, seeds, x, train=False, key=None)[0]

    def at_slot(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
      if not isinstance(context.module, Slot):
        return following(*args, **kwargs)
      return self._grow("/".join(context.module.path), args[0], variables)

    with nn.intercept_methods(at_slot):
      logits: Any = self._module.apply(host, x, train=False)
    return logits

  def _prepare(self, examples: jax.Array) -> jax.Array:
    """Raw examples as the host reads them."""
    form, dtype = self.topology["input"], self._dtype
    if form["dtype"] == "uint8":
      return augment.normalize(examples, form["mean"], form["std"], dtype)
    examples = jnp.asarray(examples, form["dtype"])
    return augment.to_input(examples, (), (), dtype)

  def _of_host(self, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    return {
      collection: {k: v for k, v in tree.items() if k not in self._own}
      for collection, tree in variables.items()
      if collection != layout.SEED_STATE
    }

  def _fitting(self, given: Host) -> dict[str, PyTree]:
    """The shapes of a given host's variables, if they are the network's."""
    form = self.topology["input"]
    raw = jax.ShapeDtypeStruct((1, *form["shape"][1:]), form["dtype"])
    shapes = shapes_of(given, jax.eval_shape(self._prepare, raw))
    problems = misfit(shapes, self._of_host(self.variables))
    if problems:
      raise InputError(
        f"the model is not the one that grew: {problems}; give the same"
      )
    return shapes

  def _seeds(self, variables: Mapping[str, PyTree]) -> dict[str, Any]:
    """The tree of seeds that a host's `apply` takes."""
    seeds: dict[str, Any] = {}
    for slot, depths in self._by_slot.items():
      own = {
        record["key"]: _seed(record, variables)
        for beside in depths.values()
        for record in beside
      }
      seeds = with_seeds_at(seeds, slot, own)
    return seeds

  def _grow(
    self, slot: str, x: jax.Array, variables: Mapping[str, PyTree]
  ) -> jax.Array:
    """The slot's seeds without what only training needs."""
    for beside in self._by_slot[slot].values():
      outputs = [
        contribution(_seed(record, variables), x, train=False, key=None)[0]
        for record in beside
      ]
      for record, y in zip(beside, outputs, strict=True):
        strength = record["strength"]
        x = x + (y if strength == 1 else jnp.asarray(strength, y.dtype) * y)
    return x


def _seed(record: Mapping[str, Any], variables: Mapping[str, PyTree]) -> Seed:
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
  return Seed(
    params=params,
    state=read(layout.SEED_STATE, shapes[1]),
    alpha=jnp.asarray(record["strength"], jnp.float32),
    isolation=one - one,
    proximal=one,
    updates=one,
    blueprint=blueprint,
    blend=record["blend"],
    depth=record["depth"],
  )


def load_grown(
  path: str | Path, *, model: nn.Module | Host | None = None
) -> GrownNetwork:
  """Loads a network that an export wrote.

  Args:
    path: the folder.
    model: what `grow` was given, where the network is a user's; else None.

  Returns:
    A network to call: `load_grown(path)(inputs)`; for a program of your own,
    `network.apply(network.variables, images)` under `jax.jit`.

  Raises:
    InputError: a file is missing or damaged, of another schema, a blueprint
      is not registered, or the model is missing or another one.
      `python -m esper_jax.export verify` says more.
  """
  folder = Path(path)
  topology = json.loads(_read(folder / TOPOLOGY))
  if topology.get("schema") != SCHEMA:
    raise InputError(
      f"{folder / TOPOLOGY} has schema {topology.get('schema')!r}, this version"
      f" reads {SCHEMA}; export the run again, or use the version that wrote it"
    )
  given = _given(folder, topology["host"], model)
  weights = folder / WEIGHTS
  variables = layout.from_bytes(_read(weights), str(weights))
  try:
    return GrownNetwork(topology, jax.tree.map(jnp.asarray, variables), given)
  except InputError as error:
    modules = ", ".join(topology["modules"])
    hint = f" (import what registers it first: {modules})" if modules else ""
    raise InputError(f"{folder / TOPOLOGY}: {error}{hint}") from error


def _given(folder: Path, host: Mapping[str, Any], model: Any) -> Host | None:
  if host["name"] != GIVEN:
    if model is not None:
      raise InputError(
        f"{folder} holds a {host['name']}, which is made from what is there;"
        " leave model out"
      )
    return None
  if model is None:
    raise InputError(
      f"{folder} holds a network of a model of yours ({host['title']}); give"
      f" what grow() was given, load_grown('{folder}', model=...), or use"
      f" {PROGRAM}, which needs no model"
    )
  return from_model(model)


def _read(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise InputError(
      f"cannot read {path}: {error.strerror}; give a folder that"
      " `python -m esper_jax.export RUN --to=DIR` wrote"
    ) from error
