"""A small GPT: a decoder-only transformer with a slot after every block."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from esper_jax.kasmina.layers import causal_attention
from esper_jax.kasmina.slot import Slot
from esper_jax.types import InputError

_EXPANSION = 4  # hidden features of the MLP / width
_EMBEDDING_INIT = nn.initializers.normal(0.02)


class Block(nn.Module):
  """Causal self-attention, then an MLP, each beside a residual connection.

  The norm comes first (Xiong et al. 2020, arXiv:2002.04745), so that the
  stream that slots see is a sum to which seeds add too.

  Attributes:
    width: features of the residual stream.
    heads: of the attention; they divide the width.
    dtype: of the computation; parameters are float32.
  """

  width: int
  heads: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps the residual stream [batch, time, width] to the next."""
    y = self._dense(3 * self.width, "query_key_value")(normalize(x, "norm1"))
    y = causal_attention(y, heads=self.heads)
    x = x + self._dense(self.width, "attention_out")(y)
    y = self._dense(_EXPANSION * self.width, "mlp_in")(normalize(x, "norm2"))
    return x + self._dense(self.width, "mlp_out")(nn.gelu(y))

  def _dense(self, features, name):
    return nn.Dense(features, dtype=self.dtype, name=name)


class GPT(nn.Module):
  """A GPT (Radford et al. 2019) without dropout; its head is not tied.

  Block n (from 1) is the module `block<n>`; the slot after it is `slot<n>`,
  causal, of the residual stream [batch, time, width]. A name that is not in
  `slots` makes no module.

  Attributes:
    num_classes: size of the vocabulary.
    width: features of the residual stream.
    depth: number of blocks.
    heads: of the attention; they divide the width.
    context: tokens that it can see at once.
    slots: names of the slots to place.
    dtype: of the computation; parameters and logits are float32.
  """

  num_classes: int
  width: int = 64
  depth: int = 2
  heads: int = 4
  context: int = 64
  slots: Sequence[str] = ()
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the logits of each next token, float32 [batch, time, classes].

    Args:
      x: int32 [batch, time], tokens from 0 to num_classes - 1.
      train: passed to the slots; the blocks are the same either way.

    Raises:
      InputError: more tokens than the context.
    """
    time = x.shape[1]
    if time > self.context:
      raise InputError(
        f"a sequence has {time} tokens but the host's context is"
        f" {self.context}: give at most as many, or make the host with more"
      )
    positions = self.param(
      "positions", _EMBEDDING_INIT, (self.context, self.width), jnp.float32
    )
    x = nn.Embed(
      self.num_classes,
      self.width,
      embedding_init=_EMBEDDING_INIT,
      dtype=self.dtype,
      name="tokens",
    )(x)
    # Not [:time]: a program is exported with time as a symbol.
    positions = jax.lax.slice_in_dim(positions, 0, time)
    x = x + positions[None].astype(self.dtype)
    for n in range(1, self.depth + 1):
      x = Block(self.width, self.heads, self.dtype, name=f"block{n}")(x)
      if f"slot{n}" in self.slots:
        x = Slot(causal=True, name=f"slot{n}")(x, train=train)
    x = normalize(x.astype(jnp.float32), "norm")
    return nn.Dense(self.num_classes, name="head")(x)


def normalize(x: jax.Array, name: str) -> jax.Array:
  """LayerNorm in float32; the result has the dtype of x."""
  # Flax's own mixes dtypes, which strict promotion refuses.
  return nn.LayerNorm(name=name)(x.astype(jnp.float32)).astype(x.dtype)


def gpt_slots(depth: int) -> tuple[str, ...]:
  """Returns the names of every possible slot, in the order they run."""
  return tuple(f"slot{n}" for n in range(1, depth + 1))
