"""The parts of a run: they start in order, and stop in reverse."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from esper_jax.oona.health import Health, State

T = TypeVar("T")


class _Started(NamedTuple):
  name: str
  seconds: float
  health: Callable[[], Health]


class Roster:
  """Starts parts, knows how each is, and stops them."""

  def __init__(self) -> None:
    self._started: list[_Started] = []
    self._stack = contextlib.ExitStack()

  def start(
    self,
    name: str,
    make: Callable[[], T],
    *,
    stop: Callable[[T], object] | None = None,
    health: Callable[[T], Health] | None = None,
  ) -> T:
    """Starts the next part.

    Args:
      name: of the part.
      make: makes it; where that raises, the parts before it are stopped.
      stop: called once with what was made.
      health: says how it is; None: its own method `health` does, and a part
        that has none is ready. See `oona.health.Reporting`.

    Returns:
      What `make` returns.
    """
    begun = time.monotonic()
    try:
      part = make()
    except BaseException as error:
      words = _words(error)
      self._add(name, begun, lambda: Health(State.FAILED, error=words))
      with contextlib.suppress(Exception):  # the first error is the one to see
        self.stop()
      raise
    if stop is not None:
      self._stack.callback(stop, part)
    if health is not None:
      self._add(name, begun, lambda: health(part))
    else:
      self._add(name, begun, getattr(part, "health", Health))
    return part

  def stop(self) -> None:
    """Stops every part, also where another cannot be stopped; idempotent."""
    self._stack.close()

  def health(self) -> dict[str, dict[str, Any]]:
    """Says how every part is.

    Returns:
      name -> state, queued, dropped, error, see `Health`, and the seconds that
      the part took to start; in the order in which they started.
    """
    return {
      part.name: {**_ask(part)._asdict(), "seconds": part.seconds}
      for part in tuple(self._started)
    }

  def _add(self, name: str, begun: float, health: Callable[[], Health]) -> None:
    seconds = time.monotonic() - begun
    self._started.append(_Started(name, seconds, health))


def _ask(part: _Started) -> Health:
  try:
    return part.health()
  except Exception as error:  # a mistake of one part hides no other
    return Health(State.FAILED, error=_words(error))


def _words(error: BaseException) -> str:
  """An exception in one line."""
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text}" if text else type(error).__name__
