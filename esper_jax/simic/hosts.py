"""Hosts of one shape for a whole population: masks make them narrow or short.

A mask is a variable of the host like batch statistics, in the collection
`masks`, so a vmapped program trains hosts of many sizes side by side. With
every mask True the MLP is `hosts.mlp.MLP`, parameter for parameter.
"""

import math

import jax
import jax.numpy as jnp

from esper_jax.hosts.host import Host
from esper_jax.kasmina.slot import apply_slot

MASKS = "masks"


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
    masks, seeds = collections[MASKS], dict(seeds)
    x = x.reshape(x.shape[0], -1)
    for n in range(depth):
      y = _on(jax.nn.relu(_linear(params[f"hidden{n + 1}"], x)), masks["units"])
      y, seeds = apply_slot(seeds, f"slot{n + 1}", y, train=train, key=key)
      y = _on(y, masks["units"])
      x = y if n == 0 else jnp.where(masks["layers"][n], y, x)
    return _linear(params["head"], x), dict(collections), seeds

  return Host(init, apply)


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
