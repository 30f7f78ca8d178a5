"""Behaviour cloning: the network starts as a copy of a policy that works.

Source: Pomerleau 1991 (ALVINN). The teacher plays and the network learns to
give its decisions a high probability, and to foretell its return.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from esper_jax.simic import rollout
from esper_jax.simic.actor import Actor
from esper_jax.simic.learning import (
  Learner,
  Moments,
  descend,
  draw,
  follow,
  no_moments,
  spread,
)
from esper_jax.simic.reward import Prices, coming, returns
from esper_jax.simic.rollout import Trials
from esper_jax.tamiyo.policy import Policy
from esper_jax.tolaria.optimizers import with_own_promotion
from esper_jax.types import PyTree


class Settings(NamedTuple):
  """Numbers of imitation; Python values, static under jit.

  Attributes:
    environments: episodes of the teacher per iteration.
    steps: of Adam on each iteration's episodes.
    learning_rate: of Adam.
    max_gradient: global norm at which gradients are clipped.
    value_weight: of the value's squared error, in deviations of the returns.
    entropy_weight: keeps the copy from certainty, which nothing could improve.
    moments_rate: how fast the value's scale follows the returns.
  """

  environments: int = 64
  steps: int = 16
  learning_rate: float = 3e-3
  max_gradient: float = 1.0
  value_weight: float = 0.5
  entropy_weight: float = 0.01
  moments_rate: float = 0.05


class State(struct.PyTreeNode):
  """Where imitation stands; see `ppo.State` for the fields."""

  params: PyTree
  optimizer: PyTree
  moments: Moments
  key: jax.Array


def learner(
  actor: Actor,
  environment: Any,
  teacher: Policy,
  prices: Prices,
  settings: Settings,
) -> Learner:
  """Makes a learner that copies a policy.

  Args:
    actor: the network that learns.
    environment: see `simic.records.Environment`.
    teacher: the policy to copy.
    prices: of the returns that the value learns; see `reward.Prices`.
    settings: see `Settings`.
  """
  adam = with_own_promotion(
    optax.chain(
      optax.clip_by_global_norm(settings.max_gradient),
      optax.adam(settings.learning_rate),
    )
  )

  def init(params: PyTree, key: jax.Array) -> State:
    return State(params, adam.init(params), no_moments(), key)

  def loss(params, observation, choice, target, free):
    def one(observation, choice):
      distribution, value = actor.apply(params, observation)
      log_prob = actor.log_prob(distribution, choice)
      same = actor.log_prob(distribution, actor.mode(distribution)) == log_prob
      return log_prob, actor.entropy(distribution), value, same

    log_prob, entropy, value, same = jax.vmap(jax.vmap(one))(
      observation, choice
    )
    count = jnp.maximum(free.sum(), 1.0)

    def mean(x):  # over the epochs in which there was something to decide
      return (x * free).sum() / count

    parts = {
      "surprise": -mean(log_prob),
      "agreement": mean(same.astype(jnp.float32)),
      "value": ((value - target) ** 2).mean(),
      "entropy": mean(entropy),
    }
    total = (
      parts["surprise"]
      + settings.value_weight * parts["value"]
      - settings.entropy_weight * parts["entropy"]
    )
    return total, parts

  def update(state: State, pool: Trials):
    key, pick, own = jax.random.split(state.key, 3)
    drawn = draw(pool, pick, settings.environments)
    shown = rollout.play_policy(environment, teacher, drawn.keys, own)
    choice = jax.vmap(jax.vmap(actor.choice))(
      shown.observation, shown.decisions
    )
    earned = returns(shown.outcome, drawn.still, prices)
    # As the value of a learner that is paid densely.
    ahead = coming(shown.outcome, drawn.still, prices)
    moments = follow(state.moments, ahead, settings.moments_rate)
    mean, deviation = spread(moments)
    target = (ahead - mean) / deviation
    free = rollout.free(shown.observation)

    def step(carry, _):
      batch = (shown.observation, choice, target, free)
      return descend(loss, adam, carry, *batch)

    (params, optimizer), parts = jax.lax.scan(
      step, (state.params, state.optimizer), None, length=settings.steps
    )
    figures = rollout.decision_statistics(shown) | {
      f"loss/{name}": part[-1] for name, part in parts.items()
    }
    figures["return"] = earned.mean()
    return State(params, optimizer, moments, key), figures

  return Learner(init, update, lambda state: state.params)
