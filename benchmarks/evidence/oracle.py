"""Arm B5: at each time that the heuristic grew, what would have been best?

Greedy one-step look-ahead. At each boundary where the paired heuristic run
decided on a growth, every slot with every blueprint is tried from the same
state for some epochs; the one with the highest validation accuracy is taken.
A run is a pure function of its config and seed on a CPU, so "from the same
state" is the run up to there once more. The test set is not read.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks.evidence.arms import apply
from esper_jax.oona import jsonl
from esper_jax.tolaria import assembly
from esper_jax.tolaria.trainer import Trainer
from esper_jax.tolaria.workdir import read_json, write_json
from esper_jax.types import RunFailedError

_Entry = tuple[int, str, str]  # (epochs done, slot, blueprint)
_NOTES = "lookahead.json"


class Trial(NamedTuple):
  """A candidate's trial.

  Attributes:
    accuracy: of validation at its end; None where it was not planted.
    flops: all that the trial cost, the way to the candidate included.
  """

  accuracy: float | None
  flops: int


def growth_times(events: Sequence[Mapping[str, Any]]) -> list[int]:
  """The boundaries of a run's decisions to grow, one per decision."""
  return [
    event["epoch"]
    for event in events
    if event["type"] == "decision" and event["action"] == "germinate"
  ]


def schedule_of(entries: Sequence[_Entry]) -> dict[str, Any]:
  """The changes that make a run grow by this schedule, or never."""
  if not entries:
    return {"tamiyo.policy": "never"}
  return {"tamiyo.policy": "schedule", "tamiyo.schedule": tuple(entries)}


def candidates(config: ConfigDict) -> list[tuple[str, str]]:
  """Every (slot, blueprint) that the config's host and blueprints allow."""
  growth = assembly.assemble(config, assembly.load_data(config)).growth
  return [
    (slot, name)
    for n, slot in enumerate(growth.slots)
    for fits, name in zip(
      growth.fits[n * growth.lanes], growth.blueprints, strict=True
    )
    if fits
  ]


def look_ahead(
  config: ConfigDict,
  times: Sequence[int],
  *,
  epochs: int,
  folder: Path,
  attempt: Callable[[ConfigDict, int, _Entry], Trial] | None = None,
) -> tuple[list[_Entry], int]:
  """Chooses where to grow at each time.

  Args:
    config: of the run; its policy is replaced.
    times: boundaries, rising; one growth each.
    epochs: that each candidate is trained, at most to the end of the run.
    folder: where trials that are over are noted, so that an interrupted
      look-ahead goes on.
    attempt: (config, last epoch, candidate) -> trial; None trains.

  Returns:
    (the schedule, FLOPs of all trials).
  """
  attempt = attempt or _attempt
  notes = read_json(folder / _NOTES) or {}
  pairs = candidates(config)
  chosen: list[_Entry] = []
  spent = 0
  for time in times:
    last = min(time + epochs, config.train.epochs)
    taken = {slot for epoch, slot, _ in chosen if epoch == time}
    trials: dict[_Entry, Trial] = {}
    for slot, blueprint in pairs:
      entry = (time, slot, blueprint)
      if slot in taken:  # a slot germinates once a boundary
        continue
      entries = [*chosen, entry]
      name = repr(entries)
      if name not in notes:
        trial = attempt(apply(config, schedule_of(entries)), last, entry)
        notes[name] = trial._asdict()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _NOTES, notes)
      trials[entry] = Trial(**notes[name])
    spent += sum(trial.flops for trial in trials.values())
    best = _best(trials)
    if best is not None:
      chosen.append(best)
  return chosen, spent


def _best(trials: Mapping[_Entry, Trial]) -> _Entry | None:
  """The first of those with the highest accuracy; None: none was planted."""
  scores = {
    entry: trial.accuracy
    for entry, trial in trials.items()
    if trial.accuracy is not None
  }
  return max(scores, key=lambda entry: scores[entry]) if scores else None


def _attempt(config: ConfigDict, last: int, entry: _Entry) -> Trial:
  """Trains to a boundary in a temporary directory."""
  with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(config, folder)
    try:
      metrics = trainer.train_epoch()
      while metrics.epoch < last:
        metrics = trainer.train_epoch()
      flops = trainer.run.ledger.total_flops
    except RunFailedError:
      return Trial(None, trainer.run.ledger.total_flops)
    finally:
      trainer.shutdown()
    events = jsonl.read(Path(folder) / "events.jsonl")
  planted = any(
    event["type"] == "germinated"
    and event["slot"] == entry[1]
    and event["epoch"] >= entry[0]
    for event in events
  )
  return Trial(float(metrics.val_accuracy) if planted else None, flops)
