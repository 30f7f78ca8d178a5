"""Monte Carlo control: what a germination was worth, from whole returns.

A coin plays, in every episode with a rate of its own, and the network learns by
regression what it saw:

  return still to come = value + scale * sum of the germinations' advantages

where an advantage is a difference of logits (`Actor.advantage`). So a logit
becomes what germinating is worth more than staying, in units of `scale`, and
the distribution of the network the Boltzmann policy of these advantages: one
step of policy improvement over the coin (Sutton and Barto 2018, sections 4.2
and 5.4; with a network and whole returns in place of bootstrapped ones, as Zha
et al. 2021, arXiv:2106.06135). A part of the episodes is played by the network
itself, so that what staying is worth becomes what it is worth to a policy that
knows better later.

A policy gradient asks for more episodes here: to stay once is worth next to
nothing where the next epoch grows all the same, so a policy that grows does
not learn where to leave a network alone. Among the coin's episodes are those
in which it stayed to the end.

The network copies the moves of seeds that live: in the coin's episodes those of
every rule (`tamiyo.shepherd`), in its own its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from esper_jax.simic import rollout
from esper_jax.simic.actor import Actor, drawing
from esper_jax.simic.learning import Learner, descend, draw, minibatches
from esper_jax.simic.reward import Prices, coming, returns
from esper_jax.simic.rollout import Trials
from esper_jax.tamiyo import policy, rules
from esper_jax.tolaria.optimizers import with_own_promotion
from esper_jax.types import PyTree


class Settings(NamedTuple):
  """Numbers of Monte Carlo control; Python values, static under jit.

  Attributes:
    iterations: over which the learning rate falls, and the network's share of
      the episodes rises, both linearly.
    environments: episodes per iteration.
    minibatches: parts into which the environments are split.
    passes: over the episodes of one iteration.
    learning_rate: of Adam, at the start; it falls to a hundredth.
    decay: weight decay of the step, times the learning rate.
    max_gradient: global norm at which gradients are clipped.
    least, most: rate of the coin, log-uniform: the probability that it takes
      each of its chances to germinate.
    own: share of the episodes that the network plays at the end.
    scale: what a logit is worth, in `unit`s.
    unit: of returns, in accuracy, in which errors are counted.
    move_weight: of the moves' surprise, against the squared error.
  """

  iterations: int = 60
  environments: int = 256
  minibatches: int = 4
  passes: int = 8
  learning_rate: float = 3e-3
  decay: float = 1e-3
  max_gradient: float = 10.0
  least: float = 0.03
  most: float = 0.3
  own: float = 0.5
  scale: float = 0.25
  unit: float = 0.02
  move_weight: float = 0.1


class State(struct.PyTreeNode):
  """Where it stands.

  Attributes:
    params: of the network.
    optimizer: Adam's state.
    key: typed random key of the iterations to come.
    iteration: int32 []. How many are over.
  """

  params: PyTree
  optimizer: PyTree
  key: jax.Array
  iteration: jax.Array


def learner(
  actor: Actor,
  environment: Any,
  others: rules.Settings,
  prices: Prices,
  settings: Settings,
) -> Learner:
  """Makes a learner by Monte Carlo control.

  Args:
    actor: the network that learns.
    environment: see `simic.records.Environment`.
    others: settings of the coin; its probability is not read.
    prices: see `reward.Prices`.
    settings: see `Settings`; minibatches must divide environments.
  """
  per_iteration = settings.passes * settings.minibatches
  adam = with_own_promotion(
    optax.chain(
      optax.clip_by_global_norm(settings.max_gradient),
      optax.adamw(
        optax.linear_schedule(
          settings.learning_rate,
          0.01 * settings.learning_rate,
          per_iteration * settings.iterations,
        ),
        weight_decay=settings.decay,
      ),
    )
  )

  def init(params: PyTree, key: jax.Array) -> State:
    zero = jnp.zeros((), jnp.int32)
    return State(params, adam.init(params), key, zero)

  def play(params, share, key, own):
    """One episode; `share`: the probability that the network plays it."""
    rated, taken, rest = jax.random.split(own, 3)
    low, high = jnp.log(settings.least), jnp.log(settings.most)
    rate: Any = jnp.exp(low + (high - low) * jax.random.uniform(rated, ()))
    coin = others._replace(probability=rate)
    player = policy.from_rule("random", rules.random(coin), coin)
    knows = drawing(actor, params)
    itself = jax.random.bernoulli(taken, share)

    def decide(memory, observation, draw):
      memory, tossed = player.decide(memory, observation, draw)
      _, known, _ = knows((), observation, draw)
      chosen = jax.tree.map(lambda a, b: jnp.where(itself, a, b), known, tossed)
      return memory, chosen, ()

    first, rest = jax.random.split(rest)
    return rollout.play(environment, decide, player.init(first), key, rest)

  def loss(params, observation, choice, ahead, free):
    def one(observation, choice):
      distribution, value = actor.apply(params, observation)
      worth = value + settings.scale * actor.advantage(distribution, choice)
      return worth, actor.log_prob_moves(distribution, choice)

    worth, log_prob = jax.vmap(jax.vmap(one))(observation, choice)
    parts = {
      "error": ((worth - ahead) ** 2).mean(),
      "surprise": -(log_prob * free).sum() / jnp.maximum(free.sum(), 1.0),
    }
    return parts["error"] + settings.move_weight * parts["surprise"], parts

  def update(state: State, pool: Trials):
    key, pick, playing, shuffling = jax.random.split(state.key, 4)
    drawn = draw(pool, pick, settings.environments)
    done = state.iteration.astype(jnp.float32) / settings.iterations
    share = settings.own * jnp.minimum(done, 1.0)
    shown = rollout.population(
      lambda key, own: play(state.params, share, key, own),
      drawn.keys,
      jax.random.split(playing, settings.environments),
    )
    choice = jax.vmap(jax.vmap(actor.choice))(
      shown.observation, shown.decisions
    )
    ahead = coming(shown.outcome, drawn.still, prices) / settings.unit
    free = rollout.free(shown.observation)
    batch = (shown.observation, choice, ahead, free)

    def step(carry, index):
      part = jax.tree.map(lambda leaf: leaf[index], batch)
      return descend(loss, adam, carry, *part)

    order = minibatches(
      shuffling,
      settings.environments,
      passes=settings.passes,
      parts=settings.minibatches,
    )
    (params, optimizer), parts = jax.lax.scan(
      step, (state.params, state.optimizer), order
    )
    figures = rollout.decision_statistics(shown) | {
      f"loss/{name}": part[-1] for name, part in parts.items()
    }
    figures["return"] = returns(shown.outcome, drawn.still, prices).mean()
    return State(params, optimizer, key, state.iteration + 1), figures

  return Learner(init, update, lambda state: state.params)
