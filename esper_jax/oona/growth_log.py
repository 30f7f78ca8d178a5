"""What an event log tells of growth: the life of every seed it records."""

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from esper_jax.oona import jsonl
from esper_jax.oona.events import EVENT_TYPES, RUN_EVENTS
from esper_jax.oona.record import VERSION
from esper_jax.types import InputError, Path, Stage

_ADVICE = (
  "give --config.tamiyo.replay the events.jsonl of a run that has completed"
)
_ENDS = (Stage.FOSSILIZED, Stage.CULLED)
_LATER = {stage.name: stage for stage in (Stage.BLENDING, Stage.HOLDING)}
_CHANGES = {
  "germinated": Stage.TRAINING,
  "fossilized": Stage.FOSSILIZED,
  "culled": Stage.CULLED,
}


class Move(NamedTuple):
  """One change of a seed's stage.

  Attributes:
    order: number of the move among all of the log.
    epoch: the boundary: epochs that were over.
    stage: what the seed came to; TRAINING where it was planted.
  """

  order: int
  epoch: int
  stage: Stage


class Life(NamedTuple):
  """A seed from its planting to its end.

  Attributes:
    slot: path.
    lane: of the slot.
    blueprint: name.
    initializer: name; "" is the one that the config names.
    moves: in order; the first plants it, the last fossilizes or culls it.
  """

  slot: Path
  lane: int
  blueprint: str
  initializer: str
  moves: tuple[Move, ...]

  @property
  def planted(self) -> int:
    """The boundary at which it was planted."""
    return self.moves[0].epoch

  @property
  def ended(self) -> int:
    """The boundary at which it became permanent or was culled."""
    return self.moves[-1].epoch

  @property
  def culled(self) -> bool:
    """Whether it was culled."""
    return self.moves[-1].stage is Stage.CULLED


def read_lives(path: str | os.PathLike) -> tuple[Life, ...]:
  """Reads the lives of all seeds, in the order in which they were planted.

  What a rollback undid is left out, and so is a seed that was given up as its
  first step failed.

  Args:
    path: the events.jsonl of a completed run.

  Raises:
    InputError: there is no such log, the run has not completed, or a line is
      not what it must be; it names the line.
  """
  events = standing(path)
  last = events[-1][1] if events else {}
  if last.get("type") != "run_finished" or last.get("status") != "completed":
    raise InputError(
      f"{path} does not end with the run_finished of a completed run, so its"
      f" seeds have no end; complete that run, or {_ADVICE}"
    )
  lives: dict[int, Life] = {}  # by the line of their planting
  present: dict[tuple[Path, int], int] = {}  # place -> line of its last seed
  for line, event in events:
    stage = _stage(event, f"{path}, line {line}")
    if stage is None and event["type"] != "growth_cancelled":
      continue
    read = _Fields(event, f"{path}, line {line}")
    place = read.get("slot", str), read.get("lane", int, 0)
    life = lives.get(present.get(place, 0))
    before = life.moves[-1].stage if life else Stage.CULLED
    if stage is None:  # told of seeds that are decided, too
      if before not in _ENDS:
        del lives[present.pop(place)]
      continue
    move = Move(line, event["epoch"], stage)
    if stage is Stage.TRAINING and before in _ENDS:
      present[place] = line
      life = Life(
        *place,
        read.get("blueprint", str),
        read.get("initializer", str),
        (move,),
      )
    elif life and before not in _ENDS and stage > before:
      life = life._replace(moves=(*life.moves, move))
    else:
      raise InputError(
        f"{path}, line {line}: '{event['type']}' cannot happen to slot"
        f" '{place[0]}' then: lines are missing or out of order; {_ADVICE}"
      )
    lives[present[place]] = life
  for life in lives.values():
    if life.moves[-1].stage not in _ENDS:
      raise InputError(
        f"{path}: the seed '{life.blueprint}' in slot '{life.slot}' has no end:"
        f" lines are missing; {_ADVICE}"
      )
  return numbered(lives.values())


def numbered(lives: Iterable[Life]) -> tuple[Life, ...]:
  """Counts all moves anew, by epoch and then order; sorts lives by the first.

  Args:
    lives: no two moves have the same epoch and order.
  """
  lives = tuple(lives)
  times = sorted(m[1::-1] for life in lives for m in life.moves)
  rank = {time: n for n, time in enumerate(times)}
  return tuple(
    sorted(
      (
        life._replace(
          moves=tuple(m._replace(order=rank[m[1::-1]]) for m in life.moves)
        )
        for life in lives
      ),
      key=lambda life: life.moves[0].order,
    )
  )


def digest(lives: Iterable[Life]) -> str:
  """Returns the SHA-256, in hex, of all that the lives say."""
  text = json.dumps(list(lives), separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def standing(
  path: str | os.PathLike, *, advice: str = _ADVICE
) -> list[tuple[int, dict[str, Any]]]:
  """Reads what a run did and no rollback undid; rollbacks are among it.

  Args:
    path: the events.jsonl of a run.
    advice: what an error says to do.

  Returns:
    (line number, event) of `events.RUN_EVENTS`, in order.

  Raises:
    InputError: there is no such log, or a line is not what it must be; it
      names the line.
  """
  try:
    events = jsonl.read(path)
  except InputError as error:
    raise InputError(f"{error}; {advice}") from error
  kept: list[tuple[int, dict[str, Any]]] = []
  for line, event in enumerate(events, start=1):
    where = f"{path}, line {line}"
    if event.get("type") not in EVENT_TYPES or event.get("v") != VERSION:
      raise InputError(f"{where}: not an event of version {VERSION}; {advice}")
    if event["type"] not in RUN_EVENTS:
      continue
    epoch = _Fields(event, where, advice).get("epoch", int)
    if event["type"] == "rolled_back":
      # The checkpoint of the start was taken before anything was planted.
      kept = [item for item in kept if item[1]["epoch"] <= epoch and epoch]
    if kept and epoch < kept[-1][1]["epoch"]:
      raise InputError(
        f"{where}: epoch {epoch} comes after epoch {kept[-1][1]['epoch']}:"
        f" lines are out of order; {advice}"
      )
    kept.append((line, event))
  return kept


class _Fields(NamedTuple):
  """The entries of one event, checked as they are read."""

  event: dict[str, Any]
  where: str
  advice: str = _ADVICE

  def get(self, name: str, kind: type, default: Any = None) -> Any:
    value = self.event.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
      raise InputError(
        f"{self.where}: '{name}' of the event is {value!r}, not"
        f" {'a text' if kind is str else 'a whole number'}; {self.advice}"
      )
    return value


def _stage(event: dict[str, Any], where: str) -> Stage | None:
  """The stage to which an event says that a seed came; None of others."""
  kind = event["type"]
  if kind == "stage_changed":
    now = event.get("now")
    if now not in _LATER:
      raise InputError(
        f"{where}: 'now' of the event is {now!r}, not one of"
        f" {', '.join(_LATER)}; {_ADVICE}"
      )
    return _LATER[now]
  return _CHANGES.get(kind)
