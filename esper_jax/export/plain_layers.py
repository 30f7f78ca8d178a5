"""The layers of the plain module. Their text is copied into it: nothing here
may use anything of ours but what stands in this file."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

DTYPE = jnp.float32

Norm = Callable[[jax.Array, str], jax.Array]


def conv(features: int, size: int, *, stride: int = 1, name: str) -> nn.Conv:
  """A square convolution without bias."""
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    use_bias=False,
    dtype=DTYPE,
    name=name,
  )


def linear(features: int, *, name: str) -> nn.Dense:
  """A dense layer without bias."""
  return nn.Dense(features, use_bias=False, dtype=DTYPE, name=name)


def batch_norm(x: jax.Array, name: str) -> jax.Array:
  """Batch normalization by the statistics of training."""
  return nn.BatchNorm(
    use_running_average=True, epsilon=1e-5, dtype=DTYPE, name=name
  )(x)


def group_norm(x: jax.Array, name: str) -> jax.Array:
  """Group normalization: 32, 16, ... groups, of 4 channels or more."""
  channels = x.shape[-1]
  fitting = (n for n in (32, 16, 8, 4, 2) if channels % n == 0)
  groups = next((n for n in fitting if channels // n >= 4), 1)
  return nn.GroupNorm(groups, epsilon=1e-5, dtype=DTYPE, name=name)(x)


def seed_group_norm(x: jax.Array, name: str) -> jax.Array:
  """Group normalization in a seed: 8 or fewer, of 4 channels or more."""
  channels = x.shape[-1]
  fitting = (n for n in range(8, 0, -1) if channels % n == 0)
  groups = next((n for n in fitting if channels // n >= 4), 1)
  return nn.GroupNorm(
    groups, epsilon=1e-5, use_fast_variance=False, dtype=DTYPE, name=name
  )(x)


def seed_layer_norm(x: jax.Array, name: str) -> jax.Array:
  """Layer normalization in a seed."""
  return nn.LayerNorm(
    epsilon=1e-5, use_fast_variance=False, dtype=DTYPE, name=name
  )(x)


class Block(nn.Module):
  """Two 3x3 convolutions beside a shortcut (He et al. 2016)."""

  features: int
  inner_features: int
  norm: Norm
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = conv(self.inner_features, 3, stride=self.stride, name="conv1")(x)
    y = nn.relu(self.norm(y, "norm1"))
    y = self.norm(conv(self.features, 3, name="conv2")(y), "norm2")
    if self.stride != 1 or x.shape[-1] != self.features:
      x = conv(self.features, 1, stride=self.stride, name="conv3")(x)
      x = self.norm(x, "norm3")
    return nn.relu(x + y)


class Conv3x3(nn.Module):
  """A seed: two 3x3 convolutions."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = conv(x.shape[-1], 3, name="conv1")(x)
    y = nn.relu(seed_group_norm(y, "conv1_norm"))
    return conv(x.shape[-1], 3, name="conv2")(y)


class Bottleneck(nn.Module):
  """A seed: 1x1, 3x3 and 1x1 convolutions at a quarter of the width."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    inner = max(4, x.shape[-1] // 4)
    y = conv(inner, 1, name="reduce")(x)
    y = nn.relu(seed_group_norm(y, "reduce_norm"))
    y = conv(inner, 3, name="conv")(y)
    y = nn.relu(seed_group_norm(y, "conv_norm"))
    return conv(x.shape[-1], 1, name="expand")(y)


class Depthwise(nn.Module):
  """A seed: a 3x3 convolution of each channel, then 1x1 across them."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    y = nn.Conv(
      channels,
      (3, 3),
      feature_group_count=channels,
      use_bias=False,
      dtype=DTYPE,
      name="depthwise",
    )(x)
    y = nn.relu(seed_group_norm(y, "depthwise_norm"))
    return conv(channels, 1, name="pointwise")(y)


class SqueezeExcite(nn.Module):
  """A seed: scales each channel by what the mean over space says."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    inner = max(4, x.shape[-1] // 4)
    pooled = x.mean(axis=(1, 2), keepdims=True)
    y = nn.silu(nn.Dense(inner, dtype=DTYPE, name="squeeze")(pooled))
    return x * jnp.tanh(linear(x.shape[-1], name="excite")(y))


class Scale(nn.Module):
  """A number for each channel."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    return x * scale.astype(x.dtype)


class NormOfImages(nn.Module):
  """A seed: normalized, rectified and scaled."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return Scale(name="out")(nn.relu(seed_group_norm(x, "norm")))


class NormOfVectors(nn.Module):
  """A seed: normalized, rectified and scaled."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return Scale(name="out")(nn.relu(seed_layer_norm(x, "norm")))


class LowRank(nn.Module):
  """A seed: a linear map of low rank."""

  rank: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = linear(self.rank, name="down")(x)
    return linear(x.shape[-1], name="up")(y)


class TwoLayers(nn.Module):
  """A seed: two dense layers."""

  inner_features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = linear(self.inner_features, name="dense1")(x)
    y = nn.relu(seed_layer_norm(y, "dense1_norm"))
    return linear(x.shape[-1], name="dense2")(y)


def gate(x: jax.Array, name: str) -> jax.Array:
  """A number in (0, 1) for each example (for each token)."""
  pooled = x.mean(axis=(1, 2), keepdims=True) if x.ndim == 4 else x
  return nn.sigmoid(nn.Dense(1, dtype=DTYPE, name=name)(pooled))
