"""The gradients of LayerNorm and ReLU on vectors and tokens.

A row of channels fits in registers: x and g are read once, dx is written once.
"""

import jax
import jax.numpy as jnp

from esper_jax.urza.kernel import Cost, Form, Kernel, Plan, Tiles, Unsuitable
from esper_jax.urza.kernels import plain
from esper_jax.urza.kernels.suitable import (
  bytes_of,
  check_channels,
  check_parameters,
  make_form,
  shared_dtype,
)
from esper_jax.urza.language import jit, tl

# Programs that an H100 holds at once, eight to each multiprocessor.
_PROGRAMS = 132 * 8


@jit
def layer_norm_backward(
  x,
  scale,
  bias,
  g,
  dx,
  parts,
  rows,
  C: tl.constexpr,
  BM: tl.constexpr,
  BC: tl.constexpr,
):
  """Rows of channels; parts is [programs, 2, C]: of scale, of bias."""
  channel = tl.arange(0, BC)
  real = channel < C
  weight = tl.load(scale + channel, mask=real, other=0.0)[None, :]
  shift = tl.load(bias + channel, mask=real, other=0.0)[None, :]
  dweight = tl.zeros([BM, BC], tl.float32)
  dshift = tl.zeros([BM, BC], tl.float32)
  first = tl.program_id(0) * BM
  for start in range(first, rows, tl.num_programs(0) * BM):
    row = start + tl.arange(0, BM)
    inside = (row < rows)[:, None] & real[None, :]
    at = row[:, None] * C + channel[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    above = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(v, 1)[:, None] / C
    v = tl.where(inside, v - mean, 0.0)
    rate = 1.0 / tl.sqrt_rn(tl.sum(v * v, 1)[:, None] / C + 1e-5)
    z = v * rate
    y = (z * weight + shift).to(x.dtype.element_ty)
    above = tl.where(y.to(tl.float32) > 0, above, 0.0)
    dshift += above
    dweight += above * z
    dz = above * weight
    level = tl.sum(dz, 1)[:, None] / C
    tilt = tl.sum(dz * z, 1)[:, None] / C
    # One infinity in g leaves its whole row NaN, as in the reference.
    level += (level + tilt) * 0.0
    out = (dz - level - z * tilt) * rate
    tl.store(dx + at, out.to(dx.dtype.element_ty), mask=inside)
  part = parts + tl.program_id(0) * 2 * C + channel
  tl.store(part, tl.sum(dweight, 0), mask=real)
  tl.store(part + C, tl.sum(dshift, 0), mask=real)


def _form(x, scale, bias, g) -> Form:
  dtype = shared_dtype(x, g)
  if x.ndim == 4:
    raise Unsuitable("images are normalized in groups")
  channels = x.shape[-1]
  check_channels(channels)
  check_parameters({(channels,): (scale, bias)})
  types = "xffx" + "xf" + "i"
  return make_form(layer_norm_backward, dtype, types, {"C": channels})


def _tiles(form: Form) -> tuple[Tiles, ...]:
  channels = dict(form.constants)["C"]
  block = 1 << (channels - 1).bit_length()
  cuts = [(8, 4), (16, 4), (8, 2), (8, 8)]
  if channels > 128:
    cuts[:2] = reversed(cuts[:2])  # the quickest of seven on an H200
  return tuple(
    {
      "BC": block,
      "BM": max(1, each * 32 * warps // block),
      "num_warps": warps,
      "num_stages": 1,
    }
    for each, warps in cuts
  )


def _plan(args, tiles) -> Plan:
  x = args[0]
  rows = x.size // x.shape[-1]
  programs = min(-(-rows // tiles["BM"]), _PROGRAMS)
  outputs = (
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct((programs, 2, x.shape[-1]), jnp.float32),
  )
  return Plan((programs, 1, 1), (rows,), outputs)


def _finish(outputs, args):
  del args
  dx, parts = outputs
  dscale, dbias = parts.sum(0)
  return dx, dscale, dbias


def _arguments(dtype, constants, batch, height, width):
  channels = constants["C"]
  shape = (batch, height * width, channels)
  x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
  scale = jax.ShapeDtypeStruct((channels,), jnp.float32)
  return x, scale, scale, x


def _cost(x, scale, bias, g) -> Cost:
  parameters = bytes_of(scale, bias, scale, bias)
  return Cost(bytes_of(x, g, x) + parameters, 22 * x.size)


KERNEL = Kernel(
  name="layer_norm_backward",
  source=layer_norm_backward,
  form=_form,
  tiles=_tiles,
  plan=_plan,
  finish=_finish,
  reference=plain.normalize_relu_gradient,
  arguments=_arguments,
  shipped=tuple({"C": c} for c in (16, 32, 64, 128, 256, 512)),
  cost=_cost,
  tolerance={"float32": 5e-5, "bfloat16": 2**-7, "float16": 2**-9},
  note=(
    "Three passes over memory. tokamax measured such a kernel at about half of"
    " XLA's time for the backward pass (pull request 1071, on an A100)."
  ),
)
