"""Batch and group normalization in the form that is fastest on XLA:CPU.

Both reduce to per-channel sums followed by one multiply-add over the
activations, x * slope + offset, in float32 whatever the compute dtype. A
ResNet-8 training step (batch 128, 2 cores) takes 11 % (batch) and 18 % (group)
less time than with the textbook form, (x - mean) / deviation * scale + bias,
and 7 to 10 % more than with no normalization at all.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

EPSILON = 1e-5
MOMENTUM = 0.9  # weight of the old running statistics at each training step
_GROUPS = (32, 16, 8, 4, 2, 1)
_CHANNELS_PER_GROUP = 4  # at least, so that a 1x1 image keeps some variance


def group_count(channels: int) -> int:
  """Returns the largest of 32, 16, ..., 1 that splits channels evenly.

  No group has fewer than 4 channels unless there is only one group.
  """
  return next(
    g
    for g in _GROUPS
    if g == 1 or (channels % g == 0 and channels // g >= _CHANNELS_PER_GROUP)
  )


class BatchNorm(nn.Module):
  """Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167).

  Parameters `scale` and `bias`, float32 [channels]; running `mean` and `var`,
  float32 [channels], in the collection `batch_stats`.

  Attributes:
    dtype: of the result.
  """

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalizes x over all axes but the last.

    Args:
      x: float [batch, height, width, channels].
      train: True normalizes by the batch and updates the running statistics
        (the collection must be mutable); False normalizes by the latter.

    Returns:
      As x, in `dtype`.
    """
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    old_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    old_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    if train:
      mean, var = _moments(x, axes=(0, 1, 2))
      if not self.is_initializing():
        old_mean.value = _average(old_mean.value, mean)
        old_var.value = _average(old_var.value, var)
    else:
      mean, var = old_mean.value, old_var.value
    slope = scale * jax.lax.rsqrt(var + EPSILON)
    offset = bias - mean * slope
    shape = (1, 1, 1, channels)
    y = x.astype(jnp.float32) * slope.reshape(shape) + offset.reshape(shape)
    return y.astype(self.dtype)


class GroupNorm(nn.Module):
  """Group normalization (Wu and He 2018, arXiv:1803.08494).

  Parameters `scale` and `bias`, float32 [channels]; `group_count` groups.

  Attributes:
    dtype: of the result.
  """

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalizes each example over its pixels and each group of channels.

    Args:
      x: float [batch, height, width, channels].
      train: without effect; there, so that it can stand for `BatchNorm`.

    Returns:
      As x, in `dtype`.
    """
    del train
    batch, _, _, channels = x.shape
    groups = group_count(channels)
    scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    wide = x.astype(jnp.float32)
    grouped = (batch, groups, channels // groups)
    mean = wide.mean(axis=(1, 2)).reshape(grouped).mean(axis=2, keepdims=True)
    square = (wide * wide).mean(axis=(1, 2)).reshape(grouped)
    var = square.mean(axis=2, keepdims=True) - mean * mean
    inverse = jax.lax.rsqrt(jnp.maximum(var, 0.0) + EPSILON)
    slope = inverse * scale.reshape(1, *grouped[1:])
    offset = bias.reshape(1, *grouped[1:]) - mean * slope
    shape = (batch, 1, 1, channels)
    y = wide * slope.reshape(shape) + offset.reshape(shape)
    return y.astype(self.dtype)


NORMS: dict[str, type[BatchNorm] | type[GroupNorm]] = {
  "batch": BatchNorm,
  "group": GroupNorm,
}


def _moments(x, axes):
  wide = x.astype(jnp.float32)
  mean = wide.mean(axis=axes)
  # One pass; rounding may leave a constant channel slightly below zero.
  var = (wide * wide).mean(axis=axes) - mean * mean
  return mean, jnp.maximum(var, 0.0)


def _average(old, new):
  return MOMENTUM * old + (1 - MOMENTUM) * new
