"""What a run shows on the terminal: a line per part, per epoch, per event."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from esper_jax.nissa.live import Panel
from esper_jax.nissa.report import ending, record, unplanted
from esper_jax.nissa.table import duration, result_table
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.types import InputError

QUIET, NORMAL, VERBOSE = 0, 1, 2
LONG_RUN = 3600.0  # seconds; on a CPU a longer run deserves a hint
# Events that everyone sees; VERBOSE shows the others too.
_SHOWN = frozenset(
  (
    "resumed",
    "decision",
    "germinated",
    "stage_changed",
    "fossilized",
    "culled",
    "fault",
    "policy_fallback",
    "rolled_back",
    "quarantined",
    "interrupted",
  )
)
# Parts that only VERBOSE shows.
_DETAILS = frozenset(("urza",))
_STAMP = ("v", "id", "seq", "time", "epoch", "step", "type", "slot", "reason")


class Console:
  """A `tolaria.display.Display`: lines; on a terminal, a panel below them."""

  def __init__(
    self,
    verbosity: int = NORMAL,
    *,
    stream: TextIO | None = None,
    hint: str = "",
    command: str = "",
  ):
    """Makes a console.

    Args:
      verbosity: QUIET shows nothing, NORMAL the course of the run, VERBOSE
        every event.
      stream: where to; standard output when None.
      hint: shown once where the run will take long.
      command: that resumes the run, where it is known.
    """
    self._verbosity = verbosity
    self._stream = stream or sys.stdout
    live = verbosity > QUIET and self._stream.isatty()
    self._panel = Panel(self._stream) if live else None
    self._hint = hint
    self._command = command
    self._epochs = self._steps_per_epoch = 0

  def part(self, name: str, text: str) -> None:
    """One line: "kasmina  resnet8, 19,538 parameters, ..."."""
    if name not in _DETAILS or self._verbosity >= VERBOSE:
      self._line(f"{name:<9}{text}")

  def begin(self, *, epoch: int, epochs: int, steps_per_epoch: int) -> None:
    """Notes how long the run is."""
    self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
    if self._panel:
      self._panel.begin(
        epoch=epoch, epochs=epochs, steps_per_epoch=steps_per_epoch
      )

  def pace(self, step: int, seconds_per_step: float) -> None:
    """Says how long an epoch takes and when the run will end."""
    left = self._epochs * self._steps_per_epoch - step
    remaining = left * seconds_per_step
    self._line(
      f"pace     {duration(self._steps_per_epoch * seconds_per_step)} an epoch,"
      f" about {duration(remaining)} to go; growth and compiling come on top"
    )
    if remaining > LONG_RUN and self._hint:
      self._line(f"hint     {self._hint}")

  def steps(self, step: int, loss: float, images_per_second: float) -> None:
    """Shows where the epoch stands, on a terminal."""
    if self._panel:
      self._panel.steps(step, loss, images_per_second)

  def epoch(self, metrics: TrainingMetrics, slots: dict[str, Any]) -> None:
    """One line with the epoch's figures and the slots that are not dormant."""
    m = metrics
    alive = [
      f"{name} {row['stage'].lower()}"
      + (f" {row['alpha']:.2f}" if row["stage"] == "BLENDING" else "")
      for name, row in slots.items()
      if row["stage"] != "DORMANT"
    ]
    self._line(
      f"epoch {m.epoch:>3}/{self._epochs}"
      f"  train loss {m.train_loss:.4f} acc {m.train_accuracy:.4f}"
      f"  val loss {m.val_loss:.4f} acc {m.val_accuracy:.4f}"
      f"  {m.seconds:.1f} s" + (f"  [{', '.join(alive)}]" if alive else "")
    )
    if self._panel:
      self._panel.epoch(metrics, slots)

  def event(self, event: Mapping[str, Any]) -> None:
    """One line, indented under the epochs."""
    if event["type"] in _SHOWN or self._verbosity >= VERBOSE:
      self._line(f"    {describe(event)}")

  def finish(self, result: dict[str, Any], workdir: Path) -> None:
    """The figures of the run and where its files are."""
    self.close()
    self._line("")
    self._line(result_table({"run": result}))
    self._line("")
    status = result["status"]
    reason = f": {result['reason']}" if result["reason"] else ""
    self._line(f"{status}{reason}")
    if self._verbosity and (remark := _remark(result, workdir)):
      self._line(remark)
    for name in ("result.json", "events.jsonl", "metrics.jsonl", "checkpoints"):
      self._line(f"  {workdir / name}")
    if (workdir / "report.html").exists():
      self._line(f"  {workdir / 'report.html'}")
    if status == "interrupted":
      self._line(how_to_resume(workdir, self._command))

  def close(self) -> None:
    """Leaves the cursor on a fresh line."""
    if self._panel:
      self._panel.close()

  def _line(self, text: str) -> None:
    if self._verbosity == QUIET:
      return
    if self._panel:
      self._panel.line(text)
      return
    try:
      print(text, file=self._stream, flush=True)
    except OSError:  # `| head`: the run goes on unseen
      self._verbosity = QUIET


def describe(event: Mapping[str, Any]) -> str:
  """An event as a line: what, where, its figures, why."""
  if event["type"] == "stage_changed":
    what = f"{event['was'].lower()} -> {event['now'].lower()}"
    figures: dict[str, Any] = {}
  else:
    what = event["type"].replace("_", " ")
    if event["type"] == "resumed":
      what += f" after epoch {event['epoch']}, step {event['step']}"
    figures = {
      key: value
      for key, value in event.items()
      if key not in _STAMP and value not in (None, "")
    }
  details = ", ".join(
    f"{key.replace('_', ' ')} {_show(value)}" for key, value in figures.items()
  )
  where = f"{event['slot']}: " if "slot" in event else ""
  reason = f" -- {event['reason']}" if event.get("reason") else ""
  return f"{where}{what}" + (f" ({details})" if details else "") + reason


def how_to_resume(workdir: Path, command: str = "") -> str:
  """A line for a run that was not completed.

  Args:
    workdir: of the run.
    command: that resumes it, where it is known.
  """
  if command:
    return f"to resume the run: {command}"
  return f"with the workdir {workdir} the same command resumes the run"


def _remark(result: Mapping[str, Any], workdir: Path) -> str:
  """Why nothing was planted, or what the end culled, as far as files tell."""
  if result["germinated"] and not result["culled"]:
    return ""
  say = ending.sentence if result["germinated"] else unplanted.sentence
  try:
    return say(record.read(workdir))
  except InputError:
    return ""


def _show(value: Any) -> str:
  return f"{value:.3g}" if isinstance(value, float) else str(value)
