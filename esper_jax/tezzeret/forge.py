"""The forge: compiled programs, kept by topology.

A program's key is its name and the tree structure, shapes and dtypes of its
arguments; the structure of the state is the topology. Programs are lowered
from abstract shapes and compiled when first asked for, on the calling thread.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from esper_jax.types import InputError

_FAST_COMPILATION: Mapping[str, Any] = {"xla_backend_optimization_level": 0}


class Program(NamedTuple):
  """A compiled program.

  Attributes:
    call: takes and returns what the function does; donated arguments are gone.
    flops: of one call, by the compiler's cost analysis.
  """

  call: Callable[..., Any]
  flops: float


class Forge:
  """Owns the compiled programs of a run.

  Attributes:
    compiles: number of programs compiled.
    traces: name -> number of times the function was traced.
    seconds: spent lowering and compiling.
  """

  def __init__(
    self,
    *,
    cost: Callable[[Any], float],
    on_compile: Callable[[str, float], None] = lambda name, seconds: None,
    options: Mapping[str, Any] | None = None,
  ):
    """Makes an empty forge.

    Args:
      cost: FLOPs of a program lowered for the CPU.
      on_compile: called with (name, seconds) after each compilation.
      options: of the compiler, for every program.
    """
    self.compiles = 0
    self.traces: dict[str, int] = {}
    self.seconds = 0.0
    self._cost = cost
    self._on_compile = on_compile
    self._jitted: dict[str, Any] = {}
    self._options = dict(options or {})
    self._options_of: dict[str, Mapping[str, Any]] = {}
    self._programs: dict[Any, Program] = {}

  def add(
    self,
    name: str,
    function: Callable[..., Any],
    *,
    donate: tuple[int, ...] = (),
    rare: bool = False,
  ) -> None:
    """Makes a pure function known; a name already known stays as it is.

    Args:
      name: of the function, for `program`.
      function: of arrays.
      donate: positions of arguments whose buffers the program may reuse.
      rare: whether a fast compilation matters more than a fast program. On
        CPU it then compiles about four times faster.
    """
    if name in self._jitted:
      return
    self.traces[name] = 0

    def counted(*args):
      self.traces[name] += 1
      return function(*args)

    counted.__name__ = name
    self._jitted[name] = jax.jit(counted, donate_argnums=donate)
    if rare and jax.default_backend() == "cpu":
      self._options_of[name] = _FAST_COMPILATION

  def program(self, name: str, *args: Any) -> Program:
    """The program for arguments of these shapes, compiled if it is new.

    Args:
      name: as given to `add`.
      *args: arrays or their abstract shapes; they are not used up.
    """
    leaves, structure = jax.tree.flatten(args)
    key = (name, structure, tuple((x.shape, x.dtype) for x in leaves))
    if key not in self._programs:
      start = time.monotonic()
      lowered = self._jitted[name].lower(*args)
      options = {**self._options, **self._options_of.get(name, {})}
      compiled = lowered.compile(options or None)
      if jax.default_backend() != "cpu":
        lowered = lower_on_cpu(self._jitted[name], *args)
      self._programs[key] = Program(compiled, self._cost(lowered))
      seconds = time.monotonic() - start
      self.compiles += 1
      self.seconds += seconds
      self._on_compile(name, seconds)
    return self._programs[key]


def lower_on_cpu(jitted: Any, *args: Any) -> jax.stages.Lowered:
  """Lower a jitted function for the CPU, whatever backend the run uses.

  Kernels that choose by platform become their jnp reference, so they count
  (a foreign call would not), and XLA offers cost analysis before compilation
  on the CPU alone. Nothing is compiled or executed, and a function that was
  already traced with arguments of these types is not traced again.

  Args:
    jitted: the result of `jax.jit`.
    *args: arrays, typed keys or `jax.ShapeDtypeStruct`s, or trees of them.

  Raises:
    InputError: JAX_PLATFORMS hides the CPU.
  """
  try:
    device = jax.devices("cpu")[0]
  except RuntimeError as error:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    raise InputError(
      f"JAX_PLATFORMS={platforms} hides the CPU, on which FLOPs are counted;"
      f" set it to {platforms},cpu or unset it"
    ) from error
  cpu = jax.sharding.SingleDeviceSharding(device)

  def abstract(leaf):
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=cpu, weak_type=leaf.weak_type
    )

  avals = jax.eval_shape(lambda *leaves: leaves, *args)
  return jitted.lower(*jax.tree.map(abstract, avals))
