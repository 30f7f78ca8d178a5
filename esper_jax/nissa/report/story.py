"""What happened in a run, in one paragraph."""

import re
from collections.abc import Sequence

from esper_jax.nissa.report import ending, growth, unplanted
from esper_jax.nissa.report.growth import Seed
from esper_jax.nissa.report.record import RUNNING, Run, figures
from esper_jax.nissa.table import duration, engineering, percent
from esper_jax.types import counted

# A number and its unit stay on one line.
_UNITS = re.compile(r"(\d) (s|min|h|%|[MGTP]|nats)(?!\w)")
_NAMED = 4  # seeds that are named one by one


def tell(run: Run) -> str:
  """Tells of a run: how far it came, what grew, what that came to."""
  told = (_course(run), _size(run), _grown(run), _figures(run), _ended(run))
  return _UNITS.sub("\\1\u00a0\\2", " ".join(filter(None, told)))


def state(run: Run) -> str:
  """Where the run stands: "running, epoch 3 of 30"."""
  if run.status == RUNNING:
    at_most = "at most " if run.config["train.max_steps"] else ""
    return f"running, epoch {run.epochs} of {at_most}{run.planned}"
  if run.status == "completed":
    return "completed"
  return f"{run.status} after epoch {run.epochs} of {run.planned}"


def measure(value: float | None, error: float | None) -> str:
  """A contribution in nats with its standard error; "" where unknown."""
  if value is None:
    return ""
  told = f"{value:+.4f}" + (f" \u00b1 {error:.4f}" if error else "")
  return told.replace("-", "\u2212")


def _course(run: Run) -> str:
  known = figures(run)
  data = known.get("data") or run.config["data.source"]
  data = data or run.config["data.name"]
  seconds = known["wall_seconds"]
  took = f" in {duration(seconds)}" if seconds else ""
  waited = known["compilation"]["blocking_seconds"]
  if waited:
    took += f", {duration(waited)} of them waiting for the compiler"
  if run.status == RUNNING:
    so_far = f" so far{took}" if took else ""
    return (
      f"The run is under way: {counted(run.epochs, 'epoch')} of"
      f" {run.planned}{so_far}, on {data}."
    )
  verb = {"completed": "completed", "interrupted": "was interrupted after"}
  reason = f" ({known['reason']})" if known["reason"] else ""
  return (
    f"The run {verb.get(run.status, 'failed after')}"
    f" {counted(run.epochs, 'epoch')} ({known['steps']:,} steps){took}{reason}"
    f", on {data}."
  )


def _size(run: Run) -> str:
  slots = len({name.partition("#")[0] for name in run.slots})
  first, last = run.initial_parameters, figures(run)["params_final"]
  host = f"The host, {run.host} with {counted(slots, 'slot')},"
  if first is None or last is None:
    return ""
  if first == last:
    return f"{host} has {first:,} parameters, as at the start."
  verb = "has by now" if run.result is None else "ended with"
  return (
    f"{host} began with {first:,} parameters and {verb} {last:,},"
    f" {last / first:.3g} times as many."
  )


def _grown(run: Run) -> str:
  seeds = run.growth.seeds
  policy = (run.result or {}).get("policy_used") or run.config["tamiyo.policy"]
  if not seeds:
    why = unplanted.sentence(run).partition(": ")[2]
    return f"Policy {policy} planted no seed{why and f': {why}'}."
  fates = [
    (growth.FOSSILIZED, "made permanent", ("was", "were")),
    (growth.CULLED, "culled", ("was", "were")),
    (growth.CANCELLED, "given up", ("was", "were")),
    (growth.ALIVE, "still judged", ("is", "are")),
  ]
  told = []
  for fate, words, verbs in fates:
    found = [seed for seed in seeds if seed.fate == fate]
    if found:
      names = _names(found) if fate == growth.FOSSILIZED else ""
      told.append(f"{len(found)} {verbs[len(found) > 1]} {words}{names}")
  listed = ", ".join(told[:-1]) + (" and " if told[:-1] else "") + told[-1]
  return f"Policy {policy} planted {counted(len(seeds), 'seed')}: {listed}."


def _names(seeds: Sequence[Seed]) -> str:
  if len(seeds) > _NAMED:
    return ""
  named = [
    f"{seed.key} in {seed.slot} at epoch {seed.ended}"
    + (
      f", {measure(seed.contribution, seed.error)} nats by then"
      if seed.contribution is not None
      else ""
    )
    for seed in seeds
  ]
  return f" ({'; '.join(named)})"


def _figures(run: Run) -> str:
  known = figures(run)
  last = known["val_accuracy"]
  if last is None:
    return ""
  before = known["val_accuracy_before_growth"]
  told = f"Validation accuracy is {percent(last)}"
  if before is not None:
    told = (
      f"Validation accuracy went from {percent(before)} before the first seed"
      f" to {percent(last)}"
    )
  test = known["test_accuracy"]
  if test is not None:
    told += f"; test accuracy, read once, is {percent(test)}"
  flops = engineering(known["total_flops"])
  return f"{told}. All of it took {flops} FLOPs."


def _ended(run: Run) -> str:
  told = ending.sentence(run)
  return f"{told[0].upper()}{told[1:]}." if told else ""
