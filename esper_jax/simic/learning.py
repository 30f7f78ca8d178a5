"""What all learners have in common: two functions and a way to read them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from esper_jax.simic import actor as acting
from esper_jax.simic import rollout
from esper_jax.simic.actor import Actor
from esper_jax.simic.reward import Prices, returns
from esper_jax.simic.rollout import Trajectory, Trials
from esper_jax.types import PyTree


class Learner(NamedTuple):
  """How parameters become better; a learner's state is a PyTree of arrays.

  Attributes:
    init: (parameters, key) -> state.
    update: (state, pool) -> (state, float32 [] by name). One iteration, from
      the episodes to the new parameters: jit it as it is.
    params: state -> parameters.
  """

  init: Callable[[PyTree, jax.Array], Any]
  update: Callable[[Any, Trials], tuple[Any, dict[str, jax.Array]]]
  params: Callable[[Any], PyTree]


class Moments(struct.PyTreeNode):
  """Running mean and spread of the returns, for the value head.

  Attributes:
    weight: float32 []. How much has been seen, at most 1.
    mean: float32 []. Not yet divided by the weight.
    square: float32 []. Of the squares, likewise.
  """

  weight: jax.Array
  mean: jax.Array
  square: jax.Array


def no_moments() -> Moments:
  """Makes the moments of nothing: mean 0, deviation 0."""
  zero = jnp.zeros((), jnp.float32)
  return Moments(zero, zero, zero)


def follow(moments: Moments, values: jax.Array, rate: float) -> Moments:
  """Moves the moments towards those of new values, any shape."""

  def towards(old, new):
    return old + rate * (new - old)

  return Moments(
    towards(moments.weight, 1.0),
    towards(moments.mean, values.mean()),
    towards(moments.square, (values**2).mean()),
  )


def spread(moments: Moments) -> tuple[jax.Array, jax.Array]:
  """Gives (mean, deviation), float32 [] each; unbiased from the start on.

  While nothing is known both are 0: a value in these deviations then counts
  for nothing.
  """
  known = moments.weight > 0
  weight = jnp.where(known, moments.weight, 1.0)
  mean = moments.mean / weight
  variance = jnp.maximum(moments.square / weight - mean**2, 1e-8)
  return mean, jnp.where(known, jnp.sqrt(variance), 0.0)


def draw(pool: Trials, key: jax.Array, count: int) -> Trials:
  """Draws environments of a pool, without repetition where it has enough."""
  size = pool.keys.shape[0]
  index = jax.random.choice(key, size, (count,), replace=count > size)
  return pool.take(index)


def minibatches(
  key: jax.Array, size: int, *, passes: int, parts: int
) -> jax.Array:
  """Draws in which parts the episodes are learned from, each pass anew.

  Args:
    key: of the draws.
    size: episodes; parts must divide it.
    passes: over all of them.
    parts: of a pass.

  Returns:
    int32 [passes * parts, size / parts]: indices of episodes.
  """
  orders = jax.vmap(lambda key: jax.random.permutation(key, size))(
    jax.random.split(key, passes)
  )
  return orders.reshape(-1, size // parts)


def descend(
  loss: Callable[..., tuple[jax.Array, Any]],
  optimizer: optax.GradientTransformation,
  state: tuple[PyTree, PyTree],
  *batch: PyTree,
) -> tuple[tuple[PyTree, PyTree], Any]:
  """Takes a step down a loss.

  Args:
    loss: (parameters, *batch) -> (float32 [], its parts).
    optimizer: gives the step.
    state: (parameters, the optimizer's state).
    *batch: what the loss is of: arrays [n, ...] of one n, of which every device
      works on a part.

  Returns:
    (the new state, the parts before the step).
  """
  params, own = state
  batch = rollout.apart(batch)
  (_, parts), gradient = jax.value_and_grad(loss, has_aux=True)(params, *batch)
  change, own = optimizer.update(gradient, own, params)
  return (optax.apply_updates(params, change), own), parts


def examine(
  actor: Actor,
  environment: Any,
  params: PyTree,
  pool: Trials,
  prices: Prices,
) -> tuple[jax.Array, Trajectory]:
  """Lets the network decide, as it is used, in every environment of a pool.

  Returns:
    (float32 [environments] returns, the `Trajectory`).
  """
  decide = acting.using(actor, params)
  trajectory = rollout.population(
    lambda key: rollout.play(environment, decide, (), key, key), pool.keys
  )
  return returns(trajectory.outcome, pool.still, prices), trajectory
