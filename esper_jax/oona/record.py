"""What every event has: its stamp, and its line in events.jsonl.

An event is a frozen record and a mapping, that of its line: event["type"],
`dict(event)`. A field that may be left out is None where the line lacks it; a
field without a default is always there, null where nothing is known.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

VERSION = 1  # of the event line; `v`
STAMP = ("id", "seq", "time", "epoch", "step")  # what the bus says of it


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Event(Mapping[str, Any]):
  """An event; equal to a mapping of the same entries.

  Attributes:
    type: its name in the line.
    id: number among what the run did; None: what only this process did.
    seq: number among the events of this process.
    time: seconds since the epoch of Unix.
    epoch: epochs completed.
    step: steps completed.
  """

  type: ClassVar[str]
  id: int | None
  seq: int
  time: float
  epoch: int
  step: int

  def to_line(self) -> dict[str, Any]:
    """The entries of its line: {v, id, seq, time, epoch, step, type, ...}."""
    values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    stamp = {name: values.pop(name) for name in STAMP}
    optional = optional_fields(type(self))
    own = {
      name: value
      for name, value in values.items()
      if value is not None or name not in optional
    }
    return {"v": VERSION, **stamp, "type": self.type, **own}

  def __getitem__(self, name: str) -> Any:
    return self.to_line()[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self.to_line())

  def __len__(self) -> int:
    return len(self.to_line())


class RunEvent(Event):
  """What the run did.

  The same config and seed do the same again, so each takes the next number of a
  counter that lives in the run's state.
  """


class ProcessEvent(Event):
  """What this process did.

  A resumed run has others than an uninterrupted one, so they carry no number
  and shift nobody else's.
  """


def own_fields(kind: type[Event]) -> tuple[str, ...]:
  """Names of a type's fields beside the stamp, in the order of the line."""
  names = [field.name for field in dataclasses.fields(kind)]
  return tuple(name for name in names if name not in STAMP)


def optional_fields(kind: type[Event]) -> frozenset[str]:
  """Names of the fields that a line may lack."""
  fields = dataclasses.fields(kind)
  return frozenset(f.name for f in fields if f.default is None)
