"""How long programs take beside each other, and how much memory they want.

A program is timed in blocks of calls that end when the device is done, and
programs that are compared take turns, in an order that changes from round to
round: a device that warms up or is shared slows all of them alike. Figures are
paired by round.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Block = Callable[[], float]
"""Runs a program some times; returns the seconds of one call."""


class Noise(Exception):
  """The times do not tell the programs apart; the text says why."""


def block(
  program: Callable[..., Any], arguments: Sequence[Any], calls: int
) -> Block:
  """Makes a block of calls.

  Args:
    program: compiled, so that no call traces; gives up none of its arguments.
    arguments: on the device.
    calls: per block, at least 1.
  """

  def run() -> float:
    start = time.perf_counter()
    out = None
    for _ in range(calls):
      out = program(*arguments)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls

  return run


def each_of(
  function: Callable[..., tuple[Any, ...]],
) -> Callable[..., list[tuple[Any, ...]]]:
  """A function that calls another with each of several tuples of arguments.

  As one program, called with the same tuple several times, it tells how long a
  quick function takes on a GPU: a call of a program costs the host tens of
  microseconds. The compiler does not know that the tuples are the same.

  Args:
    function: to be called.

  Returns:
    What returns all results, so that no call is dropped.
  """
  return lambda *tuples: [function(*arguments) for arguments in tuples]


def in_turn(blocks: Mapping[str, Block], rounds: int) -> dict[str, list[float]]:
  """Runs each block once to warm up, then once a round, in changing order.

  Args:
    blocks: name -> block.
    rounds: at least 1.

  Returns:
    name -> seconds of a call, of each round.
  """
  for run in blocks.values():
    run()
  seconds: dict[str, list[float]] = {name: [] for name in blocks}
  for n in range(rounds):
    names, first = list(blocks), n // 2 % len(blocks)
    names = names[first:] + names[:first]
    for name in reversed(names) if n % 2 else names:
      seconds[name].append(blocks[name]())
  return seconds


def share_ratios(
  reference: Sequence[float], kernel: Sequence[float], bare: Sequence[float]
) -> list[float]:
  """Times of an operation inside a step: its reference's over its kernel's.

  What an operation takes inside a step is the step's time less that of the
  same step without it.

  Args:
    reference, kernel, bare: seconds of the three steps, paired by round.

  Returns:
    One ratio for each round.

  Raises:
    Noise: in some round a step without the operation took as long as with it.
  """
  ratios = []
  for own, other, none in zip(reference, kernel, bare, strict=True):
    if min(own, other) <= none:
      raise Noise(
        "a step without the operation took as long as one with it"
        f" ({1e3 * none:.3f} ms; {1e3 * own:.3f} ms with the reference,"
        f" {1e3 * other:.3f} ms with the kernel)"
      )
    ratios.append((own - none) / (other - none))
  return ratios


def copy_bandwidth(
  size: int = 2**28, *, rounds: int = 5, calls: int = 20
) -> float:
  """Measures how fast the device copies an array, in bytes per second.

  Args:
    size: bytes of the array; each is read once and written once. It should be
      several times the device's caches.
    rounds: the median is taken of these.
    calls: per round.
  """
  x = jax.device_put(np.zeros(max(size // 4, 1), np.float32))
  # A program that returned its argument would return the same buffer.
  program = jax.jit(lambda x: x + jnp.float32(1)).lower(x).compile()
  seconds = in_turn({"copy": block(program, (x,), calls)}, rounds)["copy"]
  return 2 * x.nbytes / float(np.median(seconds))


def peak_bytes(device: Any, program: Any) -> int:
  """Device memory that a program wants, arguments and results included.

  Where the device counts, it is the most that this process has held so far: to
  be asked after the program has run, before anything larger has. Elsewhere it
  is what the compiler planned.

  Args:
    device: `jax.Device` that it runs on.
    program: compiled.
  """
  stats = device.memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return int(stats["peak_bytes_in_use"])
  plan = program.memory_analysis()
  return int(
    plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    + plan.temp_size_in_bytes
    - plan.alias_size_in_bytes
  )
