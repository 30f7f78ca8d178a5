"""What is there, in lines for people: which artefacts, and what runs here."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax

from esper_jax.knobs import nearest
from esper_jax.types import InputError, counted
from esper_jax.urza import evidence
from esper_jax.urza import registry as registry_lib
from esper_jax.urza.artefact import Artefact, Damaged
from esper_jax.urza.assembler import SHARED_MEMORY, TARGETS
from esper_jax.urza.device import Device
from esper_jax.urza.dispatch import runs_on
from esper_jax.urza.evidence import Status
from esper_jax.urza.kernel import TYPES
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.orders import chosen, targets_of
from esper_jax.urza.registry import Record, Registry

NEVER_RAN = "compiled, not run"


class Wanted(NamedTuple):
  """What artefacts must be; None takes all."""

  kernel: str | None = None
  target: int | None = None
  dtype: str | None = None

  def fits(self, artefact: Artefact) -> bool:
    """Whether an artefact is that."""
    spec = artefact.spec
    facts = (spec.kernel, spec.target, artefact.spec.dtype)
    return all(a in (None, b) for a, b in zip(self, facts, strict=True))


def wanted(
  registry: Registry,
  *,
  kernel: str | None = None,
  target: str | None = None,
  dtype: str | None = None,
) -> Wanted:
  """Reads what was asked for.

  Raises:
    InputError: no kernel of this code or of the registry has that name, or
      there is no such target or dtype.
  """
  found = registry.query()
  kernels = sorted({*KERNELS, *(one.kernel for one in found)})
  targets = sorted({*TARGETS, *(one.target for one in found)})
  if kernel is not None:
    (kernel,) = chosen([kernel], kernels, "kernel")
  if dtype is not None:
    (dtype,) = chosen([dtype], TYPES, "dtype")
  number = None if target is None else targets_of([target], targets)[0]
  return Wanted(kernel, number, dtype)


def check_tags(tags: Iterable[str]) -> list[str]:
  """The tags. InputError where there is no such tag."""
  return chosen(tags, evidence.TAGS, "tag")


def check_device(registry: Registry, device: str | None) -> None:
  """Raises InputError where neither evidence nor this machine has a device."""
  here = this_device() if device else None
  if not device or (here is not None and here.kind == device):
    return
  kinds = {here.kind} if here else set()
  for key in registry.keys():
    with contextlib.suppress(KeyError, Damaged):
      for record in registry.record(key).evidence:
        kinds |= {record.get("device_kind"), record.get("target")}
  known = sorted(kind for kind in kinds if isinstance(kind, str))
  chosen([device], known, "device")


def this_device() -> Device | None:
  """The GPU of this machine, of which nothing is taken; None without one."""
  # Or JAX would hold most of its memory, beside a run that needs it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  try:
    return Device.of(jax.local_devices()[0])
  except RuntimeError:  # JAX_PLATFORMS names what is not here
    return None


def lines(
  registry: Registry, which: Wanted, device: str | None = None
) -> list[str]:
  """A line for each artefact, by kernel, and one that sums them up.

  Args:
    registry: all of its layers.
    which: artefacts are shown; what is damaged always is.
    device: a kind; the status there instead of where it ran.
  """
  records, damaged = [], []
  for key in registry.keys():
    try:
      record = registry.record(key)
    except Damaged as damage:
      damaged.append(f"{key[:12]}  DAMAGED: {damage}")
      continue
    except KeyError:
      continue  # it went meanwhile
    if which.fits(record.artefact):
      records.append(record)
  records.sort(key=_order)
  out = [_line(record, device) for record in records] + damaged
  return [*out, summary(records, device, len(damaged))]


def summary(
  records: Sequence[Record],
  device: str | None,
  damaged: int = 0,
  *,
  here: Device | None = None,
) -> str:
  """How many artefacts there are, and what may run.

  Args:
    records: of the artefacts.
    device: a kind that was asked for; None means this machine's.
    damaged: how many there are beside.
    here: the device of this machine; None looks.
  """
  count = counted(len(records), "artefact")
  count += f" and {damaged} damaged" if damaged else ""
  if device is not None:
    return f"{count}: {_validated(records, device)} validated on {device}"
  here = here or this_device()
  if here is None:
    return f"{count}: 0 run here (no GPU)"
  fitting = sum(_fits(record.artefact, here) for record in records)
  return (
    f"{count}: {fitting} fit this device ({here.kind}, sm_{here.target}),"
    f" {_validated(records, here.kind)} validated on it"
  )


def _validated(records: Iterable[Record], kind: str) -> int:
  good = Status.VALIDATED
  return sum(evidence.status(r.evidence, kind) is good for r in records)


def _fits(artefact: Artefact, device: Device) -> bool:
  room = SHARED_MEMORY.get(device.target, min(SHARED_MEMORY.values()))
  return runs_on(artefact.spec.target, device) and (
    artefact.launch.shared <= room
  )


def _order(record: Record) -> tuple[object, ...]:
  spec = record.artefact.spec
  own = (spec.kernel, record.artefact.spec.dtype, spec.constants)
  return *own, spec.target, spec.tiles, record.artefact.key


def _line(record: Record, device: str | None) -> str:
  """One artefact in one line, which claims no more than there is."""
  spec = record.artefact.spec
  kinds = sorted({found["kind"] for found in record.evidence})
  cut = " ".join(f"{n}={v}" for n, v in (*spec.constants, *spec.tiles))
  return "  ".join(
    (
      record.artefact.key[:12],
      spec.kernel,
      record.artefact.spec.dtype,
      f"sm_{spec.target}",
      cut,
      f"in {_layer(record)}",
      f"evidence: {', '.join(kinds) or 'none'}",
      status_text(record, device),
    )
  )


def _layer(record: Record) -> str:
  if record.layer == registry_lib.PACKAGE:
    return "the package"
  if record.layer == registry_lib.user_folder():
    return "yours"
  return str(record.layer)


def status_text(record: Record, device: str | None) -> str:
  """Says where an artefact ran, and what it may be used for there.

  Args:
    record: of the artefact.
    device: a kind; None tells of all that it ran on.
  """
  ran_on = evidence.device_kinds(record.evidence)
  asked = ran_on if device is None else (device,)
  parts = [f"{evidence.status(record.evidence, d)} on {d}" for d in asked]
  if not ran_on:
    if device is None:
      parts.append(evidence.status(record.evidence, ""))
    parts.append(not_timed(record.evidence))
  elif device is not None and device not in ran_on:
    parts.append(f"run on {', '.join(ran_on)} only")
  return ", ".join(parts)


def not_timed(records: Sequence[evidence.Record]) -> str:
  """What is true of an artefact that no GPU has judged.

  Args:
    records: its evidence.
  """
  kinds = {
    r["device_kind"] for r in records if r["kind"] == "probe" and r["ok"]
  }
  return f"probed on {', '.join(sorted(kinds))}" if kinds else NEVER_RAN


def key_of(registry: Registry, start: str) -> str:
  """The key that begins so.

  Raises:
    InputError: none or several do, or it is too short.
  """
  if len(start) < 4:
    raise InputError(
      f"'{start}' is too short for a key; give at least 4 characters of one"
      " that `list` shows"
    )
  keys = [key for key in registry.keys() if key.startswith(start)]
  if not keys:
    known = registry.keys()
    hint = f"the nearest is {nearest(start, known)[:12]}; " if known else ""
    raise InputError(
      f"no artefact's key begins with '{start}'; {hint}`list` shows the"
      " keys, of which 4 characters are enough"
    )
  if len(keys) > 1:
    raise InputError(f"{len(keys)} keys begin with '{start}'; give more of it")
  return keys[0]
