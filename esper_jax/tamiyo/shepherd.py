"""What every rule but `never` does with the seeds that live, and the choice.

A rule gives each move a score; `select` turns scores into decisions.
"""

import jax
import jax.numpy as jnp

from esper_jax.kasmina import lifecycle
from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo.observation import Decisions, Observation
from esper_jax.types import Action, Stage, counted


def shepherd(
  observation: Observation,
  *,
  max_training_epochs: int,
  max_holding_epochs: int,
  gain_sigmas: float,
) -> tuple[jax.Array, jax.Array]:
  """Scores the moves of planted seeds.

  A seed moves up as soon as its gate passes. It is culled where it is not
  finite; where its contribution, measured in HOLDING, is below -gain_sigmas
  standard errors; or where it has been in TRAINING or HOLDING for as long as
  it may and the gate still refuses.

  Args:
    observation: see `Observation`.
    max_training_epochs: limit in TRAINING, epochs.
    max_holding_epochs: limit in HOLDING, epochs.
    gain_sigmas: standard errors.

  Returns:
    (scores float32 [rows, actions], 0 where a move is not wanted;
    reasons int32 [rows, actions], bits of REASONS).
  """
  o = observation
  training = o.stage == int(Stage.TRAINING)
  blending = o.stage == int(Stage.BLENDING)
  holding = o.stage == int(Stage.HOLDING)
  passes = o.gate == 0
  sick = (training | blending | holding) & ~o.finite
  measured_here = (
    o.contribution_known
    & (o.contribution_stage == int(Stage.HOLDING))
    & (o.contribution_age < o.age)
  )
  harmful = (
    holding
    & measured_here
    & (o.contribution < -gain_sigmas * o.contribution_se)
  )
  overdue = ~passes & (
    (training & (o.age >= max_training_epochs))
    | (holding & (o.age >= max_holding_epochs))
  )
  urgent = sick | harmful
  # Urgent culls outrank upward moves, which outrank the patience limit.
  cull = jnp.where(urgent, 3.0, jnp.where(overdue, 1.0, 0.0))
  up = jnp.where(passes, 2.0, 0.0)
  nothing = jnp.zeros_like(up)
  scores = {
    Action.WAIT: nothing,
    Action.GERMINATE: nothing,
    Action.ADVANCE: jnp.where(training | blending, up, nothing),
    Action.CULL: cull,
    Action.FOSSILIZE: jnp.where(holding, up, nothing),
  }
  bits = jnp.where(sick, obs.NOT_FINITE, 0)
  bits = bits | jnp.where(harmful, obs.HARMFUL, 0)
  bits = bits | jnp.where(overdue, obs.OVERDUE, 0)
  passed = jnp.full_like(bits, obs.GATE_PASSED)
  reasons = {
    Action.WAIT: jnp.zeros_like(bits),
    Action.GERMINATE: jnp.zeros_like(bits),
    Action.ADVANCE: passed,
    Action.CULL: bits,
    Action.FOSSILIZE: passed,
  }
  return (
    jnp.stack([scores[a] for a in Action], axis=1).astype(jnp.float32),
    jnp.stack([reasons[a] for a in Action], axis=1).astype(jnp.int32),
  )


def select(
  scores: jax.Array,
  legal: jax.Array,
  *,
  germinations: jax.Array,
  seeds_per_slot: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """Picks the best legal move of each row, WAIT where none scores above 0.

  Only the best `germinations` germinations stay, at most one a slot and none
  where a seed of the slot is culled; other moves are not capped. Scores that
  are not finite count as not wanted. Ties go to the lower index.

  Args:
    scores: float32 [rows, actions, blueprints].
    legal: bool [rows, actions, blueprints].
    germinations: int32 []. Cap of this boundary.
    seeds_per_slot: rows of one slot.

  Returns:
    (action int32 [rows], blueprint int32 [rows], -1 with WAIT).
  """
  rows, actions, blueprints = scores.shape
  wanted = jnp.where(legal & jnp.isfinite(scores), scores, -jnp.inf)
  wanted = wanted.at[:, int(Action.WAIT), :].set(0.0)
  flat = wanted.reshape(rows, actions * blueprints)
  best = jnp.argmax(flat, axis=1).astype(jnp.int32)
  action, blueprint = best // blueprints, best % blueprints

  grows = action == int(Action.GERMINATE)
  value = jnp.where(grows, flat.max(axis=1), -jnp.inf)
  by_slot = value.reshape(-1, seeds_per_slot)
  culls = (action == int(Action.CULL)).reshape(-1, seeds_per_slot)
  by_slot = jnp.where(culls.any(axis=1, keepdims=True), -jnp.inf, by_slot)
  lane = jnp.arange(seeds_per_slot).reshape(1, -1)
  first = by_slot.argmax(axis=1, keepdims=True)
  value = jnp.where(lane == first, by_slot, -jnp.inf).reshape(rows)
  place = jnp.argsort(jnp.argsort(-value))
  stays = (value > -jnp.inf) & (place < germinations)

  action = jnp.where(grows & ~stays, int(Action.WAIT), action)
  blueprint = jnp.where(action == int(Action.WAIT), -1, blueprint)
  return action.astype(jnp.int32), blueprint.astype(jnp.int32)


def waiting(rows: int) -> Decisions:
  """Makes the decisions that ask for nothing."""
  zero = jnp.zeros((rows,), jnp.int32)
  return Decisions(
    action=zero + int(Action.WAIT),
    blueprint=zero - 1,
    initializer=zero,
    weight=jnp.zeros((rows,), jnp.float32),
    reason=zero,
  )


def sentence(
  observation: Observation,
  row: int,
  reason: int,
  *,
  max_training_epochs: int,
  max_holding_epochs: int,
  gain_sigmas: float,
) -> str:
  """Says why a planted seed moves, with the numbers (host side)."""
  o = observation
  stage = Stage(int(o.stage[row]))
  age, gate = int(o.age[row]), int(o.gate[row])
  contribution = contribution_text(o, row)
  spent = f"{counted(age, 'epoch')} in {stage.name}"
  if reason & obs.NOT_FINITE:
    return f"a gradient or parameter of the seed is not finite after {spent}"
  if reason & obs.HARMFUL:
    return (
      f"{contribution} in HOLDING, below the limit of -{gain_sigmas:g}"
      " standard errors"
    )
  if reason & obs.OVERDUE:
    limits = {
      Stage.TRAINING: max_training_epochs,
      Stage.HOLDING: max_holding_epochs,
    }
    why = "; ".join(lifecycle.texts(gate))
    return (
      f"{spent}, at most {limits[stage]}, and the gate still refuses ({why});"
      f" {contribution}"
    )
  if stage == Stage.BLENDING:
    return f"alpha is {float(o.alpha[row]):g} after {spent}"
  return f"{contribution} after {spent}: the gate passes"


def contribution_text(observation: Observation, row: int) -> str:
  """A row's contribution in words (host side)."""
  if not bool(observation.contribution_known[row]):
    return "contribution not measured"
  value = float(observation.contribution[row])
  error = float(observation.contribution_se[row])
  ratio = f", {value / error:.1f} standard errors" if error > 0 else ""
  return f"contribution {value:.2e} +- {error:.1e}{ratio}"
