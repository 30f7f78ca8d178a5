"""Records of the lifecycle: rules, state and signals of rows, and reasons.

See `kasmina.lifecycle` for what rows, boundaries and epochs mean.
"""

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from esper_jax.kasmina.rules import CURVES
from esper_jax.types import InputError, Stage


class Reason(enum.IntFlag):
  """Why a move was refused or a seed was culled; combined as bits."""

  WRONG_STAGE = 1 << 0
  TOO_YOUNG = 1 << 1
  GRADIENT_UNKNOWN = 1 << 2
  NOT_FINITE = 1 << 3
  EXPLODING = 1 << 4
  CONTRIBUTION_UNKNOWN = 1 << 5
  CONTRIBUTION_STALE = 1 << 6
  NO_GAIN = 1 << 7
  STILL_BLENDING = 1 << 8
  RESTING = 1 << 9
  SLOT_FULL = 1 << 10
  GROWTHS_SPENT = 1 << 11
  EPOCH_FULL = 1 << 12
  QUARANTINED = 1 << 13
  TOO_LATE = 1 << 14
  UNFIT = 1 << 15
  NO_SUCH_ACTION = 1 << 16
  BY_POLICY = 1 << 17
  RUN_ENDED = 1 << 18
  NOT_COMPILED = 1 << 19
  REPLAYED = 1 << 20


REASONS: dict[int, str] = {
  int(Reason.WRONG_STAGE): "the stage does not allow this move",
  int(Reason.TOO_YOUNG): "too few epochs in this stage",
  int(Reason.GRADIENT_UNKNOWN): "its gradients have not been measured",
  int(Reason.NOT_FINITE): "its parameters or gradients are not finite",
  int(Reason.EXPLODING): "its gradients are too large next to the host's",
  int(Reason.CONTRIBUTION_UNKNOWN): (
    "its contribution has not been measured in this stage"
  ),
  int(Reason.CONTRIBUTION_STALE): "its contribution was measured too long ago",
  int(Reason.NO_GAIN): (
    "its contribution is not above the required number of standard errors"
  ),
  int(Reason.STILL_BLENDING): "it has not spent an epoch at alpha = 1",
  int(Reason.RESTING): "the slot rests after a cull",
  int(Reason.SLOT_FULL): "the slot holds as many seeds as it may",
  int(Reason.GROWTHS_SPENT): "the run has used all its germinations",
  int(Reason.EPOCH_FULL): "this epoch has used all its germinations",
  int(Reason.QUARANTINED): "the slot is quarantined until the run ends",
  int(Reason.TOO_LATE): "too few epochs remain for a full life",
  int(Reason.UNFIT): "the blueprint does not fit this slot",
  int(Reason.NO_SUCH_ACTION): "there is no such action",
  int(Reason.BY_POLICY): "the policy culled it",
  int(Reason.RUN_ENDED): "the run ended before it was permanent",
  int(Reason.NOT_COMPILED): "its program could not be compiled or run",
  int(Reason.REPLAYED): "the replayed run culled it",
}


class SlotState(struct.PyTreeNode):
  """Where every row stands; arrays of [rows] unless noted.

  Attributes:
    stage: int32. A `types.Stage`.
    age: int32. Epochs finished in the stage.
    life: int32. Epochs since planted, up to fossilization or removal; 0 where
      no seed is planted.
    blueprint: int32. Index of the seed's blueprint; -1 without a seed, also
      where a later seed was culled and only older fossils remain.
    alpha: float32. Blend weight of the row's seed in the coming epoch.
    due: int32. Boundary at which a GERMINATED row is planted or a CULLED one
      leaves the tree; -1 elsewhere.
    embargo: int32. Epochs of rest left.
    fossils: int32. Seeds of this row that are permanent.
    quarantined: bool. Never germinates again.
    reason: int32. Bits of the last refusal in this stage, or of the cull (see
      `texts`).
    growths: int32 []. Germinations so far in the run.
  """

  stage: jax.Array
  age: jax.Array
  life: jax.Array
  blueprint: jax.Array
  alpha: jax.Array
  due: jax.Array
  embargo: jax.Array
  fossils: jax.Array
  quarantined: jax.Array
  reason: jax.Array
  growths: jax.Array


class Signals(struct.PyTreeNode):
  """What was measured about every row's seed; arrays of [rows].

  A boundary's own measurements have contribution_age 0. Values that are not
  known are not read.

  Attributes:
    contribution: float32. Mean per-example loss without the seed less with it.
    contribution_se: float32. Its standard error.
    contribution_known: bool.
    contribution_age: int32. Boundaries since it was measured; 0 = this one.
    contribution_stage: int32. The stage in which it was measured.
    parity: float32. Root mean square gradient of the seed's parameters over
      that of the host's.
    parity_known: bool.
    finite: bool. All parameters and gradients of the seed are finite.
  """

  contribution: jax.Array
  contribution_se: jax.Array
  contribution_known: jax.Array
  contribution_age: jax.Array
  contribution_stage: jax.Array
  parity: jax.Array
  parity_known: jax.Array
  finite: jax.Array


def initial(num_rows: int) -> SlotState:
  """Makes the state of a run's start: every row DORMANT."""
  zero = jnp.zeros((num_rows,), jnp.int32)
  none = jnp.full((num_rows,), -1, jnp.int32)
  return SlotState(
    stage=jnp.full((num_rows,), int(Stage.DORMANT), jnp.int32),
    age=zero,
    life=zero,
    blueprint=none,
    alpha=jnp.zeros((num_rows,), jnp.float32),
    due=none,
    embargo=zero,
    fossils=zero,
    quarantined=jnp.zeros((num_rows,), jnp.bool_),
    reason=zero,
    growths=jnp.zeros((), jnp.int32),
  )


def texts(bits: int) -> list[str]:
  """Translates reason bits, lowest first."""
  return [text for bit, text in REASONS.items() if bits & bit]


def alpha_at(t: Any, curve: str) -> np.ndarray:
  """Computes blend weights on the host, so that all devices use equal ones.

  Args:
    t: progress of the blend, any shape; clipped to [0, 1].
    curve: one of CURVES. "sigmoid" is the logistic function of 12 (t - 1/2),
      stretched to reach its ends.

  Returns:
    float32, as t: 0 at 0, exactly 1 at 1, nowhere falling.

  Raises:
    InputError: no such curve.
  """
  t = np.clip(np.asarray(t, np.float64), 0.0, 1.0)
  curves = {
    "linear": t,
    "cosine": (1.0 - np.cos(np.pi * t)) / 2.0,
    "sigmoid": (1.0 + np.tanh(6.0 * t - 3.0) / np.tanh(3.0)) / 2.0,
  }
  if curve not in curves:
    raise InputError(
      f"kasmina.alpha_curve: unknown curve '{curve}'; choose one of"
      f" {', '.join(CURVES)}"
    )
  return np.asarray(curves[curve], np.float32)
