"""From a jitted function to a program, for this backend or for counting.

The forge's threads lower too: `jax.config.update` holds there, what a context
manager says does not.
"""

import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax

from esper_jax.types import InputError, PyTree

Place = Callable[[str, tuple[Any, ...]], tuple[Any, ...]]
"""Takes a program's name and arguments; a sharding in place of each array."""


def abstract(tree: PyTree) -> PyTree:
  """The shapes and dtypes of a tree of arrays, or of such shapes."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape,
      x.dtype,
      weak_type=getattr(x, "weak_type", False),  # keys have none
    ),
    tree,
  )


def placed(name: str, args: tuple[Any, ...], place: Place | None) -> Any:
  """Shapes of a program's arguments that say where they lie.

  Args:
    name: of the program.
    args: arrays or their abstract shapes.
    place: None says nothing: they lie on the default device.
  """
  shapes = abstract(args)
  if place is None:
    return shapes
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, weak_type=x.weak_type, sharding=sharding
    ),
    shapes,
    place(name, shapes),
  )


def bringing(compiled: Callable[..., Any], shapes: Any) -> Callable[..., Any]:
  """A program that brings its arguments to where `shapes` says they lie."""
  where = jax.tree.map(lambda x: x.sharding, shapes)
  if not jax.tree.leaves(where):
    return compiled
  return lambda *args: compiled(*jax.device_put(args, where))


def program_key(name: str, args: Any) -> Hashable:
  """What tells one program of a run from another.

  Args:
    name: of the function.
    args: its arguments, arrays or their abstract shapes.
  """
  leaves, structure = jax.tree.flatten(args)
  return name, structure, tuple((x.shape, x.dtype) for x in leaves)


def compile_lowered(
  lowered: jax.stages.Lowered, options: Mapping[str, Any]
) -> jax.stages.Compiled:
  """Compiles a lowered program with these options of the compiler."""
  return lowered.compile(dict(options) or None)


def code_size(compiled: Any) -> int:
  """Bytes of machine code; 0 where the backend does not tell."""
  try:
    return int(compiled.memory_analysis().generated_code_size_in_bytes)
  except Exception:  # not every backend tells
    return 0


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
