"""Normalization and ReLU, whose gradients a kernel may take."""

import jax

from esper_jax.urza import dispatch
from esper_jax.urza.kernel import Kernel
from esper_jax.urza.kernels import (
  group_norm_backward,
  layer_norm_backward,
  plain,
)


def normalize_relu(
  x: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
  """Normalizes each example, scales and shifts each channel, clips at zero.

  The value is that of `plain.normalize_relu`, to the bit; the gradients are a
  kernel's where one runs.

  Args:
    x: [batch, ..., channels]; see `plain.normalize`.
    scale: float32 [channels].
    bias: float32 [channels].

  Returns:
    As x.
  """
  if dispatch.serves(_kernel_for(x), x, scale, bias, x):
    return _normalize_relu(x, scale, bias)
  return plain.normalize_relu(x, scale, bias)


def _kernel_for(x: jax.Array) -> Kernel:
  images = x.ndim == 4
  return (group_norm_backward if images else layer_norm_backward).KERNEL


@jax.custom_vjp
def _normalize_relu(x, scale, bias):
  return plain.normalize_relu(x, scale, bias)


def _op_forward(x, scale, bias):
  return plain.normalize_relu(x, scale, bias), (x, scale, bias)


def _op_backward(residuals, g):
  x, scale, bias = residuals
  return dispatch.call(_kernel_for(x), x, scale, bias, g)


_normalize_relu.defvjp(_op_forward, _op_backward)
