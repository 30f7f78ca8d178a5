"""Urabrask: makes the evidence from which an artefact's status follows.

  .venv/bin/python -m esper_jax.urza validate [--kernel K ...] [--dir DIR]

With --dir it judges what that folder holds by itself, and writes the evidence
there; without, all that there is, the package's too, and writes into the
user's folder. So no folder has evidence about what lies in a user's other one.

Without a GPU it runs kernels in Triton's interpreter and, where its wheels are
installed, has XLA compile them for an absent GPU (`--target-config FILE`). On
a GPU it probes and measures them too, each in a process of its own, as a
kernel that fails spoils the GPU for the process that ran it. Only what was
measured on a kind of device validates for that kind.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esper_jax import commands
from esper_jax.types import InputError, counted
from esper_jax.urza import (
  aot,
  evidence,
  interpret,
  judging,
  launching,
  probe,
  witness,
)
from esper_jax.urza.artefact import Artefact, Damaged
from esper_jax.urza.device import Device
from esper_jax.urza.dispatch import runs_on
from esper_jax.urza.folder import places
from esper_jax.urza.interpret import Case, Fault, Request
from esper_jax.urza.judging import Judge, parts_of
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.launching import Loaded
from esper_jax.urza.orders import ON_A_GPU, chosen, name_of
from esper_jax.urza.registry import Registry, open_registry
from esper_jax.urza.samples import FAR

NO_GPU = (
  "gpu: compiled, not run: no GPU here; to finish, on a GPU machine with"
  f" '.[cuda12]' installed: {ON_A_GPU}"
)
OK, REJECTED = 0, 1  # exit codes
_STARTING = 60.0  # seconds for the interpreter's process to start
_INTERPRETING = 20.0  # seconds for one request


class Report(NamedTuple):
  """What one kind of check came to.

  Attributes:
    kind: of evidence.
    done: artefacts that have a new record.
    wrong: (name of the artefact, what is wrong) of each that failed.
    slow: (name of the artefact, how slow) of each that is right and rejected.
    skipped: why nothing was, or not everything; empty where all was.
    known: artefacts that had such a record already.
  """

  kind: str
  done: int
  wrong: tuple[tuple[str, str], ...] = ()
  slow: tuple[tuple[str, str], ...] = ()
  skipped: str = ""
  known: int = 0

  def text(self) -> str:
    """For people."""
    done = counted(self.done, "record")
    lines = [f"{self.kind}: {done}, {counted(len(self.wrong), 'failure')}"]
    if self.known:
      there = f"{self.known} already there (--again makes them anew)"
      fresh = self.done or self.wrong
      lines = [f"{lines[0]}, {there}" if fresh else f"{self.kind}: {there}"]
    if self.skipped:
      lines = [f"{self.kind}: skipped: {self.skipped}"]
      if self.done:
        lines[0] = f"{self.kind}: {done}; {self.skipped}"
    lines += [f"  {name}: {reason}" for name, reason in self.wrong]
    lines += [f"  {name}: rejected, {reason}" for name, reason in self.slow]
    return "\n".join(lines)


def select(registry: Registry, kernels: Sequence[str] = ()) -> list[Artefact]:
  """The artefacts of these kernels, or all, that this code can judge.

  Damaged ones, and those of another text of their kernel, are left out.
  """
  found = []
  for key in registry.keys():
    try:
      artefact = registry.record(key).artefact
      kernel = launching.kernel_of(artefact)
    except (KeyError, Damaged):
      continue
    if not kernels or kernel.name in kernels:
      found.append(artefact)
  return sorted(found, key=lambda artefact: name_of(artefact.spec))


def interpret_all(
  registry: Registry, artefacts: Iterable[Artefact], *, again: bool = False
) -> Report:
  """Runs each distinct kernel once in the interpreter, for all its targets.

  Args:
    registry: takes the records.
    artefacts: of kernels of this code.
    again: also those that have such a record.
  """
  groups: dict[Any, list[Artefact]] = {}
  done = known = 0
  for artefact in artefacts:
    if not again and _has(registry, artefact.key, "interpret"):
      known += 1
      continue
    spec = artefact.spec
    groups.setdefault((spec.handle, spec.tiles), []).append(artefact)
  requests = [
    _request(group[0], special=special)
    for group in groups.values()
    for special in (False, True)
  ]
  limit = _STARTING + _INTERPRETING * len(requests)
  try:
    answers = interpret.compare_each(requests, timeout=limit)
  except interpret.InterpreterFailed as error:
    return Report("interpret", 0, skipped=str(error), known=known)
  wrong = []
  for group, asked, *found in zip(
    groups.values(), requests[::2], answers[::2], answers[1::2], strict=True
  ):
    cases, reason = _judged(asked, found)
    record = {
      "kind": "interpret",
      "cases": [case._asdict() for case in cases],
      "ok": all(case.ok for case in cases),
      "reason": reason,
    }
    for artefact in group:
      witness.add(registry, artefact.key, record)
      done += 1
      if reason:
        wrong.append((name_of(artefact.spec), reason))
  return Report("interpret", done, tuple(wrong), known=known)


def _judged(
  asked: Request, found: Sequence[list[Case] | Fault]
) -> tuple[list[Case], str]:
  """The cases of a kernel, and what is wrong with it.

  One that does not run stands as a case without a tolerable result.
  """
  fault = next((one for one in found if isinstance(one, Fault)), None)
  cases = [case for one in found if not isinstance(one, Fault) for case in one]
  if fault is not None:
    kernel, dtype = asked.kernel, asked.dtype
    args = kernel.arguments(dtype, asked.constants, *asked.shapes[0])
    shapes = tuple(tuple(arg.shape) for arg in args)
    tolerance = kernel.tolerance[dtype]
    return [*cases, Case(dtype, shapes, FAR, tolerance, fault)], fault
  wrong = [case for case in cases if not case.ok]
  return cases, max(wrong, key=lambda case: case.error).wrong if wrong else ""


def aot_all(
  registry: Registry,
  artefacts: Iterable[Artefact],
  file: Path | None,
  *,
  again: bool = False,
) -> Report:
  """Has XLA compile each artefact for a GPU that is not here.

  Args:
    registry: takes the records.
    artefacts: of kernels of this code.
    file: describes the GPU; see `aot`. None skips.
    again: also those that have a record of this GPU.

  Raises:
    InputError: see `aot.described_device`.
  """
  if file is None:
    return Report("xla_aot", 0, skipped="no --target-config")
  try:
    target = aot.described_device(file)
  except aot.Unavailable as error:
    return Report("xla_aot", 0, skipped=str(error))
  device, kind = Device.of(target), target.device_kind
  done, there, wrong = 0, 0, []
  for artefact in artefacts:
    known = _has(registry, artefact.key, "xla_aot", target=kind)
    fits = device is not None and runs_on(artefact.spec.target, device)
    if not fits:
      continue
    if known and not again:
      there += 1
      continue
    kernel, dtype, constants = parts_of(artefact)
    args = kernel.arguments(dtype, constants, 8, 16, 16)
    reason = ""
    try:
      loaded = Loaded(*registry.load(artefact.key))
      aot.compile_for(target, kernel, loaded, args)
    except (aot.CannotCompile, launching.NotLaunched) as error:
      reason = str(error)
      wrong.append((name_of(artefact.spec), reason))
    except (KeyError, Damaged) as error:
      wrong.append((name_of(artefact.spec), f"it cannot be read: {error}"))
      continue
    record = {"kind": "xla_aot", "target": kind, "ok": not reason}
    witness.add(
      registry, artefact.key, record | ({"reason": reason} if reason else {})
    )
    done += 1
  return Report("xla_aot", done, tuple(wrong), known=there)


def gpu_all(
  registry: Registry,
  artefacts: Iterable[Artefact],
  device: Device,
  *,
  judge: Judge | None = None,
  first_use: probe.Probe | None = None,
  again: bool = False,
) -> Report:
  """Probes and measures each artefact that runs on a device.

  Args:
    registry: takes the records.
    artefacts: of kernels of this code.
    device: that is here.
    judge: measures; None takes `judging.make_judge`.
    first_use: probes; None takes `probe.make_probe`.
    again: also those that were measured on this device, driver and jaxlib.
  """
  judge = judge or judging.make_judge(registry)
  first_use = first_use or probe.make_probe(registry)
  triple = {
    "device_kind": device.kind,
    "driver": device.driver,
    "jaxlib": device.jaxlib,
  }
  done, there, wrong, slow = 0, 0, [], []
  for artefact in artefacts:
    name, key = name_of(artefact.spec), artefact.key
    if not runs_on(artefact.spec.target, device):
      continue
    if _has(registry, key, "gpu", **triple) and not again:
      there += 1
      continue
    verdict = first_use(key, device)
    if not verdict.ok:
      wrong.append((name, verdict.reason))
      continue
    measured = judge(artefact, device)
    if measured.figures is None:
      wrong.append((name, measured.failure))
      if measured.ran:
        failed = {"kind": "probe", "ok": False, "reason": measured.failure}
        witness.add(registry, key, failed | triple)
      continue
    witness.add(registry, key, {"kind": "gpu", **triple, **measured.figures})
    done += 1
    records = registry.record(key).evidence
    if evidence.status(records, device.kind) is evidence.Status.REJECTED:
      fault, why = _why(measured.figures)
      (wrong if fault else slow).append((name, why))
  return Report("gpu", done, tuple(wrong), tuple(slow), known=there)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `validate`."""
  parser.add_argument(
    "--dir",
    default="",
    help="folder whose artefacts alone are judged, and that gets the evidence;"
    " by default, all are, and yours gets it",
  )
  parser.add_argument(
    "--trusted",
    action="append",
    default=[],
    metavar="DIR",
    help="a layer that may be used although others can write to it",
  )
  parser.add_argument(
    "--kernel", nargs="+", default=(), help="kernels to judge (all)"
  )
  parser.add_argument(
    "--target-config",
    type=Path,
    help="XLA's description of a GPU to compile for, though it is not here",
  )
  parser.add_argument(
    "--again", action="store_true", help="make evidence that is there already"
  )
  judging.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
  """Makes the evidence that can be made here.

  Returns:
    OK, or REJECTED where something failed.

  Raises:
    InputError: the registry or the target cannot be read, or there is no such
      kernel.
  """
  if args.measure:
    return judging.main(args)
  chosen(args.kernel, KERNELS, "kernel")
  # A folder that is named stands by itself, as for `build`.
  alone = [Path(args.dir)] if args.dir else None
  registry = open_registry(
    trusted=args.trusted, layers=alone, make=not args.dir
  )
  artefacts = select(registry, args.kernel)
  if not artefacts:
    own = f" --dir={args.dir}" if args.dir else ""
    raise InputError(
      f"no artefact to judge in {places(registry.folders)}; build some:"
      f" {commands.python()} -m esper_jax.urza build{own}"
    )
  place = registry.writable.path if registry.writable else "nowhere"
  print(f"{counted(len(artefacts), 'artefact')}; evidence goes to {place}")
  left = len(registry.keys()) - len(artefacts)
  if left and not args.kernel:
    print(f"{left} left out: damaged, or of another text of their kernel")
  again, file = args.again, args.target_config
  reports = [interpret_all(registry, artefacts, again=again)]
  print(reports[-1].text(), flush=True)
  reports.append(aot_all(registry, artefacts, file, again=again))
  print(reports[-1].text(), flush=True)
  device = probe.gpu()
  if device is None:
    print(NO_GPU)
  else:
    print(f"gpu: {device.kind}", flush=True)
    reports.append(gpu_all(registry, artefacts, device, again=again))
    print(reports[-1].text())
  return REJECTED if any(report.wrong for report in reports) else OK


def _why(figures: Mapping[str, Any]) -> tuple[bool, str]:
  """(whether something is wrong with it, why a `gpu` record rejects)."""
  if figures["wrong"]:
    return True, figures["wrong"]
  if not figures["deterministic"]:
    return True, "its results vary"
  median, low, high = evidence.interval(figures["step_ratios"])
  return False, (
    f"too slow: reference / kernel in the step is {median:.3f}"
    f" [{low:.3f}, {high:.3f}]"
  )


def _request(artefact: Artefact, *, special: bool) -> Request:
  kernel, dtype, constants = parts_of(artefact)
  tiles = dict(artefact.spec.tiles)
  return Request(kernel, dtype, constants, special=special, tiles=tiles)


def _has(registry: Registry, key: str, kind: str, **fields: str) -> bool:
  """Whether there is such evidence; a damaged artefact has none."""
  try:
    records = registry.record(key).evidence
  except (KeyError, Damaged):
    return False
  return any(
    record["kind"] == kind
    and all(record[name] == value for name, value in fields.items())
    for record in records
  )
