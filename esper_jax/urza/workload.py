"""The training step in which a kernel is judged: a chain of residual blocks.

After each block comes the operation that the kernel belongs to, as a seed
would have it; the step computes a loss, its gradients, and new parameters. An
operation's kernels (forward, backward) only ever run together, so they are
judged together.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esper_jax.urza.kernel import Kernel
from esper_jax.urza.kernels import (
  blend_forward,
  depthwise_forward,
  lowrank_forward,
  norm_backward,
)

BATCH = 512
BLOCKS = 2
_RATE = 1e-3
_CIFAR = 32  # height and width of the images
_NARROWEST = 64  # channels of a ResNet-18's first stage
DEFAULT_CHANNELS = 64  # of kernels whose code does not depend on them
_ALPHA = 0.3  # a seed that is being blended in

Parameters = dict[str, jax.Array]


class Operation(NamedTuple):
  """What a seed does with kernels.

  Attributes:
    kernels: names of those that it calls, forward and backward.
    init: (draw, constants, channels) -> its parameters, float32.
    apply: (parameters, x) -> y as x.
  """

  kernels: tuple[str, ...]
  init: Callable[[np.random.Generator, Mapping[str, int], int], dict[str, Any]]
  apply: Callable[[Parameters, jax.Array], jax.Array]


class Sizes(NamedTuple):
  """How large a step is.

  Attributes:
    batch: examples.
    side: height and width of the activations.
    channels: of the activations.
    blocks: residual blocks, each followed by the operation.
    repeats: how often the operation follows.
  """

  batch: int
  side: int
  channels: int
  blocks: int = BLOCKS
  repeats: int = 1


class Step(NamedTuple):
  """A training step.

  Attributes:
    run: (parameters, x) -> (new parameters, loss).
    arguments: what it takes, on the host.
  """

  run: Callable[[Parameters, jax.Array], tuple[Parameters, jax.Array]]
  arguments: tuple[dict[str, np.ndarray], np.ndarray]


def sizes_of(constants: Mapping[str, int], *, batch: int = BATCH) -> Sizes:
  """The sizes that activations with so many channels have in a ResNet-18.

  Channels double where height and width halve; a host whose first stage is
  narrower than 64 channels begins at full size too.
  """
  channels = constants.get("C", DEFAULT_CHANNELS)
  side, width = _CIFAR, _NARROWEST
  while width < channels and side > 1:
    side, width = side // 2, width * 2
  return Sizes(batch, side, channels)


def make_step(
  operation: Operation | None,
  sizes: Sizes,
  dtype: str,
  constants: Mapping[str, int],
  *,
  seed: int = 0,
) -> Step:
  """Makes a step; what it is traced with decides which kernels it has.

  Args:
    operation: comes after each block; None leaves the blocks alone.
    sizes: of the step.
    dtype: of the activations.
    constants: of the operation's form.
    seed: of parameters and input.
  """
  draw = np.random.default_rng(seed)
  c = sizes.channels
  shape = (sizes.batch, sizes.side, sizes.side, c)
  x = draw.standard_normal(shape, np.float32).astype(jnp.dtype(dtype))
  weights: dict[str, np.ndarray] = {}
  for block in range(sizes.blocks):
    for name in ("first", "second"):
      values = draw.standard_normal((3, 3, c, c), np.float32)
      weights[f"{name}{block}"] = values / np.float32((9 * c) ** 0.5)
    if operation is not None:
      for turn in range(sizes.repeats):
        for name, values in operation.init(draw, constants, c).items():
          weights[f"{name}/{block}.{turn}"] = np.asarray(values, np.float32)

  def loss(weights: Parameters, x: jax.Array) -> jax.Array:
    for block in range(sizes.blocks):
      y = jax.nn.relu(_convolve(x, weights[f"first{block}"]))
      x = jax.nn.relu(x + _convolve(y, weights[f"second{block}"]))
      if operation is not None:
        for turn in range(sizes.repeats):
          x = operation.apply(_of(weights, f"/{block}.{turn}"), x)
    return jnp.mean(jnp.square(x.astype(jnp.float32)))

  def run(weights, x):
    value, gradients = jax.value_and_grad(loss)(weights, x)
    rate = jnp.float32(_RATE)
    new = jax.tree.map(lambda w, g: w - rate * g, weights, gradients)
    return new, value

  return Step(run, (weights, x))


def _of(weights: Parameters, ending: str) -> Parameters:
  return {
    name.removesuffix(ending): values
    for name, values in weights.items()
    if name.endswith(ending)
  }


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _lowrank_init(draw, constants, c):
  r, s = constants["R"], constants["S"]
  return {
    "down": draw.standard_normal((s, c, r)) / c**0.5,
    "up": draw.standard_normal((s, r, c)) / r**0.5,
  }


def _lowrank(own: Parameters, x: jax.Array) -> jax.Array:
  seeds = own["down"].shape[0]
  alpha, zeros = jnp.full(seeds, _ALPHA), jnp.zeros(seeds)
  y, _ = lowrank_forward.lowrank_slot(
    x, own["down"], own["up"], alpha, zeros, zeros
  )
  return y


def _scale_init(draw, constants, c):
  del constants
  return {"scale": 1 + 0.1 * draw.standard_normal(c)}


def _norm_init(draw, constants, c):
  bias = {"bias": 0.1 * draw.standard_normal(c)}
  return _scale_init(draw, constants, c) | bias


def _depthwise_init(draw, constants, c):
  del constants
  return {"kernel": draw.standard_normal((3, 3, 1, c)) / 3}


def _depthwise(own: Parameters, x: jax.Array) -> jax.Array:
  return depthwise_forward.depthwise3x3(x, own["kernel"])


def _group_norm(own: Parameters, x: jax.Array) -> jax.Array:
  return norm_backward.normalize_relu(x, own["scale"], own["bias"])


def _layer_norm(own: Parameters, x: jax.Array) -> jax.Array:
  tokens = x.reshape(x.shape[0], -1, x.shape[-1])
  return _group_norm(own, tokens).reshape(x.shape)


def _blend(own: Parameters, x: jax.Array) -> jax.Array:
  r = x * own["scale"].astype(x.dtype).reshape(1, 1, 1, -1)
  alpha, zero = jnp.float32(_ALPHA), jnp.float32(0)
  y, _ = blend_forward.blend_with_health(x, r, alpha, zero, zero)
  return y


OPERATIONS = {
  "lowrank": Operation(
    ("lowrank_forward", "lowrank_backward", "lowrank_weights"),
    _lowrank_init,
    _lowrank,
  ),
  "blend": Operation(("blend_forward", "blend_backward"), _scale_init, _blend),
  "depthwise": Operation(
    ("depthwise_forward", "depthwise_backward"), _depthwise_init, _depthwise
  ),
  "group_norm": Operation(("group_norm_backward",), _norm_init, _group_norm),
  "layer_norm": Operation(("layer_norm_backward",), _norm_init, _layer_norm),
}


def shape_of_call(
  kernel: Kernel,
  dtype: str,
  constants: Mapping[str, int],
  sizes: Sizes,
) -> tuple[int, int, int]:
  """(batch, height, width) of a kernel's call inside a step of these sizes.

  A kernel that cuts activations into rows of its own gets more of them.
  """
  first = kernel.arguments(dtype, constants, 1, 1, 1)[0]
  return sizes.batch, sizes.side, sizes.side * sizes.channels // first.size


def operation_of(kernel: str) -> Operation:
  """The operation that a kernel belongs to.

  Raises:
    KeyError: none does.
  """
  for operation in OPERATIONS.values():
    if kernel in operation.kernels:
      return operation
  raise KeyError(kernel)
