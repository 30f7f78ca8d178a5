"""The blueprints that come with the project: plain (init, apply) functions.

`BUILT_IN` is the table from which `blueprints` fills its registry. A branch
vanishes with its last factor, the only one that is ever zeroed, while that
factor's own gradient stays alive. No branch keeps state or draws random
numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esper_jax.kasmina.layers import (
  along,
  causal_attention,
  conv,
  draw_kernel,
  identity_norm,
  normalize,
  normalize_relu,
)
from esper_jax.types import InputError, PyTree, SlotSpec
from esper_jax.urza import dispatch
from esper_jax.urza.kernels import lowrank_forward
from esper_jax.urza.kernels.lowrank_forward import lowrank_slot

_Birth = tuple[PyTree, PyTree]
_Result = tuple[jax.Array, PyTree]
_MAX_HEADS = 8
_HEAD_CHANNELS = 16


def _need(spec: SlotSpec, channels: int, blueprint: str) -> int:
  """The slot's channels, if they are at least that many."""
  if spec.channels < channels:
    raise InputError(
      f"blueprint '{blueprint}' needs at least {channels} channels and slot"
      f" '{spec.name}' has {spec.channels}: choose another blueprint or a"
      " wider host"
    )
  return spec.channels


def _conv_norm(params: PyTree, x: jax.Array, **options: Any) -> jax.Array:
  y = conv(x, params["kernel"], **options)
  return normalize_relu(y, **params["norm"])


def _init_conv_norm(
  key: jax.Array, shape: tuple[int, ...], channels: int
) -> PyTree:
  return {"kernel": draw_kernel(key, shape), "norm": identity_norm(channels)}


def init_conv3x3(key: jax.Array, spec: SlotSpec) -> _Birth:
  """Two 3x3 convolutions at the slot's width; at least 2 channels."""
  c = _need(spec, 2, "conv3x3")
  first, second = jax.random.split(key)
  return {
    "conv1": _init_conv_norm(first, (3, 3, c, c), c),
    "conv2": {"kernel": draw_kernel(second, (3, 3, c, c))},
  }, {}


def apply_conv3x3(params, state, x, *, train, key) -> _Result:
  """conv3x3(relu(norm(conv3x3(x))))."""
  del train, key
  y = _conv_norm(params["conv1"], x)
  return conv(y, params["conv2"]["kernel"]), state


def init_bottleneck(key: jax.Array, spec: SlotSpec) -> _Birth:
  """1x1, 3x3, 1x1 at a quarter of the width; at least 8 channels."""
  c = _need(spec, 8, "bottleneck")
  inner = max(4, c // 4)
  keys = jax.random.split(key, 3)
  return {
    "reduce": _init_conv_norm(keys[0], (1, 1, c, inner), inner),
    "conv": _init_conv_norm(keys[1], (3, 3, inner, inner), inner),
    "expand": {"kernel": draw_kernel(keys[2], (1, 1, inner, c))},
  }, {}


def apply_bottleneck(params, state, x, *, train, key) -> _Result:
  """conv1x1(relu(norm(conv3x3(relu(norm(conv1x1(x)))))))."""
  del train, key
  y = _conv_norm(params["conv"], _conv_norm(params["reduce"], x))
  return conv(y, params["expand"]["kernel"]), state


def init_depthwise(key: jax.Array, spec: SlotSpec) -> _Birth:
  """A 3x3 kernel per channel, then 1x1 across; at least 2 channels."""
  c = _need(spec, 2, "depthwise")
  first, second = jax.random.split(key)
  return {
    "depthwise": _init_conv_norm(first, (3, 3, 1, c), c),
    "pointwise": {"kernel": draw_kernel(second, (1, 1, c, c))},
  }, {}


def apply_depthwise(params, state, x, *, train, key) -> _Result:
  """conv1x1(relu(norm(depthwise3x3(x))))."""
  del train, key
  y = _conv_norm(params["depthwise"], x, groups=x.shape[-1])
  return conv(y, params["pointwise"]["kernel"]), state


def init_squeeze_excite(key: jax.Array, spec: SlotSpec) -> _Birth:
  """Two dense layers on the pooled channels; at least 2 channels."""
  c = _need(spec, 2, "squeeze_excite")
  inner = max(4, c // 4)
  first, second = jax.random.split(key)
  return {
    "squeeze": {
      "kernel": draw_kernel(first, (c, inner), gain=2.0),
      "bias": jnp.zeros((inner,), jnp.float32),
    },
    "excite": {"kernel": draw_kernel(second, (inner, c))},
  }, {}


def apply_squeeze_excite(params, state, x, *, train, key) -> _Result:
  """x tanh(excite(silu(squeeze(mean of x over space)))), per channel.

  With tanh for the sigmoid of Hu et al. (2018, arXiv:1709.01507), zero excites
  nothing, and x + F(x) scales each channel by 0 to 2. SiLU, because the few
  pooled units would all be dead at once too often under ReLU.
  """
  del train, key
  pooled = x.mean(axis=(1, 2), keepdims=True)
  y = pooled @ params["squeeze"]["kernel"].astype(x.dtype)
  y = jax.nn.silu(y + along(params["squeeze"]["bias"], y))
  return x * jnp.tanh(y @ params["excite"]["kernel"].astype(x.dtype)), state


def init_norm(key: jax.Array, spec: SlotSpec) -> _Birth:
  """Three numbers a channel; at least 2 channels."""
  c = _need(spec, 2, "norm")
  scale = jax.random.normal(key, (c,), jnp.float32)
  return {"norm": identity_norm(c), "out": {"scale": scale}}, {}


def apply_norm(params, state, x, *, train, key) -> _Result:
  """out * relu(norm(x)): the input's own strong features, re-weighted."""
  del train, key
  y = normalize_relu(x, **params["norm"])
  return y * along(params["out"]["scale"], y), state


def init_lowrank(key: jax.Array, spec: SlotSpec) -> _Birth:
  """Rank an eighth of the channels, 2 or more; at least 4 channels."""
  return _init_lowrank(key, _need(spec, 4, "lowrank"))


def init_lowrank_dense(key: jax.Array, spec: SlotSpec) -> _Birth:
  """As `init_lowrank`, for vectors and tokens."""
  return _init_lowrank(key, _need(spec, 4, "lowrank_dense"))


def _init_lowrank(key: jax.Array, c: int) -> _Birth:
  rank = max(2, c // 8)
  first, second = jax.random.split(key)
  return {
    "down": {"kernel": draw_kernel(first, (c, rank))},
    "up": {"kernel": draw_kernel(second, (rank, c))},
  }, {}


def apply_lowrank(params, state, x, *, train, key) -> _Result:
  """up(down(x)) on the last axis: a linear map (1x1 on images) of low rank."""
  del train, key
  y = x @ params["down"]["kernel"].astype(x.dtype)
  return y @ params["up"]["kernel"].astype(x.dtype), state


def join_lowrank(
  params: Sequence[PyTree],
  x: jax.Array,
  *,
  alpha: Sequence[jax.Array],
  isolation: Sequence[jax.Array],
  proximal: Sequence[jax.Array],
) -> jax.Array | None:
  """Low-rank seeds side by side: one pass over x, where there is a kernel.

  Kernels are kept for few numbers of seeds; silent ones of zeros fill up.
  """
  if dispatch.installed() is None:
    return None
  sizes = {c["S"] for c in lowrank_forward.KERNEL.shipped}
  size = min((n for n in sizes if n >= len(params)), default=None)
  if size is None:
    return None

  def stack(leaves: Sequence[jax.Array]) -> jax.Array:
    filling = [jnp.zeros_like(leaves[0])] * (size - len(leaves))
    return jnp.stack([*leaves, *filling])

  args = (
    x,
    stack([p["down"]["kernel"] for p in params]),
    stack([p["up"]["kernel"] for p in params]),
    *map(stack, (alpha, isolation, proximal)),
  )
  if not dispatch.serves(lowrank_forward.KERNEL, *args[:-1]):
    return None
  y, _ = lowrank_slot(*dispatch.level(*args))
  return y


def init_dense(key: jax.Array, spec: SlotSpec) -> _Birth:
  """Two dense layers at the slot's width; at least 2 channels."""
  return _init_two_layers(key, spec, _need(spec, 2, "dense"))


def init_bottleneck_dense(key: jax.Array, spec: SlotSpec) -> _Birth:
  """Two dense layers at a quarter of the width; at least 8 channels."""
  inner = max(4, _need(spec, 8, "bottleneck_dense") // 4)
  return _init_two_layers(key, spec, inner)


def _init_two_layers(key: jax.Array, spec: SlotSpec, inner: int) -> _Birth:
  first, second = jax.random.split(key)
  return {
    "dense1": {
      "kernel": draw_kernel(first, (spec.channels, inner)),
      "norm": identity_norm(inner),
    },
    "dense2": {"kernel": draw_kernel(second, (inner, spec.channels))},
  }, {}


def apply_dense(params, state, x, *, train, key) -> _Result:
  """dense2(relu(norm(dense1(x)))) on the last axis."""
  del train, key
  y = x @ params["dense1"]["kernel"].astype(x.dtype)
  y = normalize_relu(y, **params["dense1"]["norm"])
  return y @ params["dense2"]["kernel"].astype(x.dtype), state


def init_causal_attention(key: jax.Array, spec: SlotSpec) -> _Birth:
  """Queries, keys and values at the slot's width; at least 4 channels."""
  c = _need(spec, 4, "causal_attention")
  first, second = jax.random.split(key)
  return {
    "norm": identity_norm(c),
    "query_key_value": {"kernel": draw_kernel(first, (c, 3 * c))},
    "out": {"kernel": draw_kernel(second, (c, c))},
  }, {}


def apply_causal_attention(params, state, x, *, train, key) -> _Result:
  """out(attention(norm(x))); no token sees one after it."""
  del train, key
  y = normalize(x, **params["norm"])
  y = y @ params["query_key_value"]["kernel"].astype(x.dtype)
  y = causal_attention(y, heads=heads_of(x.shape[-1]))
  return y @ params["out"]["kernel"].astype(x.dtype), state


def heads_of(channels: int) -> int:
  """The most attention heads, 8 at most, of 16 channels or more; else 1."""
  fitting = (n for n in range(_MAX_HEADS, 1, -1) if channels % n == 0)
  return next((n for n in fitting if channels // n >= _HEAD_CHANNELS), 1)


class Parts(NamedTuple):
  """A blueprint without its name; the fields are those of `Blueprint`."""

  init: Callable[[jax.Array, SlotSpec], _Birth]
  apply: Callable[..., _Result]
  kinds: tuple[str, ...]
  zero: tuple[str, ...]
  join: Callable[..., jax.Array | None] | None = None


_IMAGES = ("nhwc",)
_VECTORS = ("features", "tokens")  # position-wise, hence causal on tokens
_TOKENS = ("tokens",)

BUILT_IN = {
  "conv3x3": Parts(init_conv3x3, apply_conv3x3, _IMAGES, ("conv2", "kernel")),
  "bottleneck": Parts(
    init_bottleneck, apply_bottleneck, _IMAGES, ("expand", "kernel")
  ),
  "depthwise": Parts(
    init_depthwise, apply_depthwise, _IMAGES, ("pointwise", "kernel")
  ),
  "squeeze_excite": Parts(
    init_squeeze_excite, apply_squeeze_excite, _IMAGES, ("excite", "kernel")
  ),
  "norm": Parts(init_norm, apply_norm, _IMAGES + _VECTORS, ("out", "scale")),
  "lowrank": Parts(
    init_lowrank, apply_lowrank, _IMAGES, ("up", "kernel"), join_lowrank
  ),
  "dense": Parts(init_dense, apply_dense, _VECTORS, ("dense2", "kernel")),
  "bottleneck_dense": Parts(
    init_bottleneck_dense, apply_dense, _VECTORS, ("dense2", "kernel")
  ),
  "lowrank_dense": Parts(
    init_lowrank_dense, apply_lowrank, _VECTORS, ("up", "kernel"), join_lowrank
  ),
  "causal_attention": Parts(
    init_causal_attention, apply_causal_attention, _TOKENS, ("out", "kernel")
  ),
}
