"""Which arguments kernels take, and how their forms are written."""

from collections.abc import Mapping
from typing import Any

from esper_jax.urza.kernel import TYPES, Form, Unsuitable
from esper_jax.urza.language import Source

MAX_CHANNELS = 512
_MULTIPLE = 16  # so that each row starts at a multiple of 16 bytes


def shared_dtype(*activations: Any) -> str:
  """The dtype that activations share.

  Raises:
    Unsuitable: they differ in it or in shape, it is one that kernels do not
      know, or they are empty.
  """
  first, *others = activations
  for other in others:
    if (other.shape, other.dtype) != (first.shape, first.dtype):
      raise Unsuitable("activations differ in shape or dtype")
  if str(first.dtype) not in TYPES:
    raise Unsuitable(f"no kernel computes in {first.dtype}")
  if first.size == 0:
    raise Unsuitable("the activations are empty")
  return str(first.dtype)


def check_parameters(shapes: Mapping[tuple[int, ...], tuple[Any, ...]]) -> None:
  """Checks the float32 arguments, by the shape they must have.

  Raises:
    Unsuitable: one has another shape or dtype.
  """
  for shape, arrays in shapes.items():
    for array in arrays:
      if array.shape != shape or str(array.dtype) != "float32":
        raise Unsuitable(
          f"a parameter is {array.dtype} {list(array.shape)}, not float32"
          f" {list(shape)}"
        )


def check_channels(channels: int, *, power_of_two: bool = False) -> None:
  """Checks the length of the last axis.

  Raises:
    Unsuitable: it is no multiple of 16 or above MAX_CHANNELS; or, where that
      is asked for, no power of two.
  """
  if channels % _MULTIPLE or not 0 < channels <= MAX_CHANNELS:
    raise Unsuitable(
      f"{channels} channels; kernels take multiples of {_MULTIPLE} up to"
      f" {MAX_CHANNELS}"
    )
  if power_of_two and channels & (channels - 1):
    raise Unsuitable(f"{channels} channels are no power of two")


def make_form(
  source: Source, dtype: str, types: str, constants: Mapping[str, int]
) -> Form:
  """Writes a form.

  Args:
    source: whose parameters the types belong to.
    dtype: of the activations.
    types: a letter for each pointer and scalar, in order: "x" points to
      activations, "f" to float32, "i" is an i32.
    constants: name -> value.
  """
  written = {"x": f"*{TYPES[dtype]}", "f": "*fp32", "i": "i32"}
  names = source.parameters[: len(types)]
  signature = tuple(
    (name, written[letter]) for name, letter in zip(names, types, strict=True)
  )
  return Form(dtype, signature, tuple(sorted(constants.items())))


def bytes_of(*arrays: Any) -> int:
  """How much memory arrays take."""
  return sum(array.size * array.dtype.itemsize for array in arrays)
