"""Builds kernels into a registry, or checks that it holds what a build makes.

  .venv/bin/python -m esper_jax.urza build [--kernel K ...]
      [--targets 75,80,90,100] [--dtypes float32,bfloat16]
      [--dir DIR] [--check | --prune]

It needs Triton, and no GPU. What the package brings is made by `--dir
esper_jax/urza/store --prune`, and compared byte for byte by `--check`.
"""

import argparse
import contextlib
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxlib

from esper_jax.types import InputError
from esper_jax.urza import evidence, upkeep
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.comparison import differences
from esper_jax.urza.compile import (
  OPTIONS,
  CompilationError,
  Compiled,
  compile_spec,
  spec_of,
  triton_version,
)
from esper_jax.urza.folder import ARTEFACTS, EVIDENCE, places, shard_of
from esper_jax.urza.kernel import TYPES, Kernel, Unsuitable, handle_of
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.orders import (
  DTYPES,
  TARGETS,
  Report,
  Request,
  chosen,
  each,
  has_facts,
  name_of,
  reason_of,
  requests,
  targets_of,
)
from esper_jax.urza.registry import Registry, open_registry

OK, FAILED = 0, 1  # exit codes


def build(
  registry: Registry,
  kernels: Iterable[Kernel],
  targets: Sequence[int] = TARGETS,
  dtypes: Sequence[str] = DTYPES,
  *,
  report: Report = print,
) -> list[str]:
  """Compiles what the registry lacks, with its `static` evidence.

  Of the ways to cut the work, the first that fits the target and does not
  spill is taken, or that which spills least. A kernel that does not compile
  keeps no other from being built.

  Args:
    registry: takes the artefacts.
    kernels: what is built.
    targets: compute capabilities.
    dtypes: of the activations.
    report: takes a line about each artefact.

  Returns:
    A line about each failure.

  Raises:
    InputError: nothing can be compiled or written.
  """

  def make(request: Request) -> tuple[bool, str]:
    start = time.perf_counter()
    try:
      done = _make(registry, request)
    except InputError:
      raise
    except Exception as error:  # a kernel's own functions may be wrong too
      return False, f"{request}: {reason_of(error)}"
    return True, f"{request}: {done} ({time.perf_counter() - start:.1f} s)"

  failures = []
  for fine, line in each(make, requests(kernels, targets, dtypes)):
    report(line if fine else f"FAILED {line}")
    if not fine:
      failures.append(line)
  return failures


def prune(
  registry: Registry, kernels: Iterable[Kernel], *, report: Report = print
) -> None:
  """Deletes what these kernels would not be built to any more.

  Artefacts of another text of theirs, of constants that they do not ship, or
  of another Triton, with their evidence; and then what no manifest names. All
  ways to cut the work stay. Nobody else may write to the folder meanwhile.

  Args:
    registry: whose last layer is cleaned.
    kernels: whose artefacts are looked at.
    report: takes a line about each artefact.

  Raises:
    InputError: nothing can be deleted.
    Damaged: as `upkeep.gc`.
  """
  folder = registry.writable
  if folder is None:
    raise InputError("no layer can be written to; name one with --dir")
  handles = {kernel.name: _handles(kernel) for kernel in kernels}
  for key in registry.keys():
    with contextlib.suppress(KeyError, Damaged):
      spec = registry.record(key).artefact.spec
      current = (OPTIONS, triton_version()) == (spec.options, spec.triton)
      named = folder.path / ARTEFACTS / f"{key}.json"
      if spec.kernel not in handles or not named.exists():
        continue
      if not current or spec.handle not in handles[spec.kernel]:
        report(f"{name_of(spec)}: {key[:12]} deleted")
        shard = folder.path / EVIDENCE / shard_of(key)
        for path in (named, *shard.glob(f"{key}.*.json")):
          path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are in it
          shard.rmdir()
  upkeep.gc(registry, young=0.0)


def _handles(kernel: Kernel) -> set[str]:
  """What all that it ships is looked up by, in every dtype."""
  found = set()
  for request in requests([kernel], TARGETS[-1:], tuple(TYPES)):
    with contextlib.suppress(Unsuitable):
      found.add(handle_of(kernel, request.form))
  return found


def _make(registry: Registry, request: Request) -> str:
  """Sees that a request is met; says how."""
  ways = list(request.kernel.tiles(request.form))
  if not ways:
    raise CompilationError("it has no tiles")
  fitting = []
  for tiles in ways:
    spec = spec_of(request.kernel, request.form, tiles, request.target)
    records = _known(registry, spec.key)
    static = [record for record in records if record["kind"] == "static"]
    made = None if static else compile_spec(request.kernel, spec)
    facts = static[-1] if made is None else made.facts
    if facts["ok"]:
      fitting.append((facts["spills"], spec, made))
      if not facts["spills"]:
        break
  if not fitting:
    raise CompilationError(
      f"no tiles fit sm_{request.target}; the last need too much memory"
    )
  _, spec, made = min(fitting, key=lambda way: way[0])
  if made is None:
    return f"{spec.key[:12]} is there"
  _store(registry, made)
  return f"{spec.key[:12]} built, {_figures(made)}"


def _known(registry: Registry, key: str) -> Sequence[Mapping[str, Any]]:
  """Evidence about an artefact that is there and whole; else none."""
  try:
    registry.load(key)
    return registry.record(key).evidence
  except (KeyError, Damaged):
    return ()


def _store(registry: Registry, made: Compiled) -> None:
  key = registry.put(made.artefact, made.files)
  if not has_facts(_known(registry, key), made.facts):
    versions = {
      "python": platform.python_version(),
      "jaxlib": jaxlib.__version__,
      "triton": triton_version(),
    }
    record = {"kind": "static", "made": evidence.now(), "by": versions}
    registry.append(key, record | made.facts)


def _figures(made: Compiled) -> str:
  facts, size = made.facts, made.artefact.files["ptx"].size
  spills = f"{facts['spills']} bytes" if facts["spills"] else "no"
  return (
    f"{facts['registers']} registers, {spills} spills,"
    f" {facts['shared']} bytes shared, {size / 1000:.0f} kB of PTX"
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments of `main`."""
  parser.add_argument(
    "--kernel",
    action="append",
    default=[],
    metavar="K",
    help="only this kernel; may be given several times",
  )
  parser.add_argument(
    "--targets",
    default=",".join(map(str, TARGETS)),
    help="compute capabilities (default: %(default)s)",
  )
  parser.add_argument(
    "--dtypes",
    default=",".join(DTYPES),
    help="of the activations (default: %(default)s)",
  )
  parser.add_argument(
    "--dir",
    default="",
    help="folder that shall hold all of it by itself; by default, yours gets"
    " what the package's lacks",
  )
  parser.add_argument(
    "--trusted",
    action="append",
    default=[],
    metavar="DIR",
    help="a folder that may be used although others can write to it",
  )
  how = parser.add_mutually_exclusive_group()
  how.add_argument(
    "--check",
    action="store_true",
    help="write nothing; compare what is there with what a build makes",
  )
  how.add_argument(
    "--prune",
    action="store_true",
    help="first delete artefacts that these kernels do not build any more",
  )


def main(args: argparse.Namespace) -> int:
  """Builds, or checks; prints a line about each artefact.

  Args:
    args: see `add_arguments`.

  Returns:
    The exit code: 1 where something failed to compile or differs.

  Raises:
    InputError: an argument names nothing that there is, or Triton is missing.
  """
  names = chosen(args.kernel or KERNELS, KERNELS, "kernel")
  kernels = [KERNELS[name] for name in names]
  targets = targets_of(args.targets.split(","))
  dtypes = chosen(args.dtypes.split(","), TYPES, "dtype")
  triton_version()
  alone = [Path(args.dir)] if args.dir else None
  registry = open_registry(
    trusted=args.trusted, layers=alone, make=not args.check
  )
  if args.check:
    found = differences(
      registry, kernels, targets, dtypes, strangers=not args.kernel
    )
    fine = f"{len(found)} differences" if found else "all as a build makes it"
    print(f"{fine}; looked at {places(registry.folders)}")
  else:
    if args.prune:
      prune(registry, kernels)
    found = build(registry, kernels, targets, dtypes)
    fine = f"{len(found)} failed" if found else "all built"
    place = registry.writable.path if registry.writable else "nowhere"
    print(f"{fine}; written to {place}")
  for line in found:
    print(f"  {line}")
  return FAILED if found else OK
