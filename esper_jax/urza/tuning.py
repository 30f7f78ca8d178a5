"""Tries every way to cut a kernel's work on the GPU of this machine.

  .venv/bin/python -m esper_jax.urza tune [--kernel K ...] [--dtype D ...]
      [--dir DIR]

Each way becomes an artefact of its own and is measured in a step, as
`validate` does it; all get the same table. The dispatcher takes the quickest
of those that are right and fast enough to be used at all.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from esper_jax.types import InputError
from esper_jax.urza import compile as compiler
from esper_jax.urza import judging, probe, witness
from esper_jax.urza.artefact import Artefact
from esper_jax.urza.assembler import TARGETS
from esper_jax.urza.device import Device
from esper_jax.urza.dispatch import runs_on
from esper_jax.urza.judging import Judge, Measured
from esper_jax.urza.kernel import TYPES, Form, Kernel, Tiles
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.orders import chosen
from esper_jax.urza.registry import Registry, open_registry

NO_GPU = "tune: no GPU here; it measures, so run it on a GPU machine"
OK, UNUSABLE = 0, 2  # exit codes

Compile = Callable[[Kernel, Form, Tiles, int], compiler.Compiled]
"""As `compile.compile_kernel`."""


class Row(NamedTuple):
  """One way to cut the work.

  Attributes:
    tiles: the way.
    key: of its artefact; empty where it does not compile.
    kernel_us: microseconds of a call alone; None where it was not measured.
    step_us: microseconds that the operation takes in the step.
    right: whether its results are.
    failure: why it was not measured, or what is wrong.
  """

  tiles: Mapping[str, int]
  key: str
  kernel_us: float | None
  step_us: float | None
  right: bool
  failure: str


class Table(NamedTuple):
  """All ways for one form, in the order of `kernel.tiles`.

  Attributes:
    rows: one of each.
    winner: key of the quickest that is right; empty where none is.
  """

  rows: tuple[Row, ...]
  winner: str

  def text(self) -> str:
    """For people: a line for each way."""
    lines = []
    for row in self.rows:
      tiles = " ".join(f"{name}={value}" for name, value in row.tiles.items())
      if row.kernel_us is None or row.step_us is None:
        lines.append(f"  {tiles}: {row.failure}")
        continue
      mark = "  <- quickest" if row.key == self.winner else ""
      mark = mark if row.right else f"  wrong: {row.failure}"
      lines.append(
        f"  {tiles}: {row.kernel_us:.1f} us alone, {row.step_us:.1f} us in the"
        f" step{mark}"
      )
    return "\n".join(lines)


def tune(
  registry: Registry,
  kernel: Kernel,
  dtype: str,
  constants: Mapping[str, int],
  device: Device,
  *,
  judge: Judge,
  compile: Compile = compiler.compile_kernel,
) -> Table:
  """Compiles, stores and measures all ways, and records what came of it.

  Args:
    registry: takes artefacts and evidence.
    kernel: what is tuned.
    dtype: of the activations.
    constants: of the form.
    device: that is here.
    judge: measures an artefact on it.
    compile: compiles.

  Raises:
    InputError: Triton is not installed, or the registry takes nothing.
  """
  form = kernel.form(*kernel.arguments(dtype, constants, 1, 1, 1))
  target = target_for(device)
  rows: list[Row] = []
  measured: dict[str, Measured] = {}
  for tiles in kernel.tiles(form):
    try:
      made = compile(kernel, form, tiles, target)
    except compiler.CompilationError as error:
      rows.append(Row(dict(tiles), "", None, None, False, str(error)))
      continue
    key = _store(registry, made)
    measured[key] = judge(made.artefact, device)
    rows.append(_row(tiles, made.artefact, measured[key]))
  right = [row for row in rows if row.right and row.kernel_us is not None]
  best = min(right, key=lambda row: row.kernel_us or 0.0, default=None)
  table = Table(tuple(rows), best.key if best else "")
  _record(registry, table, measured, device)
  return table


def target_for(device: Device) -> int:
  """The newest target that a device can run.

  Raises:
    InputError: it is older than all.
  """
  fitting = [target for target in TARGETS if runs_on(target, device)]
  if not fitting:
    oldest = min(TARGETS)
    raise InputError(
      f"{device.kind} has compute capability {device.target}; kernels need at"
      f" least {oldest}"
    )
  return max(fitting)


def _store(registry: Registry, made: compiler.Compiled) -> str:
  key = registry.put(made.artefact, made.files)
  records = registry.record(key).evidence
  if not any(record["kind"] == "static" for record in records):
    witness.add(registry, key, {"kind": "static", **made.facts})
  return key


def _row(tiles: Tiles, artefact: Artefact, measured: Measured) -> Row:
  figures = measured.figures
  if figures is None:
    return Row(dict(tiles), artefact.key, None, None, False, measured.failure)
  seconds = figures["step_seconds"]
  own = np.subtract(seconds["kernel"], seconds["bare"])
  right = figures["deterministic"] and (
    figures["max_error"] <= figures["tolerance"]
  )
  failure = "" if right else figures["wrong"] or "its results vary"
  return Row(
    dict(tiles),
    artefact.key,
    figures["kernel_us"],
    1e6 * float(np.median(own)),
    right,
    failure,
  )


def _record(
  registry: Registry,
  table: Table,
  measured: Mapping[str, Measured],
  device: Device,
) -> None:
  here: dict[str, Any] = {
    "device_kind": device.kind,
    "driver": device.driver,
    "jaxlib": device.jaxlib,
  }
  rows = [row._asdict() for row in table.rows]
  common = {"table": rows, "winner": table.winner}
  for key, found in measured.items():
    if found.figures is not None:
      record = {"kind": "gpu", **here, **found.figures, **common}
    elif found.ran:
      record = {"kind": "probe", **here, "ok": False, "reason": found.failure}
    else:
      continue
    witness.add(registry, key, record)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `tune`."""
  parser.add_argument("--dir", default="", help="another layer")
  parser.add_argument(
    "--trusted",
    action="append",
    default=[],
    metavar="DIR",
    help="a layer that may be used although others can write to it",
  )
  parser.add_argument(
    "--kernel",
    nargs="+",
    default=tuple(KERNELS),
    help="kernels to tune (all)",
  )
  parser.add_argument(
    "--dtype",
    nargs="+",
    default=("bfloat16", "float32"),
    help="of the activations (%(default)s)",
  )


def main(args: argparse.Namespace) -> int:
  """Tunes kernels on this machine's GPU.

  Returns:
    OK, or UNUSABLE where there is no GPU.

  Raises:
    InputError: see `tune`; or there is no such kernel or dtype.
  """
  chosen(args.kernel, KERNELS, "kernel")
  chosen(args.dtype, TYPES, "dtype")
  device = probe.gpu()
  if device is None:
    print(NO_GPU, file=sys.stderr)
    return UNUSABLE
  registry = open_registry(args.dir, trusted=args.trusted)
  tune_all(registry, args.kernel, args.dtype, device)
  return OK


def tune_all(
  registry: Registry,
  names: Sequence[str],
  dtypes: Sequence[str],
  device: Device,
  *,
  judge: Judge | None = None,
) -> list[Table]:
  """Tunes what the kernels ship, and prints a table for each form."""
  judge = judge or judging.make_judge(registry)
  tables = []
  for name in names:
    kernel = KERNELS[name]
    for dtype in dtypes:
      if dtype not in kernel.tolerance:
        continue
      for constants in kernel.shipped:
        own = " ".join(f"{key}={value}" for key, value in constants.items())
        print(f"{name} {dtype} {own} on {device.kind}", flush=True)
        table = tune(registry, kernel, dtype, constants, device, judge=judge)
        print(table.text(), flush=True)
        tables.append(table)
  return tables
