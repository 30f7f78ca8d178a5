"""Both gradients of a depthwise 3x3 convolution in one pass.

With p a pixel and t a tap, dx[p] = sum_t kernel[t] g[p - t] and
dkernel[t] = sum_p x[p] g[p - t]: both need the same nine neighbours in g. A
program walks over a run of pixels, so that eight of the nine are in the cache,
and keeps its share of dkernel in registers to the end.
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

# Eight to each multiprocessor of an H100, which was quickest: each does
# an equal share, and what they leave to sum up does not grow with the batch.
_PROGRAMS = 132 * 8


@jit
def _meet(from_g, inside, pixel, weight, dx, dweight):
  """Adds what one tap contributes to both gradients."""
  mask = inside[:, None]
  above = tl.load(from_g, mask=mask, other=0.0).to(tl.float32)
  # Selected, since NaN times nothing is NaN.
  dx = tl.where(mask, dx + weight[None, :] * above, dx)
  dweight = tl.where(mask, dweight + pixel * above, dweight)
  return dx, dweight


@jit
def _advance(row, column, rows, columns, height, width):
  """The place of pixels that lie further on, without a division."""
  column += columns
  over = column >= width
  column = tl.where(over, column - width, column)
  row += rows
  row = tl.where(over, row + 1, row)
  return tl.where(row >= height, row - height, row), column


@jit
def depthwise_backward(
  x,
  kernel,
  g,
  dx,
  parts,
  pixels,
  height,
  width,
  C: tl.constexpr,
  BM: tl.constexpr,
  BC: tl.constexpr,
):
  """Pixels of all images in a row; parts is [programs, 3, 3, 1, C]."""
  channel = tl.program_id(1) * BC + tl.arange(0, BC)
  w0 = tl.load(kernel + channel)
  w1 = tl.load(kernel + C + channel)
  w2 = tl.load(kernel + 2 * C + channel)
  w3 = tl.load(kernel + 3 * C + channel)
  w4 = tl.load(kernel + 4 * C + channel)
  w5 = tl.load(kernel + 5 * C + channel)
  w6 = tl.load(kernel + 6 * C + channel)
  w7 = tl.load(kernel + 7 * C + channel)
  w8 = tl.load(kernel + 8 * C + channel)
  d0 = tl.zeros([BM, BC], tl.float32)
  d1 = tl.zeros([BM, BC], tl.float32)
  d2 = tl.zeros([BM, BC], tl.float32)
  d3 = tl.zeros([BM, BC], tl.float32)
  d4 = tl.zeros([BM, BC], tl.float32)
  d5 = tl.zeros([BM, BC], tl.float32)
  d6 = tl.zeros([BM, BC], tl.float32)
  d7 = tl.zeros([BM, BC], tl.float32)
  d8 = tl.zeros([BM, BC], tl.float32)
  share = tl.cdiv(tl.cdiv(pixels, tl.num_programs(0)), BM) * BM
  first = tl.program_id(0) * share
  last = tl.minimum(first + share, pixels)
  line = width * C
  pixel = first + tl.arange(0, BM)
  row = (pixel // width) % height
  column = pixel % width
  rows = (BM // width) % height  # from one tile to the next
  columns = BM % width
  for start in range(first, last, BM):
    inside = start + tl.arange(0, BM) < last
    up = inside & (row > 0)
    down = inside & (row < height - 1)
    left = column > 0
    right = column < width - 1
    at = (start + tl.arange(0, BM))[:, None] * C + channel[None, :]
    xs = tl.load(x + at, mask=inside[:, None], other=0.0).to(tl.float32)
    out = tl.zeros([BM, BC], tl.float32)
    center = g + at
    above = center - line
    below = center + line
    # The tap at the upper left takes from below and to the right.
    out, d0 = _meet(below + C, down & right, xs, w0, out, d0)
    out, d1 = _meet(below, down, xs, w1, out, d1)
    out, d2 = _meet(below - C, down & left, xs, w2, out, d2)
    out, d3 = _meet(center + C, inside & right, xs, w3, out, d3)
    out, d4 = _meet(center, inside, xs, w4, out, d4)
    out, d5 = _meet(center - C, inside & left, xs, w5, out, d5)
    out, d6 = _meet(above + C, up & right, xs, w6, out, d6)
    out, d7 = _meet(above, up, xs, w7, out, d7)
    out, d8 = _meet(above - C, up & left, xs, w8, out, d8)
    tl.store(dx + at, out.to(dx.dtype.element_ty), mask=inside[:, None])
    row, column = _advance(row, column, rows, columns, height, width)
  # The reference's taps meet the padding too, and nothing times what is not
  # finite is NaN. The middle tap has met all of g and shows whether it matters.
  middle = tl.sum(tl.sum(d4, 1), 0)
  if middle * 0.0 != 0.0:
    row = (pixel // width) % height
    column = pixel % width
    for start in range(first, last, BM):
      inside = (start + tl.arange(0, BM) < last)[:, None]
      top = (row == 0)[:, None]
      bottom = (row == height - 1)[:, None]
      left = (column == 0)[:, None]
      right = (column == width - 1)[:, None]
      at = (start + tl.arange(0, BM))[:, None] * C + channel[None, :]
      above = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
      nothing = above * 0.0
      d0 += tl.where(top | left, nothing, 0.0)
      d1 += tl.where(top, nothing, 0.0)
      d2 += tl.where(top | right, nothing, 0.0)
      d3 += tl.where(left, nothing, 0.0)
      d5 += tl.where(right, nothing, 0.0)
      d6 += tl.where(bottom | left, nothing, 0.0)
      d7 += tl.where(bottom, nothing, 0.0)
      d8 += tl.where(bottom | right, nothing, 0.0)
      row, column = _advance(row, column, rows, columns, height, width)
  part = parts + tl.program_id(0) * 9 * C + channel
  tl.store(part, tl.sum(d0, 0))
  tl.store(part + C, tl.sum(d1, 0))
  tl.store(part + 2 * C, tl.sum(d2, 0))
  tl.store(part + 3 * C, tl.sum(d3, 0))
  tl.store(part + 4 * C, tl.sum(d4, 0))
  tl.store(part + 5 * C, tl.sum(d5, 0))
  tl.store(part + 6 * C, tl.sum(d6, 0))
  tl.store(part + 7 * C, tl.sum(d7, 0))
  tl.store(part + 8 * C, tl.sum(d8, 0))


def _form(x, kernel, g) -> Form:
  dtype = shared_dtype(x, g)
  if x.ndim != 4:
    raise Unsuitable(f"{x.ndim} axes are no image")
  channels = x.shape[-1]
  check_channels(channels)
  check_parameters({(3, 3, 1, channels): (kernel,)})
  types = "xfx" + "xf" + "iii"
  return make_form(depthwise_backward, dtype, types, {"C": channels})


def _tiles(form: Form) -> tuple[Tiles, ...]:
  channels = dict(form.constants)["C"]
  block = min(channels & -channels, 64)  # divides C: no channel is masked
  # Elements of a thread: more hide more of the memory's latency, and take
  # registers, twenty for each. On an H200 the first was the quickest.
  cuts = [(4, 4), (4, 2), (2, 4), (4, 8), (8, 4)]
  best = {128: (4, 2), 256: (2, 4), 512: (2, 4)}.get(channels, cuts[0])
  cuts = [best, *(cut for cut in cuts if cut != best)]
  return tuple(
    {
      "BC": block,
      "BM": each * 32 * warps // block,
      "num_warps": warps,
      "num_stages": 1,
    }
    for each, warps in cuts
  )


def _plan(args, tiles) -> Plan:
  x = args[0]
  batch, height, width, channels = x.shape
  pixels = batch * height * width
  blocks = channels // tiles["BC"]
  programs = min(-(-pixels // tiles["BM"]), -(-_PROGRAMS // blocks))
  outputs = (
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct((programs, 3, 3, 1, channels), jnp.float32),
  )
  return Plan((programs, blocks, 1), (pixels, height, width), outputs)


def _finish(outputs, args):
  del args
  dx, parts = outputs
  return dx, parts.sum(0)


def _arguments(dtype, constants, batch, height, width):
  channels = constants["C"]
  x = jax.ShapeDtypeStruct((batch, height, width, channels), jnp.dtype(dtype))
  kernel = jax.ShapeDtypeStruct((3, 3, 1, channels), jnp.float32)
  return x, kernel, x


def _cost(x, kernel, g) -> Cost:
  return Cost(bytes_of(x, g, x, kernel, kernel), 36 * x.size)


KERNEL = Kernel(
  name="depthwise_backward",
  source=depthwise_backward,
  form=_form,
  tiles=_tiles,
  plan=_plan,
  finish=_finish,
  reference=plain.depthwise_gradient,
  arguments=_arguments,
  shipped=tuple({"C": c} for c in (16, 32, 64, 128, 256, 512)),
  cost=_cost,
  tolerance={"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-9},
  note=(
    "Three passes over memory: x and g once, dx once. XLA sums each of the"
    " nine taps of dkernel by itself and takes two to three times as many"
    " bytes as a grouped convolution would."
  ),
)
