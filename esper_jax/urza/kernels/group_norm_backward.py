"""The gradients of GroupNorm and ReLU on images.

A program takes some groups of an image at a time and passes over them three
times: for mean and variance, for the two sums that every gradient needs, and
for dx. Only the first pass comes from memory; what it read is small enough to
be in the cache for the others.
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

# Along the batch; a program that has more images than one goes through them.
_PROGRAMS = 1024


@jit
def _over_group(values, GROUP: tl.constexpr, BC: tl.constexpr):
  """The sum over its group, for each of BC channels."""
  grouped = tl.reshape(values, [BC // GROUP, GROUP])
  sums = tl.sum(grouped, 1)[:, None]
  return tl.reshape(tl.broadcast_to(sums, [BC // GROUP, GROUP]), [BC])


@jit
def group_norm_backward(
  x,
  scale,
  bias,
  g,
  dx,
  parts,
  images,
  pixels,
  C: tl.constexpr,
  GROUP: tl.constexpr,
  BM: tl.constexpr,
  BC: tl.constexpr,
):
  """Images of pixels; parts is [programs, 2, C]: of scale, of bias."""
  channel = tl.program_id(1) * BC + tl.arange(0, BC)
  row = tl.arange(0, BM)
  at = row[:, None] * C + channel[None, :]
  weight = tl.load(scale + channel)
  shift = tl.load(bias + channel)
  count = (pixels * GROUP).to(tl.float32)
  dweight = tl.zeros([BC], tl.float32)
  dshift = tl.zeros([BC], tl.float32)
  # How many pixels each row of the tile meets.
  met = tl.maximum(pixels - row + BM - 1, 0) // BM
  met = met.to(tl.float32)[:, None]
  for image in range(tl.program_id(0), images, tl.num_programs(0)):
    base = image * pixels * C
    # Welford's running mean, for each element of the tile by itself: a
    # variance from sums of squares would be lost where the mean is large.
    center = tl.zeros([BM, BC], tl.float32)
    spread = tl.zeros([BM, BC], tl.float32)
    seen = 0.0
    for start in range(0, pixels, BM):
      inside = (start + row < pixels)[:, None]
      from_x = x + base + start * C + at
      v = tl.load(from_x, mask=inside, other=0.0).to(tl.float32)
      seen += 1.0
      away = tl.where(inside, v - center, 0.0)
      center += away / seen
      spread += tl.where(inside, away * (v - center), 0.0)
    mean = _over_group(tl.sum(center * met, 0), GROUP, BC) / count
    away = center - mean[None, :]
    spread += tl.where(met > 0, met * away * away, 0.0)
    variance = _over_group(tl.sum(spread, 0), GROUP, BC) / count
    rate = 1.0 / tl.sqrt_rn(variance + 1e-5)
    slope = (rate * weight)[None, :]
    sums = tl.zeros([BM, BC], tl.float32)
    products = tl.zeros([BM, BC], tl.float32)
    for start in range(0, pixels, BM):
      inside = (start + row < pixels)[:, None]
      from_x = x + base + start * C + at
      from_g = g + base + start * C + at
      v = tl.load(from_x, mask=inside, other=0.0).to(tl.float32)
      above = tl.load(from_g, mask=inside, other=0.0).to(tl.float32)
      z = (v - mean[None, :]) * rate[None, :]
      y = (z * weight[None, :] + shift[None, :]).to(x.dtype.element_ty)
      above = tl.where(y.to(tl.float32) > 0, above, 0.0)
      sums += above
      products += tl.where(inside, above * z, 0.0)
    own_sums = tl.sum(sums, 0)
    own_products = tl.sum(products, 0)
    dshift += own_sums
    dweight += own_products
    level = _over_group(own_sums * weight, GROUP, BC) / count
    tilt = _over_group(own_products * weight, GROUP, BC) / count
    # One infinity in g leaves its whole group NaN, as in the reference.
    level += (level + tilt) * 0.0
    for start in range(0, pixels, BM):
      inside = (start + row < pixels)[:, None]
      from_x = x + base + start * C + at
      from_g = g + base + start * C + at
      v = tl.load(from_x, mask=inside, other=0.0).to(tl.float32)
      above = tl.load(from_g, mask=inside, other=0.0).to(tl.float32)
      z = (v - mean[None, :]) * rate[None, :]
      y = (z * weight[None, :] + shift[None, :]).to(x.dtype.element_ty)
      above = tl.where(y.to(tl.float32) > 0, above, 0.0)
      common = (level[None, :] + z * tilt[None, :]) * rate[None, :]
      to_dx = dx + base + start * C + at
      out = above * slope - common
      tl.store(to_dx, out.to(dx.dtype.element_ty), mask=inside)
  part = parts + tl.program_id(0) * 2 * C + channel
  tl.store(part, dweight)
  tl.store(part + C, dshift)


def _form(x, scale, bias, g) -> Form:
  dtype = shared_dtype(x, g)
  if x.ndim != 4:
    raise Unsuitable(f"{x.ndim} axes are no image")
  channels = x.shape[-1]
  check_channels(channels, power_of_two=True)
  check_parameters({(channels,): (scale, bias)})
  constants = {"C": channels, "GROUP": channels // plain.groups_of(channels)}
  types = "xffx" + "xf" + "ii"
  return make_form(group_norm_backward, dtype, types, constants)


def _tiles(form: Form) -> tuple[Tiles, ...]:
  constants = dict(form.constants)
  channels, group = constants["C"], constants["GROUP"]
  # Where there are few channels there usually are many pixels.
  warps = 8 if channels <= 128 else 4
  cuts = [(32, 8, warps), (64, 16, 4), (64, 8, warps), (32, 16, warps)]
  if 64 <= channels <= 256:
    cuts[:2] = reversed(cuts[:2])  # the quickest of ten on an H200
  found = []
  for width, each, count in cuts:
    block = min(max(width, group), channels)
    tiles = {
      "BC": block,
      "BM": each * 32 * count // block,
      "num_warps": count,
      "num_stages": 1,
    }
    if tiles not in found:
      found.append(tiles)
  return tuple(found)


def _plan(args, tiles) -> Plan:
  x = args[0]
  batch, height, width, channels = x.shape
  programs = min(batch, _PROGRAMS)
  outputs = (
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct((programs, 2, channels), jnp.float32),
  )
  grid = (programs, channels // tiles["BC"], 1)
  return Plan(grid, (batch, height * width), outputs)


def _finish(outputs, args):
  del args
  dx, parts = outputs
  dscale, dbias = parts.sum(0)
  return dx, dscale, dbias


def _arguments(dtype, constants, batch, height, width):
  channels = constants["C"]
  x = jax.ShapeDtypeStruct((batch, height, width, channels), jnp.dtype(dtype))
  scale = jax.ShapeDtypeStruct((channels,), jnp.float32)
  return x, scale, scale, x


def _cost(x, scale, bias, g) -> Cost:
  parameters = bytes_of(scale, bias, scale, bias)
  return Cost(bytes_of(x, g, x) + parameters, 24 * x.size)


KERNEL = Kernel(
  name="group_norm_backward",
  source=group_norm_backward,
  form=_form,
  tiles=_tiles,
  plan=_plan,
  finish=_finish,
  reference=plain.normalize_relu_gradient,
  arguments=_arguments,
  shipped=tuple(
    {"C": c, "GROUP": c // plain.groups_of(c)}
    for c in (16, 32, 64, 128, 256, 512)
  ),
  cost=_cost,
  tolerance={"float32": 5e-5, "bfloat16": 2**-7, "float16": 2**-9},
  note=(
    "Three passes over memory, two of x's size in and one out, where XLA takes"
    " about eight: its reductions over an image and over a batch are kernels"
    " of their own."
  ),
)
