"""What is to be built, and what working through it takes."""

import concurrent.futures
import itertools
import os
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any, NamedTuple, TypeVar

from esper_jax import commands
from esper_jax.types import InputError
from esper_jax.urza import assembler
from esper_jax.urza.artefact import Damaged, Spec
from esper_jax.urza.assembler import AssemblerError
from esper_jax.urza.compile import CompilationError
from esper_jax.urza.kernel import Form, Kernel

# What is left to do where there is no GPU; the READMEs say it too.
ON_A_GPU = (
  f"{commands.python()} -m esper_jax.urza validate &&"
  f" {commands.python()} -m benchmarks.kernels --json=kernels.json"
)
TARGETS = (75, 80, 90)  # with them the package serves Turing to Blackwell
DTYPES = ("float32", "bfloat16")
# Of a dtype, the least target: Turing has no bfloat16.
_LEAST = {"float32": 75, "bfloat16": 80, "float16": 75}
_ANY_SIZE = (2, 4, 4)  # batch, height, width: a form does not depend on them

Report = Callable[[str], None]
"""Takes a line for people."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Request(NamedTuple):
  """A kernel that is to be in a registry.

  Attributes:
    kernel: the record.
    dtype: of the activations.
    constants: one of the kernel's `shipped`.
    target: compute capability.
  """

  kernel: Kernel
  dtype: str
  constants: Mapping[str, int]
  target: int

  @property
  def form(self) -> Form:
    """Of a call of this kind."""
    args = self.kernel.arguments(self.dtype, self.constants, *_ANY_SIZE)
    return self.kernel.form(*args)

  def __str__(self) -> str:
    constants = [f"{name}={value}" for name, value in self.constants.items()]
    return " ".join(
      [self.kernel.name, self.dtype, *constants, f"sm_{self.target}"]
    )


def requests(
  kernels: Iterable[Kernel],
  targets: Sequence[int] = TARGETS,
  dtypes: Sequence[str] = DTYPES,
) -> Iterator[Request]:
  """What is built of these kernels: all they ship, for targets and dtypes.

  float32 for the least of the targets alone: its code runs on all later
  devices, and there is no faster one, as its products take no tensor cores.
  """
  for kernel in kernels:
    for constants, dtype in itertools.product(kernel.shipped, dtypes):
      fitting = sorted(t for t in targets if t >= _LEAST[dtype])
      for target in fitting[:1] if dtype == "float32" else fitting:
        yield Request(kernel, dtype, constants, target)


def each(
  function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
  """Yields what a function says of each item, in order; a thread for each core.

  Triton lets go of Python's lock where it works longest.
  """
  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  try:
    yield from pool.map(function, items)
  finally:
    pool.shutdown(cancel_futures=True)


def chosen(
  names: Iterable[str], known: Collection[str], what: str
) -> list[str]:
  """The names, each once.

  Raises:
    InputError: one is not known; it lists those that are.
  """
  names = [name.strip() for name in names]
  for name in names:
    if name not in known:
      there = f"there are {', '.join(known)}" if known else "there is none"
      raise InputError(f"unknown {what} {name!r}; {there}")
  return list(dict.fromkeys(names))


def targets_of(
  names: Iterable[str], known: Iterable[int] = assembler.TARGETS
) -> list[int]:
  """Compute capabilities from names like "90" or "sm_90"; see `chosen`."""
  bare = [name.strip().removeprefix("sm_") for name in names]
  return list(map(int, chosen(bare, [str(n) for n in known], "target")))


def in_options(error: InputError) -> str:
  """What is wrong, in a command: what a run calls so are options there."""
  return str(error).replace("--config.urza.", "--")


def has_facts(
  records: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]
) -> bool:
  """Says whether a `static` record among these has these figures."""
  return any(
    record["kind"] == "static"
    and all(record[name] == value for name, value in facts.items())
    for record in records
  )


def name_of(spec: Spec) -> str:
  """Names an artefact for people: kernel, dtype, constants, tiles, target."""
  parts = [f"{name}={value}" for name, value in (*spec.constants, *spec.tiles)]
  return " ".join([spec.kernel, spec.dtype, *parts, f"sm_{spec.target}"])


def reason_of(error: BaseException) -> str:
  """Says in one line why something could not be done."""
  lines = str(error.args[0] if error.args else error).strip().splitlines()
  own = (CompilationError, InputError, Damaged, AssemblerError)
  line = lines[0] if lines else ""
  return line if isinstance(error, own) else f"{type(error).__name__}: {line}"
