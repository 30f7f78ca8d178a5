"""Signals: the first asks the run to stop, the second stops it at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
  """Whether the run was asked to stop.

  Attributes:
    requested: set by the first signal, or by `request`.
    name: of the signal, "" without one.
  """

  def __init__(self) -> None:
    self.requested = False
    self.name = ""

  def request(self) -> None:
    """Asks the run to stop after the step under way."""
    self.requested = True

  @contextlib.contextmanager
  def signals(self) -> Iterator[None]:
    """Listens to SIGINT and SIGTERM inside the block.

    Python lets only the main thread listen; elsewhere the block changes
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    before = {s: signal.signal(s, self._on_signal) for s in _SIGNALS}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _on_signal(self, number: int, frame: object) -> None:
    del frame
    if self.requested:
      # What is on the disk is whole at any moment, so nothing is cleaned up.
      os._exit(128 + number)
    self.requested = True
    self.name = signal.Signals(number).name
