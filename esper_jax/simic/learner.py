"""A network of an environment, and how it trains.

The loss, the optimizer and the warm-up of newborns are `tolaria.steps`' own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.hosts.host import Host
from esper_jax.simic.hosts import LIVE
from esper_jax.simic.planted import Grid, Leaves, Pool, where
from esper_jax.tolaria import steps
from esper_jax.tolaria.steps import StepOptions
from esper_jax.types import HOST_GROUP, PyTree


class Learner(struct.PyTreeNode):
  """What one training step turns into the next; see `TrainState`.

  Attributes:
    step: int32 []. Steps done.
    params: the host's.
    collections: the host's other variables.
    pool: the seeds' parameters, [rows, ...].
    leaves: which seeds live.
    optimizer: state of the host's group.
    pool_optimizer: of the rows', [rows, ...].
    age: int32 [rows], steps since the row's seed was born.
    rate: float32 []. Factor on the learning rate.
  """

  step: jax.Array
  params: PyTree
  collections: dict[str, PyTree]
  pool: Pool
  leaves: Leaves
  optimizer: PyTree
  pool_optimizer: PyTree
  age: jax.Array
  rate: jax.Array


class Epoch(NamedTuple):
  """What an epoch of training told, of the mean step.

  Attributes:
    loss: float32 []. Mean over examples.
    accuracy: float32 [].
    host_square: float32 []. Mean square of the host's gradient.
    row_square: float32 [rows]. Sum of squares of the row's gradient.
    finite: bool [rows]. Whether every gradient of the row was finite.
  """

  loss: jax.Array
  accuracy: jax.Array
  host_square: jax.Array
  row_square: jax.Array
  finite: jax.Array


def dormant(
  grid: Grid,
  options: StepOptions,
  params: PyTree,
  collections: dict[str, PyTree],
  rate: jax.Array,
) -> Learner:
  """A network at birth, nothing planted."""
  rows = len(grid.paths)
  zero = jnp.zeros((rows,), jnp.float32)
  pool = jax.tree.map(lambda x: jnp.stack([x] * rows), grid.empty())
  return Learner(
    step=jnp.zeros((), jnp.int32),
    params=params,
    collections=collections,
    pool=pool,
    leaves=Leaves(jnp.full((rows,), -1, jnp.int32), zero, zero, zero),
    optimizer=options.optimizer.init(params),
    pool_optimizer=jax.vmap(options.optimizer.init)(pool),
    age=jnp.zeros((rows,), jnp.int32),
    rate=rate,
  )


def plant(
  learner: Learner,
  grid: Grid,
  options: StepOptions,
  *,
  born: jax.Array,
  blueprint: jax.Array,
  keys: jax.Array,
) -> Learner:
  """Draws seeds anew; every other row stays as it is.

  Args:
    learner: of the environment.
    grid: where seeds are.
    options: of the training step.
    born: bool [rows]. Where a seed is planted.
    blueprint: int32 [rows]. Which.
    keys: [rows], consumed.
  """

  def renew(now, column, key, pool, optimizer):
    fresh: Any = grid.draw(key, column)
    born = fresh, options.optimizer.init(fresh)
    return where(now, born, (pool, optimizer))

  pool, optimizer = jax.vmap(renew)(
    born, blueprint, keys, learner.pool, learner.pool_optimizer
  )
  return learner.replace(
    pool=pool,
    pool_optimizer=optimizer,
    age=jnp.where(born, 0, learner.age),
  )


def view(learner: Learner) -> dict[str, PyTree]:
  """The host's variables, and which seed of each row lives."""
  return {**learner.collections, LIVE: learner.leaves.blueprint}


def make_train(host: Host, grid: Grid, options: StepOptions) -> Callable:
  """Builds one epoch.

  (Learner, images uint8 [train, ...], labels int32 [train], indices int32
  [steps, batch]) -> (Learner, Epoch).
  """
  loss_fn = steps.make_loss(host, options)

  def step(learner: Learner, x: jax.Array, y: jax.Array) -> Any:
    groups = {HOST_GROUP: learner.params, **grid.groups(learner.pool)}
    seeds = grid.seeds(learner.pool, learner.leaves)
    (loss, (collections, _, hits)), gradients = jax.value_and_grad(
      loss_fn, has_aux=True
    )(groups, view(learner), seeds, x, y, None)
    collections = {k: v for k, v in collections.items() if k != LIVE}
    rate = options.learning_rate(learner.step) * learner.rate
    params, optimizer = steps.move(
      options,
      learner.params,
      gradients[HOST_GROUP],
      learner.optimizer,
      rate=rate,
    )
    own = grid.gathered(gradients)

    def move_row(args):
      still = args[0], args[2]
      return jax.lax.cond(args[-1] > 0, moved, lambda *_: still, *args)

    def moved(pool, gradient, optimizer, age, multiplier):
      return steps.move_seed(
        options,
        pool,
        gradient,
        optimizer,
        rate=rate,
        age=age,
        multiplier=multiplier,
      )

    pool, pool_optimizer = jax.lax.map(
      move_row,
      (
        learner.pool,
        own,
        learner.pool_optimizer,
        learner.age,
        learner.leaves.updates,
      ),
    )
    learner = learner.replace(
      step=learner.step + 1,
      params=params,
      collections=collections,
      pool=pool,
      optimizer=optimizer,
      pool_optimizer=pool_optimizer,
      age=learner.age + 1,
    )
    row_square = jnp.square(own.kernels).sum(axis=(1, 2))
    row_square += jnp.square(own.vectors).sum(axis=1)
    told = Epoch(
      loss, hits, steps.mean_square(gradients[HOST_GROUP]), row_square,
      jnp.isfinite(row_square),
    )  # fmt: skip
    return learner, told

  def train(learner, images, labels, indices):
    def body(learner, row):
      x = options.preprocess(images[row], None)
      return step(learner, x, labels[row])

    learner, told = jax.lax.scan(body, learner, indices)
    return learner, Epoch(
      loss=told.loss.mean(),
      accuracy=told.accuracy.sum() / indices.size,
      host_square=told.host_square.sum(),
      row_square=told.row_square.sum(axis=0),
      finite=told.finite.all(axis=0),
    )

  return train
