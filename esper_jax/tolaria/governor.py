"""The safety governor: sees that training went wrong, says what to change.

Pure functions over a small record. The trainer asks `observe` after every loss
and every validation accuracy it logs; on a fault it calls `respond`, restores
the last scheduled checkpoint, and puts `after_rollback` in the place of that
checkpoint's record. A deterministic run that only went back would repeat
itself, so every response changes something: the responsible slot is
quarantined or the learning rate halved, and the attempt number goes into the
random draws and the data order.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from esper_jax.types import Path, counted

LR_CUT = 0.5  # learning-rate factor of a fault that no slot explains


class Rules(NamedTuple):
  """Thresholds.

  Attributes:
    chance: accuracy of guessing, 1 / number of classes.
    loss_factor: a loss above this times the running median is a fault.
    window: number of losses in the median.
    chance_margin: accuracy within this of chance has collapsed ...
    above_margin: ... if it was at least this above chance before.
    responsible_epochs: a slot changed at most this many epochs ago may be
      held responsible.
    max_rollbacks: rollbacks before the run is given up.
    loss_floor: a median below this counts as this (nats per example): near 0
      losses vary by factors without anything being wrong. 0 for none.
  """

  chance: float
  loss_factor: float = 3.0
  window: int = 20
  chance_margin: float = 0.02
  above_margin: float = 0.10
  responsible_epochs: int = 3
  max_rollbacks: int = 3
  loss_floor: float = 0.1


@dataclasses.dataclass(frozen=True)
class GovernorState:
  """What the governor remembers.

  Restored by a rollback, as they describe the path of the run:
    losses: the last losses without fault, oldest first, at most Rules.window.
    best_accuracy: the best validation accuracy so far, 0..1.
  Kept over a rollback, as they make the next attempt differ:
    attempt: rollbacks so far; 0 in a run without faults.
    lr_factor: multiplies the learning rate.
    quarantined: slots that may not grow until the run ends, in order.
  """

  losses: tuple[float, ...] = ()
  best_accuracy: float = 0.0
  attempt: int = 0
  lr_factor: float = 1.0
  quarantined: tuple[Path, ...] = ()

  def to_dict(self) -> dict[str, Any]:
    """Every field, as JSON."""
    return {
      **dataclasses.asdict(self),
      "losses": list(self.losses),
      "quarantined": list(self.quarantined),
    }

  @classmethod
  def from_dict(cls, record: Mapping[str, Any]) -> "GovernorState":
    """The inverse of `to_dict`."""
    fields = dict(record)
    for name in ("losses", "quarantined"):
      fields[name] = tuple(fields[name])
    return cls(**fields)


class Fault(NamedTuple):
  """What went wrong.

  Attributes:
    kind: "non_finite_loss", "loss_jump" or "collapse".
    reason: a sentence that quotes the figures.
  """

  kind: str
  reason: str


class Response(NamedTuple):
  """What to change before the next attempt.

  Attributes:
    quarantine: the slot to quarantine now, or None.
    lr_factor: the factor on the learning rate from now on.
    attempt: the number to fold into random draws and data order.
    give_up: whether the run has failed; then nothing else has changed.
    reason: a sentence: the fault, and what is done about it.
  """

  quarantine: Path | None
  lr_factor: float
  attempt: int
  give_up: bool
  reason: str


def observe(
  state: GovernorState,
  rules: Rules,
  *,
  loss: float | None = None,
  accuracy: float | None = None,
) -> tuple[GovernorState, Fault | None]:
  """Judge the latest figures.

  Args:
    state: the record so far.
    rules: thresholds.
    loss: mean training loss over a logging interval, or None if there is no
      new one. A mean: single batches exceed their median 3 times by chance.
    accuracy: validation accuracy, 0..1, or None if there is no new one.

  Returns:
    (the record with both figures, None), or (the record as it was, the fault).
  """
  if loss is not None and not math.isfinite(loss):
    return state, Fault("non_finite_loss", f"the loss is {loss}")
  if loss is not None and state.losses:
    median = statistics.median(state.losses)
    if loss > rules.loss_factor * max(median, rules.loss_floor):
      return state, Fault(
        "loss_jump",
        f"the loss {loss:.4g} exceeds {rules.loss_factor:g} times its running"
        f" median {median:.4g} (taken as at least {rules.loss_floor:g})",
      )
  if accuracy is not None and _collapsed(accuracy, state.best_accuracy, rules):
    return state, Fault(
      "collapse",
      f"the validation accuracy fell to {accuracy:.4f}, within"
      f" {rules.chance_margin:g} of chance ({rules.chance:.4f}), after"
      f" {state.best_accuracy:.4f}",
    )
  losses = state.losses if loss is None else (*state.losses, loss)
  best = state.best_accuracy if accuracy is None else accuracy
  return dataclasses.replace(
    state,
    losses=losses[-rules.window :],
    best_accuracy=max(state.best_accuracy, best),
  ), None


def respond(
  state: GovernorState,
  fault: Fault,
  rules: Rules,
  *,
  epoch: int,
  last_changed: Mapping[Path, int],
) -> tuple[GovernorState, Response]:
  """Decide what the next attempt does differently.

  Args:
    state: the record at the fault.
    fault: from `observe`.
    rules: thresholds.
    epoch: the epoch of the fault.
    last_changed: slot -> epoch of its last change of stage; slots that never
      changed are left out. Of two that changed in the same epoch the one
      whose name sorts first is held responsible.

  Returns:
    (the record to keep over the rollback, what to do). Where the rollbacks
    are used up, the record as it was and `give_up`.
  """
  if state.attempt >= rules.max_rollbacks:
    return state, Response(
      quarantine=None,
      lr_factor=state.lr_factor,
      attempt=state.attempt,
      give_up=True,
      reason=f"{fault.reason}; given up after {state.attempt} rollbacks",
    )
  suspects = [
    (epoch - changed, slot)
    for slot, changed in last_changed.items()
    if epoch - changed <= rules.responsible_epochs
    and slot not in state.quarantined
  ]
  if suspects:
    ago, slot = min(suspects)
    new = dataclasses.replace(state, quarantined=(*state.quarantined, slot))
    when = f"{counted(ago, 'epoch')} before"
    deed = f"slot '{slot}', changed {when}, is quarantined"
  else:
    slot = None
    new = dataclasses.replace(state, lr_factor=state.lr_factor * LR_CUT)
    deed = (
      "no slot changed in the last"
      f" {counted(rules.responsible_epochs, 'epoch')}, the learning rate is"
      f" halved (factor {new.lr_factor:g})"
    )
  new = dataclasses.replace(new, attempt=state.attempt + 1)
  return new, Response(
    quarantine=slot,
    lr_factor=new.lr_factor,
    attempt=new.attempt,
    give_up=False,
    reason=f"{fault.reason}; {deed}; rollback {new.attempt}",
  )


def after_rollback(
  kept: GovernorState, restored: GovernorState
) -> GovernorState:
  """Join the record from `respond` with the one in the restored checkpoint.

  Args:
    kept: gives attempt, lr_factor and quarantined.
    restored: gives losses and best_accuracy.
  """
  return dataclasses.replace(
    kept, losses=restored.losses, best_accuracy=restored.best_accuracy
  )


def _collapsed(accuracy: float, best: float, rules: Rules) -> bool:
  return (
    accuracy <= rules.chance + rules.chance_margin
    and best >= rules.chance + rules.above_margin
  )
