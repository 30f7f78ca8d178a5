"""What grew: the life of each seed, and every decision with its outcome."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

ALIVE = "alive"
FOSSILIZED = "fossilized"
CULLED = "culled"
CANCELLED = "cancelled"
# Event -> the action that asks for it.
_ASKED = {
  "germinated": "germinate",
  "growth_cancelled": "germinate",
  "stage_changed": "advance",
  "culled": "cull",
  "fossilized": "fossilize",
}


@dataclasses.dataclass
class Seed:
  """The life of one seed.

  Attributes:
    slot: name, with "#2" and so on for lanes beyond the first.
    blueprint: name.
    key: of the seed in its slot.
    parameters: how many it has.
    planted: the boundary (epochs that were over).
    stage: the latest, in upper case.
    fate: ALIVE, FOSSILIZED, CULLED or CANCELLED.
    ended: the boundary; None while ALIVE.
    contribution, error: measured by the time it ended, or last while ALIVE,
      and its standard error, in nats. A seed that was made permanent goes on
      being measured: metrics.jsonl and result.json have that figure.
  """

  slot: str
  blueprint: str
  key: str
  parameters: int
  planted: int
  stage: str = "TRAINING"
  fate: str = ALIVE
  ended: int | None = None
  contribution: float | None = None
  error: float | None = None


@dataclasses.dataclass
class Entry:
  """A decision and what came of it, or what happened without one.

  Attributes:
    epoch: the boundary.
    slot: as in `Seed`.
    action: what was decided; "" where the lifecycle did it.
    blueprint: name, or "".
    reason: why.
    outcome: what happened, in words; "" as long as nothing has.
    contribution, error: measured by then, in nats.
    seed: whom it is about, once planted.
  """

  epoch: int
  slot: str
  action: str
  blueprint: str
  reason: str
  outcome: str = ""
  contribution: float | None = None
  error: float | None = None
  seed: Seed | None = None


class Growth(NamedTuple):
  """What grew in a run.

  Attributes:
    seeds: in the order in which they were planted.
    entries: in the order in which they happened.
  """

  seeds: list[Seed]
  entries: list[Entry]


def read(
  events: Iterable[Mapping[str, Any]],
  measured: Mapping[tuple[int, str], tuple[float | None, float | None]],
) -> Growth:
  """Follows the seeds through a run's events.

  Args:
    events: that no rollback undid, in order.
    measured: (epoch, slot) -> contribution and standard error, in nats, as far
      as metrics.jsonl has them.
  """
  seeds: list[Seed] = []
  entries: list[Entry] = []
  present: dict[str, Seed] = {}
  asked: dict[tuple[str, str], Entry] = {}  # (slot, action) -> open decision
  for event in events:
    kind, epoch = event["type"], event["epoch"]
    if kind != "decision" and kind != "gate_refused" and kind not in _ASKED:
      continue
    slot = _row_name(event)
    if kind == "germinated":
      present[slot] = _planted(event, slot)
      seeds.append(present[slot])
    seed = present.get(slot)
    value, error = measured.get((epoch, slot), (None, None))
    if kind == "decision":
      entry = Entry(
        epoch,
        slot,
        event["action"],
        event.get("blueprint") or "",
        event.get("reason") or "",
        contribution=value,
        error=error,
      )
      if entry.action != "germinate":
        entry.seed = seed
      asked[slot, entry.action] = entry
      entries.append(entry)
      continue
    if seed and kind != "gate_refused":
      _follow(seed, event)
    action = event.get("action", "") if kind == "gate_refused" else _ASKED[kind]
    entry = asked.pop((slot, action), None)
    if entry is None:
      blueprint = seed.blueprint if seed else ""
      entry = Entry(epoch, slot, "", blueprint, event.get("reason") or "")
      entry.contribution, entry.error = value, error
      entries.append(entry)
    entry.outcome = _outcome(event, entry)
    if entry.seed is None and kind != "growth_cancelled":
      entry.seed = seed
    if event.get("contribution") is not None:
      entry.contribution = number(event["contribution"])
      entry.error = number(event.get("contribution_se"))
  for (epoch, slot), (value, error) in sorted(measured.items()):
    seed = present.get(slot)
    if seed and seed.fate == ALIVE and epoch > seed.planted:
      seed.contribution, seed.error = value, error
  return Growth(seeds, entries)


def number(value: Any) -> float | None:
  """A figure of a log; None where it is absent or not finite."""
  if value is None or not math.isfinite(float(value)):
    return None
  return float(value)


def _row_name(event: Mapping[str, Any]) -> str:
  """The name that metrics.jsonl has for the row an event is about."""
  lane = event.get("lane", 0)
  return f"{event['slot']}#{lane + 1}" if lane else event["slot"]


def _planted(event: Mapping[str, Any], slot: str) -> Seed:
  return Seed(
    slot,
    event["blueprint"],
    event.get("key") or event["blueprint"],
    event.get("parameters") or 0,
    event["epoch"],
  )


def _follow(seed: Seed, event: Mapping[str, Any]) -> None:
  """Takes over what an event says became of a seed that lives."""
  kind = event["type"]
  if seed.fate != ALIVE or kind == "germinated":
    return
  if kind == "stage_changed":
    seed.stage = event["now"]
    return
  seed.fate = CANCELLED if kind == "growth_cancelled" else kind
  seed.ended = event["epoch"]
  seed.stage = seed.fate.upper()
  seed.contribution = number(event.get("contribution"))
  seed.error = number(event.get("contribution_se"))


def _outcome(event: Mapping[str, Any], entry: Entry) -> str:
  """In words; why, too, where a decision gave another reason."""
  kind, epoch, decided = event["type"], event["epoch"], bool(entry.action)
  if kind == "germinated":
    return f"planted after epoch {epoch}"
  if kind == "stage_changed":
    return f"{event['was'].lower()} to {event['now'].lower()}"
  if kind == "fossilized":
    return "made permanent"
  words = {
    "culled": "culled",
    "growth_cancelled": "given up",
    "gate_refused": "refused" if decided else "held back by the gate",
  }
  why = event.get("reason") if decided else ""
  if why == entry.reason:
    return words[kind]
  return f"{words[kind]}: {why}" if why else words[kind]
