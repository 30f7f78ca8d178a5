"""The life of a seed: stages, gates, legal moves and caps, over arrays.

Every function is pure, has no Python branch on a value of an array, and gives
the same bits eager, jitted and vmapped. Arrays have one entry per row; a slot
owns `rules.seeds_per_slot` neighbouring rows (its lanes): row r belongs to
slot r // seeds_per_slot. `Rules` is static: close over it, or pass it as a
static argument of `jax.jit`.

Time. Boundary e is the end of epoch e (e epochs are done; the last boundary
is `rules.epochs`). At each boundary, in this order:

  tick    the epoch that just ended is counted: ages, embargoes, alpha
  (measure signals; the tree still holds the leaves of the ended epoch)
  act     the policy's moves; at the last boundary `finish`, instead or after
  enact   what is due: planted and removed rows, for surgery
  leaves  written into the tree, used by epoch e + 1

* A GERMINATE or CULL at boundary e changes the tree at boundary
  e + lead_epochs (at once if 0). Moves between stages of a planted seed change
  leaves only, and count at once. A culled seed falls silent at once.
* `age` counts finished epochs in the stage: 0 at the boundary where the stage
  begins. A seed planted at boundary p has age 1 at boundary p + 1.
* ADVANCE to BLENDING at boundary b gives the coming epoch alpha(1 / n) with
  n = blend_epochs; epoch b + k runs at alpha(k / n). HOLDING can begin at
  boundary b + n, after one epoch at alpha = 1.
* A contribution belongs to this visit of a stage if it was measured in that
  stage, at a later boundary than the one where the stage began
  (contribution_age < age). So TRAINING and HOLDING last at least one epoch.
* A germination decided at boundary e can be permanent at boundary
  e + lead + max(min_training, 1) + blend_epochs + max(min_holding, 1) if every
  boundary is a decision boundary (see `earliest_fossil` for the rest), and is
  legal only where that is not beyond the last boundary.
* A row removed at boundary e with an embargo of n epochs may germinate again
  at boundary e + n. The whole slot rests: no lane of it germinates meanwhile.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.kasmina.gates import (
  FRESH_EPOCHS,
  bit,
  columns_of,
  gate,
  held,
  is_in,
  legal,
  per_slot,
  refusals,
)
from esper_jax.kasmina.records import (
  REASONS,
  Reason,
  Signals,
  SlotState,
  alpha_at,
  initial,
  texts,
)
from esper_jax.kasmina.rules import CURVES, Rules, earliest_fossil
from esper_jax.types import LIVE_STAGES, Action, Stage

__all__ = [
  "CURVES",
  "FRESH_EPOCHS",
  "REASONS",
  "Reason",
  "Rules",
  "Signals",
  "SlotState",
  "act",
  "alpha_at",
  "cancel",
  "earliest_fossil",
  "enact",
  "finish",
  "gate",
  "impose",
  "initial",
  "leaves",
  "legal",
  "quarantine",
  "texts",
  "tick",
]


def act(
  slots: SlotState,
  action: jax.Array,
  blueprint: jax.Array,
  signals: Signals,
  rules: Rules,
  fits: jax.Array,
  epoch: Any,
) -> tuple[SlotState, jax.Array]:
  """Carries out the policy's moves at one boundary; call it once there.

  A move is carried out if and only if its refusal is 0. Alone, a move is
  refused exactly where `legal` is False. Together, germinations are accepted
  in row order until a cap is reached (lanes of the slot, of the epoch, of the
  run), and none is accepted in a slot that has a seed culled by the same call.
  A cull of a GERMINATED row cancels it without a change of the tree.

  Args:
    slots: see `SlotState`.
    action: int32 [rows]. A `types.Action`.
    blueprint: int32 [rows]. Read where the action is GERMINATE.
    signals: see `Signals`.
    rules: see `Rules`.
    fits: bool [rows, blueprints]. Whether the blueprint fits the row's slot.
    epoch: int or int32 []. This boundary.

  Returns:
    (the new state, int32 [rows]: `Reason` bits of each refusal).
  """
  codes = jnp.arange(len(Action), dtype=jnp.int32)
  asked = action.reshape(-1, 1) == codes[None]
  bits = jnp.where(asked, refusals(slots, signals, rules, epoch), 0)
  refused = bits.sum(axis=1, dtype=jnp.int32)
  refused |= bit(~asked.any(axis=1), Reason.NO_SUCH_ACTION)
  sown = action == int(Action.GERMINATE)
  fit = (columns_of(blueprint, fits) & fits).any(axis=1)
  refused |= bit(sown & ~fit, Reason.UNFIT)

  cull = (action == int(Action.CULL)) & (refused == 0)
  resting = per_slot(cull, rules) > 0
  refused |= bit(sown & (refused == 0) & resting, Reason.RESTING)
  wanted = sown & (refused == 0)
  room = rules.max_per_slot - held(slots, rules)
  left = rules.max_growths - slots.growths
  # Counting ahead equals accepting one row after the other: what the slot's
  # cap refuses does not use up the epoch's or the run's, and where one of
  # those is used up, every later row is refused.
  placed = wanted & (_earlier_in_slot(wanted, rules) < room)
  most = jnp.minimum(left, rules.max_adaptations_per_epoch)
  taken = placed & (_earlier(placed) < most)
  full = wanted & (_earlier_in_slot(taken, rules) >= room)
  over = wanted & ~full
  crowded = _earlier(taken) >= rules.max_adaptations_per_epoch
  refused |= bit(full, Reason.SLOT_FULL)
  refused |= bit(over & (_earlier(taken) >= left), Reason.GROWTHS_SPENT)
  refused |= bit(over & crowded, Reason.EPOCH_FULL)

  done = refused == 0
  sown &= done
  up = done & (action == int(Action.ADVANCE))
  blend = up & (slots.stage == int(Stage.TRAINING))
  hold = up & (slots.stage == int(Stage.BLENDING))
  fossilize = done & (action == int(Action.FOSSILIZE))
  reason = gate(slots, signals, rules) | int(Reason.BY_POLICY)
  new = _set(slots, ~done, reason=refused)
  new = _withdraw(new, cull, rules, _due(epoch, rules), reason)
  new = _set(
    new,
    sown,
    stage=Stage.GERMINATED,
    age=0,
    life=0,
    blueprint=blueprint,
    alpha=0.0,
    due=_due(epoch, rules),
    reason=0,
  )
  new = new.replace(growths=slots.growths + sown.sum(dtype=jnp.int32))
  first = float(_alphas(rules)[1])
  # Why a gate refused before says nothing of the gates to come.
  new = _set(new, blend | hold, age=0, reason=0)
  new = _set(new, blend, stage=Stage.BLENDING, alpha=first)
  new = _set(new, hold, stage=Stage.HOLDING)
  return _fossilize(new, fossilize), refused


def impose(
  slots: SlotState,
  stage: jax.Array,
  blueprint: jax.Array,
  due: jax.Array,
  rules: Rules,
) -> tuple[SlotState, jax.Array]:
  """Carries out what a record says, in place of `act`: no gate, no cap.

  A move is refused only where its seed is not there, a germination only where
  the row is taken or quarantined.

  Args:
    slots: see `SlotState`.
    stage: int32 [rows]. The `Stage` that the row shall come to: GERMINATED,
      BLENDING, HOLDING, FOSSILIZED or CULLED; DORMANT asks for no move.
    blueprint: int32 [rows]. Read with GERMINATED.
    due: int32 [rows]. Read with GERMINATED and CULLED; see `SlotState`.
    rules: see `Rules`.

  Returns:
    (the new state, int32 [rows]: `Reason` bits of each refusal).
  """
  sown, cull = stage == int(Stage.GERMINATED), stage == int(Stage.CULLED)
  free = is_in(slots.stage, (Stage.DORMANT, Stage.FOSSILIZED, Stage.EMBARGOED))
  ready = jnp.where(sown, free, is_in(slots.stage, LIVE_STAGES[1:]))
  asked = stage != int(Stage.DORMANT)
  refused = bit(asked & ~ready, Reason.WRONG_STAGE)
  refused |= bit(sown & slots.quarantined, Reason.QUARANTINED)
  done = asked & (refused == 0)
  whole = is_in(stage, (Stage.HOLDING, Stage.FOSSILIZED)).astype(jnp.float32)
  alpha = jnp.where(stage == int(Stage.BLENDING), _alphas(rules)[1], whole)
  reason = jnp.where(done & cull, int(Reason.REPLAYED), refused)
  new = _set(slots, asked, reason=reason)
  new = _set(new, done, stage=stage, age=0, alpha=alpha)
  new = _set(new, done & (sown | cull), due=due)
  sown &= done
  new = _set(new, sown, life=0, blueprint=blueprint)
  new = new.replace(growths=slots.growths + sown.sum(dtype=jnp.int32))
  return _fossilize(new, done & (stage == int(Stage.FOSSILIZED))), refused


def enact(
  slots: SlotState, rules: Rules, epoch: Any
) -> tuple[SlotState, jax.Array, jax.Array]:
  """Enacts what is due: GERMINATED -> TRAINING, CULLED -> EMBARGOED.

  Args:
    slots: see `SlotState`.
    rules: see `Rules`.
    epoch: int or int32 []. This boundary; call after `act` or `finish`.

  Returns:
    (the new state, bool [rows]: to be planted now, bool [rows]: to be removed
    from the tree now).
  """
  due = slots.due <= jnp.asarray(epoch, jnp.int32)
  planted = due & (slots.stage == int(Stage.GERMINATED))
  removed = due & (slots.stage == int(Stage.CULLED))
  new = _set(slots, planted, stage=Stage.TRAINING, age=0, due=-1)
  return _rest(new, removed, rules), planted, removed


def tick(slots: SlotState, rules: Rules) -> SlotState:
  """Counts one finished epoch: ages, lives, alpha of BLENDING, embargoes."""
  stage = slots.stage
  planted = is_in(stage, LIVE_STAGES[1:] + (Stage.CULLED,))
  resting = stage == int(Stage.EMBARGOED)
  age = slots.age + 1
  alphas = jnp.asarray(_alphas(rules))
  coming = jnp.clip(age + 1, 0, rules.blend_epochs)
  new = slots.replace(
    age=age,
    life=slots.life + planted.astype(jnp.int32),
    embargo=slots.embargo - resting.astype(jnp.int32),
  )
  new = _set(new, stage == int(Stage.BLENDING), alpha=alphas[coming])
  return _wake(new)


def leaves(slots: SlotState) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gives the leaves of each row's seed for the coming epoch.

  They are meant for the newest seed of a row in TRAINING, BLENDING, HOLDING,
  FOSSILIZED or CULLED. In the other stages no such seed is in the tree, but
  older fossils of the row may be: leave those alone (alpha stays 1).

  Returns:
    (alpha, isolation, updates), float32 [rows] each. TRAINING: 0, 1, 1;
    BLENDING: the curve, 0, 1; HOLDING and FOSSILIZED: 1, 0, 1; CULLED and
    stages without a seed: 0, 0, 0.
  """
  learns = is_in(slots.stage, LIVE_STAGES[1:] + (Stage.FOSSILIZED,))
  isolated = slots.stage == int(Stage.TRAINING)
  return (
    slots.alpha,
    isolated.astype(jnp.float32),
    learns.astype(jnp.float32),
  )


def finish(slots: SlotState, signals: Signals, rules: Rules) -> SlotState:
  """Ends all lives: fossilizes what passes its gate in HOLDING, culls the rest.

  Call it at the last boundary, in place of `act` or after it. Culled rows,
  earlier ones too, become due at once: `enact` at this boundary removes them.
  """
  bits = gate(slots, signals, rules)
  passed = (slots.stage == int(Stage.HOLDING)) & (bits == 0)
  new = _fossilize(slots, passed)
  every = jnp.ones_like(passed)
  at_once = jnp.zeros_like(slots.due)
  reason = bits | int(Reason.RUN_ENDED)
  new = _withdraw(new, every, rules, at_once, reason)
  return _set(new, new.stage == int(Stage.CULLED), due=0)


def cancel(
  slots: SlotState,
  rows: jax.Array,
  rules: Rules,
  epoch: Any,
  *,
  reason: Reason,
) -> SlotState:
  """Ends live seeds outside the policy (a sick seed, a failed compilation).

  A GERMINATED row rests at once; a planted one falls silent and leaves the
  tree at boundary epoch + lead_epochs. Rows without a live seed stay as they
  are.

  Args:
    slots: see `SlotState`.
    rows: bool [rows].
    rules: see `Rules`.
    epoch: int or int32 []. This boundary.
    reason: recorded for these rows.
  """
  bits = jnp.full_like(slots.reason, int(reason))
  return _withdraw(slots, rows, rules, _due(epoch, rules), bits)


def quarantine(
  slots: SlotState, rows: jax.Array, rules: Rules, epoch: Any
) -> SlotState:
  """Bars rows from germinating until the run ends and cancels what lives there.

  Pass all lanes of a slot to quarantine the slot. Fossils stay.
  """
  new = cancel(slots, rows, rules, epoch, reason=Reason.QUARANTINED)
  return new.replace(quarantined=slots.quarantined | rows)


def _fossilize(slots: SlotState, rows: jax.Array) -> SlotState:
  new = _set(slots, rows, stage=Stage.FOSSILIZED, age=0)
  return new.replace(fossils=slots.fossils + rows.astype(jnp.int32))


def _withdraw(
  slots: SlotState,
  rows: jax.Array,
  rules: Rules,
  due: jax.Array,
  reason: jax.Array,
) -> SlotState:
  """Culls the live seeds of rows; what is not planted yet rests at once."""
  pending = rows & (slots.stage == int(Stage.GERMINATED))
  planted = rows & is_in(slots.stage, LIVE_STAGES[1:])
  new = _set(slots, pending | planted, reason=reason)
  new = _set(new, planted, stage=Stage.CULLED, age=0, alpha=0.0, due=due)
  return _rest(new, pending, rules)


def _rest(slots: SlotState, rows: jax.Array, rules: Rules) -> SlotState:
  new = _set(
    slots,
    rows,
    stage=Stage.EMBARGOED,
    age=0,
    life=0,
    blueprint=-1,
    alpha=0.0,
    due=-1,
    embargo=rules.embargo_epochs,
  )
  return _wake(new)


def _wake(slots: SlotState) -> SlotState:
  over = (slots.stage == int(Stage.EMBARGOED)) & (slots.embargo <= 0)
  new = _set(slots, over, stage=Stage.DORMANT, age=0)
  kept = over & (slots.fossils > 0)
  return _set(new, kept, stage=Stage.FOSSILIZED, alpha=1.0)


def _set(slots: SlotState, rows: jax.Array, **fields: Any) -> SlotState:
  """Replaces fields where rows is True; their dtype stays."""
  new = {}
  for name, value in fields.items():
    old = getattr(slots, name)
    new[name] = jnp.where(rows, jnp.asarray(value, old.dtype), old)
  return slots.replace(**new)


def _alphas(rules: Rules) -> np.ndarray:
  """float32 [blend_epochs + 1]: alpha after k of the blend's epochs."""
  steps = np.arange(rules.blend_epochs + 1)
  return alpha_at(steps / rules.blend_epochs, rules.alpha_curve)


def _due(epoch: Any, rules: Rules) -> jax.Array:
  """int32 []: the boundary at which a decision of this one is enacted."""
  return jnp.asarray(epoch, jnp.int32) + rules.lead_epochs


def _earlier(values: jax.Array) -> jax.Array:
  """int32, as values: the count of True before each along the last axis."""
  counts = values.astype(jnp.int32)
  return jnp.cumsum(counts, axis=-1, dtype=jnp.int32) - counts


def _earlier_in_slot(values: jax.Array, rules: Rules) -> jax.Array:
  """int32 [rows]: the count of True in the earlier lanes of the row's slot."""
  return _earlier(values.reshape(-1, rules.seeds_per_slot)).reshape(-1)
