"""What Tamiyo may know of a run: never anything of the test set."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.kasmina import lifecycle
from esper_jax.tamiyo.observation import Observation
from esper_jax.tolaria.run import History


def make_observe(
  rules: lifecycle.Rules, fits: np.ndarray, cost: np.ndarray
) -> Callable[..., Observation]:
  """Builds the function that makes an observation, germination scores apart.

  Args:
    rules: lifecycle numbers.
    fits: bool [rows, blueprints].
    cost: float32 [rows, blueprints], parameters of a newborn.

  Returns:
    A jitted (slots, signals, history, *, epoch, parameters, step_flops) ->
    Observation; the last three are numbers.
  """

  @jax.jit
  def observe(
    slots: lifecycle.SlotState,
    signals: lifecycle.Signals,
    history: History,
    *,
    epoch: Any,
    parameters: Any,
    step_flops: Any,
  ) -> Observation:
    rows = len(fits)
    epoch = jnp.asarray(epoch, jnp.int32)
    unknown = jnp.zeros(rows, jnp.bool_)
    zeros = jnp.zeros(rows, jnp.float32)
    return Observation(
      epoch=epoch,
      fraction=epoch.astype(jnp.float32) / rules.epochs,
      train_loss=jnp.asarray(history.train_loss),
      val_loss=jnp.asarray(history.val_loss),
      train_accuracy=jnp.asarray(history.train_accuracy),
      val_accuracy=jnp.asarray(history.val_accuracy),
      history_known=jnp.asarray(history.known),
      parameters=jnp.asarray(parameters, jnp.float32),
      flops=jnp.asarray(step_flops, jnp.float32),
      growths_left=rules.max_growths - slots.growths,
      epochs_left=rules.epochs - epoch,
      stage=slots.stage,
      age=slots.age,
      life=slots.life,
      blueprint=slots.blueprint,
      alpha=slots.alpha,
      contribution=signals.contribution,
      contribution_se=signals.contribution_se,
      contribution_known=signals.contribution_known,
      contribution_age=signals.contribution_age,
      contribution_stage=signals.contribution_stage,
      activation_ms=zeros,
      cotangent_ms=zeros,
      signal_known=unknown,
      parity=signals.parity,
      parity_known=signals.parity_known,
      finite=signals.finite,
      scores=jnp.zeros(fits.shape, jnp.float32),
      scores_known=unknown,
      expansion=jnp.zeros(fits.shape, jnp.float32),
      expansion_known=unknown,
      gate=lifecycle.gate(slots, signals, rules),
      legal=lifecycle.legal(slots, signals, rules, jnp.asarray(fits), epoch),
      cost=jnp.asarray(cost),
    )

  return observe
