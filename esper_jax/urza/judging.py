"""Measures an artefact on the GPU of this machine, in a process apart.

That process gets a registry of its own: the artefact, and those with which it
runs in a step (the other kernels of its operation, for the same arguments).
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esper_jax.types import InputError
from esper_jax.urza import (
  dispatch,
  evidence,
  launching,
  measurement,
  probe,
  timing,
  workload,
)
from esper_jax.urza.artefact import Artefact, Damaged
from esper_jax.urza.device import Device
from esper_jax.urza.kernel import Kernel, Unsuitable, handle_of
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.launching import Loaded
from esper_jax.urza.registry import Registry, open_registry

TIMEOUT = 900.0  # seconds
NO_OPERATION = (
  "{} belongs to no operation, so there is no step to measure it in: add one to"
  " OPERATIONS in esper_jax/urza/workload.py"
)
COMMAND = (*probe.COMMAND[:-1], "validate")


class Measured(NamedTuple):
  """What came of measuring an artefact.

  Attributes:
    figures: of a `gpu` record; None where there are none.
    failure: why not.
    ran: whether the failure is the kernel's.
  """

  figures: Mapping[str, Any] | None
  failure: str = ""
  ran: bool = True


Judge = Callable[[Artefact, Device], Measured]
"""Measures an artefact on the device that is here."""


def make_judge(
  registry: Registry,
  *,
  timeout: float = TIMEOUT,
  command: Sequence[str] = COMMAND,
) -> Judge:
  """Makes what measures a registry's artefacts; it records nothing.

  Args:
    registry: where the artefacts are.
    timeout: seconds that the process may take.
    command: begins the process; its options are added.
  """

  def judge(artefact: Artefact, device: Device) -> Measured:
    name = artefact.spec.kernel
    if not any(name in o.kernels for o in workload.OPERATIONS.values()):
      return Measured(None, NO_OPERATION.format(name), ran=False)
    try:
      loaded = [
        Loaded(*registry.load(key))
        for key in (artefact.key, *companions(registry, artefact, device))
      ]
    except (KeyError, Damaged) as error:
      return Measured(None, f"it cannot be read: {error}", ran=False)
    with tempfile.TemporaryDirectory(prefix="urza-judge-") as folder:
      own = open_registry(layers=(Path(folder),))
      for each in loaded:
        own.put(*each)
      options = ("--measure", artefact.key, "--dir", folder)
      code, text = probe.run_child((*command, *options), timeout)
    return read_measured(text, artefact.key, code)

  return judge


def read_measured(text: str, key: str, code: int | None) -> Measured:
  """Reads what the process wrote; anything unclear is a failure.

  Args:
    text: its standard output; the last line counts.
    key: of the artefact, which must be named.
    code: its exit code, None where it was ended.
  """
  if code is None:
    return Measured(None, "measuring it took too long", ran=False)
  try:
    document = json.loads(text.rstrip().rpartition("\n")[2])
    if document["key"] == key and code == 0:
      return Measured(document["figures"], document["failure"], document["ran"])
  except (ValueError, KeyError, TypeError):
    pass
  return Measured(None, f"exit code {code} without figures")


def companions(
  registry: Registry, artefact: Artefact, device: Device
) -> list[str]:
  """Keys of the operation's other kernels, for the same target.

  One that is missing or rejected on this kind of device is left out: its
  reference runs in the step.
  """
  _, dtype, constants = parts_of(artefact)
  found = []
  for name in workload.operation_of(artefact.spec.kernel).kernels:
    other = KERNELS[name]
    if name != artefact.spec.kernel:
      found += _stored(registry, other, dtype, constants, artefact, device)[:1]
  return found


def _stored(
  registry: Registry,
  kernel: Kernel,
  dtype: str,
  constants: Mapping[str, int],
  beside: Artefact,
  device: Device,
) -> list[str]:
  """Keys for a kernel, in the order of its tiles."""
  try:
    form = kernel.form(*kernel.arguments(dtype, constants, 1, 1, 1))
  except Unsuitable:
    return []
  order = [tuple(sorted(tiles.items())) for tiles in kernel.tiles(form)]
  keys = []
  for artefact in registry.find(handle_of(kernel, form))[0]:
    try:
      records = registry.record(artefact.key).evidence
    except (KeyError, Damaged):
      continue
    status = evidence.status(records, device.kind)
    tiles = artefact.spec.tiles
    place = order.index(tiles) if tiles in order else len(order)
    if (
      artefact.spec.target == beside.spec.target
      and status is not evidence.Status.REJECTED
    ):
      keys.append((place, artefact.key))
  return [key for _, key in sorted(keys)]


def parts_of(artefact: Artefact) -> tuple[Kernel, str, dict[str, int]]:
  """Kernel, dtype and constants of an artefact.

  Raises:
    KeyError: see `launching.kernel_of`.
  """
  dtype = artefact.spec.dtype
  return launching.kernel_of(artefact), dtype, dict(artefact.spec.constants)


def measure(
  chosen: Sequence[Loaded],
  device: Device,
  *,
  launch: launching.Launch | None = None,
  sizes: workload.Sizes | None = None,
  effort: measurement.Effort | None = None,
) -> Measured:
  """Measures the first artefact in a step where all of them are used.

  Args:
    chosen: the artefact, and those that it runs with.
    device: that is here.
    launch: runs the artefact; None launches its machine code.
    sizes: see `measurement.measure`.
    effort: see `measurement.measure`.
  """
  loaded = chosen[0]
  kernel, dtype, constants = parts_of(loaded.artefact)
  own = launching.dispatcher(chosen, device)
  launch = launch or launching.launcher(kernel, loaded, device)
  try:
    figures = measurement.measure(
      kernel,
      dtype,
      constants,
      launch,
      lambda: dispatch.using(own),
      sizes=sizes,
      effort=effort,
    )
  except timing.Noise as error:
    return Measured(None, str(error), ran=False)
  except Exception as error:  # whatever the device makes of it
    first = "".join(str(error).splitlines()[:1])
    ran = "RESOURCE_EXHAUSTED" not in first
    return Measured(None, f"{type(error).__name__}: {first}", ran)
  if own.choices.get(loaded.artefact.spec.handle) != loaded.artefact.key:
    return Measured(None, "the step did not take it", ran=False)
  return Measured(figures)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the process apart."""
  parser.add_argument(
    "--measure",
    metavar="KEY",
    default="",
    help="only measure this artefact, beside the others of --dir alone; write"
    " the figures to standard output and record nothing",
  )


def main(args: argparse.Namespace) -> int:
  """Measures an artefact here and writes the figures as a line of JSON."""
  device = probe.gpu()
  if device is None:
    found = Measured(None, "no GPU", ran=False)
  else:
    registry = open_registry(layers=(Path(args.dir),))
    if args.measure not in registry.keys():
      raise InputError(f"no artefact {args.measure} in '{args.dir}'")
    others = [key for key in registry.keys() if key != args.measure]
    keys = (args.measure, *others)
    found = measure([Loaded(*registry.load(key)) for key in keys], device)
  print(json.dumps({"key": args.measure, **found._asdict()}), flush=True)
  return 0
