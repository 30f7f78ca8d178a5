"""A network that has grown: its seeds as layers like any others.

What an export says of a seed is its record: name, slot, key, blueprint, blend,
depth, strength, input (see `export.topology`). Its parameters are a module of
that name beside those of the host (see `hosts.naming`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from esper_jax.hosts import naming
from esper_jax.hosts.host import Host, from_linen
from esper_jax.kasmina import blueprints, surgery
from esper_jax.kasmina.slot import (
  Seed,
  Slot,
  contribution,
  own_key,
  seeds_at,
  with_seeds_at,
)
from esper_jax.oona import lineage
from esper_jax.types import InputError, Path, PyTree, SlotSpec

SCHEMA = 1  # of topology.json
Record = Mapping[str, Any]
Variables = Mapping[str, PyTree]  # collection -> module -> ...


def read(folder: FilePath) -> tuple[dict[str, Any], dict[str, PyTree]]:
  """Reads an export.

  Returns:
    (what topology.json holds, variables: collection -> module -> ... NumPy).

  Raises:
    InputError: a file is missing or damaged, or of another schema.
  """
  path, weights = folder / lineage.TOPOLOGY, folder / lineage.WEIGHTS
  topology = lineage.read_object(path)
  if topology.get("schema") != SCHEMA:
    raise InputError(
      f"{path} has schema {topology.get('schema')!r}, this version reads"
      f" {SCHEMA}; export the run again, or use the version that wrote it"
    )
  data = lineage.read_bytes(weights)
  return topology, naming.from_bytes(data, str(weights))


def as_host(
  module: nn.Module, records: Sequence[Record], slots: Collection[Path]
) -> Host:
  """Makes a host of a network that has grown, to train it further.

  Its parameters and collections are those of the export: the seeds' are in
  "params" and, where their blueprints keep a state, in `naming.SEED_STATE`. A
  slot comes after the seeds that grew there before.

  Args:
    module: the host that grew, with a slot wherever a record names one.
    records: of the seeds.
    slots: where it may grow now; the module's other slots hold what grew.
  """
  base = from_linen(module)

  def apply(
    params: PyTree,
    collections: Mapping[str, PyTree],
    seeds: Mapping[str, Any],
    x: jax.Array,
    *,
    train: bool,
    key: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, PyTree], dict[str, Any]]:
    variables = {"params": params, **collections}
    states: dict[str, PyTree] = {}

    def at_slot(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
      if not isinstance(context.module, Slot):
        return following(*args, **kwargs)
      path, (y, *rest) = "/".join(context.module.path), args
      own = [record for record in records if record["slot"] == path]
      y, new = apply_records(own, y, variables, train=train, key=key)
      states.update(new)
      return following(y, *rest, **kwargs) if path in slots else y

    host = without_seeds(variables, records)
    with nn.intercept_methods(at_slot):
      out, new, seeds = base.apply(
        host.pop("params"), host, seeds, x, train=train, key=key
      )
    if states:
      new[naming.SEED_STATE] = {**collections[naming.SEED_STATE], **states}
    return out, {name: new[name] for name in collections}, seeds

  return Host(_drawn(base, records), apply)


def with_seeds(
  model: Host, shapes: Variables, records: Sequence[Record]
) -> Host:
  """Makes a host of a user's that has grown, to run it or to train it further.

  Its parameters and collections are those of the export, as in `as_host`. Every
  slot may grow, after the seeds that grew there before.

  Args:
    model: the host that grew.
    shapes: of its variables, see `tolaria.given.shapes_of`.
    records: of the seeds.
  """

  def apply(
    params: PyTree,
    collections: Mapping[str, PyTree],
    seeds: Mapping[str, Any],
    x: jax.Array,
    *,
    train: bool,
    key: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, PyTree], dict[str, Any]]:
    variables = {"params": params, **collections}
    view = united(variables, seeds, shapes, records)
    out, new, after = model.apply(*view, x, train=train, key=key)
    new = _by_name(new)
    for record in records:
      seed = seeds_at(after, record["slot"])[_key(record)]
      put(new, record["name"], seed)
    for slot in _slots(records):
      own = seeds_at(after, slot)
      newer = {
        key: own[key].replace(depth=seed.depth)
        for key, seed in seeds_at(seeds, slot).items()
      }
      after = with_seeds_at(after, slot, newer)
    return out, {name: new[name] for name in collections}, after

  return Host(_drawn(model, records), apply)


def united(
  variables: Variables,
  seeds: Mapping[str, Any],
  shapes: Variables,
  records: Sequence[Record],
) -> tuple[PyTree, dict[str, PyTree], dict[str, Any]]:
  """What the user's host itself takes for variables of `with_seeds`.

  Args:
    variables: collection -> module -> ..., of the network.
    seeds: that were planted since.
    shapes, records: see `with_seeds`.

  Returns:
    (params, collections, seeds): in their slots the seeds of the records are
    first, with keys such as "0:dense": generation and key.
  """
  found = {
    name: naming.flat(tree)
    for name, tree in without_seeds(variables, records).items()
  }
  host = {
    name: naming.from_named(tree, found.get(name, {}), "")
    for name, tree in shapes.items()
  }
  for slot in _slots(records):
    older = {
      _key(record): seed_of(record, variables)
      for record in records
      if record["slot"] == slot
    }
    first = 1 + max(seed.depth for seed in older.values())
    newer = {
      key: seed.replace(depth=first + seed.depth)
      for key, seed in seeds_at(seeds, slot).items()
    }
    seeds = with_seeds_at(seeds, slot, {**older, **newer})
  return host.pop("params"), host, dict(seeds)


def _slots(records: Sequence[Record]) -> tuple[Path, ...]:
  return tuple(dict.fromkeys(record["slot"] for record in records))


def _key(record: Record) -> str:
  """Of a seed that grew before: no blueprint's name has a colon."""
  return f"{record.get('generation', 0)}:{record['key']}"


def _by_name(variables: Variables) -> dict[str, PyTree]:
  """Variables of any structure as an export has them."""
  return {
    name: naming.nested(naming.to_named(tree, ""))
    for name, tree in variables.items()
  }


def _drawn(
  base: Host, records: Sequence[Record]
) -> Callable[[jax.Array, jax.Array], tuple[PyTree, dict[str, PyTree]]]:
  """Makes the `init` of a host with drawn parameters of the seeds beside it."""

  def init(key: jax.Array, x: jax.Array) -> tuple[PyTree, dict[str, PyTree]]:
    params, others = base.init(key, x)
    variables = _by_name({"params": params, **others})
    for record in records:
      seed = surgery.make_seed(
        spec_of(record),
        record["blueprint"],
        key=own_key(key, record["name"]),
        blend=record["blend"],
      )
      put(variables, record["name"], seed)
    return variables.pop("params"), variables

  return init


def apply_records(
  records: Sequence[Record],
  x: jax.Array,
  variables: Variables,
  *,
  train: bool = False,
  key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, PyTree]]:
  """Runs the seeds of one slot, without what only growing needs.

  Args:
    records: of the slot's seeds.
    x: [batch, ...].
    variables: of the network.
    train: whether blueprints behave as in training.
    key: consumed by blueprints that draw.

  Returns:
    (y as x, module name -> new state of the seeds that keep one).
  """
  states = {}
  for depth in sorted({record["depth"] for record in records}):
    beside = [record for record in records if record["depth"] == depth]
    outputs = []
    for record in beside:
      name = record["name"]
      drawn = None if key is None else own_key(key, name)
      seed = seed_of(record, variables)
      y, state = contribution(seed, x, train=train, key=drawn)
      outputs.append(y)
      if jax.tree.leaves(state):
        named = naming.to_named(state, record["blueprint"])
        states[name] = naming.nested(named)
    for record, y in zip(beside, outputs, strict=True):
      strength = record["strength"]
      x = x + (y if strength == 1 else jnp.asarray(strength, y.dtype) * y)
  return x, states


def seed_of(record: Record, variables: Variables) -> Seed:
  """The seed that a record describes.

  Raises:
    InputError: its blueprint is not registered.
  """
  name, blueprint = record["name"], record["blueprint"]
  spec = spec_of(record)
  shapes = blueprints.abstract_init(blueprints.get(blueprint), spec)

  def read(collection: str, tree: PyTree) -> PyTree:
    named = naming.flat(variables.get(collection, {}).get(name, {}))
    return naming.from_named(tree, named, blueprint)

  params = {"branch": read("params", shapes[0])}
  if record["blend"] == "gate":
    params["gate"] = variables["params"][naming.gate_name(name)]
  one = jnp.ones((), jnp.float32)
  return Seed(
    params=params,
    state=read(naming.SEED_STATE, shapes[1]),
    alpha=jnp.asarray(record["strength"], jnp.float32),
    isolation=one - one,
    proximal=one,
    updates=one,
    blueprint=blueprint,
    blend=record["blend"],
    depth=record["depth"],
  )


def spec_of(record: Record) -> SlotSpec:
  """The slot in which the seed grew."""
  entry: dict[str, Any] = dict(record["input"])
  return SlotSpec(**entry | {"shape": tuple(entry["shape"])})


def put(variables: dict[str, Any], name: str, seed: Seed) -> None:
  """Puts a seed's parameters and state beside the host's, in place."""

  def place(collection: str, module: str, tree: PyTree) -> None:
    named = naming.to_named(tree, seed.blueprint)
    if named:
      own = naming.nested(named)
      variables.setdefault(collection, {})[module] = own

  place("params", name, seed.params["branch"])
  place(naming.SEED_STATE, name, seed.state)
  if seed.blend == "gate":
    place("params", naming.gate_name(name), seed.params["gate"])


def without_seeds(
  variables: Variables, records: Sequence[Record]
) -> dict[str, PyTree]:
  """The variables of the host alone."""
  own = {record["name"] for record in records}
  own |= {naming.gate_name(name) for name in own}
  return {
    collection: {k: v for k, v in tree.items() if k not in own}
    for collection, tree in variables.items()
    if collection != naming.SEED_STATE
  }
