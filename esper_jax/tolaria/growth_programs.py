"""What growth computes at an epoch boundary, as pure functions of arrays.

An observation holds what Tamiyo may know of a run: never anything of the test
set.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.kasmina import lifecycle
from esper_jax.tamiyo.observation import Observation
from esper_jax.tamiyo.policy import Policy
from esper_jax.tolaria.run import History


def make_programs(
  policy: Policy,
  *,
  rules: lifecycle.Rules,
  fits: np.ndarray,
  cost: np.ndarray,
  seed: int,
  guesses: int,
) -> dict[str, Callable[..., Any]]:
  """Builds the programs by name.

    tick: slots -> slots
    observe: policy's state, and what `make_observe` takes -> (observation,
      whether the policy wants germination scores)
    decide: policy's state, observation, slots, signals, attempt, epoch ->
      (policy's state, decisions, slots, refused int32 [rows])
    act: slots, decisions, signals, epoch -> slots
    rank: policy's state, observation -> what `Policy.rank` gives
    impose: slots, stage, blueprint, due -> (slots, refused int32 [rows])
    enact: slots, epoch -> (slots, planted, removed, leaves)
    cancel: slots, rows bool [rows], epoch -> slots
    finish: slots, signals -> slots
    quarantine: slots, guilty bool [rows], epoch -> slots
    leaves: slots -> leaves

  Attempt and epoch are int32 []; see `kasmina.lifecycle` for the rest.

  Args:
    policy: Tamiyo.
    rules: lifecycle numbers.
    fits: bool [rows, blueprints].
    cost: float32 [rows, blueprints], parameters of a newborn.
    seed: of the policy's draws.
    guesses: how many sets of decisions `rank` gives.
  """
  observe = make_observe(rules, fits, cost)
  may = jnp.asarray(fits)

  def look(policy_state, *args):
    observation = observe(*args)
    if policy.wants_scores is None:
      return observation, jnp.zeros((), jnp.bool_)
    return observation, policy.wants_scores(policy_state, observation)

  def act(slots, decisions, signals, epoch):
    return lifecycle.act(
      slots, decisions.action, decisions.blueprint, signals, rules, may, epoch
    )

  def decide(policy_state, observation, slots, signals, attempt, epoch):
    key = boundary_key(seed, attempt, epoch, 0)
    policy_state, chosen = policy.decide(policy_state, observation, key)
    return policy_state, chosen, *act(slots, chosen, signals, epoch)

  def enact(slots, epoch):
    moved, planted, removed = lifecycle.enact(slots, rules, epoch)
    return moved, planted, removed, lifecycle.leaves(moved)

  return {
    "tick": lambda slots: lifecycle.tick(slots, rules),
    "observe": look,
    "decide": decide,
    "act": lambda *args: act(*args)[0],
    "rank": lambda state, observation: policy.rank(state, observation, guesses),
    "impose": lambda slots, stage, blueprint, due: lifecycle.impose(
      slots, stage, blueprint, due, rules
    ),
    "enact": enact,
    "cancel": lambda slots, rows, epoch: lifecycle.cancel(
      slots, rows, rules, epoch, reason=lifecycle.Reason.NOT_COMPILED
    ),
    "finish": lambda slots, signals: lifecycle.finish(slots, signals, rules),
    "quarantine": lambda slots, guilty, epoch: lifecycle.quarantine(
      slots, guilty, rules, epoch
    ),
    "leaves": lifecycle.leaves,
  }


def boundary_key(
  seed: int, attempt: Any, epoch: Any, purpose: int
) -> jax.Array:
  """A key of one boundary; a second attempt after a rollback differs."""
  return fold_boundary(jax.random.key(seed), attempt, epoch, purpose)


def fold_boundary(
  key: jax.Array, attempt: Any, epoch: Any, purpose: int
) -> jax.Array:
  """As `boundary_key`, from the key of the run."""
  for n in (attempt, epoch, purpose):
    key = jax.random.fold_in(key, n)
  return key


def make_observe(
  rules: lifecycle.Rules,
  fits: np.ndarray | jax.Array,
  cost: np.ndarray | jax.Array,
) -> Callable[..., Observation]:
  """Builds the function that makes an observation, germination scores apart.

  Args:
    rules: lifecycle numbers.
    fits: bool [rows, blueprints].
    cost: float32 [rows, blueprints], parameters of a newborn.

  Returns:
    (slots, signals, history, epoch int32 [], parameters float32 [], step_flops
    float32 []) -> Observation.
  """

  def observe(
    slots: lifecycle.SlotState,
    signals: lifecycle.Signals,
    history: History,
    epoch: jax.Array,
    parameters: jax.Array,
    step_flops: jax.Array,
  ) -> Observation:
    rows = len(fits)
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
      parameters=parameters,
      flops=step_flops,
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
