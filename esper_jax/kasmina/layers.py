"""Layers for seeds: pure functions that run fast on every backend.

Each computes in the dtype of x from float32 parameters. None keeps statistics
of the batch: an isolated seed must not depend on what its host has averaged.
Where Urza has a kernel for the device, the gradient takes it.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from esper_jax.urza import dispatch
from esper_jax.urza.kernels import depthwise_forward, norm_backward, plain
from esper_jax.urza.kernels.plain import along as along
from esper_jax.urza.kernels.plain import normalize as normalize


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
  height, width, fan_in, out = kernel.shape
  if fan_in == 1 and groups == out == x.shape[-1]:
    if (height, width, stride) == (3, 3, 1):
      return depthwise_forward.depthwise3x3(*dispatch.level(x, kernel))
    return plain.depthwise(x, kernel, stride)
  kernel = kernel.astype(x.dtype)
  if (height, width, stride, groups) == (1, 1, 1, 1):
    return x @ kernel[0, 0]
  if im2col:
    patches = jnp.stack(plain.taps(x, height, width, stride), axis=3)
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


def normalize_relu(
  x: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
  """`normalize`, then ReLU: its arguments and result."""
  return norm_backward.normalize_relu(*dispatch.level(x, scale, bias))


def causal_attention(qkv: jax.Array, *, heads: int) -> jax.Array:
  """Attends to a token itself and to those before it.

  Vaswani et al. 2017, arXiv:1706.03762, section 3.2. The softmax is float32.

  Args:
    qkv: [batch, time, 3 * channels]: queries, keys and values side by side.
    heads: a divisor of the channels.

  Returns:
    [batch, time, channels], dtype of qkv.
  """
  batch, time, features = qkv.shape
  split = qkv.reshape(batch, time, 3, heads, features // (3 * heads))
  with jax.numpy_dtype_promotion("standard"):  # JAX's own mixes dtypes inside
    y = jax.nn.dot_product_attention(*jnp.moveaxis(split, 2, 0), is_causal=True)
  return y.reshape(batch, time, features // 3)


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
