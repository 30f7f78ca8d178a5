"""Residual networks for small images, with a slot after every block."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from esper_jax.hosts.norms import NORMS
from esper_jax.kasmina.slot import Slot

_CONV_INIT = nn.initializers.he_normal()


class BasicBlock(nn.Module):
  """Two 3x3 convolutions beside a shortcut (He et al. 2016, arXiv:1512.03385).

  The shortcut is a 1x1 convolution where the shape changes (option B).

  Attributes:
    features: channels of the result.
    inner_features: channels between the two convolutions.
    stride: of the first convolution and of the shortcut.
    norm: key of `NORMS`.
    dtype: of the computation; parameters are float32.
  """

  features: int
  inner_features: int
  stride: int = 1
  norm: str = "batch"
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features]."""
    y = self._conv_norm(x, 1, self.inner_features, 3, self.stride, train)
    y = self._conv_norm(nn.relu(y), 2, self.features, 3, 1, train)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = self._conv_norm(x, 3, self.features, 1, self.stride, train)
    return nn.relu(x + y)

  def _conv_norm(self, x, number, features, size, stride, train):
    x = conv(features, size, stride, self.dtype, name=f"conv{number}")(x)
    return NORMS[self.norm](self.dtype, name=f"norm{number}")(x, train=train)


class ResNet(nn.Module):
  """A CIFAR ResNet: 3x3 stem without pooling, stages, mean, linear head.

  Stage s (from 1) has width * 2**(s-1) channels and, from the second on,
  halves height and width. Block b of stage s is the module `block<s>_<b>`;
  the slot after it is `slot<s>_<b>`. A name that is not in `slots` costs
  nothing: no module is made.

  Attributes:
    num_classes: number of logits.
    blocks: blocks per stage.
    width: channels of the first stage.
    norm: "batch" or "group".
    inner_widths: per stage, the channels between a block's two
      convolutions; 0 = those of the stage. Shorter than the stages: 0s.
    slots: names of the slots to place.
    dtype: of the computation; parameters and logits are float32.
  """

  num_classes: int
  blocks: Sequence[int]
  width: int
  norm: str = "batch"
  inner_widths: Sequence[int] = ()
  slots: Sequence[str] = ()
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the logits, float32 [batch, num_classes].

    Args:
      x: float [batch, height, width, channels]; any size.
      train: whether to normalize by the batch (and update `batch_stats`).
    """
    x = conv(self.width, 3, 1, self.dtype, name="stem")(x)
    x = NORMS[self.norm](self.dtype, name="stem_norm")(x, train=train)
    x = nn.relu(x)
    for s, count in enumerate(self.blocks):
      features = self.width * 2**s
      inner = self.inner_widths[s] if s < len(self.inner_widths) else 0
      for b in range(count):
        x = BasicBlock(
          features,
          inner or features,
          stride=2 if s > 0 and b == 0 else 1,
          norm=self.norm,
          dtype=self.dtype,
          name=f"block{s + 1}_{b + 1}",
        )(x, train=train)
        name = f"slot{s + 1}_{b + 1}"
        if name in self.slots:
          x = Slot(name=name)(x, train=train)
    x = x.astype(jnp.float32).mean(axis=(1, 2))
    return nn.Dense(self.num_classes, name="head")(x)


def conv(
  features: int, size: int, stride: int, dtype: Dtype, *, name: str
) -> nn.Conv:
  """Returns a square convolution without bias (a norm follows), He-normal."""
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    use_bias=False,
    kernel_init=_CONV_INIT,
    dtype=dtype,
    name=name,
  )


def resnet_slots(blocks: Sequence[int]) -> tuple[str, ...]:
  """Returns the names of every possible slot, in the order they run."""
  return tuple(
    f"slot{s + 1}_{b + 1}"
    for s, count in enumerate(blocks)
    for b in range(count)
  )
