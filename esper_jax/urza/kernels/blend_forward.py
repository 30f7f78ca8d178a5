"""A seed's output joins its slot, and is looked at in the same pass.

XLA adds and selects in one pass over memory, but reads the seed's output once
or twice more for its health. Here the health comes from what is in registers.
"""

import jax
import jax.numpy as jnp

from esper_jax.urza import dispatch
from esper_jax.urza.kernel import Cost, Form, Kernel, Plan, Tiles, Unsuitable
from esper_jax.urza.kernels import blend_backward
from esper_jax.urza.kernels.suitable import (
  bytes_of,
  check_parameters,
  make_form,
  shared_dtype,
)
from esper_jax.urza.language import jit, tl

NEAR_ZERO = 1e-6  # health counts what is smaller
_LANES = blend_backward.LANES
# Enough for each multiprocessor of an H100 to hold eight.
_PROGRAMS = 132 * 8


@jit
def blend_forward(
  x,
  r,
  alpha,
  isolation,
  y,
  health,
  rows,
  LANES: tl.constexpr,
  BM: tl.constexpr,
):
  """Rows of LANES elements; health is [programs, 4]."""
  lane = tl.arange(0, LANES)
  weight = tl.load(alpha)
  off = (tl.load(isolation) > 0) | (weight == 0)
  total = tl.zeros([BM, LANES], tl.float32)
  squares = tl.zeros([BM, LANES], tl.float32)
  largest = tl.zeros([BM, LANES], tl.float32)
  small = tl.zeros([BM, LANES], tl.float32)
  first = tl.program_id(0) * BM
  for start in range(first, rows, tl.num_programs(0) * BM):
    row = start + tl.arange(0, BM)
    inside = (row < rows)[:, None]
    at = row[:, None] * LANES + lane[None, :]
    host = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    own = tl.load(r + at, mask=inside, other=0.0).to(tl.float32)
    # Selected, not multiplied by zero: NaN of a silent seed stays in it.
    joined = tl.where(off, host, host + weight * own)
    tl.store(y + at, joined.to(y.dtype.element_ty), mask=inside)
    size = tl.abs(own)
    total += own
    squares += own * own
    largest = tl.maximum(largest, size)
    small += tl.where(inside & (size < 1e-6), 1.0, 0.0)
  parts = health + tl.program_id(0) * 4
  tl.store(parts, tl.sum(tl.sum(total, 1), 0))
  tl.store(parts + 1, tl.sum(tl.sum(squares, 1), 0))
  tl.store(parts + 2, tl.max(tl.max(largest, 1), 0))
  tl.store(parts + 3, tl.sum(tl.sum(small, 1), 0))


def _reference(x, r, alpha, isolation):
  off = (isolation > 0) | (alpha == 0)
  y = jnp.where(off, x, x + alpha.astype(r.dtype) * r)
  own = r.astype(jnp.float32)
  size = jnp.abs(own)
  small = (size < NEAR_ZERO).sum(dtype=jnp.float32)
  return y, jnp.stack([own.sum(), (own * own).sum(), size.max(), small])


def _form(x, r, alpha, isolation) -> Form:
  dtype = shared_dtype(x, r)
  check_parameters({(): (alpha, isolation)})
  if x.size % _LANES:
    raise Unsuitable(f"the number of elements is no multiple of {_LANES}")
  return make_form(blend_forward, dtype, "xxff" + "xf" + "i", {"LANES": _LANES})


def _tiles(form: Form) -> tuple[Tiles, ...]:
  del form
  return tuple(
    {"BM": rows, "num_warps": warps, "num_stages": 1}
    for rows, warps in ((64, 4), (128, 4), (128, 8), (32, 4))
  )


def _plan(args, tiles) -> Plan:
  x = args[0]
  rows = x.size // _LANES
  programs = min(-(-rows // tiles["BM"]), _PROGRAMS)
  outputs = (
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct((programs, 4), jnp.float32),
  )
  return Plan((programs, 1, 1), (rows,), outputs)


def _finish(outputs, args):
  del args
  y, parts = outputs
  total, squares, _, small = parts.sum(0)
  # A maximum on a GPU passes over NaN; a sum of squares does not.
  largest = jnp.where(jnp.isnan(squares), squares, parts[:, 2].max())
  return y, jnp.stack([total, squares, largest, small])


def _arguments(dtype, constants, batch, height, width):
  x = jax.ShapeDtypeStruct(
    (batch, height, width, constants["LANES"]), jnp.dtype(dtype)
  )
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  return x, x, scalar, scalar


def _cost(x, r, alpha, isolation) -> Cost:
  del alpha, isolation
  return Cost(bytes_of(x, r, x), 8 * x.size)


KERNEL = Kernel(
  name="blend_forward",
  source=blend_forward,
  form=_form,
  tiles=_tiles,
  plan=_plan,
  finish=_finish,
  reference=_reference,
  arguments=_arguments,
  shipped=({"LANES": _LANES},),
  cost=_cost,
  tolerance={"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-9},
  note=(
    "Reads the host's and the seed's activations once and writes their blend;"
    " sum, sum of squares, maximum and near-zeros of the seed's output cost no"
    " further pass over memory."
  ),
)


@jax.custom_vjp
def blend_with_health(
  x: jax.Array,
  r: jax.Array,
  alpha: jax.Array,
  isolation: jax.Array,
  proximal: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Adds a seed's output r to x, x + alpha r, and measures r.

  While isolated the value is exactly x, and r receives the cotangent of x
  (straight-through) plus proximal * r / batch, the gradient of a quadratic
  that keeps r bounded: the straight-through loss alone is linear in r.
  Silence (alpha = 0) and isolation are selections, so NaN in r stays in r.

  Args:
    x: [batch, ...].
    r: as x.
    alpha: float32 [].
    isolation: float32 [], 0 or 1.
    proximal: float32 [].

  Returns:
    (as x, health float32 [4]: sum, sum of squares and largest size of r, and
    how many of its elements are smaller than NEAR_ZERO). The health has no
    gradient.
  """
  del proximal
  y, health = dispatch.call(KERNEL, x, r, alpha, isolation)
  return y, health


def _op_forward(x, r, alpha, isolation, proximal):
  out = blend_with_health(x, r, alpha, isolation, proximal)
  return out, (r, alpha, isolation, proximal)


def _op_backward(residuals, cotangents):
  r, alpha, isolation, proximal = residuals
  g = cotangents[0]
  (own,) = dispatch.call(
    blend_backward.KERNEL, r, g, alpha, isolation, proximal
  )
  return g, own, None, None, None


blend_with_health.defvjp(_op_forward, _op_backward)
