"""Hosts of one shape for a whole population: masks make them narrow or short.

A mask is a variable of the host like batch statistics, in the collection
`masks`, so a vmapped program trains hosts of many sizes side by side. With
every mask True the MLP is `hosts.mlp.MLP`, parameter for parameter.
"""

import math

import jax
import jax.numpy as jnp

from esper_jax.hosts.host import Host
from esper_jax.kasmina.layers import conv
from esper_jax.kasmina.slot import (
  apply_seeds,
  apply_slot,
  seeds_at,
  with_seeds_at,
)
from esper_jax.types import InputError

MASKS = "masks"
LIVE = "live"  # int32 [rows]: the column of the seed that lives, -1 = none
FIRST = "hidden1"  # the one layer that reads the input, not hidden units


def mlp(num_classes: int, *, width: int, depth: int) -> Host:
  """An MLP whose units and hidden layers can be switched off.

  Masks: `units` bool [width], `layers` bool [depth]. A unit that is off is 0
  in every layer, after the slot too. A layer that is off passes its input on,
  slot and all; the first is always on.

  Args:
    num_classes: number of logits.
    width: features of every hidden layer, at most.
    depth: hidden layers and slots, at most.
  """

  def init(key, x):
    sizes = [math.prod(x.shape[1:])] + [width] * depth
    keys = jax.random.split(key, depth + 1)
    params = {
      f"hidden{n + 1}": _dense(keys[n], sizes[n], width, gain=2.0)
      for n in range(depth)
    }
    params["head"] = _dense(keys[depth], width, num_classes, gain=1.0)
    masks = {
      "units": jnp.ones((width,), jnp.bool_),
      "layers": jnp.ones((depth,), jnp.bool_),
    }
    return params, {MASKS: masks}

  def apply(params, collections, seeds, x, *, train, key):
    masks, live = collections[MASKS], collections.get(LIVE)
    x = x.reshape(x.shape[0], -1)
    for n in range(depth):
      y = _on(jax.nn.relu(_linear(params[f"hidden{n + 1}"], x)), masks["units"])
      y = _grow(seeds, f"slot{n + 1}", y, live, n, train=train)
      y = _on(y, masks["units"])
      x = y if n == 0 else jnp.where(masks["layers"][n], y, x)
    return _linear(params["head"], x), dict(collections), dict(seeds)

  return Host(init, apply)


def cnn(num_classes: int, *, width: int, depth: int) -> Host:
  """A small CNN whose channels and blocks can be switched off.

  A 3x3 stem, a maximum over squares of 2x2, residual blocks of one 3x3
  convolution with a slot after each, the mean over space, a linear head.
  Masks as for `mlp`. Convolutions are matrix products over patches: a
  convolution inside `lax.scan` is slow on XLA:CPU, as is `reduce_window`. For
  the same reason choose blueprints without a 3x3 kernel across channels:
  lowrank, norm, squeeze_excite, depthwise.

  Args:
    num_classes: number of logits.
    width: channels, at most.
    depth: blocks and slots, at most; the first is always on.
  """

  def init(key, x):
    if x.shape[1] % 2 or x.shape[2] % 2:
      raise InputError(
        f"simic: the CNN halves its images and {x.shape[1]}x{x.shape[2]} is"
        " odd; pool them to an even size"
      )
    inputs = [x.shape[-1]] + [width] * depth
    names = ["hidden1", *(f"block{n + 1}" for n in range(depth))]
    keys = jax.random.split(key, depth + 2)
    params = {
      name: _dense(keys[n], 9 * inputs[n], width, gain=2.0)
      for n, name in enumerate(names)
    }
    params["head"] = _dense(keys[depth + 1], width, num_classes, gain=1.0)
    masks = {
      "units": jnp.ones((width,), jnp.bool_),
      "layers": jnp.ones((depth,), jnp.bool_),
    }
    return params, {MASKS: masks}

  def apply(params, collections, seeds, x, *, train, key):
    masks, live = collections[MASKS], collections.get(LIVE)
    units = masks["units"]
    x = _on(jax.nn.relu(_conv3x3(params["hidden1"], x)), units)
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
    for n in range(depth):
      y = _on(jax.nn.relu(x + _conv3x3(params[f"block{n + 1}"], x)), units)
      y = _grow(seeds, f"slot{n + 1}", y, live, n, train=train)
      y = _on(y, units)
      x = y if n == 0 else jnp.where(masks["layers"][n], y, x)
    logits = _linear(params["head"], x.mean(axis=(1, 2)))
    return logits, dict(collections), dict(seeds)

  return Host(init, apply)


def _grow(seeds, name, x, live, row, *, train):
  """The slot, of whose seeds only the live one is computed.

  Each branch is `apply_seeds` with one seed. Where the columns of a batch
  differ all branches run, and the one that lives is selected.
  """
  own = seeds_at(seeds, name)
  if own and live is not None:
    only = [{}, *({key: seed} for key, seed in own.items())]
    branches = [
      lambda x, one=one: apply_seeds(one, x, train=train)[0] for one in only
    ]
    x, own = jax.lax.switch(live[row] + 1, branches, x), {}
  return apply_slot(with_seeds_at({}, name, own), name, x, train=train)[0]


def _conv3x3(params, x):
  # The kernel is kept as the matrix that patches are multiplied with.
  kernel = params["kernel"].reshape(3, 3, x.shape[-1], -1)
  y = conv(x, kernel, im2col=True)
  return y + params["bias"].reshape(1, 1, 1, -1)


def _dense(key, inputs, outputs, *, gain):
  scale = math.sqrt(gain / inputs)
  draw = jax.random.truncated_normal(key, -2.0, 2.0, (inputs, outputs))
  return {
    "kernel": scale / 0.87962566 * draw,  # a truncated normal's own deviation
    "bias": jnp.zeros((outputs,), jnp.float32),
  }


def _linear(params, x):
  return x @ params["kernel"] + params["bias"].reshape(1, -1)


def _on(x, mask):
  """0 where the channel is off: a selection, so NaN does not get through."""
  return jnp.where(mask.reshape((1,) * (x.ndim - 1) + (-1,)), x, 0.0)
