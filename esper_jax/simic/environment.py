"""A growing network as an environment: pure functions that reset and step.

One step is one host epoch. It passes the boundary that the policy has just
been asked at, trains, and goes up to the next one, in the order of
`tolaria.trainer` and with its own code: the training step, the probe, the
lifecycle, the observation. All functions can be jitted, vmapped and scanned;
`vmap` over environments and `scan` over steps make a population one program.

  environment = make(...)
  state, observation = environment.reset(key)
  state, observation, outcome = environment.step(state, decisions, key)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from esper_jax.kasmina import lifecycle
from esper_jax.kasmina.gates import columns_of, is_in
from esper_jax.simic import boundary
from esper_jax.simic import learner as learners
from esper_jax.simic.hosts import MASKS
from esper_jax.simic.learner import Learner
from esper_jax.simic.planted import Leaves, where
from esper_jax.simic.records import (
  Environment,
  EnvState,
  Order,
  Outcome,
  Setting,
)
from esper_jax.simic.worlds import World, narrowed
from esper_jax.tamiyo.observation import Decisions, Observation
from esper_jax.tolaria import steps
from esper_jax.tolaria.growth_programs import fold_boundary, make_observe
from esper_jax.tolaria.run import History, unknown_signals
from esper_jax.types import InputError, Stage

__all__ = [
  "EnvState",
  "Environment",
  "Order",
  "Outcome",
  "Setting",
  "begin",
  "draw_order",
  "make",
  "make_advance",
]


def make(setting: Setting, draw: Callable[[jax.Array], World]) -> Environment:
  """Makes the environment.

  Args:
    setting: what all share.
    draw: draws what differs, see `worlds.make_draw`.

  Raises:
    InputError: a blueprint that does not fit a slot, or rules with more than
      one seed per slot.
  """
  _check(setting)
  advance = make_advance(setting)
  if setting.in_turn:
    advance = sequential_vmap(advance)

  def reset(key):
    world_key, host_key, key = jax.random.split(key, 3)
    state = begin(setting, draw(world_key), host_key, key)
    return state, _plain_look(setting, state)

  def step(state, decisions, key):
    indices = draw_order(setting, state.world, key)
    return advance(state, decisions, indices)

  return Environment(reset=reset, step=step, epochs=setting.rules.epochs)


def _check(setting: Setting) -> None:
  r = setting.rules
  if (r.seeds_per_slot, r.max_per_slot, r.adaptation_frequency) != (1, 1, 1):
    raise InputError(
      "simic: an environment holds one seed per slot and asks at every"
      " boundary; set kasmina.seeds_per_slot, kasmina.max_per_slot and"
      " kasmina.adaptation_frequency to 1"
    )


def draw_order(setting: Setting, world: World, key: jax.Array) -> Order:
  """Draws an epoch's order: every example of the world as often, to 1.

  Where there are more examples than an epoch reads, a stretch of them is
  drawn. Not drawn with replacement: in a run, too, an epoch shows no example
  twice while it leaves out another.
  """
  total = setting.steps * setting.batch
  start_key, key = jax.random.split(key)
  start = jax.random.randint(start_key, (), 0, world.count, jnp.int32)
  shuffled = jax.random.permutation(key, total).astype(jnp.int32)
  picked = world.examples[(shuffled + start) % world.count]
  batches = picked.reshape(setting.steps, setting.batch)
  return Order(batches, jnp.resize(picked, (setting.probe,)))


def begin(
  setting: Setting, world: World, host_key: jax.Array, key: jax.Array
) -> EnvState:
  """A fresh network in a world, at boundary 0.

  Args:
    setting: what all share.
    world: what differs.
    host_key: draws the host's parameters.
    key: see `EnvState`.
  """
  x = setting.example
  params, collections = setting.host.init(host_key, jnp.zeros(x.shape, x.dtype))
  width = collections[MASKS]["units"].shape[0]
  rows = len(setting.grid.paths)
  return EnvState(
    world=world,
    learner=learners.dormant(
      setting.grid,
      setting.options,
      narrowed(params, world, width=width),
      {**collections, MASKS: world.masks},
      world.rate,
    ),
    slots=lifecycle.initial(rows),
    signals=unknown_signals(rows),
    history=jax.tree.map(jnp.asarray, History.empty()),
    epoch=jnp.zeros((), jnp.int32),
    key=key,
  )


def make_advance(setting: Setting) -> Callable[..., Any]:
  """Builds (EnvState, Decisions, Order) -> what `Environment.step` returns."""
  grid, rules, data = setting.grid, setting.rules, setting.material
  grow = _make_grow(setting)
  end = _make_end(setting)
  observe = _make_look(setting)
  train = learners.make_train(setting.host, grid, setting.options)
  evaluate = steps.make_evaluate(setting.host, setting.options.preprocess)

  def advance(
    state: EnvState, decisions: Decisions, order: Order
  ) -> tuple[EnvState, Observation, Outcome]:
    state, moves = grow(state, decisions)
    spent = setting.steps * _step_flops(setting, state)
    learner, epoch = train(
      state.learner, data.images, state.world.labels, order.batches
    )
    ablated = boundary.ablate(
      evaluate,
      learner,
      grid,
      state.slots.stage,
      data.validation_images,
      data.validation_labels,
    )
    val_loss, val_accuracy = ablated.losses.mean(), ablated.hits.mean()
    state = state.replace(
      learner=learner,
      slots=lifecycle.tick(state.slots, rules),
      signals=boundary.judge(
        state.signals,
        state.slots,
        ablated,
        epoch,
        learner,
        grid,
        attended=_attended(state),
        min_training=rules.min_training_epochs,
      ),
      history=boundary.remember(
        state.history,
        train_loss=epoch.loss,
        val_loss=val_loss,
        train_accuracy=epoch.accuracy,
        val_accuracy=val_accuracy,
      ),
      epoch=state.epoch + 1,
    )
    observation = observe(state, order.probe)
    figures = jnp.stack([val_loss, val_accuracy, jnp.zeros_like(val_loss)])
    state, more, figures = end(state, figures)
    outcome = Outcome(
      val_loss=figures[0],
      val_accuracy=figures[1],
      report_accuracy=figures[2],
      parameters=_parameters(state),
      flops=spent,
      done=state.epoch >= rules.epochs,
      germinated=moves.germinated,
      fossilized=moves.fossilized + more.fossilized,
      culled=moves.culled + more.culled,
    )
    return state, observation, outcome

  return advance


def _attended(state: EnvState) -> jax.Array:
  """bool [rows]: see `boundary.judge`. The same whatever a policy decides."""
  key = fold_boundary(state.key, 0, state.epoch, 0)
  shape = state.slots.stage.shape
  return jax.random.bernoulli(key, state.world.attention, shape)


class _Moves(NamedTuple):
  """How many seeds were planted, made permanent and silenced; int32 []."""

  germinated: jax.Array
  fossilized: jax.Array
  culled: jax.Array

  @classmethod
  def between(
    cls, old: lifecycle.SlotState, new: lifecycle.SlotState, born: jax.Array
  ) -> "_Moves":
    culled = int(Stage.CULLED)
    silenced = (new.stage == culled) & (old.stage != culled)
    return cls(
      born.sum(dtype=jnp.int32),
      (new.fossils - old.fossils).sum(dtype=jnp.int32),
      silenced.sum(dtype=jnp.int32),
    )


def _make_grow(setting: Setting) -> Callable[..., tuple[EnvState, _Moves]]:
  """Builds what passes a boundary: moves, then what is due, then leaves."""
  grid, rules = setting.grid, setting.rules

  def grow(state: EnvState, decisions: Decisions) -> tuple[EnvState, _Moves]:
    moved, _ = lifecycle.act(
      state.slots,
      decisions.action,
      decisions.blueprint,
      state.signals,
      rules,
      _allowed(state),
      state.epoch,
    )
    slots, born, _ = lifecycle.enact(moved, rules, state.epoch)
    row = jnp.arange(len(grid.paths), dtype=jnp.int32)
    learner = learners.plant(
      state.learner,
      grid,
      setting.options,
      born=born,
      blueprint=slots.blueprint,
      keys=jax.vmap(lambda r: fold_boundary(state.key, 0, state.epoch, 1 + r))(
        row
      ),
    )
    moves = _Moves.between(state.slots, moved, born)
    state = state.replace(
      learner=learner.replace(leaves=_leaves(slots)),
      slots=slots,
      signals=boundary.forget(state.signals, born),
    )
    return state, moves

  return grow


def _make_end(setting: Setting) -> Callable[..., Any]:
  """Builds what ends an episode, where one ends.

  (EnvState, figures) -> (EnvState, moves, figures), with figures float32 [3]:
  validation loss and accuracy, accuracy on the report split.
  """
  grid, rules, data = setting.grid, setting.rules, setting.material
  evaluate = steps.make_evaluate(setting.host, setting.options.preprocess)
  count = len(data.validation_labels)
  images = jnp.concatenate([data.validation_images, data.report_images])
  labels = jnp.concatenate([data.validation_labels, data.report_labels])
  mask = jnp.ones(labels.shape, jnp.float32)

  def final(learner: Learner) -> jax.Array:
    seeds = grid.seeds(learner.pool, learner.leaves)
    view = learner.params, learners.view(learner), seeds
    losses, hits = evaluate(*view, images, labels, mask)
    parts = losses[:count], hits[:count], hits[count:]
    return jnp.stack([part.mean() for part in parts])

  def end(state: EnvState, figures: jax.Array):
    last = state.epoch >= rules.epochs
    finished = lifecycle.finish(state.slots, state.signals, rules)
    nobody = jnp.zeros_like(finished.quarantined)
    moves = _Moves.between(state.slots, finished, nobody)
    moves = _Moves(*(jnp.where(last, n, 0) for n in moves))
    finished, _, _ = lifecycle.enact(finished, rules, state.epoch)
    slots = where(last, finished, state.slots)
    leaves = where(last, _leaves(finished), state.learner.leaves)
    learner = state.learner.replace(leaves=leaves)
    # A loop of one pass or none: where no environment of a batch ends, it
    # costs nothing; a condition would be a selection, paid for every epoch.
    _, figures = jax.lax.while_loop(
      lambda carry: carry[0],
      lambda carry: (jnp.zeros_like(carry[0]), final(learner)),
      (last, figures),
    )
    return state.replace(slots=slots, learner=learner), moves, figures

  return end


def _leaves(slots: lifecycle.SlotState) -> Leaves:
  return Leaves(slots.blueprint, *lifecycle.leaves(slots))


def _make_look(setting: Setting) -> Callable[..., Observation]:
  """Builds (EnvState, int32 [examples] to probe) -> Observation."""
  grid, data = setting.grid, setting.material
  slots = {path: grid.spec for path in grid.paths}
  probe = steps.make_probe(setting.host, setting.options.preprocess, slots)
  score = [steps.make_score(name, grid.spec) for name in grid.names]

  def observe(state: EnvState, indices: jax.Array) -> Observation:
    learner = state.learner
    probed = probe(
      learner.params,
      learners.view(learner),
      grid.seeds(learner.pool, learner.leaves),
      data.images[indices],
      state.world.labels[indices],
    )
    key = jax.random.fold_in(state.key, state.epoch)
    x, g = (
      jnp.stack([signal[part] for signal in probed.signals.values()])
      for part in (0, 1)
    )
    scores = [
      jnp.stack(jax.vmap(function, (None, 0, 0))(key, x, g))
      for function in score
    ]
    return boundary.with_scores(
      _plain_look(setting, state),
      probed,
      jnp.stack(scores),
      state.world.exists,
    )

  return observe


def _plain_look(setting: Setting, state: EnvState) -> Observation:
  """The observation without what only a probe tells."""
  world = state.world
  observe = make_observe(setting.rules, _allowed(state), world.cost)
  return observe(
    state.slots,
    state.signals,
    state.history,
    state.epoch,
    _parameters(state),
    _step_flops(setting, state),
  )


def _allowed(state: EnvState) -> jax.Array:
  """bool [rows, blueprints]: what may germinate as far as the world goes.

  Not before the first epoch, as in a run, and not beyond the budget.
  """
  world = state.world
  own = columns_of(state.slots.blueprint, world.cost)
  coming = world.parameters + jnp.where(own, world.cost, 0.0).sum() + world.cost
  return world.fits & (coming <= world.budget) & (state.epoch > 0)


def _in_tree(state: EnvState) -> jax.Array:
  """bool [rows, blueprints]: the seeds that a run's tree would hold."""
  planted_rows = is_in(state.slots.stage, boundary.PLANTED)
  own = columns_of(state.slots.blueprint, state.world.cost)
  return own & planted_rows.reshape(-1, 1)


def _parameters(state: EnvState) -> jax.Array:
  world = state.world
  return world.parameters + jnp.where(_in_tree(state), world.cost, 0.0).sum()


def _step_flops(setting: Setting, state: EnvState) -> jax.Array:
  world = state.world
  own = jnp.where(_in_tree(state), world.seed_flops, 0.0).sum()
  return setting.batch * (world.flops + own)
