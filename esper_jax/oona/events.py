"""The types of events: what a run tells, and with which fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from esper_jax.oona.record import (
  STAMP,
  VERSION,
  Event,
  ProcessEvent,
  RunEvent,
  optional_fields,
  own_fields,
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RunStarted(RunEvent):
  """A new run begins.

  Attributes:
    policy: name of Tamiyo's policy.
  """

  type: ClassVar[str] = "run_started"
  policy: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Decision(RunEvent):
  """Tamiyo asks for a change of one slot.

  Attributes:
    slot: its path.
    action: germinate, advance, cull or fossilize.
    blueprint: of the seed.
    reason: a sentence that quotes the signal.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "decision"
  slot: str
  action: str
  blueprint: str | None
  reason: str
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Germinated(RunEvent):
  """A seed is planted.

  Attributes:
    slot: its path.
    blueprint: its name.
    key: of the seed in its slot.
    initializer: its name.
    parameters: how many it has.
    stage: what it begins in.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "germinated"
  slot: str
  blueprint: str
  key: str
  initializer: str
  parameters: int
  stage: str
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StageChanged(RunEvent):
  """A seed moves on.

  Attributes:
    slot: its path.
    was: stage before.
    now: stage from now on.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "stage_changed"
  slot: str
  was: str
  now: str
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GateRefused(RunEvent):
  """A gate holds a seed back, or a decision is not legal.

  Attributes:
    slot: its path.
    action: that was refused; left out where none was asked for.
    reason: why.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "gate_refused"
  slot: str
  action: str | None = None
  reason: str
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Fossilized(RunEvent):
  """A seed becomes permanent.

  Attributes:
    slot: its path.
    contribution: last measured, nats per example.
    contribution_se: its standard error.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "fossilized"
  slot: str
  contribution: float | None
  contribution_se: float | None
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Culled(RunEvent):
  """A seed is given up.

  Attributes:
    slot: its path.
    was: stage before.
    reason: why.
    contribution: last measured, nats per example.
    contribution_se: its standard error.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "culled"
  slot: str
  was: str
  reason: str
  contribution: float | None
  contribution_se: float | None
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EmbargoEnded(RunEvent):
  """A slot may grow again.

  Attributes:
    slot: its path.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "embargo_ended"
  slot: str
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GrowthCancelled(RunEvent):
  """A seed that was decided is not planted.

  Attributes:
    slot: its path.
    reason: why.
    late: True where its program came too late; else left out.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "growth_cancelled"
  slot: str
  reason: str
  late: bool | None = None
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RolledBack(RunEvent):
  """The run went back to a checkpoint.

  Attributes:
    reason: what fault, and what is done about it.
    attempt: rollbacks so far.
  """

  type: ClassVar[str] = "rolled_back"
  reason: str
  attempt: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Quarantined(RunEvent):
  """A slot may not grow any more, as it is suspected.

  Attributes:
    slot: its path.
  """

  type: ClassVar[str] = "quarantined"
  slot: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RunFinished(RunEvent):
  """The run ended; of a failed one the figures are left out.

  Attributes:
    status: completed or failed.
    reason: why it failed.
    val_loss: nats per example.
    val_accuracy: 0 to 1.
    test_accuracy: 0 to 1; left out where the test set is not read.
    metrics: the objective's, where it has any: split -> name -> mean.
  """

  type: ClassVar[str] = "run_finished"
  status: str
  reason: str | None = None
  val_loss: float | None = None
  val_accuracy: float | None = None
  test_accuracy: float | None = None
  metrics: dict[str, dict[str, float]] | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Resumed(ProcessEvent):
  """A run goes on from a checkpoint.

  Attributes:
    redone_steps: steps that were made and are made again.
    redone_flops: the same in FLOPs.
  """

  type: ClassVar[str] = "resumed"
  redone_steps: int
  redone_flops: int


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Compile(ProcessEvent):
  """A program was compiled.

  Attributes:
    program: its name.
    seconds: that it took.
    waited: seconds that training stood still for it.
    background: whether it was asked for ahead of need.
    guessed: whether it was asked for as a guess.
    on_disk: whether the compiler's cache had it.
  """

  type: ClassVar[str] = "compile"
  program: str
  seconds: float
  waited: float
  background: bool
  guessed: bool
  on_disk: bool


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class KernelFallback(ProcessEvent):
  """The reference runs in place of a kernel.

  Attributes:
    kernel: its name.
    reason: why.
  """

  type: ClassVar[str] = "kernel_fallback"
  kernel: str
  reason: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PolicyFallback(ProcessEvent):
  """Another policy takes the place of the learned one.

  Attributes:
    policy: which one.
    reason: why.
  """

  type: ClassVar[str] = "policy_fallback"
  policy: str
  reason: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint(ProcessEvent):
  """The run is saved.

  Attributes:
    kind: scheduled or interrupt.
  """

  type: ClassVar[str] = "checkpoint"
  kind: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Fault(ProcessEvent):
  """Something went wrong; what follows says what is done about it.

  Attributes:
    slot: where it has one.
    kind: such as non_finite_loss or damaged_checkpoint.
    reason: what was seen.
    lane: of the slot; left out where each has one.
  """

  type: ClassVar[str] = "fault"
  slot: str | None = None
  kind: str
  reason: str
  lane: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Interrupted(ProcessEvent):
  """The run was asked to stop.

  Attributes:
    signal: its name; empty without one.
  """

  type: ClassVar[str] = "interrupted"
  signal: str


RUN_EVENTS = tuple(kind.type for kind in RunEvent.__subclasses__())
PROCESS_EVENTS = tuple(kind.type for kind in ProcessEvent.__subclasses__())
TYPES: dict[str, type[Event]] = {
  kind.type: kind
  for group in (RunEvent, ProcessEvent)
  for kind in group.__subclasses__()
}
EVENT_TYPES = tuple(TYPES)


def of_type(name: str) -> type[Event]:
  """The record of a type.

  Raises:
    ValueError: there is no such type; it lists all.
  """
  if name not in TYPES:
    raise ValueError(
      f"unknown event type '{name}'; valid: {', '.join(EVENT_TYPES)}"
    )
  return TYPES[name]


def make(type: str, fields: Mapping[str, Any]) -> Event:
  """Makes the event of a type.

  Args:
    type: one of EVENT_TYPES.
    fields: all of it, the stamp included; optional ones may be left out.

  Raises:
    ValueError: an unknown type, or a field that is unknown or missing; it names
      what is valid.
  """
  kind = of_type(type)
  valid = (*STAMP, *own_fields(kind))
  unknown = [name for name in fields if name not in valid]
  optional = optional_fields(kind)
  missing = [n for n in valid if n not in fields and n not in optional]
  if unknown or missing:
    found = [f"it has no field {name}" for name in unknown]
    found += [f"the field {name} is missing" for name in missing]
    raise ValueError(
      f"event '{type}': {', '.join(found)}; its own fields are"
      f" {', '.join(own_fields(kind))}"
    )
  return kind(**fields)


def from_line(line: Mapping[str, Any]) -> Event:
  """Reads an event from the entries of its line.

  Args:
    line: as `jsonl.read` and `redis_stream.follow` give it.

  Raises:
    ValueError: another version, an unknown type, or a field that is unknown or
      missing.
  """
  if line.get("v") != VERSION:
    raise ValueError(f"not an event of version {VERSION}: v={line.get('v')}")
  fields = {k: v for k, v in line.items() if k not in ("v", "type")}
  return make(str(line.get("type")), fields)
