"""What a network reads, held against what it is given."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.types import InputError, form

_IMAGES = "uint8"


def check_examples(
  examples: Any, dtype: str, shape: Sequence[int | str], *, context: int = 0
) -> jax.Array:
  """Checks raw examples before a network reads them.

  Args:
    examples: an array, or nested lists of numbers; under `jax.jit` a tracer.
    dtype: uint8 for images; float32, which takes other floats too; or int32,
      which takes other integers.
    shape: of one example; an axis that is a name may have any length. Images
      are [height, width, channels]; gray ones may come without channels.
    context: most tokens of an example; 0 where there is no such limit.

  Returns:
    dtype [batch, *shape]; gray images as they came.

  Raises:
    InputError: another dtype, another shape, or too many tokens.
  """
  if not hasattr(examples, "shape"):
    examples = np.asarray(examples)
  found, sizes = np.dtype(examples.dtype), tuple(examples.shape)
  wanted = f"{dtype} [{', '.join(map(str, ('batch', *shape)))}]"
  problem = _wrong_dtype(found, dtype) or _wrong_shape(sizes, dtype, shape)
  if context and not problem and sizes[1] > context:
    problem = f"give at most {context} tokens of each text"
  if problem:
    raise InputError(
      f"the network reads {wanted}, and was given {form(examples)}; {problem}"
    )
  return jnp.asarray(examples, dtype)


def _wrong_dtype(found: np.dtype, dtype: str) -> str:
  """What to do about a dtype; "" where it is right."""
  if dtype == _IMAGES:
    return (
      ""
      if found == dtype
      else (
        "give the bytes of the images, 0 to 255:"
        " np.round(255 * images).astype(np.uint8) where yours are 0 to 1"
      )
    )
  if jnp.issubdtype(np.dtype(dtype), np.floating):
    right = jnp.issubdtype(found, jnp.floating)
    return "" if right else "give floats, as in training"
  right = jnp.issubdtype(found, jnp.integer)
  return "" if right else "give integers, as in training"


def _wrong_shape(
  sizes: tuple[int, ...], dtype: str, shape: Sequence[int | str]
) -> str:
  """What to do about a shape; "" where it is right."""
  bare = shape[:-1] if dtype == _IMAGES and shape[-1] == 1 else None
  if _agree(sizes[1:], shape) or bare and _agree(sizes[1:], bare):
    return ""
  if _agree(sizes, shape) or bare and _agree(sizes, bare):
    return "of one example give a batch of one, x[None]"
  if dtype == _IMAGES and _agree(sizes[1:], shape[:-1]):
    return (
      f"the channels are missing, of gray images too: give {shape[-1]},"
      f" np.repeat(images[..., None], {shape[-1]}, axis=-1)"
    )
  if len(sizes) in (len(shape) + 1, len(bare or shape) + 1):
    return "give examples of the shape that it was trained on"
  return "give a batch of examples as in training"


def _agree(sizes: Sequence[int], shape: Sequence[int | str]) -> bool:
  return len(sizes) == len(shape) and all(
    isinstance(there, str) or size == there
    for size, there in zip(sizes, shape, strict=True)
  )
