"""Gates and legality: which moves of a seed's life are allowed, and why not.

See `kasmina.lifecycle` for what rows, boundaries and epochs mean.
"""

from typing import Any

import jax
import jax.numpy as jnp

from esper_jax.kasmina.records import Reason, Signals, SlotState
from esper_jax.kasmina.rules import Rules, earliest_fossil
from esper_jax.types import LIVE_STAGES, Action, Stage

FRESH_EPOCHS = 1  # a contribution older than this opens no gate


def gate(slots: SlotState, signals: Signals, rules: Rules) -> jax.Array:
  """Judges the next upward move (ADVANCE or FOSSILIZE) of every row.

  TRAINING: old enough, gradients measured, finite and not exploding, and a
  fresh contribution of this visit above training_gain_sigmas standard errors.
  BLENDING: finite and one epoch spent at alpha = 1. HOLDING: old enough,
  finite, and a fresh contribution of this visit above gain_sigmas standard
  errors and above 0. Comparisons are strict, so NaN opens no gate.

  Returns:
    int32 [rows]: `Reason` bits; 0 = passes; WRONG_STAGE = no upward move.
  """
  training = slots.stage == int(Stage.TRAINING)
  blending = slots.stage == int(Stage.BLENDING)
  holding = slots.stage == int(Stage.HOLDING)
  judged = training | holding
  youngest = jnp.where(
    training,
    jnp.int32(rules.min_training_epochs),
    jnp.int32(rules.min_holding_epochs),
  )
  own = (
    signals.contribution_known
    & (signals.contribution_stage == slots.stage)
    & (signals.contribution_age < slots.age)
  )
  floor = jnp.where(
    training,
    rules.training_gain_sigmas * signals.contribution_se,
    jnp.maximum(rules.gain_sigmas * signals.contribution_se, 0.0),
  )
  gain = (
    jnp.isfinite(signals.contribution)
    & jnp.isfinite(signals.contribution_se)
    & (signals.contribution > floor)
  )
  calm = signals.parity <= rules.max_gradient_ratio
  blended = (slots.alpha == 1.0) & (slots.age >= rules.blend_epochs)
  return (
    bit(~(judged | blending), Reason.WRONG_STAGE)
    | bit(judged & (slots.age < youngest), Reason.TOO_YOUNG)
    | bit(training & ~signals.parity_known, Reason.GRADIENT_UNKNOWN)
    | bit((judged | blending) & ~signals.finite, Reason.NOT_FINITE)
    | bit(training & signals.parity_known & ~calm, Reason.EXPLODING)
    | bit(judged & ~own, Reason.CONTRIBUTION_UNKNOWN)
    | bit(
      judged & own & (signals.contribution_age > FRESH_EPOCHS),
      Reason.CONTRIBUTION_STALE,
    )
    | bit(judged & own & ~gain, Reason.NO_GAIN)
    | bit(blending & ~blended, Reason.STILL_BLENDING)
  )


def legal(
  slots: SlotState,
  signals: Signals,
  rules: Rules,
  fits: jax.Array,
  epoch: Any,
) -> jax.Array:
  """Tells which single moves `act` would carry out.

  Several germinations, each legal, may together break a cap: see `act`.

  Args:
    slots: see `SlotState`.
    signals: see `Signals`.
    rules: see `Rules`.
    fits: bool [rows, blueprints]. Whether the blueprint fits the row's slot.
    epoch: int or int32 []. This boundary.

  Returns:
    bool [rows, actions, blueprints]. WAIT is legal on every column, GERMINATE
    on those that fit, any other action on that of the row's own blueprint.
  """
  allowed = refusals(slots, signals, rules, epoch) == 0
  own = columns_of(slots.blueprint, fits)
  columns = jnp.stack([jnp.ones_like(fits), fits, own, own, own], axis=1)
  return allowed[:, :, None] & columns


def refusals(
  slots: SlotState, signals: Signals, rules: Rules, epoch: Any
) -> jax.Array:
  """Gives the `Reason` bits of every action, blueprints aside.

  Returns:
    int32 [rows, actions]; 0 = legal.
  """
  stage = slots.stage
  wrong = jnp.full_like(stage, int(Reason.WRONG_STAGE))
  up = gate(slots, signals, rules)
  rising = is_in(stage, (Stage.TRAINING, Stage.BLENDING))
  rests = is_in(stage, (Stage.CULLED, Stage.EMBARGOED))
  late = earliest_fossil(jnp.asarray(epoch, jnp.int32), rules) > rules.epochs
  open_ = (
    bit(per_slot(rests, rules) > 0, Reason.RESTING)
    | bit(held(slots, rules) >= rules.max_per_slot, Reason.SLOT_FULL)
    | bit(slots.growths >= rules.max_growths, Reason.GROWTHS_SPENT)
    | bit(slots.quarantined, Reason.QUARANTINED)
    | bit(late, Reason.TOO_LATE)
  )
  free = is_in(stage, (Stage.DORMANT, Stage.FOSSILIZED))
  by_action = {
    Action.WAIT: jnp.zeros_like(stage),
    Action.GERMINATE: jnp.where(free | rests, open_, wrong),
    Action.ADVANCE: jnp.where(rising, up, wrong),
    Action.CULL: jnp.where(is_in(stage, LIVE_STAGES), 0, wrong),
    Action.FOSSILIZE: jnp.where(stage == int(Stage.HOLDING), up, wrong),
  }
  return jnp.stack([by_action[action] for action in Action], axis=1)


def held(slots: SlotState, rules: Rules) -> jax.Array:
  """int32 [rows]: live and fossilized seeds of each row's slot."""
  live = is_in(slots.stage, LIVE_STAGES).astype(jnp.int32)
  return per_slot(live + slots.fossils, rules)


def per_slot(values: jax.Array, rules: Rules) -> jax.Array:
  """int32 [rows]: sum over the lanes of each row's slot."""
  lanes = values.reshape(-1, rules.seeds_per_slot)
  return jnp.repeat(lanes.sum(axis=1, dtype=jnp.int32), lanes.shape[1])


def columns_of(blueprint: jax.Array, fits: jax.Array) -> jax.Array:
  """bool [rows, blueprints]: True at the row's blueprint, if it has one."""
  columns = jnp.arange(fits.shape[1], dtype=jnp.int32)
  return blueprint.reshape(-1, 1) == columns[None]


def is_in(stage: jax.Array, stages: tuple[Stage, ...]) -> jax.Array:
  """bool [rows]: whether the row's stage is one of these."""
  codes = jnp.asarray([int(s) for s in stages], jnp.int32)
  return (stage.reshape(-1, 1) == codes[None]).any(axis=1)


def bit(condition: jax.Array, reason: Reason) -> jax.Array:
  """int32, as condition: the reason's bit where it is True, else 0."""
  return condition.astype(jnp.int32) * int(reason)
