"""Inputs for a kernel's checks, and the measure of how far two results are.

The same for every kernel: what an argument is drawn from follows from its name
in the Triton source, its shape and its dtype.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from esper_jax.urza.kernel import Kernel

FAR = 1e30
"""The error of a result that is not finite where it should be, or the other
way round; JSON has no infinity."""

# (alpha, isolation): blending, isolated, at full strength, silent, isolated
# after it has blended.
_STATES = ((0.3, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.3, 1.0))
# Drawn at the scale at which a matrix product keeps that of its input.
_WEIGHTS = ("down", "up", "kernel")
_SPECIAL = (np.nan, np.inf, -np.inf, 0.0, 1e-30)


def samples(
  kernel: Kernel,
  dtype: str,
  constants: Mapping[str, int],
  batch: int,
  height: int,
  width: int,
  seed: int = 0,
  *,
  special: bool = False,
) -> tuple[np.ndarray, ...]:
  """Draws the arguments of a call.

  Arrays are standard normals, weights scaled by their fan-in, `proximal` of
  either size never negative. `alpha` and `isolation` go through the states
  of a seed's life, starting with another one for each `seed`.

  Args:
    kernel: whose arguments.
    dtype: of the activations.
    constants: of the form.
    batch: number of examples.
    height: of each.
    width: of each.
    seed: equal seeds give equal arrays.
    special: also put NaN, both infinities, 0 and a tiny number among the
      activations, where there is room.

  Returns:
    Arrays as `kernel.arguments` describes them; bfloat16 ones have ml_dtypes'
    dtype.
  """
  shapes = kernel.arguments(dtype, constants, batch, height, width)
  names = kernel.source.parameters[: len(shapes)]
  draw = np.random.default_rng(seed)
  arrays = []
  for name, shape in zip(names, shapes, strict=True):
    values = _draw(draw, name, shape.shape, seed)
    if special and name not in _WEIGHTS and len(shape.shape) > 1:
      places = draw.permutation(values.size)[: len(_SPECIAL)]
      values.reshape(-1)[places] = _SPECIAL[: len(places)]
    arrays.append(np.asarray(values.astype(jnp.dtype(shape.dtype))))
  return tuple(arrays)


def _draw(
  draw: np.random.Generator, name: str, shape: tuple[int, ...], seed: int
) -> np.ndarray:
  if name in ("alpha", "isolation"):
    column = ("alpha", "isolation").index(name)
    count = math.prod(shape)
    states = [_STATES[(seed + i) % len(_STATES)] for i in range(count)]
    return np.array([s[column] for s in states], np.float32).reshape(shape)
  values = draw.standard_normal(shape)
  if name == "proximal":
    return np.abs(values)
  if name in _WEIGHTS:
    # A kernel is [height, width, in, out]; a factor of a seed [seed, in, out].
    fan_in = math.prod(shape[:-1]) if name == "kernel" else shape[-2]
    values = values / fan_in**0.5
  return np.asarray(values)


def distance(got: Sequence[Any], expected: Sequence[Any]) -> float:
  """Measures the largest error of an element, as a share of 1 + its size.

  Size is the element's own or, where that is more, the root mean square of its
  array: a sum of thousands that happens to end near zero has the error of the
  sums around it. NaN is equal to NaN, and infinity to the same infinity.

  Args:
    got: arrays, any dtype.
    expected: as many, of the same shapes.

  Returns:
    0 or more; FAR where one is not finite and the other is.

  Raises:
    ValueError: shapes or the numbers of arrays differ.
  """
  if len(got) != len(expected):
    raise ValueError(f"{len(got)} arrays, not {len(expected)}")
  return max(map(_distance, got, expected), default=0.0)


def _distance(got: Any, expected: Any) -> float:
  one = np.asarray(got).astype(np.float64)
  two = np.asarray(expected).astype(np.float64)
  if one.shape != two.shape:
    raise ValueError(f"shape {one.shape}, not {two.shape}")
  finite = np.isfinite(one) & np.isfinite(two)
  same = (one == two) | (np.isnan(one) & np.isnan(two))
  if not (finite | same).all():
    return FAR
  one, two = one[finite], two[finite]
  if not one.size:
    return 0.0
  size = np.maximum(np.abs(two), np.sqrt(np.mean(two * two)))
  return float(np.max(np.abs(one - two) / (1 + size)))
