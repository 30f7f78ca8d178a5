"""The gradient of a seed's output where it joins its slot.

The host's gradient is the one that comes in. XLA reads both arrays whatever
the seed's stage; here what is not needed is not read: the seed's output unless
it is isolated, and nothing at all while it is silent.
"""

import jax
import jax.numpy as jnp

from esper_jax.urza.kernel import Cost, Form, Kernel, Plan, Tiles, Unsuitable
from esper_jax.urza.kernels.suitable import (
  bytes_of,
  check_parameters,
  make_form,
  shared_dtype,
)
from esper_jax.urza.language import jit, tl

LANES = 16  # arrays are cut into rows of so many elements, whatever their shape


@jit
def blend_backward(
  r,
  g,
  alpha,
  isolation,
  proximal,
  dr,
  rows,
  batch,
  LANES: tl.constexpr,
  BM: tl.constexpr,
):
  """Rows of LANES elements."""
  weight = tl.load(alpha)
  isolated = tl.load(isolation) > 0
  pull = tl.load(proximal) / batch
  row = tl.program_id(0) * BM + tl.arange(0, BM)
  inside = (row < rows)[:, None]
  at = row[:, None] * LANES + tl.arange(0, LANES)[None, :]
  # What is not needed has no rows.
  felt = (row < tl.where(isolated | (weight != 0), rows, 0))[:, None]
  held = (row < tl.where(isolated, rows, 0))[:, None]
  above = tl.load(g + at, mask=felt, other=0.0).to(tl.float32)
  own = tl.load(r + at, mask=held, other=0.0).to(tl.float32)
  joined = tl.where(weight == 0, 0.0, weight * above)
  out = tl.where(isolated, above + pull * own, joined)
  tl.store(dr + at, out.to(dr.dtype.element_ty), mask=inside)


def _reference(r, g, alpha, isolation, proximal):
  pull = (proximal / r.shape[0]).astype(r.dtype) * r
  joined = jnp.where(alpha == 0, jnp.zeros_like(g), alpha.astype(g.dtype) * g)
  return (jnp.where(isolation > 0, g + pull, joined),)


def _form(r, g, alpha, isolation, proximal) -> Form:
  dtype = shared_dtype(r, g)
  check_parameters({(): (alpha, isolation, proximal)})
  if r.size % LANES:
    raise Unsuitable(f"the number of elements is no multiple of {LANES}")
  types = "xxfff" + "x" + "ii"
  return make_form(blend_backward, dtype, types, {"LANES": LANES})


def _tiles(form: Form) -> tuple[Tiles, ...]:
  del form
  return tuple(
    {"BM": rows, "num_warps": warps, "num_stages": 1}
    for rows, warps in ((128, 4), (64, 4), (256, 4), (256, 8))
  )


def _plan(args, tiles) -> Plan:
  r = args[0]
  rows = r.size // LANES
  programs = -(-rows // tiles["BM"])
  outputs = (jax.ShapeDtypeStruct(r.shape, r.dtype),)
  return Plan((programs, 1, 1), (rows, r.shape[0]), outputs)


def _arguments(dtype, constants, batch, height, width):
  r = jax.ShapeDtypeStruct(
    (batch, height, width, constants["LANES"]), jnp.dtype(dtype)
  )
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  return r, r, scalar, scalar, scalar


def _cost(r, g, alpha, isolation, proximal) -> Cost:
  del alpha, isolation, proximal
  # Of a seed that is blended, which is the most of a seed's life.
  return Cost(bytes_of(g, g), 3 * r.size)


KERNEL = Kernel(
  name="blend_backward",
  source=blend_backward,
  form=_form,
  tiles=_tiles,
  plan=_plan,
  finish=lambda outputs, args: outputs,
  reference=_reference,
  arguments=_arguments,
  shipped=({"LANES": LANES},),
  cost=_cost,
  tolerance={"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-9},
  note=(
    "Two passes over memory for a blended seed and one for a silent one, where"
    " XLA's selection takes three."
  ),
)
