"""What a run says of itself: result.json and the slots' figures."""

from typing import Any

import jax

from esper_jax.kasmina.slot import all_seeds
from esper_jax.tolaria import policy_fallback
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.tolaria.growth_options import GrowthOptions
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.state import count_parameters
from esper_jax.types import Stage

VERSION = 1


def make(
  run: Run,
  parts: Parts,
  *,
  status: str,
  config_hash: str,
  initial_parameters: int,
  measure_budget: float,
  val_loss: float | None = None,
  val_accuracy: float | None = None,
  test_accuracy: float | None = None,
  metrics: dict[str, dict[str, float]] | None = None,
  reason: str | None = None,
) -> dict[str, Any]:
  """Builds the content of result.json.

  Args:
    run: at its end.
    parts: of the run.
    status: "completed", "interrupted" or "failed".
    config_hash: of the keys that change results.
    initial_parameters: of the host alone.
    measure_budget: share of the training FLOPs that ablations and probes may
      take; a small run exceeds it, as no measurement is done on too little.
    val_loss, val_accuracy, test_accuracy: final figures, None unless the run
      completed; the validation figures then fall back on the last epoch's.
    metrics: final figures of the objective's metrics by split, where it has
      any; else the entry is left out.
    reason: why the run failed.
  """
  history = run.history
  if val_accuracy is None and history.known[-1]:
    val_accuracy = float(history.val_accuracy[-1])
    val_loss = float(history.val_loss[-1])
  return {
    "version": VERSION,
    "status": status,
    "reason": reason,
    "epochs": run.epoch,
    "steps": run.next_batch,
    "val_loss": val_loss,
    "val_accuracy": val_accuracy,
    "val_accuracy_before_growth": run.before_growth,
    "test_accuracy": test_accuracy,
    **({} if metrics is None else {"metrics": metrics}),
    "params_initial": initial_parameters,
    "params_final": count_parameters(run.state),
    **run.ledger.summary(),
    "measure_budget": measure_budget,
    "timing_dependent": parts.growth.timeout > 0,
    "germinated": run.germinated,
    "fossilized": run.fossilized,
    "culled": sum(run.culls),
    "rolled_back": run.rolled_back,
    "quarantined": list(run.governor.quarantined),
    "slots": slot_lines(run, parts.growth),
    "seeds": seed_lines(run, parts.growth),
    **_grown_before(parts),
    "config_hash": config_hash,
    "data": parts.data.source,
    "data_sha256": parts.data.sha256,
    "policy_used": policy_fallback.used(parts.policy, run.policy),
    "policy_sha256": policy_fallback.sha256(run.policy),
  }


def step_line(
  run: Run,
  *,
  loss: float,
  accuracy: float,
  learning_rate: float,
  rate: float,
  now: float,
) -> dict[str, Any]:
  """Builds a logging interval's line of metrics.jsonl.

  Args:
    run: at the end of the interval.
    loss: mean over the interval, nats per example.
    accuracy: of the epoch so far, 0 to 1.
    learning_rate: of the last step.
    rate: images per second of this epoch in this process.
    now: seconds since the epoch of Unix.
  """
  return {
    "epoch": run.epoch,
    "step": run.next_batch,
    "attempt": run.governor.attempt,
    "train/loss": loss,
    "train/accuracy": accuracy,
    "learning_rate": learning_rate,
    "flops/total": run.ledger.total_flops,
    "time": now,
    "time/images_per_second": rate,
  }


def epoch_line(
  run: Run, metrics: TrainingMetrics, slots: dict[str, Any], *, now: float
) -> dict[str, Any]:
  """Builds an epoch's line of metrics.jsonl; keys in time/ may vary."""
  line = {
    "epoch": metrics.epoch,
    "step": metrics.step,
    "attempt": run.governor.attempt,
    "val/loss": metrics.val_loss,
    "val/accuracy": metrics.val_accuracy,
    "train/epoch_loss": metrics.train_loss,
    "train/epoch_accuracy": metrics.train_accuracy,
    "parameters": count_parameters(run.state),
    "flops/train": run.ledger.train_flops,
    "flops/total": run.ledger.total_flops,
    "time": now,
    "time/epoch": metrics.seconds,
  }
  for name, row in slots.items():
    line |= {f"slots/{name}/{key}": value for key, value in row.items()}
  return line


def slot_lines(run: Run, growth: GrowthOptions) -> dict[str, dict[str, Any]]:
  """Stage, blueprint, alpha, culls and contribution of every row, by name."""
  s, signals = jax.device_get((run.slots, run.signals))
  out = {}
  for row, name in enumerate(_row_names(growth)):
    column = int(s.blueprint[row])
    measured = signals.contribution_known[row] and run.keys[row] is not None
    out[name] = {
      "stage": Stage(int(s.stage[row])).name,
      "blueprint": growth.blueprints[column] if column >= 0 else None,
      "alpha": float(s.alpha[row]),
      "culled": run.culls[row],
      "contribution": float(signals.contribution[row]) if measured else None,
      "contribution_se": (
        float(signals.contribution_se[row]) if measured else None
      ),
    }
  return out


def seed_lines(run: Run, growth: GrowthOptions) -> list[dict[str, Any]]:
  """Every seed in the tree: where, what, how large."""
  names = list(growth.blueprints)
  paths = list(growth.slots)
  return [
    {
      "slot": path,
      "key": key,
      "blueprint": seed.blueprint,
      "blend": seed.blend,
      "parameters": int(
        growth.cost[
          paths.index(path) * growth.lanes, names.index(seed.blueprint)
        ]
      ),
    }
    for (path, key), seed in all_seeds(run.state.seeds).items()
  ]


def _grown_before(parts: Parts) -> dict[str, Any]:
  """Where a run goes on: slot -> blueprints of the seeds that it came with."""
  if parts.before is None:
    return {}
  found: dict[str, list[str]] = {}
  for record in parts.before.topology["seeds"]:
    found.setdefault(record["slot"], []).append(record["blueprint"])
  return {"grown_before": found}


def _row_names(growth: GrowthOptions) -> list[str]:
  """Slot names by row; lanes beyond the first are numbered."""
  return [
    name if lane == 0 else f"{name}#{lane + 1}"
    for name in growth.slots
    for lane in range(growth.lanes)
  ]
