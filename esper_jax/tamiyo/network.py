"""The network of a learned policy: any number of slots and blueprints.

Every slot passes through one encoder, then slots attend to each other and to a
global token that holds what concerns the run. A pair of slot and blueprint is
scored from both, so slots and blueprints have no place of their own: permute
them and the scores are permuted.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from esper_jax.tamiyo.distribution import MOVES, Logits
from esper_jax.tamiyo.features import BLUEPRINT, RUN, SLOT, Inputs
from esper_jax.tamiyo.traits import TRAITS
from esper_jax.types import Action, PyTree

# What an untrained network does. Where it may, it grows once in five
# boundaries, wherever that is, moves a seed up in seven of eight whose gate
# passes, and culls one in fifty-five.
PRIOR_GROWTH = 0.2
PRIOR_MOVES = {
  Action.WAIT: 0.0,
  Action.ADVANCE: 2.0,
  Action.CULL: -4.0,
  Action.FOSSILIZE: 2.0,
}
_SMALL = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")


class Sizes(NamedTuple):
  """Sizes of a network.

  Attributes:
    width: of a token; a multiple of heads.
    layers: of attention.
    heads: of each.
    hidden: of the layer after each attention.
  """

  width: int = 48
  layers: int = 2
  heads: int = 4
  hidden: int = 96


DEFAULT = Sizes()


class PolicyNetwork(nn.Module):
  """Maps `features.Inputs` of one observation to (Logits, value float32 []).

  Use vmap for many.

  Attributes:
    sizes: see `Sizes`.
  """

  sizes: Sizes = DEFAULT

  @nn.compact
  def __call__(self, inputs: Inputs) -> tuple[Logits, jax.Array]:
    width = self.sizes.width
    fits = inputs.fits[:, :, None]
    pairs = nn.gelu(nn.Dense(width, name="blueprint")(inputs.blueprints))
    some = jnp.maximum(fits.sum(axis=1), 1).astype(jnp.float32)
    offers = jnp.concatenate(
      [
        jnp.where(fits, pairs, 0.0).sum(axis=1) / some,
        jnp.where(fits, pairs, -1.0).max(axis=1),  # gelu is above -1
      ],
      axis=-1,
    )
    slots = nn.gelu(nn.Dense(width, name="slot")(inputs.slots))
    slots = nn.Dense(width, name="slot_out")(
      jnp.concatenate([slots, offers], axis=-1)
    )
    run = nn.gelu(nn.Dense(width, name="run")(inputs.run))
    run = nn.Dense(width, name="run_out")(run)

    tokens = jnp.concatenate([run[None], slots], axis=0)
    seen = jnp.append(True, inputs.present)
    for n in range(self.sizes.layers):
      tokens = Block(self.sizes, name=f"block_{n}")(tokens, seen)
    tokens = nn.LayerNorm(name="norm")(tokens)
    run, slots = tokens[0], tokens[1:]

    asked = nn.Dense(width, name="place")(slots)[:, None, :]
    match = nn.gelu(asked + nn.Dense(width, name="offer")(pairs))
    germinate = nn.Dense(1, name="germinate", kernel_init=_SMALL)(match)[..., 0]
    # Growth has one probability, however many pairs there are to share it.
    count = jnp.maximum(inputs.open.sum(), 1).astype(jnp.float32)
    stay = nn.Dense(1, name="stay", kernel_init=_SMALL)(run)[0]
    moves = nn.Dense(len(MOVES), name="moves", kernel_init=_SMALL)(slots)
    prior = jnp.asarray([PRIOR_MOVES[a] for a in MOVES], jnp.float32)
    hidden = nn.gelu(nn.Dense(width, name="value_hidden")(run))
    value = nn.Dense(1, name="value", kernel_init=_SMALL)(hidden)[0]
    logits = Logits(
      germinate=germinate - jnp.log(count),
      stay=stay + math.log(1.0 / PRIOR_GROWTH - 1.0),
      moves=moves + prior[None],
    )
    return logits, value


class Block(nn.Module):
  """Attention and a layer per token, each added to what it reads.

  Attributes:
    sizes: see `Sizes`.
  """

  sizes: Sizes

  @nn.compact
  def __call__(self, tokens: jax.Array, seen: jax.Array) -> jax.Array:
    """Takes tokens float32 [n, width], and seen bool [n]: whom all look at."""
    width, heads = self.sizes.width, self.sizes.heads
    x = nn.LayerNorm(name="norm_1")(tokens)
    mixed = nn.Dense(3 * width, name="query_key_value")(x)
    mixed = mixed.reshape(-1, 3, heads, width // heads)
    query, key, value = mixed[:, 0], mixed[:, 1], mixed[:, 2]
    fit = jnp.einsum("qhd,khd->hqk", query, key) / math.sqrt(width // heads)
    share = jax.nn.softmax(jnp.where(seen[None, None], fit, -1e9), axis=-1)
    x = jnp.einsum("hqk,khd->qhd", share, value).reshape(-1, width)
    tokens = tokens + nn.Dense(width, name="out")(x)
    x = nn.LayerNorm(name="norm_2")(tokens)
    x = nn.gelu(nn.Dense(self.sizes.hidden, name="hidden")(x))
    return tokens + nn.Dense(width, name="hidden_out")(x)


def example() -> Inputs:
  """Inputs of one slot and one blueprint; parameters fit any number."""
  return Inputs(
    run=jnp.zeros((len(RUN),), jnp.float32),
    slots=jnp.zeros((1, len(SLOT)), jnp.float32),
    blueprints=jnp.zeros((1, 1, len(BLUEPRINT) + len(TRAITS)), jnp.float32),
    present=jnp.ones((1,), jnp.bool_),
    fits=jnp.ones((1, 1), jnp.bool_),
    open=jnp.ones((1, 1), jnp.bool_),
  )


def init(key: jax.Array, sizes: Sizes = DEFAULT) -> PyTree:
  """Draws parameters: {module: {"kernel" or "bias" or "scale": float32}}."""
  return PolicyNetwork(sizes).init(key, example())["params"]


def apply(
  params: PyTree, inputs: Inputs, sizes: Sizes = DEFAULT
) -> tuple[Logits, jax.Array]:
  """Computes (Logits, value float32 []) of one observation's inputs."""
  out: Any = PolicyNetwork(sizes).apply({"params": params}, inputs)
  return out
