"""Follows a run from another process, in the words of its own console."""

import io
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esper_jax.nissa.console import Console, how_to_resume
from esper_jax.nissa.loading import EVENTS, METRICS, is_epoch, run_directory
from esper_jax.oona.tail import Tail
from esper_jax.tolaria import status
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.tolaria.workdir import read_json
from esper_jax.types import InputError

KILLED = "killed"
POLL = 0.5  # seconds between two looks at the files
PATIENCE = 60.0  # seconds for a run that starts to make its folder


def follow(
  run: str | os.PathLike,
  write: Callable[[str], object],
  *,
  clock: Callable[[], float] = time.time,
  sleep: Callable[[float], object] = time.sleep,
) -> str:
  """Shows the events and epochs of a run, old and new, until it ends.

  Args:
    run: the run directory; it may come within PATIENCE seconds, and need not
      hold anything yet.
    write: takes text, whole lines.
    clock: seconds since the epoch of Unix.
    sleep: waits so many seconds.

  Returns:
    How the run ended: one of `status.ENDED`, or KILLED where it has given no
    sign of life for `status.STALE` seconds.

  Raises:
    InputError: there is no such folder, or a file is damaged.
  """
  begun, waited = clock(), False
  while not os.path.isdir(run) and clock() - begun < PATIENCE:
    if not waited:
      write(f"waiting for {run}, which is not there yet\n")
      waited = True
    sleep(POLL)
  view = _View(run_directory(run))
  ending = view.look(clock())
  if not ending and not view.sign:
    write(f"waiting for the first events in {run}\n")
  while True:
    write(view.text())
    if ending:
      return ending
    sleep(POLL)
    ending = view.look(clock())


class _View:
  """What a console would show of a run.

  Attributes:
    sign: of life: when the newest line was written; 0 where there is none.
  """

  def __init__(self, folder: Path):
    self._folder = folder
    self._events = Tail(folder / EVENTS)
    self._metrics = Tail(folder / METRICS)
    self._shown = io.StringIO()
    self._console = Console(stream=self._shown)
    self._last: Mapping[str, Any] = {}  # event
    self.sign = 0.0

  def text(self) -> str:
    """What is to be shown since the last call."""
    text = self._shown.getvalue()
    self._shown.seek(0)
    self._shown.truncate()
    return text

  def look(self, now: float) -> str:
    """Shows what is new; returns how the run ended, "" where it has not."""
    try:
      return self._look(now)
    except (AttributeError, KeyError, TypeError) as error:
      raise InputError(
        f"{self._folder}: its files are not what a run writes ({error!r});"
        " restore them"
      ) from error

  def _look(self, now: float) -> str:
    found = status.read(self._folder)  # first: the logs then hold all it knows
    epochs = _epochs(self._folder, found)
    self._console.begin(epoch=0, epochs=epochs, steps_per_epoch=1)
    for line in sorted((*self._metrics.new(), *self._events.new()), key=_time):
      self.sign = max(self.sign, _time(line))
      if "type" in line:
        self._last = line
        self._console.event(line)
      elif is_epoch(line):
        self._console.epoch(_metrics(line), _slots(line))
    ending = self._ending(found, now)
    if ending:
      self._finish(ending, found or {})
    return ending

  def _ending(self, found: Mapping[str, Any] | None, now: float) -> str:
    beat = found["heartbeat"] if found else 0.0
    # A process that takes the run up again logs before its first heartbeat.
    if found and found["state"] in status.ENDED and self.sign <= beat:
      return found["state"]
    sign = max(beat, self.sign)
    if not sign or now - sign <= status.STALE:
      return ""
    if self._last.get("type") == "run_finished":
      return self._last["status"]  # and status.json could not be written
    return KILLED

  def _finish(self, ending: str, found: Mapping[str, Any]) -> None:
    result = read_json(self._folder / "result.json") or {}
    if result.get("status") == ending:
      self._console.finish(result, self._folder)
      return
    words = f"{ending}: {found.get('reason') or 'no result was written'}"
    if ending == KILLED:
      sign = max(self.sign, found.get("heartbeat", 0.0))
      when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(sign))
      words = f"no sign of life since {when}: it was killed, or stands still"
    print(f"{words}\n{how_to_resume(self._folder)}", file=self._shown)


def _time(line: Mapping[str, Any]) -> float:
  return line.get("time", 0.0)


def _epochs(folder: Path, found: Mapping[str, Any] | None) -> int:
  """Epochs of the run; its config knows them but for `train.max_steps`."""
  if found:
    return found["epochs"]
  document = read_json(folder / "config.json") or {}
  return document.get("config", {}).get("train", {}).get("epochs", 0)


def _metrics(line: Mapping[str, Any]) -> TrainingMetrics:
  """An epoch's line of metrics.jsonl, as the trainer had it."""
  return TrainingMetrics(
    epoch=line["epoch"],
    step=line["step"],
    train_loss=float(line["train/epoch_loss"]),  # or "NaN"
    train_accuracy=float(line["train/epoch_accuracy"]),
    val_loss=float(line["val/loss"]),
    val_accuracy=float(line["val/accuracy"]),
    seconds=line["time/epoch"],
  )


def _slots(line: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The figures of every slot; its name may have a "/"."""
  slots: dict[str, dict[str, Any]] = {}
  for key, value in line.items():
    kind, _, rest = key.partition("/")
    name, _, figure = rest.rpartition("/")
    if kind == "slots":
      slots.setdefault(name, {})[figure] = value
  return slots
