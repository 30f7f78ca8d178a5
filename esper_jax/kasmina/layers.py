"""Layers for seeds: pure functions that run fast on every backend.

Each computes in the dtype of x from float32 parameters. None keeps statistics
of the batch: an isolated seed must not depend on what its host has averaged.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

_MAX_GROUPS = 8
_GROUP_CHANNELS = 4  # a group of fewer says little about scale
_EPSILON = 1e-5


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: int = 1,
  groups: int = 1,
  im2col: bool = False,
) -> jax.Array:
  """Convolves with "SAME" padding, in the cheapest form.

  A 1x1 kernel is a matrix product. A depthwise kernel is a sum of shifted
  copies of x: on XLA:CPU a grouped convolution takes 4 to 15 times longer,
  gradients included.

  Args:
    x: [batch, height, width, channels], any float dtype.
    kernel: float32 [kernel height, kernel width, channels / groups, out]; cast
      to x.dtype. Outputs are group-major, as in `lax.conv_general_dilated`.
    stride: step between outputs, in pixels, along both axes.
    groups: number of independent groups of channels.
    im2col: gather patches and use a matrix product. Slower alone, but a
      convolution inside `lax.scan` on XLA:CPU is far slower still.

  Returns:
    [batch, ceil(height / stride), ceil(width / stride), out], dtype of x.
  """
  kernel = kernel.astype(x.dtype)
  height, width, fan_in, out = kernel.shape
  if (height, width, stride, groups) == (1, 1, 1, 1):
    return x @ kernel[0, 0]
  if fan_in == 1 and groups == out == x.shape[-1]:
    rows = kernel.reshape(height * width, 1, 1, 1, out)
    first, *others = _taps(x, height, width, stride)
    y = first * rows[0]
    for tap, row in zip(others, rows[1:], strict=True):
      y = y + tap * row
    return y
  if im2col:
    patches = jnp.stack(_taps(x, height, width, stride), axis=3)
    patches = patches.reshape(*patches.shape[:4], groups, fan_in)
    mixing = kernel.reshape(height * width, fan_in, groups, out // groups)
    y = jnp.einsum("bhwtgc,tcgd->bhwgd", patches, mixing)
    return y.reshape(*y.shape[:3], out)
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def _taps(
  x: jax.Array, height: int, width: int, stride: int
) -> list[jax.Array]:
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
  groups = _groups(channels) if x.ndim == 4 else 1
  space = tuple(range(1, x.ndim - 1)) if x.ndim == 4 else ()

  def mean(z):
    own = z.mean(axis=space, keepdims=True)
    grouped = own.reshape(*own.shape[:-1], groups, channels // groups)
    shared = grouped.mean(axis=-1, keepdims=True)
    return jnp.broadcast_to(shared, grouped.shape).reshape(own.shape)

  z = x.astype(jnp.float32)
  z = z - mean(z)
  z = z * lax.rsqrt(mean(z * z) + _EPSILON)
  return (z * along(scale, z) + along(bias, z)).astype(x.dtype)


def _groups(channels: int) -> int:
  fitting = (
    n
    for n in range(_MAX_GROUPS, 0, -1)
    if channels % n == 0 and channels // n >= _GROUP_CHANNELS
  )
  return next(fitting, 1)


def along(vector: jax.Array, x: jax.Array) -> jax.Array:
  """A [channels] vector cast and shaped to meet the last axis of x."""
  return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def draw_kernel(
  key: jax.Array, shape: tuple[int, ...], *, gain: float = 1.0
) -> jax.Array:
  """A float32 kernel [..., in, out] with variance gain / fan-in.

  Gain 2 keeps the scale through a ReLU (He et al., 2015, arXiv:1502.01852).
  """
  scale = (gain / math.prod(shape[:-1])) ** 0.5
  return scale * jax.random.normal(key, shape, jnp.float32)


def identity_norm(channels: int) -> dict[str, jax.Array]:
  """Parameters of `normalize` that neither scale nor shift."""
  return {
    "scale": jnp.ones((channels,), jnp.float32),
    "bias": jnp.zeros((channels,), jnp.float32),
  }
