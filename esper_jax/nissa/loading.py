"""Loads what a run logged, in the form that `pandas.DataFrame(...)` takes.

Of a run that was resumed or rolled back only what counts is loaded: what a
rollback undid is left out, and a resumed run has moved aside what it did again.
A run may go on meanwhile: its last line is left until it is whole.
"""

import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from esper_jax.oona import growth_log, jsonl
from esper_jax.oona.events import EVENT_TYPES, PROCESS_EVENTS
from esper_jax.tolaria.workdir import beside
from esper_jax.types import InputError

EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
STEP, EPOCH = METRICS_TYPES = ("step", "epoch")
_ADVICE = "restore the file, or take that line out of it"
# A rollback does not undo these.
_LASTING = (*PROCESS_EVENTS, "run_started", "rolled_back", "quarantined")
# How the logs spell the numbers that JSON has not, see `jsonl.plain`.
_NUMBERS = {text: float(text) for text in ("NaN", "Infinity", "-Infinity")}


def load_events(
  run: str | os.PathLike,
  *,
  type: str | Collection[str] = (),
  slot: str | Collection[str] = (),
) -> list[dict[str, Any]]:
  """Loads a run's events: decisions, growth, compilations, faults ...

  Args:
    run: the run directory.
    type: only events of this type, or of these; see `oona.events.EVENT_TYPES`.
    slot: only events about this slot, or these.

  Returns:
    A flat dict for each event, in order; docs/read_a_run.md says what is in
    it. `time` is in seconds since the epoch of Unix.

  Raises:
    InputError: there is no such run, type or slot, or a line of a log is not
      what it must be; it names the file and the line.
  """
  return [_flat(event) for event in select_events(run, type=type, slot=slot)]


def load_metrics(
  run: str | os.PathLike,
  *,
  type: str | Collection[str] = (),
  slot: str | Collection[str] = (),
) -> list[dict[str, Any]]:
  """Loads a run's figures: losses, accuracies, and those of every slot.

  Args:
    run: the run directory.
    type: "step", the lines of every `train.log_every` steps, or "epoch", those
      of every epoch, which hold other figures.
    slot: only lines that tell of this slot, or these, without other slots.

  Returns:
    A flat dict for each line, in order; docs/read_a_run.md says what is in it.

  Raises:
    InputError: as `load_events`.
  """
  types, slots = _names(type), _names(slot)
  _check(types, METRICS_TYPES, "no type of metrics")
  lines = list(_metrics(run_directory(run)))
  _check(slots, _slots(lines), f"no slot of {run}")
  wanted = tuple(f"slots/{name}/" for name in slots)
  return [
    _flat({k: v for k, v in line.items() if _is_of(k, wanted)})
    for line in lines
    if (not types or (EPOCH if is_epoch(line) else STEP) in types)
    and (not wanted or any(key.startswith(wanted) for key in line))
  ]


def select_events(
  run: str | os.PathLike,
  *,
  type: str | Collection[str] = (),
  slot: str | Collection[str] = (),
) -> list[dict[str, Any]]:
  """Reads events as they stand in the log; see `load_events`."""
  types, slots = _names(type), _names(slot)
  _check(types, EVENT_TYPES, "no type of events")
  folder = run_directory(run)
  events = _events(folder)
  known = {event["slot"] for event in events if "slot" in event}
  if not known.issuperset(slots) and (folder / METRICS).exists():
    # Of a row "slot#2" the slot is "slot": its lanes are apart in metrics only.
    known |= {name.partition("#")[0] for name in _slots(_metrics(folder))}
  _check(slots, sorted(known), f"no slot of {run}")
  return [
    event
    for event in events
    if (not types or event["type"] in types)
    and (not slots or event.get("slot") in slots)
  ]


def run_directory(run: str | os.PathLike) -> pathlib.Path:
  """The path of a run directory.

  Raises:
    InputError: there is no such folder.
  """
  path = pathlib.Path(run)
  if not path.is_dir():
    raise InputError(
      f"{run}: no such folder; give the run's --workdir{beside(run)}"
    )
  return path


def is_epoch(line: Mapping[str, Any]) -> bool:
  """Whether a line of metrics.jsonl is that of an epoch."""
  return "val/loss" in line


def _events(folder: pathlib.Path) -> list[dict[str, Any]]:
  path = folder / EVENTS
  if not path.exists():
    raise InputError(
      f"{folder} holds no {EVENTS}, so no run has begun there; give the"
      f" --workdir of one that has{beside(folder)}"
    )
  stand = {line for line, _ in growth_log.standing(path, advice=_ADVICE)}
  return [
    event
    for line, event in enumerate(jsonl.read(path), start=1)
    if line in stand or event["type"] in _LASTING
  ]


def _metrics(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The lines of metrics.jsonl that no rollback undid."""
  backs = [
    _attempt_and_step(event, f"{folder / EVENTS}, a rolled_back")
    for event in _events(folder)
    if event["type"] == "rolled_back"
  ]
  path = folder / METRICS
  for number, line in enumerate(jsonl.read(path), start=1):
    attempt, step = _attempt_and_step(line, f"{path}, line {number}")
    if not any(attempt < later and step > back for later, back in backs):
      yield line


def _attempt_and_step(record: Mapping[str, Any], where: str) -> tuple[int, int]:
  attempt, step = record.get("attempt"), record.get("step")
  if not isinstance(attempt, int) or not isinstance(step, int):
    raise InputError(
      f"{where}: 'attempt' is {attempt!r} and 'step' {step!r}, not whole"
      f" numbers; {_ADVICE}"
    )
  return attempt, step


def _is_of(key: str, wanted: tuple[str, ...]) -> bool:
  """Whether a key of a line of metrics is of the slots that are wanted."""
  return not wanted or not key.startswith("slots/") or key.startswith(wanted)


def _slots(lines: Iterable[Mapping[str, Any]]) -> list[str]:
  """The slots that metrics tell of, "block_1/slot"."""
  keys = dict.fromkeys(key for line in lines for key in line)
  ends = ("slots/", "/stage")
  return [
    key.removeprefix(ends[0]).removesuffix(ends[1])
    for key in keys
    if key.startswith(ends[0]) and key.endswith(ends[1])
  ]


def _names(names: str | Collection[str]) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else tuple(names)


def _check(names: tuple[str, ...], valid: Collection[str], what: str) -> None:
  for name in names:
    if name not in valid:
      raise InputError(
        f"'{name}' is {what}; valid: {', '.join(valid) or 'none so far'}"
      )


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Without dicts in it, keys joined by "/"; with numbers that are no JSON."""
  out: dict[str, Any] = {}
  for key, value in record.items():
    if isinstance(value, Mapping):
      out |= _flat(value, f"{prefix}{key}/")
    elif isinstance(value, str):
      out[prefix + key] = _NUMBERS.get(value, value)
    else:
      out[prefix + key] = value
  return out
