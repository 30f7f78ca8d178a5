"""What the three low-rank kernels share: their arguments and their tiles.

A low-rank seed s of a slot adds alpha_s r_s, r_s = (x @ down_s) @ up_s. All
seeds of a slot go through one kernel, which reads x once for all of them.
Ranks are padded to a power of two, 16 or more, as a matrix unit wants.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from esper_jax.urza.kernel import TYPES, Unsuitable
from esper_jax.urza.language import jit, tl

MAX_CHANNELS = 512
MAX_RANK = 64
MAX_SEEDS = 4
_MAX_ELEMENTS = 2**31  # offsets are int32

_Choice = TypeVar("_Choice")

SHIPPED = tuple(
  {"C": c, "R": max(2, c // 8), "S": s}
  for c, s in (
    *((c, 1) for c in (16, 32, 64, 128, 256, 512)),
    *((c, MAX_SEEDS) for c in (16, 32, 64, 128)),
  )
)

# Shares of 1 + size. float32: sums of at most 512 products in another order.
# bfloat16, of which an ulp is 2**-7 at 1: the result, the ranks between the
# two products and the weights are each rounded once, half an ulp at most.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-6}


@jit
def load_factor(
  pointer,
  seed,
  channel,
  rank,
  wanted,
  C: tl.constexpr,
  R: tl.constexpr,
  RANKS_LAST: tl.constexpr,
):
  """A tile [channels, ranks] of a factor; zeros beyond its channels.

  The factor is stored [S, C, R] if RANKS_LAST, else [S, R, C]. Column i is
  rank[i] of seed[i], or zeros unless wanted[i].
  """
  if RANKS_LAST:
    offset = (seed[None, :] * C + channel[:, None]) * R + rank[None, :]
  else:
    offset = (seed[None, :] * R + rank[None, :]) * C + channel[:, None]
  known = (channel < C)[:, None] & wanted[None, :]
  return tl.load(pointer + offset, mask=known, other=0.0)


@jit
def is_live(alpha, isolation):
  """Whether a seed's output reaches the host."""
  return (alpha != 0.0) & (isolation == 0.0)


def slot_constants(
  x: Any, down: Any, up: Any, scalars: tuple[Any, ...]
) -> tuple[tuple[str, int], ...]:
  """The constants of a form, after checking what they are made from.

  Args:
    x: [..., C].
    down: float32 [S, C, R].
    up: float32 [S, R, C].
    scalars: float32 [S] each.

  Raises:
    Unsuitable: a kernel for these arguments does not exist.
  """
  if str(x.dtype) not in TOLERANCE:
    raise Unsuitable(f"dtype {x.dtype}")
  if {str(a.dtype) for a in (down, up, *scalars)} != {"float32"}:
    raise Unsuitable("parameters that are not float32")
  seeds, channels, rank = down.shape
  if up.shape != (seeds, rank, channels) or x.shape[-1] != channels:
    raise Unsuitable(f"shapes {x.shape}, {down.shape} and {up.shape}")
  if any(a.shape != (seeds,) for a in scalars):
    raise Unsuitable("not one scalar a seed")
  if not 0 < channels <= MAX_CHANNELS:
    raise Unsuitable(f"{channels} channels")
  if not 0 < rank <= MAX_RANK:
    raise Unsuitable(f"rank {rank}")
  if not 0 < seeds <= MAX_SEEDS:
    raise Unsuitable(f"{seeds} seeds")
  if not 0 < math.prod(x.shape) < _MAX_ELEMENTS:
    raise Unsuitable(f"{math.prod(x.shape)} elements")
  return (("C", channels), ("R", rank), ("S", seeds))


def pointer_of(x: Any) -> str:
  """Triton's type of a pointer to the elements of x."""
  return "*" + TYPES[str(x.dtype)]


def rows_of(x: Any) -> int:
  """How many vectors of channels x has."""
  return math.prod(x.shape[:-1])


def padded(size: int, least: int = 16) -> int:
  """The power of two, `least` or more, that holds a size."""
  return max(least, 1 << (size - 1).bit_length())


def slot_shapes(
  dtype: str,
  constants: Mapping[str, int],
  batch: int,
  height: int,
  width: int,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of everything a kernel may take, by name."""
  c, r, s = (constants[name] for name in "CRS")
  image = jax.ShapeDtypeStruct((batch, height, width, c), jnp.dtype(dtype))
  scalar = jax.ShapeDtypeStruct((s,), jnp.float32)
  return {
    "x": image,
    "g": image,
    "down": jax.ShapeDtypeStruct((s, c, r), jnp.float32),
    "up": jax.ShapeDtypeStruct((s, r, c), jnp.float32),
    "alpha": scalar,
    "isolation": scalar,
    "proximal": scalar,
  }


def size_in_bytes(*arrays: Any) -> int:
  """Of all arrays together."""
  return sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays)


def contribution(x: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
  """(x @ down) @ up in the dtype of x, for one seed.

  Args:
    x: [..., C].
    down: float [C, R].
    up: float [R, C].
  """
  return (x @ down.astype(x.dtype)) @ up.astype(x.dtype)


def first(
  quickest: Mapping[tuple[int, int], _Choice],
  constants: Mapping[str, int],
  others: Sequence[_Choice],
) -> list[_Choice]:
  """Ways to cut the work: the quickest, if it is known, and the others.

  Args:
    quickest: (channels, seeds) -> a way, for constants that are shipped.
    constants: of the form.
    others: in order.
  """
  known = quickest.get((constants["C"], constants["S"]))
  if known is None or dict(constants) not in SHIPPED:
    return list(others)
  return [known, *(way for way in others if way != known)]
