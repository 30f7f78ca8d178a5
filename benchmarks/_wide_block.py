"""A blueprint of the bottleneck benchmark, registered when imported.

It is the branch that a stage which is not narrowed has: 3x3 to 16 channels,
3x3 back. `--config.urza.modules=benchmarks._wide_block` makes it known.
"""

import jax

from esper_jax.kasmina.blueprints import Blueprint, register
from esper_jax.kasmina.layers import (
  conv,
  draw_kernel,
  identity_norm,
  normalize,
)

NAME = "wide_block"
INNER = 16  # channels


def _init(key, spec):
  first, second = jax.random.split(key)
  c = spec.channels
  return {
    "conv1": draw_kernel(first, (3, 3, c, INNER), gain=2.0),
    "norm": identity_norm(INNER),
    "conv2": draw_kernel(second, (3, 3, INNER, c)),
  }, {}


def _apply(params, state, x, *, train, key):
  del train, key
  y = jax.nn.relu(normalize(conv(x, params["conv1"]), **params["norm"]))
  return conv(y, params["conv2"]), state


register(Blueprint(NAME, _init, _apply, ("nhwc",), ("conv2",)))
