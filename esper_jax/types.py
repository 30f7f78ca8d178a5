"""Records and names that cross package borders.

Everything here is plain data: enumerations, frozen records and the two errors
that the command line turns into exit codes; and how errors show an array, a
number, or a function that does not fit.
Nothing imports upward from here.
"""

import dataclasses
import enum
import inspect
import math
from collections.abc import Mapping
from typing import Any

PyTree = Any
Path = str  # a slot's module path, "/"-separated: "encoder/block_1/slot"
HOST_GROUP = "host"  # the optimizer group of the host's own parameters


class Stage(enum.IntEnum):
  """Where a slot stands; the integer is what lifecycle arrays hold."""

  DORMANT = 0  # no seed: the slot is the identity
  GERMINATED = 1  # decided, not yet planted
  TRAINING = 2  # planted, isolated: no effect on the host's value
  BLENDING = 3  # alpha on its way from 0 to 1
  HOLDING = 4  # alpha = 1, contribution under measurement
  FOSSILIZED = 5  # part of the host for good
  CULLED = 6  # silenced; leaves the tree at its due boundary
  EMBARGOED = 7  # gone; the slot rests before it may grow again


LIVE_STAGES = (
  Stage.GERMINATED,
  Stage.TRAINING,
  Stage.BLENDING,
  Stage.HOLDING,
)


class Action(enum.IntEnum):
  """What Tamiyo may ask of one slot at an epoch boundary."""

  WAIT = 0
  GERMINATE = 1
  ADVANCE = 2  # TRAINING -> BLENDING, BLENDING -> HOLDING
  CULL = 3
  FOSSILIZE = 4


@dataclasses.dataclass(frozen=True)
class SlotSpec:
  """What a slot carries, without the batch axis.

  Attributes:
    name: module path of the slot, "/"-separated.
    shape: shape of one example, e.g. (32, 32, 64) or (128,).
    dtype: name of the activation's dtype, e.g. "float32".
    kind: "nhwc" (images), "features" (vectors) or "tokens" (sequences).
    causal: whether a token may see only the tokens before it.
  """

  name: Path
  shape: tuple[int, ...]
  dtype: str
  kind: str
  causal: bool = False

  @property
  def channels(self) -> int:
    return self.shape[-1]

  @property
  def size(self) -> int:
    """Number of scalars in one example."""
    return math.prod(self.shape)

  @property
  def form(self) -> tuple[tuple[int, ...], str, str, bool]:
    """The spec without its name: equal for slots that fit the same seeds."""
    return (self.shape, self.dtype, self.kind, self.causal)


def counted(number: int, what: str) -> str:
  """A number and its noun, which ends in s where it is not one."""
  return f"{number:,} {what}" + ("" if number == 1 else "s")


def form(value: Any) -> str:
  """Says what an array is, "float32[8, 10]"; of anything else, its type."""
  if not hasattr(value, "shape"):
    return f"a {type(value).__name__}"
  return f"{value.dtype}[{', '.join(map(str, value.shape))}]"


def uncallable(function: Any, *args: Any, **named: Any) -> str:
  """Says why a function does not take these arguments; "" where it does."""
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):  # it is built in, and tells nothing
    return "" if callable(function) else f"it is a {type(function).__name__}"
  try:
    signature.bind(*args, **named)
  except TypeError as error:
    return f"it takes {signature}, {error}"
  return ""


class InputError(ValueError):
  """Bad input: one line that says what, where, what is valid, what to do.

  The command line prints it and exits with code 2.
  """


class RunFailedError(RuntimeError):
  """The run cannot go on (status "failed"); the command line exits with 1."""


SlotTable = Mapping[Path, SlotSpec]
