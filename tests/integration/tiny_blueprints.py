"""Blueprints for runs that must go wrong; see tiny_config.py."""

import jax
import jax.numpy as jnp

from esper_jax.kasmina.blueprints import Blueprint, register

# Training steps until they give NaN. With 15 steps an epoch: in the first
# epoch, still isolated, and in the second, while blended in.
SICK, BOMB = 10, 20


def _init(key, spec):
  shape = (spec.channels, spec.channels)
  kernel = jax.random.normal(key, shape, jnp.float32)
  return {"kernel": kernel}, {"steps": jnp.zeros((), jnp.float32)}


def _linear(params, x):
  return x @ params["kernel"].astype(x.dtype)


def _idle(params, state, x, *, train, key):
  """Gives 0 whatever it learns, so it is worth exactly nothing."""
  y = _linear(params, x)
  return y - jax.lax.stop_gradient(y), state


def _nan_after(steps):
  def apply(params, state, x, *, train, key):
    factor = jnp.where(state["steps"] >= steps, jnp.nan, 1.0)
    y = _linear(params, x) * factor.astype(x.dtype)
    return y, {"steps": state["steps"] + float(train)}

  return apply


for _name, _apply in (
  ("tiny_idle", _idle),
  ("tiny_sick", _nan_after(SICK)),
  ("tiny_bomb", _nan_after(BOMB)),
):
  register(
    Blueprint(_name, _init, _apply, ("features",), ("kernel",)), check=False
  )
