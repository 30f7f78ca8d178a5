"""How a part of a run says how it is."""

import enum
from typing import NamedTuple, Protocol


class State(enum.StrEnum):
  """How a part is."""

  READY = "ready"
  DEGRADED = "degraded"  # the run goes on without some of what it does
  FAILED = "failed"


class Health(NamedTuple):
  """What a part says of itself.

  Attributes:
    state: how it is.
    queued: how much waits to be done.
    dropped: how much was given up, since it started.
    error: the latest, in one line; "" where there was none.
  """

  state: State = State.READY
  queued: int = 0
  dropped: int = 0
  error: str = ""


class Reporting(Protocol):
  """A part that says how it is; one without `health` is ready once made."""

  def health(self) -> Health:
    """Says how the part is; any thread may ask, and nothing waits."""
    ...
