"""Signals: the first asks the run to stop, the second stops it at once."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

from esper_jax.tolaria import processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
  """Whether the run was asked to stop.

  Attributes:
    requested: set by the first signal, or by `request`; of several processes,
      once they have agreed on it.
    name: of the signal, "" without one.
  """

  def __init__(self) -> None:
    self.requested = False
    self._asked = False
    self.name = ""
    self._listening = False

  def request(self) -> None:
    """Asks the run to stop after the step under way."""
    self._asked = True
    self.requested = not processes.several()

  def consult(self) -> None:
    """Stops all processes if one was asked to; all call it at one point."""
    if processes.several():
      self.requested = any(processes.gather(self._asked))

  @contextlib.contextmanager
  def signals(self) -> Iterator[None]:
    """Listens to SIGINT and SIGTERM inside the block.

    Python lets only the main thread listen; elsewhere, and inside another
    such block, the block changes nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    if self._listening or not main:
      yield
      return
    # Python calls its handlers between two bytecodes of the main thread, which
    # a compilation holds up for seconds. The wakeup byte is written at once.
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    listener = threading.Thread(target=self._listen, args=(ear,), daemon=True)
    listener.start()
    wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    handlers = {s: signal.signal(s, _do_nothing) for s in _SIGNALS}
    self._listening = True
    try:
      yield
    finally:
      self._listening = False
      for number, handler in handlers.items():
        signal.signal(number, handler)
      signal.set_wakeup_fd(wakeup)
      mouth.close()
      listener.join()
      ear.close()

  def _listen(self, ear: socket.socket) -> None:
    while received := ear.recv(1):
      number = received[0]
      if number not in _SIGNALS:
        continue
      if self.name:
        # What is on the disk is whole at any moment: nothing is cleaned up.
        os._exit(128 + number)
      self.name = signal.Signals(number).name
      self.request()


def _do_nothing(number: int, frame: object) -> None:
  """Stands where Python's own handler would raise or end the process."""
