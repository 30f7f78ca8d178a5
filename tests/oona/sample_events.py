"""An event of each type."""

from typing import Any

_WORTH = {"contribution": None, "contribution_se": 0.5}
FIELDS: dict[str, dict[str, Any]] = {
  "run_started": {"policy": "never"},
  "decision": {
    "slot": "slot1",
    "action": "cull",
    "blueprint": None,
    "reason": "it hurts",
  },
  "germinated": {
    "slot": "slot1",
    "blueprint": "dense",
    "key": "dense_2",
    "initializer": "zero_out",
    "parameters": 8,
    "stage": "TRAINING",
  },
  "stage_changed": {"slot": "slot1", "was": "TRAINING", "now": "BLENDING"},
  "gate_refused": {"slot": "slot1", "reason": "too young"},
  "fossilized": {"slot": "slot1", **_WORTH},
  "culled": {"slot": "slot1", "was": "HOLDING", "reason": "no gain", **_WORTH},
  "embargo_ended": {"slot": "slot1"},
  "growth_cancelled": {"slot": "slot1", "reason": "too late", "late": True},
  "rolled_back": {"reason": "a loss that jumped", "attempt": 1},
  "quarantined": {"slot": "slot1"},
  "run_finished": {
    "status": "completed",
    "val_loss": 0.5,
    "val_accuracy": 0.75,
  },
  "resumed": {"redone_steps": 3, "redone_flops": 10**12},
  "compile": {
    "program": "train",
    "seconds": 1.5,
    "waited": 0.0,
    "background": True,
    "guessed": False,
    "on_disk": False,
  },
  "kernel_fallback": {"kernel": "blend", "reason": "no evidence"},
  "policy_fallback": {"policy": "heuristic", "reason": "no file"},
  "checkpoint": {"kind": "scheduled"},
  "fault": {"kind": "non_finite_loss", "reason": "the loss is nan"},
  "interrupted": {"signal": "SIGINT"},
}


def publish(bus, type, *, epoch=0, step=0, **changes):
  """Publishes the event of a type."""
  return bus.publish(type, epoch=epoch, step=step, **(FIELDS[type] | changes))
