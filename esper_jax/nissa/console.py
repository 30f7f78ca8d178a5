"""What a run shows on the terminal: a line per part, per epoch, per event."""

import sys
import time
from pathlib import Path
from typing import Any, TextIO

QUIET, NORMAL, VERBOSE = 0, 1, 2
_CLEAR = "\r\x1b[K"
# Events that everyone sees; --verbose shows the others too.
_SHOWN = (
  "resumed",
  "decision",
  "germinated",
  "stage_changed",
  "fossilized",
  "culled",
  "embargo_ended",
  "fault",
  "rolled_back",
  "quarantined",
  "interrupted",
)
_STAMP = ("v", "id", "seq", "time", "epoch", "step", "type", "slot")


class Console:
  """Writes plain lines; on a terminal also one live line of progress."""

  def __init__(self, verbosity: int = NORMAL, stream: TextIO | None = None):
    """Makes a console.

    Args:
      verbosity: 0 nothing, 1 the course of the run, 2 every event.
      stream: where to; standard output when None.
    """
    self._verbosity = verbosity
    self._stream = stream or sys.stdout
    self._live = verbosity > QUIET and self._stream.isatty()
    self._shown = False  # whether a live line stands on the screen

  def line(self, text: str) -> None:
    """One line, above the live one."""
    if self._verbosity > QUIET:
      prefix = _CLEAR if self._shown else ""
      self._shown = False
      print(f"{prefix}{text}", file=self._stream, flush=True)

  def part(self, name: str, text: str) -> None:
    """One start line of one part of the system."""
    self.line(f"{name:<9}{text}")

  def progress(self, text: str) -> None:
    """Replaces the live line; nothing where the output is not a terminal."""
    if self._live:
      print(f"{_CLEAR}{text}", end="", file=self._stream, flush=True)
      self._shown = True

  def event(self, event: dict[str, Any]) -> None:
    """Shows an event of the bus."""
    kind = event["type"]
    if kind not in _SHOWN and self._verbosity < VERBOSE:
      return
    if kind == "stage_changed" and self._verbosity < VERBOSE:
      text = f"{event['was'].lower()} -> {event['now'].lower()}"
    else:
      text = f"{kind.replace('_', ' ')}{_details(event)}"
    where = event.get("slot", "")
    self.line(f"  epoch {event['epoch']:>3}  {where:<10} {text}")

  def close(self) -> None:
    """Leaves the cursor on a fresh line."""
    if self._shown:
      print(_CLEAR, end="", file=self._stream, flush=True)
      self._shown = False


def _details(event: dict[str, Any]) -> str:
  parts = []
  for key, value in event.items():
    if key in _STAMP or value is None or value == "":
      continue
    if key == "reason":
      continue
    shown = f"{value:.3g}" if isinstance(value, float) else str(value).lower()
    parts.append(f"{key.replace('_', ' ')} {shown}")
  text = f" ({', '.join(parts)})" if parts else ""
  reason = event.get("reason")
  return f"{text}: {reason}" if reason else text


def duration(seconds: float) -> str:
  """Seconds as people say them: 42 s, 3 min 5 s, 2 h 10 min."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  minutes, rest = divmod(seconds, 60)
  if minutes < 60:
    return f"{minutes} min {rest} s"
  return f"{minutes // 60} h {minutes % 60} min"
