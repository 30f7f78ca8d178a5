"""What an epoch came to, as named numbers for tools that draw them."""

from collections.abc import Mapping
from typing import Any

from esper_jax.tolaria.display import TrainingMetrics


def of_epoch(
  metrics: TrainingMetrics, slots: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
  """Name -> number; what is not known is left out.

  Args:
    metrics: of the epoch.
    slots: as in result.json.
  """
  found = {
    "train/epoch_loss": metrics.train_loss,
    "train/epoch_accuracy": metrics.train_accuracy,
    "val/loss": metrics.val_loss,
    "val/accuracy": metrics.val_accuracy,
    "time/epoch": metrics.seconds,
  }
  for slot, row in slots.items():
    found[f"slots/{slot}/alpha"] = row["alpha"]
    found[f"slots/{slot}/contribution"] = row["contribution"]
  return {name: value for name, value in found.items() if value is not None}


def of_result(result: Mapping[str, Any]) -> dict[str, float]:
  """The figures of result.json by which runs are compared."""
  names = (
    "val_loss",
    "val_accuracy",
    "test_accuracy",
    "params_final",
    "train_flops",
    "total_flops",
  )
  return {n: result[n] for n in names if result.get(n) is not None}
