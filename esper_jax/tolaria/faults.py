"""What is done about a fault: the run goes back, and something changes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from esper_jax.tolaria import governor, policy_fallback, recovery
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.checkpoints import Damage
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.store import Store
from esper_jax.types import RunFailedError


class FaultFound(Exception):
  """Raised by `judge`; `Trainer` catches it."""

  def __init__(self, fault: governor.Fault):
    super().__init__(fault.reason)
    self.fault = fault


def judge(
  run: Run,
  rules: governor.Rules,
  *,
  loss: float | None = None,
  accuracy: float | None = None,
) -> None:
  """Shows the governor the latest figures; see `governor.observe`.

  Raises:
    FaultFound: something is wrong.
  """
  run.governor, fault = governor.observe(
    run.governor, rules, loss=loss, accuracy=accuracy
  )
  if fault:
    raise FaultFound(fault)


def report_damage(
  damaged: Sequence[Damage], publish: Callable[..., Any]
) -> None:
  """Tells of checkpoints that were passed over."""
  for item in damaged:
    publish(
      "fault",
      kind="damaged_checkpoint",
      reason=f"checkpoint {item.checkpoint.path.name} is damaged"
      f" ({item.reason}); the one before is used",
    )


def roll_back(
  failed: Run,
  fault: governor.Fault,
  fresh: Run,
  parts: Parts,
  store: Store,
  publish: Callable[..., Any],
) -> tuple[Run, governor.Response]:
  """Rebuilds the run as its last scheduled checkpoint has it, but changed.

  The caller has yet to quarantine the slots that the run's governor names.

  Args:
    failed: the run with the fault; its bill is not forgotten.
    fault: what `judge` found.
    fresh: a new run of the same config.
    parts: of the run.
    store: holds the checkpoints.
    publish: takes the type and the fields of an event.

  Returns:
    (the run to go on with, what the governor wants changed).

  Raises:
    RunFailedError: the rollbacks are used up, or no checkpoint is whole.
  """
  kept, response = governor.respond(
    failed.governor,
    fault,
    parts.governor,
    epoch=failed.epoch,
    last_changed=failed.changed,
  )
  if response.give_up:
    raise RunFailedError(response.reason)
  loaded, damaged = store.last_scheduled()
  report_damage(damaged, publish)
  if loaded is None:
    raise RunFailedError(f"{response.reason}; no checkpoint to go back to")
  run = recovery.from_checkpoint(loaded, fresh, parts)
  run.governor = governor.after_rollback(kept, run.governor)
  run.ledger = failed.ledger.rewind(run.ledger)
  run.rolled_back = failed.rolled_back + 1
  run.policy = policy_fallback.kept(failed.policy, run.policy)
  # A deterministic run that only went back would do the same again.
  run.state = run.state.replace(
    lr_factor=jnp.asarray(response.lr_factor, jnp.float32),
    key=jax.random.fold_in(run.state.key, response.attempt),
  )
  return run, response
