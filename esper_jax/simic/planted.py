"""Every blueprint in every slot, and leaves that choose the one that lives.

The tree of a population cannot change, as its environments grow at different
times. So each row holds one `Seed` of each blueprint from the start; those
that are not planted are silent (alpha, isolation and updates 0): they change
no value, no gradient and no parameter. To plant is to draw a seed anew where
one is due.

The parameters of a row's seeds are kept in two vectors, its pool: few long
operations are several times faster than many short ones. As one seed lives at
a time, a row is one optimizer group.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.kasmina import blueprints, surgery
from esper_jax.kasmina.gates import columns_of
from esper_jax.kasmina.slot import Seed, group_name, with_seeds_at
from esper_jax.types import InputError, Path, PyTree, SlotSpec, SlotTable


class Pool(struct.PyTreeNode):
  """The parameters of a row's seeds, those of all but one seed 0.

  Attributes:
    kernels: float32 [1, n]. What has more than one dimension: optimizers
      tell by the dimensions what decays.
    vectors: float32 [m]. The rest.
  """

  kernels: jax.Array
  vectors: jax.Array


class Leaves(struct.PyTreeNode):
  """Which seed of each row lives, and how; arrays of [rows].

  Attributes:
    blueprint: int32. Its column; -1 = none.
    alpha, isolation, updates: float32. See `Seed`.
  """

  blueprint: jax.Array
  alpha: jax.Array
  isolation: jax.Array
  updates: jax.Array


class Grid(NamedTuple):
  """Where seeds are: row r is the r-th slot, column c the c-th blueprint.

  Attributes:
    paths: of the slots, in order.
    spec: of every slot; they are alike.
    names: of the blueprints.
    shapes: per blueprint, its parameters' shapes.
    proximal: see `Seed`.
  """

  paths: tuple[Path, ...]
  spec: SlotSpec
  names: tuple[str, ...]
  shapes: tuple[PyTree, ...]
  proximal: float

  @classmethod
  def of(
    cls, slots: SlotTable, names: tuple[str, ...], *, proximal: float
  ) -> "Grid":
    """Of a host's slots.

    Raises:
      InputError: slots that differ, a blueprint that does not fit, or one
        with a state.
    """
    spec, *others = slots.values()
    for other in others:
      if other.form != spec.form:
        raise InputError(
          f"simic: slots '{spec.name}' {spec.shape} and '{other.name}'"
          f" {other.shape} differ; an environment needs slots that are alike"
        )
    shapes = []
    for name in names:
      seed = jax.eval_shape(
        lambda key, name=name: surgery.make_seed(spec, name, key=key),
        jax.random.key(0),
      )
      if jax.tree.leaves(seed.state):
        raise InputError(
          f"simic: blueprint '{name}' has a state; an environment takes those"
          f" without, of {', '.join(blueprints.fitting(spec))}"
        )
      shapes.append(seed.params)
    return cls(tuple(slots), spec, tuple(names), tuple(shapes), proximal)

  @property
  def sizes(self) -> tuple[int, ...]:
    """Parameters of each blueprint's seed."""
    return tuple(blueprints.count(tree) for tree in self.shapes)

  def empty(self) -> Pool:
    """A row's pool when nothing was ever planted."""
    leaves = jax.tree.leaves(self.shapes)
    kernels = sum(math.prod(x.shape) for x in leaves if x.ndim > 1)
    vectors = sum(math.prod(x.shape) for x in leaves if x.ndim <= 1)
    return Pool(
      jnp.zeros((1, kernels), jnp.float32), jnp.zeros((vectors,), jnp.float32)
    )

  def draw(self, key: jax.Array, column: jax.Array) -> Pool:
    """A row's pool with a newborn of one column, int32 []; consumes the key."""
    trees = []
    for n, name in enumerate(self.names):
      params = surgery.make_seed(self.spec, name, key=key).params
      own = column == n
      trees.append(jax.tree.map(lambda x, o=own: jnp.where(o, x, 0.0), params))
    pool = self.pooled([trees])
    return jax.tree.map(lambda x: x[0], pool)

  def pooled(self, rows: list[list[PyTree]]) -> Pool:
    """The pools, stacked, of parameters by row and column."""
    flat = [jax.tree.leaves(row) for row in rows]
    kernels = [x.reshape(-1) for row in flat for x in row if x.ndim > 1]
    vectors = [x.reshape(-1) for row in flat for x in row if x.ndim <= 1]
    return Pool(
      jnp.concatenate(kernels).reshape(len(rows), 1, -1),
      jnp.concatenate(vectors).reshape(len(rows), -1),
    )

  def groups(self, pool: Pool) -> dict[str, PyTree]:
    """Parameters by optimizer group, as the groups of a run's tree."""
    groups = {}
    for row, path in enumerate(self.paths):
      at = [0, 0]

      def take(shape, row=row, at=at):
        kind, size = int(shape.ndim <= 1), math.prod(shape.shape)
        source = (pool.kernels[row, 0], pool.vectors[row])[kind]
        at[kind] += size
        return source[at[kind] - size : at[kind]].reshape(shape.shape)

      for name, shapes in zip(self.names, self.shapes, strict=True):
        groups[group_name(path, name)] = jax.tree.map(take, shapes)
    return groups

  def gathered(self, groups: Mapping[str, PyTree]) -> Pool:
    """The inverse of `groups`."""
    return self.pooled(
      [[groups[group_name(p, n)] for n in self.names] for p in self.paths]
    )

  def seeds(self, pool: Pool, leaves: Leaves) -> dict[str, Any]:
    """The tree of seeds that a host takes."""
    groups, tree = self.groups(pool), {}
    own = columns_of(leaves.blueprint, jnp.zeros((1, len(self.names))))
    for row, path in enumerate(self.paths):
      seeds = {}
      for column, name in enumerate(self.names):
        alpha, isolation, updates = (
          jnp.where(own[row, column], values[row], 0.0)
          for values in (leaves.alpha, leaves.isolation, leaves.updates)
        )
        seeds[name] = Seed(
          params=groups[group_name(path, name)],
          state={},
          alpha=alpha,
          isolation=isolation,
          proximal=jnp.full((), self.proximal, jnp.float32),
          updates=updates,
          blueprint=name,
        )
      tree = with_seeds_at(tree, path, seeds)
    return tree


def where(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
  """One of two equal trees, by bool []."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
