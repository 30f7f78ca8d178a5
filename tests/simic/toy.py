"""A growth problem of arithmetic alone, whose best policy is known.

Three rows, three blueprints, the real lifecycle. "good" (0) raises the
accuracy by GAIN in one row, another in every episode, which the scores point
to; in the other rows it measures as useless. "padding" (1) is large and does
nothing. "entangled" (2) does nothing either, but its ablation hurts, so every
gate lets it pass: a seed that holds the host to ransom. The best return is
that of planting "good" at the right row at once and moving it up whenever its
gate passes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.kasmina import lifecycle
from esper_jax.simic import rollout
from esper_jax.simic.actor import Actor
from esper_jax.simic.records import Environment, Outcome
from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo import shepherd
from esper_jax.types import Action, Stage

EPOCHS, ROWS, BLUEPRINTS = 8, 3, 3
GOOD, PADDING, ENTANGLED = range(3)
GAIN = 0.2
HOST = 1000.0  # parameters
COST = (100.0, 8000.0, 50.0)  # parameters of each blueprint
RULES = lifecycle.Rules(
  epochs=EPOCHS,
  lead_epochs=0,
  adaptation_frequency=1,
  max_adaptations_per_epoch=1,
  max_growths=3,
  seeds_per_slot=1,
  max_per_slot=1,
  alpha_curve="linear",
  blend_epochs=1,
  min_training_epochs=1,
  max_training_epochs=8,
  min_holding_epochs=1,
  max_holding_epochs=8,
  embargo_epochs=1,
  training_gain_sigmas=2.0,
  gain_sigmas=2.0,
  max_gradient_ratio=100.0,
)
# What the tests wait for is the compiler; it need not try hard here.
fast_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
FITS = jnp.ones((ROWS, BLUEPRINTS), jnp.bool_)


class ToyState(struct.PyTreeNode):
  slots: lifecycle.SlotState
  right: jax.Array  # int32 []: the row in which "good" is good
  epoch: jax.Array  # int32 []


def _own(table, blueprint):
  """float32 [rows]: each row's entry at its own blueprint; 0 without one."""
  column = jnp.maximum(blueprint, 0)[:, None]
  value = jnp.take_along_axis(table, column, axis=1)[:, 0]
  return jnp.where(blueprint >= 0, value, 0.0)


def _gains(right):
  at = (jnp.arange(ROWS) == right).astype(jnp.float32)
  true = jnp.zeros((ROWS, BLUEPRINTS)).at[:, GOOD].set(GAIN * at)
  measured = true.at[:, ENTANGLED].set(0.3)
  return true, measured


def _signals(state):
  _, measured = _gains(state.right)
  slots = state.slots
  planted = slots.blueprint >= 0
  return lifecycle.Signals(
    contribution=_own(measured, slots.blueprint),
    contribution_se=jnp.full((ROWS,), 0.01),
    contribution_known=planted,
    contribution_age=jnp.zeros((ROWS,), jnp.int32),
    contribution_stage=slots.stage,
    parity=jnp.ones((ROWS,)),
    parity_known=planted,
    finite=jnp.ones((ROWS,), jnp.bool_),
  )


def _observe(state):
  slots, signals = state.slots, _signals(state)
  right = (jnp.arange(ROWS) == state.right).astype(jnp.float32)
  scores = jnp.full((ROWS, BLUEPRINTS), 0.1).at[:, GOOD].add(right)
  every = jnp.ones((ROWS,), jnp.bool_)
  return obs.unknown(ROWS, BLUEPRINTS).replace(
    epoch=state.epoch,
    fraction=state.epoch.astype(jnp.float32) / EPOCHS,
    epochs_left=EPOCHS - state.epoch,
    growths_left=RULES.max_growths - slots.growths,
    parameters=jnp.float32(HOST),
    flops=jnp.float32(HOST),
    # flat, so that the heuristic sees a plateau
    val_loss=jnp.ones((obs.HISTORY,)),
    history_known=jnp.ones((obs.HISTORY,), jnp.bool_),
    stage=slots.stage,
    age=slots.age,
    life=slots.life,
    blueprint=slots.blueprint,
    alpha=slots.alpha,
    contribution=signals.contribution,
    contribution_se=signals.contribution_se,
    contribution_known=signals.contribution_known,
    contribution_stage=signals.contribution_stage,
    parity=signals.parity,
    parity_known=signals.parity_known,
    scores=scores,
    scores_known=every,
    expansion=scores,
    expansion_known=every,
    gate=lifecycle.gate(slots, signals, RULES),
    legal=lifecycle.legal(slots, signals, RULES, FITS, state.epoch),
    cost=jnp.broadcast_to(jnp.asarray(COST), (ROWS, BLUEPRINTS)),
  )


def _reset(key):
  right = jax.random.randint(key, (), 0, ROWS, jnp.int32)
  state = ToyState(lifecycle.initial(ROWS), right, jnp.int32(0))
  return state, _observe(state)


def _step(state, decisions, key):
  del key
  before = state.slots
  slots, _ = lifecycle.act(
    before,
    decisions.action,
    decisions.blueprint,
    _signals(state),
    RULES,
    FITS,
    state.epoch,
  )
  slots, _, _ = lifecycle.enact(slots, RULES, state.epoch)
  germinated = slots.growths - before.growths
  slots = lifecycle.tick(slots, RULES)
  epoch = state.epoch + 1
  state = ToyState(slots, state.right, epoch)
  done = epoch == EPOCHS
  ended = lifecycle.finish(slots, _signals(state), RULES)
  ended, _, _ = lifecycle.enact(ended, RULES, epoch)
  slots = jax.tree.map(lambda a, b: jnp.where(done, a, b), ended, slots)
  state = state.replace(slots=slots)
  true, _ = _gains(state.right)
  table = jnp.broadcast_to(jnp.asarray(COST), (ROWS, BLUEPRINTS))
  accuracy = 0.5 + (slots.alpha * _own(true, slots.blueprint)).sum()
  parameters = HOST + _own(table, slots.blueprint).sum()
  alive = lifecycle.leaves(before)[2]
  fossilized = (slots.fossils - before.fossils).sum(dtype=jnp.int32)
  gone = (alive > 0) & (slots.blueprint < 0)
  silent = (slots.stage == int(Stage.CULLED)) & (alive > 0)
  outcome = Outcome(
    val_loss=1.0 - accuracy,
    val_accuracy=accuracy,
    report_accuracy=accuracy,
    parameters=parameters,
    flops=parameters,
    done=done,
    germinated=germinated,
    fossilized=fossilized,
    culled=(gone | silent).sum(dtype=jnp.int32),
  )
  return state, _observe(state), outcome


ENVIRONMENT = Environment(reset=_reset, step=_step, epochs=EPOCHS)


class Choice(NamedTuple):
  place: jax.Array  # int32 []: row * blueprints + blueprint; the last = none
  move: jax.Array  # int32 [rows]: index into MOVES


MOVES = (Action.WAIT, Action.ADVANCE, Action.CULL, Action.FOSSILIZE)


def _features(o):
  best = o.scores.max()
  rows = [
    jax.nn.one_hot(o.stage, len(Stage)),
    o.scores / best,
    (o.gate == 0).astype(jnp.float32)[:, None],
    jnp.sign(o.contribution)[:, None],
    jnp.broadcast_to(o.fraction, (ROWS, 1)),
    jnp.ones((ROWS, 1)),
  ]
  return jnp.concatenate(rows, axis=1)


def _init(key):
  del key
  size = len(Stage) + BLUEPRINTS + 4
  return {
    "grow": jnp.zeros((size, BLUEPRINTS)),
    "move": jnp.zeros((size, len(MOVES))),
    "stay": jnp.zeros((size,)),
    "value": jnp.zeros((size,)),
  }


def _apply(params, o):
  x = _features(o)
  grow = jnp.where(o.legal[:, int(Action.GERMINATE)], x @ params["grow"], -1e9)
  moves = jnp.asarray([int(m) for m in MOVES])
  legal = o.legal.any(axis=-1)[:, moves]
  stay = x.mean(axis=0) @ params["stay"]
  place = jax.nn.log_softmax(jnp.append(grow.ravel(), stay))
  move = jax.nn.log_softmax(jnp.where(legal, x @ params["move"], -1e9))
  return (place, move, o.blueprint), x.mean(axis=0) @ params["value"]


def _sample(distribution, key):
  place, move, _ = distribution
  one, two = jax.random.split(key)
  return Choice(
    jax.random.categorical(one, place).astype(jnp.int32),
    jax.random.categorical(two, move).astype(jnp.int32),
  )


def _mode(distribution):
  place, move, _ = distribution
  return Choice(
    place.argmax().astype(jnp.int32), move.argmax(axis=1).astype(jnp.int32)
  )


def _log_prob(distribution, choice):
  return distribution[0][choice.place] + _log_prob_moves(distribution, choice)


def _log_prob_moves(distribution, choice):
  return jnp.take_along_axis(
    distribution[1], choice.move[:, None], axis=1
  ).sum()


def _advantage(distribution, choice):
  return distribution[0][choice.place] - distribution[0][-1]


def _entropy(distribution):
  place, move, _ = distribution
  return -(jnp.exp(place) * place).sum() - (jnp.exp(move) * move).sum()


def _decisions(distribution, choice):
  _, _, blueprint = distribution
  row, kind = choice.place // BLUEPRINTS, choice.place % BLUEPRINTS
  sown = jnp.arange(ROWS) == row
  action = jnp.asarray([int(m) for m in MOVES], jnp.int32)[choice.move]
  action = jnp.where(sown, int(Action.GERMINATE), action)
  own = jnp.where(action == int(Action.WAIT), -1, blueprint)
  return shepherd.waiting(ROWS).replace(
    action=action, blueprint=jnp.where(sown, kind, own).astype(jnp.int32)
  )


def _choice(o, decisions):
  del o
  sown = decisions.action == int(Action.GERMINATE)
  row = sown.argmax().astype(jnp.int32)
  place = row * BLUEPRINTS + decisions.blueprint[row]
  moves = jnp.asarray([int(m) for m in MOVES], jnp.int32)
  same = decisions.action[:, None] == moves[None]
  return Choice(
    jnp.where(sown.any(), place, ROWS * BLUEPRINTS).astype(jnp.int32),
    same.argmax(axis=1).astype(jnp.int32),
  )


ACTOR = Actor(
  init=_init,
  apply=_apply,
  sample=_sample,
  mode=_mode,
  log_prob=_log_prob,
  log_prob_moves=_log_prob_moves,
  advantage=_advantage,
  entropy=_entropy,
  decisions=_decisions,
  choice=_choice,
)


@functools.cache
def trials():
  """64 environments with their twins, compiled once a process."""
  return rollout.make_trials(ENVIRONMENT, jax.random.key(0), 64)
