"""A depthwise 3x3 convolution in one pass, and the operation with its gradient.

XLA makes several passes of the sum of shifted copies: on an H200 (64 channels,
32x32, bfloat16, batch 512) it took 198 us, this kernel 72, a copy of the
activations 37.
"""

import jax
import jax.numpy as jnp

from esper_jax.urza import dispatch
from esper_jax.urza.kernel import Cost, Form, Kernel, Plan, Tiles, Unsuitable
from esper_jax.urza.kernels import depthwise_backward, plain
from esper_jax.urza.kernels.suitable import (
  bytes_of,
  check_channels,
  check_parameters,
  make_form,
  shared_dtype,
)
from esper_jax.urza.language import jit, tl


@jit
def _add(total, weight, from_x, inside):
  """Adds what one tap sees. Padding is met too: nothing times NaN is NaN."""
  seen = tl.load(from_x, mask=inside[:, None], other=0.0).to(tl.float32)
  return total + weight[None, :] * seen


@jit
def depthwise_forward(
  x,
  kernel,
  y,
  pixels,
  height,
  width,
  C: tl.constexpr,
  BM: tl.constexpr,
  BC: tl.constexpr,
):
  """BM pixels of all images in a row; the cache has what others read too."""
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
  pixel = tl.program_id(0) * BM + tl.arange(0, BM)
  row = (pixel // width) % height
  column = pixel % width
  inside = pixel < pixels
  up = inside & (row > 0)
  down = inside & (row < height - 1)
  left = column > 0
  right = column < width - 1
  line = width * C
  at = pixel[:, None] * C + channel[None, :]
  center = x + at
  above = center - line
  below = center + line
  total = tl.zeros([BM, BC], tl.float32)
  total = _add(total, w0, above - C, up & left)
  total = _add(total, w1, above, up)
  total = _add(total, w2, above + C, up & right)
  total = _add(total, w3, center - C, inside & left)
  total = _add(total, w4, center, inside)
  total = _add(total, w5, center + C, inside & right)
  total = _add(total, w6, below - C, down & left)
  total = _add(total, w7, below, down)
  total = _add(total, w8, below + C, down & right)
  tl.store(y + at, total.to(y.dtype.element_ty), mask=inside[:, None])


def _form(x, kernel) -> Form:
  dtype = shared_dtype(x)
  if x.ndim != 4:
    raise Unsuitable(f"{x.ndim} axes are no image")
  channels = x.shape[-1]
  check_channels(channels)
  check_parameters({(3, 3, 1, channels): (kernel,)})
  return make_form(depthwise_forward, dtype, "xfx" + "iii", {"C": channels})


def _tiles(form: Form) -> tuple[Tiles, ...]:
  channels = dict(form.constants)["C"]
  block = min(channels & -channels, 64)  # divides C: no channel is masked
  # On an H200 the first was the quickest of six.
  cuts = [(16, 8), (16, 4)] if channels == 512 else [(16, 4), (16, 8)]
  return tuple(
    {
      "BC": block,
      "BM": each * 32 * warps // block,
      "num_warps": warps,
      "num_stages": 1,
    }
    for each, warps in (*cuts, (8, 4), (4, 4), (8, 8), (8, 2))
  )


def _plan(args, tiles) -> Plan:
  x = args[0]
  batch, height, width, channels = x.shape
  pixels = batch * height * width
  grid = (-(-pixels // tiles["BM"]), channels // tiles["BC"], 1)
  outputs = (jax.ShapeDtypeStruct(x.shape, x.dtype),)
  return Plan(grid, (pixels, height, width), outputs)


def _finish(outputs, args):
  del args
  return outputs


def _reference(x, kernel):
  return (plain.depthwise(x, kernel),)


def _arguments(dtype, constants, batch, height, width):
  channels = constants["C"]
  x = jax.ShapeDtypeStruct((batch, height, width, channels), jnp.dtype(dtype))
  return x, jax.ShapeDtypeStruct((3, 3, 1, channels), jnp.float32)


def _cost(x, kernel) -> Cost:
  return Cost(bytes_of(x, kernel, x), 18 * x.size)


KERNEL = Kernel(
  name="depthwise_forward",
  source=depthwise_forward,
  form=_form,
  tiles=_tiles,
  plan=_plan,
  finish=_finish,
  reference=_reference,
  arguments=_arguments,
  shipped=tuple({"C": c} for c in (16, 32, 64, 128, 256, 512)),
  cost=_cost,
  tolerance={"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-9},
  note=(
    "Two passes over memory, x in and y out: eight of the nine neighbours are"
    " in the cache."
  ),
)


def depthwise3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves each channel with a 3x3 kernel of its own, at stride 1.

  Args:
    x: [batch, height, width, channels].
    kernel: float32 [3, 3, 1, channels]; cast to x.dtype.

  Returns:
    As x.
  """
  if dispatch.serves(KERNEL, x, kernel) or dispatch.serves(
    depthwise_backward.KERNEL, x, kernel, x
  ):
    return _depthwise3x3(x, kernel)
  return plain.depthwise(x, kernel)


@jax.custom_vjp
def _depthwise3x3(x, kernel):
  (y,) = dispatch.call(KERNEL, x, kernel)
  return y


def _op_forward(x, kernel):
  return _depthwise3x3(x, kernel), (x, kernel)


def _op_backward(residuals, g):
  return dispatch.call(depthwise_backward.KERNEL, *residuals, g)


_depthwise3x3.defvjp(_op_forward, _op_backward)
