"""Keeps the report of a run that goes on up to date."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esper_jax.nissa.report import writing
from esper_jax.tolaria.display import Silent, TrainingMetrics

EVERY = 30.0  # seconds between two reports, at least
SHARE = 0.01  # of the time that has passed, which reports may take


class LiveReport(Silent):
  """A `tolaria.display.Display` that writes report.html into the run directory.

  It writes at epoch boundaries, as often as EVERY and SHARE allow, and at the
  end of the run.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Makes the display of one run.

    Args:
      workdir: the run directory.
      clock: seconds.
    """
    self._workdir = workdir
    self._clock = clock
    self._began = self._last = clock()
    self._spent = self._cost = 0.0  # in all, and of the last report; seconds
    self._under_way = False

  def event(self, event: Mapping[str, Any]) -> None:
    """Notes that this process does something: the report will be another."""
    self._under_way = True

  def epoch(self, metrics: TrainingMetrics, slots: dict[str, Any]) -> None:
    """Writes the report, where it is time.

    Raises:
      InputError, OSError: it cannot be written.
    """
    now = self._clock()
    allowed = SHARE * (now - self._began)
    if now - self._last >= EVERY and self._spent + self._cost <= allowed:
      self._write()

  def finish(self, result: dict[str, Any], workdir: Path) -> None:
    """Writes the report; a run that was completed before is left alone.

    Raises:
      InputError, OSError: it cannot be written.
    """
    if self._under_way:
      self._write()

  def _write(self) -> None:
    begun = self._clock()
    try:
      writing.write_run(self._workdir)
    finally:
      self._last = self._clock()
      self._cost = self._last - begun
      self._spent += self._cost
