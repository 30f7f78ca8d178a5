"""A display that may be slow, told from a thread of its own."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from esper_jax.tolaria.display import Display, Forwarding

CAPACITY = 1024  # calls that wait; beyond it they are dropped
PATIENCE = 10.0  # seconds for what still waits at the end

_Call = tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]


class Behind(Forwarding):
  """Passes calls on, in order, without making the caller wait.

  What finds the queue full is dropped, and so is what the display fails on.

  Attributes:
    dropped: calls that were.
    last_error: of the display, in one line; "" without one.
  """

  def __init__(
    self,
    display: Display,
    *,
    capacity: int = CAPACITY,
    patience: float = PATIENCE,
  ):
    """Starts the thread.

    Args:
      display: called from that thread alone.
      capacity: calls that may wait.
      patience: seconds that `close` waits for them.
    """
    self.dropped = 0
    self.last_error = ""
    self._display = display
    self._patience = patience
    self._closed = False
    self._calls: queue.Queue[_Call | None] = queue.Queue(capacity)
    self._thread = threading.Thread(
      target=self._work, name="nissa", daemon=True
    )
    self._thread.start()

  @property
  def waiting(self) -> int:
    """Calls that the display has not been told yet."""
    return self._calls.qsize()

  def pass_on(self, moment: str, *args: Any, **named: Any) -> None:
    """Has a method of the display called; see `tell`."""
    self.tell(getattr(self._display, moment), *args, **named)

  def close(self) -> None:
    """Waits a while for what was told, then closes the display; idempotent."""
    if self._closed:
      return
    super().close()
    self._closed = True
    try:
      self._calls.put(None, timeout=self._patience)
    except queue.Full:
      self.dropped += self._calls.qsize()
      return
    self._thread.join(self._patience)
    if self._thread.is_alive():
      self.dropped += self._calls.qsize()

  def tell(self, call: Callable[..., None], *args: Any, **how: Any) -> None:
    """Has something called; dropped where the queue is full."""
    if self._closed:
      return
    try:
      self._calls.put_nowait((call, args, how))
    except queue.Full:
      self.dropped += 1

  def _work(self) -> None:
    while (job := self._calls.get()) is not None:
      call, args, how = job
      try:
        call(*args, **how)
      except Exception as error:
        self.dropped += 1
        self.last_error = repr(error).partition("\n")[0]
