"""Kernels in Triton's interpreter, against their references, without a GPU.

The interpreter is chosen when Triton is imported and then holds for the whole
process, which can compile nothing any more: so it has a process of its own,
one for many requests. `python -m esper_jax.urza.interpret` is that process; it
reads requests as JSON and writes the cases as JSON.

Triton 3.9's interpreter holds bfloat16 as 16-bit integers. Two things it then
does wrong are mended there: `tl.dot` multiplies the integers (here: the
numbers, in float32), and float32 is cut to bfloat16 (here: rounded to the
nearest, ties to even, as a GPU does). It still compares and sums such
integers: a kernel casts what it loads to float32 before anything but a dot.
It is a check of what a kernel computes, not of how a GPU rounds.
"""

import importlib
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.urza import numerics
from esper_jax.urza.buffers import Buffer
from esper_jax.urza.kernel import Kernel
from esper_jax.urza.samples import FAR, samples

SHAPES = ((1, 1, 1), (2, 5, 7))
"""(batch, height, width): a single row, and rows that fill no block."""

_MAX_REASON = 300  # characters
_LAUNCH = ("num_warps", "num_stages")
_READY = "urza-ready"  # Triton works; what comes now is the kernels' doing
_MARK = "urza-cases "
# These end a process from outside; a kernel does not send them.
_STOPS = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
# To compile a reference that runs once takes far longer than to run it.
_QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


class InterpreterFailed(Exception):
  """The process of the interpreter gave no answer; the text says why."""


class Fault(str):
  """Why a kernel does not run in the interpreter."""

  __slots__ = ()


class Request(NamedTuple):
  """What is to be compared.

  Attributes:
    kernel: its record.
    dtype: of the activations.
    constants: of the form.
    shapes: (batch, height, width) of each case.
    special: NaN and infinities among the inputs.
    tiles: how to cut the work; None takes the first of `kernel.tiles`.
  """

  kernel: Kernel
  dtype: str
  constants: Mapping[str, int]
  shapes: Sequence[tuple[int, int, int]] = SHAPES
  special: bool = False
  tiles: Mapping[str, int] | None = None


class Case(NamedTuple):
  """One comparison.

  Attributes:
    dtype: of the activations.
    shapes: of the arguments.
    error: as `samples.distance`, of what `kernel.finish` returns against
      the reference in float32 on the same, rounded inputs.
    tolerance: the kernel's.
    wrong: which result is, where and how; empty where none is.
  """

  dtype: str
  shapes: tuple[tuple[int, ...], ...]
  error: float
  tolerance: float
  wrong: str = ""

  @property
  def ok(self) -> bool:
    """Whether the error is within the tolerance."""
    return self.error <= self.tolerance


def compare(
  kernel: Kernel,
  dtype: str,
  constants: Mapping[str, int],
  *,
  shapes: Sequence[tuple[int, int, int]] = SHAPES,
  special: bool = False,
  tiles: Mapping[str, int] | None = None,
  timeout: float = 300.0,
) -> list[Case]:
  """Compares one kernel with its reference; see `compare_many`."""
  request = Request(kernel, dtype, constants, shapes, special, tiles)
  return compare_many([request], timeout=timeout)[0]


def compare_many(
  requests: Iterable[Request], *, timeout: float = 300.0
) -> list[list[Case]]:
  """As `compare_each`, and a kernel that does not run is an error.

  Raises:
    InterpreterFailed: Triton is missing, a kernel raised, or time is over.
  """
  found = []
  for answer in compare_each(requests, timeout=timeout):
    if isinstance(answer, Fault):
      raise InterpreterFailed(answer)
    found.append(answer)
  return found


def compare_each(
  requests: Iterable[Request], *, timeout: float = 300.0
) -> list[list[Case] | Fault]:
  """Compares kernels with their references, in one new process.

  A case is drawn with its own place in `shapes` as the seed. After a kernel
  that ends the process another one goes on with the next.

  Args:
    requests: what to compare. A kernel's record must be a global of the module
      that holds its source.
    timeout: seconds for all of it; importing takes about 3, a program of a
      grid about a thousandth.

  Returns:
    The cases of each request, or why it has none, in order.

  Raises:
    InterpreterFailed: Triton is missing, or time is over.
  """
  questions = [_question(request) for request in requests]
  answers: list[list[Case] | Fault] = []
  end = time.monotonic() + timeout
  while len(answers) < len(questions):
    try:
      answers += _ask(questions[len(answers) :], end - time.monotonic())
    except subprocess.TimeoutExpired:
      raise InterpreterFailed(
        f"Triton's interpreter took more than {timeout:g} s"
      ) from None
  return answers


def _ask(
  questions: Sequence[Mapping[str, Any]], timeout: float
) -> list[list[Case] | Fault]:
  """Answers at least the first of some questions, in one process."""
  paths = [entry for entry in sys.path if entry]
  environment = os.environ | {
    "TRITON_INTERPRET": "1",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(paths),
  }
  done = subprocess.run(
    [sys.executable, "-m", "esper_jax.urza.interpret"],
    input=json.dumps(questions),
    env=environment,
    capture_output=True,
    text=True,
    errors="replace",
    timeout=timeout,
  )
  lines = done.stdout.splitlines()
  answers = [
    _read(json.loads(line.removeprefix(_MARK)))
    for line in lines
    if line.startswith(_MARK)
  ]
  code = done.returncode
  if len(answers) == len(questions):
    return answers
  if code < 0 and -code not in _STOPS and _READY in lines:
    return [
      *answers,
      Fault(
        f"the interpreter crashed (signal {-code}) on this kernel: are its"
        " parameters inputs, outputs, i32, constants, in this order?"
      ),
    ]
  ending = "\n".join(done.stderr.strip().splitlines()[-12:])
  raise InterpreterFailed(
    f"Triton's interpreter ended with code {code}"
    + (f":\n{ending}" if ending else " and said nothing")
  )


def _read(answer: Any) -> list[Case] | Fault:
  if isinstance(answer, str):
    return Fault(answer)
  return [
    Case(dtype, tuple(map(tuple, shapes)), error, tolerance, wrong)
    for dtype, shapes, error, tolerance, wrong in answer
  ]


def _question(request: Request) -> dict[str, Any]:
  function = request.kernel.source.function
  return {
    "module": function.__module__,
    "file": inspect.getfile(function),
    "kernel": request.kernel.name,
    "dtype": request.dtype,
    "constants": dict(request.constants),
    "shapes": [list(shape) for shape in request.shapes],
    "special": request.special,
    "tiles": None if request.tiles is None else dict(request.tiles),
  }


def interpret(
  kernel: Kernel,
  arguments: tuple[Any, ...],
  tiles: Mapping[str, int] | None = None,
) -> tuple[Any, ...]:
  """Runs a kernel in this process, which must be the interpreter's.

  What the kernel leaves unwritten is NaN.

  Args:
    kernel: its record.
    arguments: numpy arrays.
    tiles: how to cut the work; None takes the first of `kernel.tiles`.

  Returns:
    What `kernel.finish` returns.
  """
  form = kernel.form(*arguments)
  tiles = kernel.tiles(form)[0] if tiles is None else tiles
  plan = kernel.plan(arguments, tiles)
  outputs = [np.full(o.shape, np.nan, o.dtype) for o in plan.outputs]
  buffers = [Buffer(array) for array in (*arguments, *outputs)]
  constants = dict(form.constants)
  constants |= {k: v for k, v in tiles.items() if k not in _LAUNCH}
  kernel.source.activate()[plan.grid](*buffers, *plan.scalars, **constants)
  return kernel.finish(tuple(map(jnp.asarray, outputs)), arguments)


def _mend() -> None:
  """Makes the interpreter treat bfloat16 as numbers."""
  interpreter: Any = importlib.import_module("triton.runtime.interpreter")
  language = importlib.import_module("triton.language")
  convert = interpreter._convert_float
  multiply = interpreter.InterpreterBuilder.create_dot

  def convert_float(data, source, target, rounding):
    if (source, target) == (language.float32, language.bfloat16):
      return data.astype(jnp.bfloat16).view(np.uint16)
    if (source, target) == (language.bfloat16, language.float32):
      return data.view(jnp.bfloat16).astype(np.float32).view(np.uint32)
    return convert(data, source, target, rounding)

  def create_dot(self, a, b, *rest):
    return multiply(self, _numbers(a), _numbers(b), *rest)

  def _numbers(handle):
    if handle.dtype.scalar != language.bfloat16:
      return handle
    values = handle.data.view(jnp.bfloat16).astype(np.float32)
    return interpreter.TensorHandle(values, language.float32)

  interpreter._convert_float = convert_float
  interpreter.InterpreterBuilder.create_dot = create_dot


def _answer(kernel: Kernel, question: Mapping[str, Any]) -> list[Any] | str:
  """The cases of a question, or why there are none."""
  try:
    return _cases(kernel, question)
  except MemoryError:
    raise  # it says nothing about the kernel
  except Exception as error:  # whatever the kernel makes of it
    lines = [line.strip() for line in str(error).splitlines()]
    words = " ".join(filter(None, lines))[-_MAX_REASON:]
    return f"the interpreter raised {type(error).__name__}: {words}"


def _cases(kernel: Kernel, question: Mapping[str, Any]) -> list[Any]:
  cases = []
  tolerance = kernel.tolerance[question["dtype"]]
  for seed, (batch, height, width) in enumerate(question["shapes"]):
    arrays = samples(
      kernel,
      question["dtype"],
      question["constants"],
      batch,
      height,
      width,
      seed,
      special=question["special"],
    )
    got = interpret(kernel, arrays, question["tiles"])
    reference = jax.jit(kernel.reference, compiler_options=_QUICK)
    expected = reference(*map(_exact, arrays))
    error, wrong = numerics.largest(got, expected, tolerance)
    if wrong:
      odd = " with NaN and infinities" if question["special"] else ""
      wrong = f"at {batch}x{height}x{width}{odd}: {wrong}"
      wrong += " (what is left unwritten is NaN)" if error == FAR else ""
    shapes = [array.shape for array in arrays]
    cases.append((question["dtype"], shapes, error, tolerance, wrong))
  return cases


def _exact(array: np.ndarray) -> jax.Array:
  return jnp.asarray(array.astype(np.float32))


def _find(question: Mapping[str, Any]) -> Kernel:
  module = _module(question["module"], question["file"])
  for value in vars(module).values():
    if isinstance(value, Kernel) and value.name == question["kernel"]:
      return value
  raise LookupError(
    f"'{question['file']}' has no global record of kernel"
    f" '{question['kernel']}'"
  )


def _module(name: str, file: str) -> ModuleType:
  """The module of that name, from that file if it cannot be found by name."""
  if name in sys.modules:
    return sys.modules[name]
  if name.startswith("esper_jax."):
    return importlib.import_module(name)
  spec = importlib.util.spec_from_file_location(name, Path(file))
  if spec is None or spec.loader is None:
    raise ImportError(f"'{file}' is not a Python file")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def main() -> int:
  """Answers the requests on standard input; returns the exit code."""
  # NaN and overflow are inputs like others here; numpy tells of them.
  warnings.simplefilter("ignore", RuntimeWarning)
  np.seterr(all="ignore")
  _mend()
  asked = [(_find(question), question) for question in json.load(sys.stdin)]
  print(_READY, flush=True)
  for kernel, question in asked:  # one by one: the next may end the process
    print(_MARK + json.dumps(_answer(kernel, question)), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
