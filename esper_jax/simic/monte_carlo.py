"""Monte Carlo control: what a germination was worth, from whole returns.

A coin plays, in every episode with a rate of its own, and the network learns by
regression what it saw:

  return still to come / (unit * what the twin gets wrong) - margin * how many
    germinate now = value + scale * sum of their advantages

where an advantage is a difference of logits (`Actor.advantage`). So a logit
becomes what germinating is worth more than staying, less the margin, and the
distribution of the network the Boltzmann policy of these advantages: one step
of policy improvement over the coin (Sutton and Barto 2018, sections 4.2 and
5.4; with a network and whole returns in place of bootstrapped ones, as Zha et
al. 2021, arXiv:2106.06135). A part of the episodes is played by the network
itself, so that what staying is worth becomes what it is worth to a policy that
knows better later. It draws its decisions at first, to see what others are
worth; more and more it takes the likeliest, as it will in use. If it went on
drawing all of them, it would grow at some time in every host, and staying would
be worth no more than to grow later.

What is learned is noisy, and whoever chooses by noisy estimates chooses what is
overestimated (Smith and Winkler 2006, "The optimizer's curse"; van Hasselt
2010, "Double Q-learning"). So a germination has to be worth a margin: the
regression is told that much less. It is not told so of later germinations, so
the margin also favours to wait where a seed may be planted later.

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
from esper_jax.simic.actor import Actor
from esper_jax.simic.learning import Learner, descend, draw, minibatches
from esper_jax.simic.planted import where
from esper_jax.simic.reward import Prices, coming, returns
from esper_jax.simic.rollout import Trials
from esper_jax.tamiyo import policy, rules
from esper_jax.tolaria.optimizers import with_own_promotion
from esper_jax.types import Action, PyTree

_LEAST_ROOM = 0.02  # of a twin that gets next to all right


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
    own: share of the episodes that the network plays after the last iteration;
      it rises from 0.
    stray: share of the epochs of these episodes in which the network draws its
      decision after the last iteration; it falls from 1. In the other epochs
      it takes the likeliest, as it will in use.
    follow: rate at which the parameters that play, and are the result, follow
      those that learn, per iteration.
    scale: what a logit is worth, in `unit`s.
    margin: what a germination must be worth beyond staying, in `unit`s.
    unit: of returns, as a share of what the twin gets wrong in the end.
    move_weight: of the moves' surprise, against the squared error.
  """

  iterations: int = 50
  environments: int = 1024
  minibatches: int = 8
  passes: int = 2
  learning_rate: float = 3e-3
  decay: float = 1e-3
  max_gradient: float = 10.0
  least: float = 0.03
  most: float = 0.3
  own: float = 0.8
  stray: float = 0.1
  follow: float = 0.2
  scale: float = 0.25
  margin: float = 0.05
  unit: float = 0.05
  move_weight: float = 0.1


class State(struct.PyTreeNode):
  """Where it stands.

  Attributes:
    params: of the network, as they learn.
    average: running average of them.
    optimizer: Adam's state.
    key: typed random key of the iterations to come.
    iteration: int32 []. How many are over.
  """

  params: PyTree
  average: PyTree
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
    return State(params, params, adam.init(params), key, zero)

  def play(params, done, key, own):
    """One episode; `done`: the share of the iterations that are over."""
    rated, taken, rest = jax.random.split(own, 3)
    low, high = jnp.log(settings.least), jnp.log(settings.most)
    rate: Any = jnp.exp(low + (high - low) * jax.random.uniform(rated, ()))
    coin = others._replace(probability=rate)
    player = policy.from_rule("random", rules.random(coin), coin)
    itself = jax.random.bernoulli(taken, settings.own * done)
    stray = 1.0 - (1.0 - settings.stray) * done

    def known(observation, draw):
      strays, drawn = jax.random.split(draw)
      distribution, _ = actor.apply(params, observation)
      choice = where(
        jax.random.bernoulli(strays, stray),
        actor.sample(distribution, drawn),
        actor.mode(distribution),
      )
      return actor.decisions(distribution, choice)

    def decide(memory, observation, draw):
      memory, tossed = player.decide(memory, observation, draw)
      return memory, where(itself, known(observation, draw), tossed), ()

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
    done = jnp.minimum(state.iteration / settings.iterations, 1.0)
    shown = rollout.population(
      lambda key, own: play(state.average, done, key, own),
      drawn.keys,
      jax.random.split(playing, settings.environments),
    )
    choice = jax.vmap(jax.vmap(actor.choice))(
      shown.observation, shown.decisions
    )
    ahead = coming(shown.outcome, drawn.still, prices)
    ahead /= settings.unit * room(drawn.still)
    grown = (shown.decisions.action == int(Action.GERMINATE)).sum(axis=-1)
    ahead -= settings.margin * grown.astype(jnp.float32)
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
    average = optax.incremental_update(params, state.average, settings.follow)
    state = State(params, average, optimizer, key, state.iteration + 1)
    return state, figures

  return Learner(init, update, lambda state: state.average)


def room(still: Any) -> jax.Array:
  """Returns what the twins get wrong in the end: float32 [environments, 1].

  Returns spread about as widely as there is room for them: counted in shares of
  it, the narrow host's noise does not drown what the wide one tells (weighted
  least squares). It depends on no decision.

  Args:
    still: `Outcome` of the twins, [environments, epochs].
  """
  return jnp.maximum(1.0 - still.val_accuracy[:, -1:], _LEAST_ROOM)
