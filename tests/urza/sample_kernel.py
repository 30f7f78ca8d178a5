"""The smallest kernel that has everything: y = x * scale, row by row."""

import jax
import jax.numpy as jnp

from esper_jax.urza.kernel import TYPES, Cost, Form, Kernel, Plan, Unsuitable
from esper_jax.urza.language import jit, tl


@jit
def doubled(value):
  return value + value


@jit
def scale_rows(x, scale, y, rows, C: tl.constexpr, BM: tl.constexpr):
  row = tl.program_id(0) * BM + tl.arange(0, BM)
  column = tl.arange(0, C)
  at = row[:, None] * C + column[None, :]
  inside = (row < rows)[:, None]
  value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
  factor = tl.load(scale + column)[None, :]
  out = doubled(value * factor * 0.5)
  tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


def _reference(x, scale):
  y = x.astype(jnp.float32) * scale.reshape((1,) * (x.ndim - 1) + (-1,))
  return (y.astype(x.dtype),)


def _form(x, scale) -> Form:
  channels = x.shape[-1]
  if channels & (channels - 1) or scale.shape != (channels,):
    raise Unsuitable(f"{channels} channels are no power of two")
  if str(x.dtype) not in TYPES:
    raise Unsuitable(f"no kernel computes in {x.dtype}")
  pointer = f"*{TYPES[str(x.dtype)]}"
  signature = (
    ("x", pointer),
    ("scale", "*fp32"),
    ("y", pointer),
    ("rows", "i32"),
  )
  return Form(str(x.dtype), signature, (("C", channels),))


def _tiles(form):
  del form
  return (
    {"BM": 32, "num_warps": 4, "num_stages": 1},
    {"BM": 64, "num_warps": 4, "num_stages": 1},
  )


def _plan(args, tiles) -> Plan:
  x = args[0]
  rows = x.size // x.shape[-1]
  outputs = (jax.ShapeDtypeStruct(x.shape, x.dtype),)
  return Plan((-(-rows // tiles["BM"]), 1, 1), (rows,), outputs)


def _arguments(dtype, constants, batch, height, width):
  channels = constants["C"]
  shape = (batch, height, width, channels)
  return (
    jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
    jax.ShapeDtypeStruct((channels,), jnp.float32),
  )


def _cost(x, scale) -> Cost:
  size = 2 * x.size * x.dtype.itemsize + scale.size * 4
  return Cost(size, x.size)


KERNEL = Kernel(
  name="scale_rows",
  source=scale_rows,
  form=_form,
  tiles=_tiles,
  plan=_plan,
  finish=lambda outputs, args: outputs,
  reference=_reference,
  arguments=_arguments,
  shipped=({"C": 16}, {"C": 64}),
  cost=_cost,
  tolerance={"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-9},
  note="XLA does this as well; it is here to be small.",
)
