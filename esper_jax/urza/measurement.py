"""What a GPU says about a kernel: the figures of a `gpu` record.

What is measured are programs made from functions that are given: on a machine
without a GPU references can stand in a kernel's place, and everything but the
launch itself runs.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from esper_jax.urza import numerics, timing, workload
from esper_jax.urza.evidence import LEAST_PAIRS
from esper_jax.urza.kernel import Kernel
from esper_jax.urza.launching import Launch
from esper_jax.urza.samples import FAR, samples
from esper_jax.urza.timing import Noise

REPEATS = 8  # of what is timed alone, in one program

Tracing = Callable[[], contextlib.AbstractContextManager[Any]]
"""Makes the context in which a step is traced with kernels."""


class Effort(NamedTuple):
  """How long is measured.

  Attributes:
    rounds: pairs of blocks.
    calls: of a program in a block.
    attempts: where the times are all noise: each with four times the calls.
  """

  rounds: int = 9
  calls: int = 20
  attempts: int = 3


def measure(
  kernel: Kernel,
  dtype: str,
  constants: Mapping[str, int],
  launch: Launch,
  tracing: Tracing,
  *,
  sizes: workload.Sizes | None = None,
  effort: Effort | None = None,
) -> dict[str, Any]:
  """Measures a kernel beside its reference, alone and inside a step.

  Args:
    kernel: what is measured.
    dtype: of the activations.
    constants: of its form.
    launch: runs it; it is also compiled, to be timed alone.
    tracing: in whose context the step has the kernel. Outside it has none.
    sizes: of the step; None takes those of a ResNet-18 at batch 512.
    effort: None takes the defaults.

  Returns:
    The figures of a `gpu` record, and the seconds they come from.

  Raises:
    Noise: the operation's share of the step cannot be told.
  """
  effort = effort or Effort()
  sizes = sizes or workload.sizes_of(constants)
  # First, while nothing larger has been in the device's memory.
  with_kernel = compile_step(kernel.name, sizes, dtype, constants, tracing)
  jax.block_until_ready(with_kernel.call())
  device = jax.local_devices()[0]
  peak = timing.peak_bytes(device, with_kernel.program)
  shape = workload.shape_of_call(kernel, dtype, constants, sizes)
  args = jax.device_put(samples(kernel, dtype, constants, *shape))
  results = judge_results(kernel, dtype, constants, launch, shape, args)
  alone = time_alone(kernel, args, launch, effort)
  seconds = _time_step(with_kernel, kernel, sizes, dtype, constants, effort)
  return {
    **results,
    "step_ratios": timing.share_ratios(
      seconds["reference"], seconds["kernel"], seconds["bare"]
    ),
    "kernel_us": 1e6 * float(np.median(alone["kernel"])),
    "reference_us": 1e6 * float(np.median(alone["reference"])),
    "peak_bytes": peak,
    "bytes": kernel.cost(*args).bytes,
    "sizes": sizes._asdict(),
    "step_seconds": seconds,
  }


def judge_results(
  kernel: Kernel,
  dtype: str,
  constants: Mapping[str, int],
  launch: Launch,
  shape: tuple[int, int, int],
  args: tuple[Any, ...],
) -> dict[str, Any]:
  """Judges what a launch computes, on small shapes and a large one.

  Args:
    kernel: what is judged.
    dtype: of the activations.
    constants: of its form.
    launch: runs it.
    shape: (batch, height, width) of the large one.
    args: arguments of that shape; the bits of their results must not change.

  Returns:
    max_error, tolerance and deterministic of a `gpu` record, and what is wrong
    in words.
  """
  small = numerics.check(launch, kernel, dtype, constants)
  large = numerics.check(
    launch, kernel, dtype, constants, shapes=[shape], special=False
  )
  wrong = not (small.ok and large.ok)
  error = max(small.error, large.error)
  return {
    # A result of a wrong shape, or none, has no error of its own.
    "max_error": FAR if wrong and error <= small.tolerance else error,
    "tolerance": small.tolerance,
    "deterministic": numerics.deterministic(launch, args),
    "wrong": small.reason or large.reason,
  }


class Compiled(NamedTuple):
  """A program with what it is called with."""

  program: Any
  arguments: tuple[Any, ...]

  def call(self) -> Any:
    """Calls it once."""
    return self.program(*self.arguments)


def compile_step(
  kernel: str | None,
  sizes: workload.Sizes,
  dtype: str,
  constants: Mapping[str, int],
  tracing: Tracing = contextlib.nullcontext,
) -> Compiled:
  """Compiles the step of a kernel's operation, or that without one."""
  operation = workload.operation_of(kernel) if kernel else None
  step = workload.make_step(operation, sizes, dtype, constants)
  arguments = jax.device_put(step.arguments)
  with tracing():
    program = jax.jit(step.run).lower(*arguments).compile()
  return Compiled(program, arguments)


def time_alone(
  kernel: Kernel, args: tuple[Any, ...], launch: Launch, effort: Effort
) -> dict[str, list[float]]:
  """Times the launch and the reference on the same arguments, in turn.

  Returns:
    "kernel" and "reference" -> seconds of a call, of each round.
  """
  lowered = lower_alone(kernel, args, launch)
  programs = {name: one.compile() for name, one in lowered.items()}
  return time_programs(programs, args, effort)


def lower_alone(
  kernel: Kernel, args: tuple[Any, ...], launch: Launch
) -> dict[str, Any]:
  """Lowers "kernel" and "reference", each a program of REPEATS calls.

  Args:
    kernel: gives the reference.
    args: arrays, or their shapes.
    launch: calls the kernel.
  """
  tuples = [args] * REPEATS
  return {
    name: jax.jit(timing.each_of(function)).lower(*tuples)
    for name, function in (
      ("kernel", launch),
      ("reference", kernel.reference),
    )
  }


def time_programs(
  programs: Mapping[str, Any], args: tuple[Any, ...], effort: Effort
) -> dict[str, list[float]]:
  """Times programs of `lower_alone`, compiled, in turn.

  Returns:
    name -> seconds of one call of the function, of each round.
  """
  blocks = {
    name: timing.block(program, [args] * REPEATS, effort.calls)
    for name, program in programs.items()
  }
  seconds = timing.in_turn(blocks, effort.rounds)
  return {name: [s / REPEATS for s in own] for name, own in seconds.items()}


def _time_step(
  with_kernel: Compiled,
  kernel: Kernel,
  sizes: workload.Sizes,
  dtype: str,
  constants: Mapping[str, int],
  effort: Effort,
) -> dict[str, list[float]]:
  """Seconds of the step with the kernel, with the reference, and bare."""
  programs = {
    "kernel": with_kernel,
    "reference": compile_step(kernel.name, sizes, dtype, constants),
    "bare": compile_step(None, sizes, dtype, constants),
  }
  rounds, calls = max(effort.rounds, LEAST_PAIRS), effort.calls
  for attempt in range(effort.attempts):
    blocks = {
      name: timing.block(p.program, p.arguments, calls)
      for name, p in programs.items()
    }
    seconds = timing.in_turn(blocks, rounds)
    try:
      timing.share_ratios(
        seconds["reference"], seconds["kernel"], seconds["bare"]
      )
      return seconds
    except Noise:
      if attempt + 1 == effort.attempts:
        raise
      calls *= 4
  raise ValueError("effort.attempts must be at least 1")
