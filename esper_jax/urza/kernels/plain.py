"""What the kernels with a backward pass differentiate, in jax.numpy.

These are the forward passes of a seed's layers, with and without kernels, and
what the kernels' gradients are checked against. Each computes in the dtype of
x from float32 parameters.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5  # added to a variance
_MAX_GROUPS = 8
_GROUP_CHANNELS = 4  # a group of fewer says little about scale


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """Convolves each channel with a kernel of its own: a sum of shifted copies.

  On XLA:CPU a grouped convolution takes 4 to 15 times longer, gradients
  included; on an H200 the sum takes XLA 2.6 times as long as a kernel.

  Args:
    x: [batch, height, width, channels], any float dtype.
    kernel: [kernel height, kernel width, 1, channels]; cast to x.dtype.
    stride: step between outputs, in pixels, along both axes.

  Returns:
    [batch, ceil(height / stride), ceil(width / stride), channels], as x.
  """
  height, width, _, channels = kernel.shape
  rows = kernel.astype(x.dtype).reshape(height * width, 1, 1, 1, channels)
  first, *others = taps(x, height, width, stride)
  y = first * rows[0]
  for tap, row in zip(others, rows[1:], strict=True):
    y = y + tap * row
  return y


def depthwise_gradient(
  x: jax.Array, kernel: jax.Array, g: jax.Array
) -> tuple[jax.Array, ...]:
  """The gradients of `depthwise` at stride 1: (of x, of kernel)."""
  return jax.vjp(depthwise, x, kernel)[1](g)


def taps(x: jax.Array, height: int, width: int, stride: int) -> list[jax.Array]:
  """What each tap of a "SAME" kernel sees, row by row of the kernel."""
  size = x.shape[1:3]
  pads = lax.padtype_to_pads(size, (height, width), (stride, stride), "SAME")
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  rows, columns = (-(-n // stride) for n in size)
  return [
    padded[
      :,
      i : i + (rows - 1) * stride + 1 : stride,
      j : j + (columns - 1) * stride + 1 : stride,
    ]
    for i, j in itertools.product(range(height), range(width))
  ]


def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """Normalises each example, then scales and shifts each channel.

  Images: GroupNorm (Wu and He, 2018, arXiv:1803.08494) with at most 8 groups
  of at least 4 channels. Vectors and tokens: LayerNorm over the channels.
  Statistics are float32. Means are taken over space first and over the
  group's channels second, which is 1.6 to 5 times faster on XLA:CPU than one
  reduction over both.

  Args:
    x: [batch, ..., channels].
    scale: float32 [channels].
    bias: float32 [channels].

  Returns:
    As x.
  """
  channels = x.shape[-1]
  groups = groups_of(channels) if x.ndim == 4 else 1
  space = tuple(range(1, x.ndim - 1)) if x.ndim == 4 else ()

  def mean(z):
    own = z.mean(axis=space, keepdims=True)
    grouped = own.reshape(*own.shape[:-1], groups, channels // groups)
    shared = grouped.mean(axis=-1, keepdims=True)
    return jnp.broadcast_to(shared, grouped.shape).reshape(own.shape)

  z = x.astype(jnp.float32)
  z = z - mean(z)
  z = z * lax.rsqrt(mean(z * z) + EPSILON)
  return (z * along(scale, z) + along(bias, z)).astype(x.dtype)


def normalize_relu(
  x: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
  """relu(normalize(x)); shapes as there."""
  return jax.nn.relu(normalize(x, scale, bias))


def normalize_relu_gradient(
  x: jax.Array, scale: jax.Array, bias: jax.Array, g: jax.Array
) -> tuple[jax.Array, ...]:
  """The gradients of `normalize_relu`: (of x, of scale, of bias)."""
  return jax.vjp(normalize_relu, x, scale, bias)[1](g)


def groups_of(channels: int) -> int:
  """How many groups `normalize` makes of an image's channels."""
  fitting = (
    n
    for n in range(_MAX_GROUPS, 0, -1)
    if channels % n == 0 and channels // n >= _GROUP_CHANNELS
  )
  return next(fitting, 1)


def along(vector: jax.Array, x: jax.Array) -> jax.Array:
  """A [channels] vector cast and shaped to meet the last axis of x."""
  return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
