"""What a learner needs to know of the network that decides.

A learner sees five functions and never the network: that is all that PPO, the
evolution strategy and imitation share, and what the tests replace with a
smaller one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from esper_jax.simic.rollout import Decide
from esper_jax.tamiyo.observation import Decisions, Observation
from esper_jax.types import PyTree


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
    entropy: distribution -> float32 [], nats, all heads together.
    decisions: (distribution, choice) -> Decisions.
    choice: (observation, Decisions) -> choice; the inverse, for imitation.
  """

  init: Callable[[jax.Array], PyTree]
  apply: Callable[[PyTree, Observation], tuple[PyTree, jax.Array]]
  sample: Callable[[PyTree, jax.Array], PyTree]
  mode: Callable[[PyTree], PyTree]
  log_prob: Callable[[PyTree, PyTree], jax.Array]
  entropy: Callable[[PyTree], jax.Array]
  decisions: Callable[[PyTree, PyTree], Decisions]
  choice: Callable[[Observation, Decisions], PyTree]


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


def greedy(actor: Actor, params: PyTree) -> Decide:
  """Makes the `Decide` that takes the network's likeliest choice."""

  def decide(memory, observation, key):
    del key
    distribution, _ = actor.apply(params, observation)
    return memory, actor.decisions(distribution, actor.mode(distribution)), ()

  return decide
