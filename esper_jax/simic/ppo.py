"""Proximal policy optimization, written out: rollout and update, one program.

Source: Schulman et al. 2017, arXiv:1707.06347 (the clipped objective, equation
7) with generalized advantage estimation (Schulman et al., ICLR 2016,
arXiv:1506.02438, equation 16). Episodes are short and end, so the discount is
1 unless the settings say otherwise.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from esper_jax.simic import rollout
from esper_jax.simic.actor import Actor, drawing
from esper_jax.simic.learning import (
  Learner,
  Moments,
  draw,
  follow,
  minibatches,
  no_moments,
  spread,
)
from esper_jax.simic.planted import where
from esper_jax.simic.reward import Prices, returns, rewards
from esper_jax.simic.rollout import Trials
from esper_jax.tamiyo.observation import Observation
from esper_jax.tolaria.optimizers import with_own_promotion
from esper_jax.types import PyTree


class Settings(NamedTuple):
  """Numbers of PPO; Python values, static under jit.

  Attributes:
    iterations: over which the learning rate and the entropy weight fall.
    environments: episodes per iteration.
    minibatches: parts into which the environments are split.
    passes: over the episodes of one iteration.
    learning_rate: of Adam, at the start; it falls linearly to a tenth.
    max_gradient: global norm at which gradients are clipped.
    clip: how far a probability may move, as a ratio.
    target_kl: nats per decision at which an iteration's updates end.
    discount: of a reward one epoch later.
    trace: lambda of the advantage estimate.
    value_weight: of the value's squared error, in deviations of the returns.
    entropy_start: weight of the entropy, in advantages per nat.
    entropy_end: the same after the last iteration.
    moments_rate: how fast the value's scale follows the returns.
    dense: whether rewards are paid epoch by epoch.
  """

  iterations: int = 300
  environments: int = 64
  minibatches: int = 4
  passes: int = 4
  learning_rate: float = 1e-3
  max_gradient: float = 0.5
  clip: float = 0.2
  target_kl: float = 0.03
  discount: float = 1.0
  trace: float = 0.95
  value_weight: float = 0.5
  entropy_start: float = 0.01
  entropy_end: float = 0.001
  moments_rate: float = 0.05
  dense: bool = True


class State(struct.PyTreeNode):
  """Where PPO stands.

  Attributes:
    params: of the network.
    optimizer: Adam's state.
    moments: of the returns.
    key: typed random key of the iterations to come.
    iteration: int32 []. How many are over.
  """

  params: PyTree
  optimizer: PyTree
  moments: Moments
  key: jax.Array
  iteration: jax.Array


class Batch(struct.PyTreeNode):
  """What the loss is computed on; arrays of [environments, epochs, ...].

  Attributes:
    observation: before each decision.
    choice: that was made.
    log_prob: float32. Of it, when it was made.
    advantage: float32. Scaled.
    target: float32. Of the value, in deviations of the returns.
    free: float32. 1 where anything but waiting was legal, else 0.
  """

  observation: Observation
  choice: PyTree
  log_prob: jax.Array
  advantage: jax.Array
  target: jax.Array
  free: jax.Array


def gae(
  reward: jax.Array, value: jax.Array, *, discount: float, trace: float
) -> jax.Array:
  """Estimates advantages of one episode that ends after its last reward.

  Args:
    reward: float32 [epochs].
    value: float32 [epochs]. Expected return before each decision.
    discount: 0 to 1.
    trace: lambda, 0 to 1.

  Returns:
    float32 [epochs]: sum over k of (discount * trace)^k times the temporal
    difference k epochs later.
  """
  after = jnp.append(value[1:], 0.0)
  difference = reward + discount * after - value

  def back(later, now):
    total = now + discount * trace * later
    return total, total

  _, advantage = jax.lax.scan(
    back, jnp.zeros((), jnp.float32), difference, reverse=True
  )
  return advantage


def scale(advantage: jax.Array, free: jax.Array) -> jax.Array:
  """Scales the advantages of a batch, each environment by its own measure.

  Environments differ in how much growth can move their accuracy (width, noise,
  size of the validation split). Each is divided by its root mean square, or by
  that of the batch where its own is smaller: no environment speaks louder than
  the others, and the noise of one in which nothing happened is not blown up.

  Args:
    advantage: float32 [environments, epochs].
    free: likewise; 0 leaves an epoch out of the measure.

  Returns:
    float32, as advantage.
  """
  count = jnp.maximum(free.sum(), 1.0)
  centred = advantage - (advantage * free).sum() / count
  square = centred**2 * free
  overall = jnp.sqrt(square.sum() / count)
  own = jnp.sqrt(square.sum(axis=1) / jnp.maximum(free.sum(axis=1), 1.0))
  measure = jnp.maximum(jnp.maximum(own, overall), 1e-6)
  return centred / measure[:, None]


def clipped(
  log_ratio: jax.Array, advantage: jax.Array, clip: float
) -> jax.Array:
  """Computes the objective of equation 7, elementwise; it is maximized.

  Args:
    log_ratio: float32. Log of new over old probability.
    advantage: float32, likewise.
    clip: epsilon of the paper.
  """
  ratio = jnp.exp(log_ratio)
  near = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
  return jnp.minimum(ratio * advantage, near * advantage)


def loss(
  actor: Actor,
  settings: Settings,
  params: PyTree,
  batch: Batch,
  entropy_weight: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Computes the loss of a minibatch.

  Returns:
    (float32 [], its parts by name: policy, value, entropy, kl (nats, estimated
    as mean of ratio - 1 - log ratio, which is never negative), clipped (the
    share of decisions beyond the clip)).
  """

  def one(observation, choice):
    distribution, value = actor.apply(params, observation)
    log_prob = actor.log_prob(distribution, choice)
    return log_prob, actor.entropy(distribution), value

  log_prob, entropy, value = jax.vmap(jax.vmap(one))(
    batch.observation, batch.choice
  )
  count = jnp.maximum(batch.free.sum(), 1.0)

  def mean(x):  # over the epochs in which there was something to decide
    return (x * batch.free).sum() / count

  log_ratio = log_prob - batch.log_prob
  ratio = jnp.exp(log_ratio)
  beyond = jnp.abs(ratio - 1.0) > settings.clip
  parts = {
    "policy": -mean(clipped(log_ratio, batch.advantage, settings.clip)),
    "value": ((value - batch.target) ** 2).mean(),
    "entropy": mean(entropy),
    "kl": mean(ratio - 1.0 - log_ratio),
    "clipped": mean(beyond.astype(jnp.float32)),
  }
  total = (
    parts["policy"]
    + settings.value_weight * parts["value"]
    - entropy_weight * parts["entropy"]
  )
  return total, parts


def learner(
  actor: Actor, environment: Any, prices: Prices, settings: Settings
) -> Learner:
  """Makes a PPO learner.

  Args:
    actor: the network that learns.
    environment: see `simic.records.Environment`.
    prices: see `reward.Prices`.
    settings: see `Settings`; minibatches must divide environments.
  """
  adam = with_own_promotion(
    optax.chain(
      optax.clip_by_global_norm(settings.max_gradient),
      optax.adam(settings.learning_rate, eps=1e-5),
    )
  )

  def init(params: PyTree, key: jax.Array) -> State:
    return State(
      params=params,
      optimizer=adam.init(params),
      moments=no_moments(),
      key=key,
      iteration=jnp.zeros((), jnp.int32),
    )

  def collect(state: State, pool: Trials, key: jax.Array):
    pick, own = jax.random.split(key)
    drawn = draw(pool, pick, settings.environments)
    decide = drawing(actor, state.params)
    trajectory = rollout.population(
      lambda key, own: rollout.play(environment, decide, (), key, own),
      drawn.keys,
      jax.random.split(own, settings.environments),
    )
    record, outcome = trajectory.record, trajectory.outcome
    reward = rewards(outcome, drawn.still, prices, dense=settings.dense)
    mean, deviation = spread(state.moments)
    value = record.value * deviation + mean
    advantage = jax.vmap(
      lambda r, v: gae(r, v, discount=settings.discount, trace=settings.trace)
    )(reward, value)
    target = advantage + value
    moments = follow(state.moments, target, settings.moments_rate)
    mean, deviation = spread(moments)
    free = rollout.free(trajectory.observation)
    batch = Batch(
      observation=trajectory.observation,
      choice=record.choice,
      log_prob=record.log_prob,
      advantage=scale(advantage, free),
      target=(target - mean) / deviation,
      free=free,
    )
    # 1 where the value tells all of the returns apart, 0 where it tells none.
    residual = advantage.var() / jnp.maximum(target.var(), 1e-12)
    figures = rollout.decision_statistics(trajectory) | {
      "return": returns(outcome, drawn.still, prices).mean(),
      "gain": (outcome.val_accuracy - drawn.still.val_accuracy)[:, -1].mean(),
      "explained": 1.0 - residual,
    }
    return batch, moments, figures

  def update(state: State, pool: Trials):
    key, playing, shuffling = jax.random.split(state.key, 3)
    batch, moments, figures = collect(state, pool, playing)
    done = state.iteration.astype(jnp.float32) / settings.iterations
    left = jnp.maximum(1.0 - done, 0.0)
    low, high = settings.entropy_end, settings.entropy_start
    entropy_weight = low + (high - low) * left
    rate = 0.1 + 0.9 * left

    def learn(params, optimizer, part):
      (_, parts), gradient = jax.value_and_grad(
        lambda p: loss(actor, settings, p, part, entropy_weight), has_aux=True
      )(params)
      step, moved = adam.update(gradient, optimizer, params)
      step = jax.tree.map(lambda leaf: leaf * rate, step)
      go = parts["kl"] <= settings.target_kl
      params = where(go, optax.apply_updates(params, step), params)
      return params, where(go, moved, optimizer), go, parts

    def minibatch(carry, index):
      params, optimizer, go, steps, parts = carry
      part = jax.tree.map(lambda leaf: leaf[index], batch)
      params, optimizer, go, parts = jax.lax.cond(
        go,
        lambda p, o: learn(p, o, part),
        lambda p, o: (p, o, go, parts),
        params,
        optimizer,
      )
      return (params, optimizer, go, steps + go.astype(jnp.float32), parts), ()

    order = minibatches(
      shuffling,
      settings.environments,
      passes=settings.passes,
      parts=settings.minibatches,
    )
    zero = jnp.zeros((), jnp.float32)
    nothing = dict.fromkeys(
      ("policy", "value", "entropy", "kl", "clipped"), zero
    )
    carry = (state.params, state.optimizer, jnp.asarray(True), zero, nothing)
    (params, optimizer, _, steps, parts), _ = jax.lax.scan(
      minibatch, carry, order
    )
    figures |= {f"loss/{name}": part for name, part in parts.items()}
    figures["updates"] = steps / math.prod(
      (settings.passes, settings.minibatches)
    )
    new = State(params, optimizer, moments, key, state.iteration + 1)
    return new, figures

  return Learner(init, update, lambda state: state.params)
