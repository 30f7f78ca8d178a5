"""What the forge gives, tells, may spend, and fails with."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from esper_jax.types import RunFailedError


class Program(NamedTuple):
  """A compiled program.

  Attributes:
    call: takes and returns what the function does; donated arguments are gone.
    flops: of one call, by the compiler's cost analysis.
    size: bytes of machine code as far as the backend tells (0 on CPU).
  """

  call: Callable[..., Any]
  flops: float
  size: int


class Compiled(NamedTuple):
  """One compilation, for the bill.

  Attributes:
    program: its name.
    seconds: tracing, lowering and compiling.
    waited: seconds that the caller of `Forge.program` stood still for it.
    background: whether it was asked for ahead of need.
    guessed: whether it was asked for as a guess.
    on_disk: whether the compiler's cache on disk had it.
  """

  program: str
  seconds: float
  waited: float
  background: bool
  guessed: bool
  on_disk: bool


class Limits(NamedTuple):
  """What the forge may hold and spend.

  Attributes:
    max_programs: that are neither pinned nor kept; of the others go first the
      least likely guesses, then the least recently used.
    max_bytes: of machine code in these programs.
    guess_seconds: compile seconds per epoch for guesses, and for what may not
      be needed after all; no more than the epoch before took.
    lead_epochs: from a decision to the boundary that needs its programs.
    threads: that compile in the background; with 0, `prepare` does nothing.
  """

  max_programs: int = 8
  max_bytes: int = 2**31
  guess_seconds: float = 60.0
  lead_epochs: int = 0
  threads: int = 1


class CompileError(RunFailedError):
  """A program could not be had; the text is one line.

  Attributes:
    timed_out: whether it may have come later.
  """

  def __init__(self, text: str, *, timed_out: bool = False):
    super().__init__(text)
    self.timed_out = timed_out


class Interrupted(Exception):
  """The run was asked to stop while it waited for a program."""


@dataclasses.dataclass(eq=False)
class Job:
  """A program in the making, and afterwards.

  Attributes:
    name: of the function.
    jitted: the function.
    shapes: of its arguments; None once it is done.
    rank: None for a program that is needed; the rank of a guess, 0 being the
      likeliest.
    guessed: whether it was begun as a guess.
    spare: whether it may not be needed after all.
    queued: whether it waits for a thread of the background.
    taken: whether a thread has begun with it.
    used: whether `Forge.program` has returned it.
    background: whether it was asked for ahead of need.
    on_disk: whether the compiler's cache on disk had it.
    done: set when the program or the error is there.
    seconds: that it took.
    held_up: seconds that the caller stood still for it.
  """

  name: str
  jitted: Any
  shapes: Any
  rank: int | None = None
  guessed: bool = False
  spare: bool = False
  queued: bool = False
  taken: bool = False
  used: bool = False
  background: bool = False
  on_disk: bool = False
  program: Program | None = None
  error: BaseException | None = None
  seconds: float = 0.0
  held_up: float = 0.0
  done: threading.Event = dataclasses.field(default_factory=threading.Event)

  @property
  def compiled(self) -> Compiled:
    """What is told of it once it is done."""
    return Compiled(
      program=self.name,
      seconds=self.seconds,
      waited=self.held_up,
      background=self.background,
      guessed=self.guessed,
      on_disk=self.on_disk,
    )

  @property
  def failed_guess(self) -> bool:
    """Whether it may succeed when it is needed."""
    return self.guessed and not self.used and self.error is not None


def first_line(error: Exception) -> str:
  """What XLA's many lines begin with; the error's kind where it says none."""
  return (str(error).strip().splitlines() or [repr(error)])[0]
