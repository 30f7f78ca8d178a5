"""An evolution strategy: the cross-check that needs no gradient and no value.

Source: Salimans et al. 2017, arXiv:1703.03864 (antithetic pairs, section 2;
rank shaping, as in Wierstra et al. 2014). All members of a generation meet the
same environments, so that their returns compare; they decide greedily, as the
policy will when it is used.

Ranks see how often, not how much: where most members lose a little and a few
gain a lot, the centre moves to doing nothing. Start it from a policy that
gains more often than not (see `imitation`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from esper_jax.simic import rollout
from esper_jax.simic.actor import Actor
from esper_jax.simic.learning import Learner, draw, examine
from esper_jax.simic.reward import Prices
from esper_jax.simic.rollout import Trials
from esper_jax.tolaria.optimizers import with_own_promotion
from esper_jax.types import PyTree


class Settings(NamedTuple):
  """Numbers of the evolution strategy; Python values, static under jit.

  Attributes:
    pairs: of members per generation; each pair is one direction, tried both
      ways.
    environments: that every member meets.
    deviation: of the parameters between members.
    learning_rate: of Adam.
    decay: weight decay of the step, times the learning rate.
  """

  pairs: int = 16
  environments: int = 8
  deviation: float = 0.05
  learning_rate: float = 0.02
  decay: float = 0.0


class State(struct.PyTreeNode):
  """Where the evolution stands.

  Attributes:
    params: of the network, the centre of the next generation.
    optimizer: Adam's state, over the flattened parameters.
    key: typed random key of the generations to come.
  """

  params: PyTree
  optimizer: PyTree
  key: jax.Array


def centred_ranks(values: jax.Array) -> jax.Array:
  """Replaces values by their ranks, from -1/2 to 1/2; ties share theirs.

  Args:
    values: float32 [n].

  Returns:
    float32 [n], mean 0.
  """
  above = values[:, None] > values[None, :]
  below = values[:, None] < values[None, :]
  difference = above.astype(jnp.float32) - below.astype(jnp.float32)
  return difference.sum(axis=1) / (2.0 * max(values.shape[0] - 1, 1))


def gradient(
  noise: jax.Array, plus: jax.Array, minus: jax.Array, deviation: float
) -> jax.Array:
  """Estimates the ascent direction of the shaped return.

  Args:
    noise: float32 [pairs, parameters]. Standard normal.
    plus: float32 [pairs]. Returns at parameters + deviation * noise.
    minus: float32 [pairs]. Returns at parameters - deviation * noise.
    deviation: see `Settings`.

  Returns:
    float32 [parameters].
  """
  ranks = centred_ranks(jnp.concatenate([plus, minus]))
  pairs = noise.shape[0]
  weight = ranks[:pairs] - ranks[pairs:]
  return weight @ noise / (2.0 * pairs * deviation)


def learner(
  actor: Actor, environment: Any, prices: Prices, settings: Settings
) -> Learner:
  """Makes an evolution-strategies learner; see `ppo.learner` for the others."""
  adam = with_own_promotion(
    optax.adamw(settings.learning_rate, weight_decay=settings.decay)
  )

  def init(params: PyTree, key: jax.Array) -> State:
    flat, _ = ravel_pytree(params)
    return State(params, adam.init(flat), key)

  def update(state: State, pool: Trials):
    key, pick, sow = jax.random.split(state.key, 3)
    drawn = draw(pool, pick, settings.environments)
    flat, unravel = ravel_pytree(state.params)
    noise = jax.random.normal(sow, (settings.pairs, flat.size))
    step = settings.deviation * noise
    members = flat[None] + jnp.concatenate([step, -step])

    def fitness(member):
      found, trajectory = examine(
        actor, environment, unravel(member), drawn, prices
      )
      return found.mean(), rollout.decision_statistics(trajectory)

    found, statistics = jax.lax.map(fitness, members)
    plus, minus = jnp.split(found, 2)
    ascent = gradient(noise, plus, minus, settings.deviation)
    change, optimizer = adam.update(-ascent, state.optimizer, flat)
    params = unravel(flat + jnp.asarray(change))
    figures = {name: value.mean() for name, value in statistics.items()} | {
      "return": found.mean(),
      "best": found.max(),
      "spread": found.std(),
      "ascent": jnp.linalg.norm(ascent),
    }
    return State(params, optimizer, key), figures

  return Learner(init, update, lambda state: state.params)
