"""What a learner needs to know of the network that decides.

A learner sees ten functions and never the network: that is all that PPO, the
evolution strategy and imitation share, and what the tests replace with a
smaller one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esper_jax.simic.rollout import Decide
from esper_jax.tamiyo import distribution, features, network
from esper_jax.tamiyo.distribution import MOVES, Choice
from esper_jax.tamiyo.features import Limits
from esper_jax.tamiyo.network import Sizes
from esper_jax.tamiyo.observation import Decisions, Observation
from esper_jax.types import Action, PyTree


class Actor(NamedTuple):
  """A policy network and its distribution over decisions.

  A *choice* is what is drawn, a *distribution* what it is drawn from (legality
  inside: what is not legal has probability 0); both are PyTrees.

  Attributes:
    init: key -> parameters.
    apply: (parameters, observation) -> (distribution, float32 [] value).
    sample: (distribution, key) -> choice.
    mode: distribution -> the likeliest choice.
    log_prob: (distribution, choice) -> float32 [].
    log_prob_moves: the same of the moves of seeds that live alone.
    advantage: (distribution, choice) -> float32 []. What speaks for what
      germinates, against staying, in logits; see `distribution.advantage`.
    entropy: distribution -> float32 [], nats, all heads together.
    decisions: (distribution, choice) -> Decisions.
    choice: (observation, Decisions) -> choice; the inverse, for imitation.
    drawn: whether a policy in use draws its choice; else it takes the mode.
  """

  init: Callable[[jax.Array], PyTree]
  apply: Callable[[PyTree, Observation], tuple[PyTree, jax.Array]]
  sample: Callable[[PyTree, jax.Array], PyTree]
  mode: Callable[[PyTree], PyTree]
  log_prob: Callable[[PyTree, PyTree], jax.Array]
  log_prob_moves: Callable[[PyTree, PyTree], jax.Array]
  advantage: Callable[[PyTree, PyTree], jax.Array]
  entropy: Callable[[PyTree], jax.Array]
  decisions: Callable[[PyTree, PyTree], Decisions]
  choice: Callable[[Observation, Decisions], PyTree]
  drawn: bool = False


class Record(NamedTuple):
  """What PPO keeps of a step.

  Attributes:
    choice: that was drawn.
    log_prob: float32 []. Of it.
    value: float32 []. As the network gives it.
  """

  choice: PyTree
  log_prob: jax.Array
  value: jax.Array


def drawing(actor: Actor, params: PyTree) -> Decide:
  """Makes the `Decide` that draws from the network, and keeps a `Record`."""

  def decide(memory, observation, key):
    distribution, value = actor.apply(params, observation)
    choice = actor.sample(distribution, key)
    record = Record(choice, actor.log_prob(distribution, choice), value)
    return memory, actor.decisions(distribution, choice), record

  return decide


def using(actor: Actor, params: PyTree) -> Decide:
  """Makes the `Decide` of a policy as it is used, not taught."""

  def decide(memory, observation, key):
    distribution, _ = actor.apply(params, observation)
    if actor.drawn:
      choice = actor.sample(distribution, key)
    else:
      choice = actor.mode(distribution)
    return memory, actor.decisions(distribution, choice), ()

  return decide


def of_network(
  described: Any,
  limits: Limits,
  sizes: Sizes,
  *,
  draws: int = 1,
  drawn: bool = False,
) -> Actor:
  """Makes the actor of Tamiyo's network.

  Args:
    described: float32 [rows, blueprints, traits]. Of `tamiyo.traits`.
    limits: of the lifecycle, see `tamiyo.features`.
    sizes: of the network.
    draws: germinations at one boundary, at most.
    drawn: see `Actor`.
  """
  lanes = limits.seeds_per_slot

  def apply(params, observation):
    inputs = features.encode(observation, described, limits=limits)
    logits, value = network.apply(params, inputs, sizes)
    return (logits, observation), value

  def sample(both, key):
    logits, observation = both
    return distribution.sample(
      logits, observation, key, draws=draws, lanes=lanes
    )

  def mode(both):
    logits, observation = both
    return distribution.mode(logits, observation, draws=draws, lanes=lanes)

  def log_prob(both, choice):
    logits, observation = both
    return distribution.log_prob(logits, observation, choice, lanes=lanes)

  def log_prob_moves(both, choice):
    logits, observation = both
    return distribution.log_prob_moves(logits, observation, choice, lanes=lanes)

  def advantage(both, choice):
    logits, observation = both
    return distribution.advantage(logits, observation, choice, lanes=lanes)

  def entropy(both):
    logits, observation = both
    return distribution.entropy(logits, observation, draws=draws, lanes=lanes)

  def decisions(both, choice):
    logits, observation = both
    return distribution.to_decisions(choice, observation, logits, lanes=lanes)

  def choice(observation, decisions):
    return _chosen(observation, decisions, draws)

  return Actor(
    init=lambda key: network.init(key, sizes),
    apply=apply,
    sample=sample,
    mode=mode,
    log_prob=log_prob,
    log_prob_moves=log_prob_moves,
    advantage=advantage,
    entropy=entropy,
    decisions=decisions,
    choice=choice,
    drawn=drawn,
  )


def _chosen(
  observation: Observation, decisions: Decisions, draws: int
) -> Choice:
  """The choice that `distribution.to_decisions` turns into these decisions."""
  blueprints = observation.scores.shape[1]
  sown = decisions.action == int(Action.GERMINATE)
  first = jnp.argsort(~sown)[:draws].astype(jnp.int32)  # stable: in row order
  pair = first * blueprints + decisions.blueprint[first]
  codes = jnp.asarray([int(move) for move in MOVES], jnp.int32)
  same = decisions.action.reshape(-1, 1) == codes.reshape(1, -1)
  return Choice(
    growth=jnp.where(sown[first], pair, -1).astype(jnp.int32),
    moves=same.argmax(axis=1).astype(jnp.int32),  # 0, waiting, where it grows
  )
