"""Blending with health, against the slot's own blend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina import slot
from esper_jax.urza.kernel import Unsuitable
from esper_jax.urza.kernels import blend_backward, blend_forward
from esper_jax.urza.kernels.blend_forward import blend_with_health

SHAPE = (3, 2, 5, 8)
# (alpha, isolation): silent, isolated, blended, and both of the latter.
STATES = ((0.0, 0.0), (0.0, 1.0), (0.3, 0.0), (0.3, 1.0))


def drawn(dtype, shape=SHAPE):
  draw = np.random.default_rng(0)
  return tuple(jnp.asarray(draw.normal(size=shape), dtype) for _ in range(3))


def f32(value):
  return jnp.asarray(value, jnp.float32)


def with_health(x, r, alpha, isolation, proximal):
  return blend_with_health(x, r, alpha, isolation, proximal)[0]


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function, x, r, g, alpha, isolation):
  proximal = f32(0.7)
  y, pull = jax.vjp(
    lambda x, r: function(x, r, alpha, isolation, proximal), x, r
  )
  return y, *pull(g)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradients_are_those_of_the_slot_to_the_bit(dtype, state):
  arguments = (*drawn(dtype), *map(f32, state))
  got = with_gradients(with_health, *arguments)
  expected = with_gradients(slot.blend, *arguments)
  for one, two in zip(got, expected, strict=True):
    assert one.dtype == two.dtype
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("state", STATES)
def test_nan_of_a_silent_or_isolated_seed_stays_in_it(state):
  x, r, g = drawn("float32")
  y, dx, dr = with_gradients(
    with_health, x, r.at[0].set(jnp.nan), g, *map(f32, state)
  )
  blended = state == (0.3, 0.0)
  assert np.isnan(np.asarray(y)).any() == blended
  np.testing.assert_array_equal(dx, g)
  assert np.isnan(np.asarray(dr)).any() == (state[1] > 0)


def test_health_describes_the_output_of_the_seed():
  x, r, _ = drawn("float32")
  r = r.at[1].set(0)
  _, health = jax.jit(blend_with_health)(x, r, f32(0), f32(1), f32(0))
  exact = np.asarray(r, np.float64)
  size = np.abs(exact)
  expected = [exact.sum(), (exact**2).sum(), size.max(), r[1].size]
  assert health.dtype == jnp.float32
  np.testing.assert_allclose(health, expected, rtol=1e-5, atol=1e-4)


def test_finish_adds_up_health_and_keeps_nan():
  parts = f32([[1, 4, 2, 3], [-3, 9, 3, 1]])
  broken = parts.at[0, :2].set(jnp.nan)
  y = f32([1])
  _, health = blend_forward.KERNEL.finish((y, parts), ())
  np.testing.assert_array_equal(health, [-2, 13, 3, 4])
  _, health = blend_forward.KERNEL.finish((y, broken), ())
  assert np.isnan(health[:3]).all() and health[3] == 4


@pytest.mark.parametrize("module", [blend_forward, blend_backward])
def test_a_number_of_elements_that_fills_no_lanes_is_unsuitable(module):
  odd = jax.ShapeDtypeStruct((3, 5), jnp.float32)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  count = 2 if module is blend_forward else 3
  with pytest.raises(Unsuitable, match="multiple of 16"):
    module.KERNEL.form(odd, odd, *[scalar] * count)


def test_parameters_of_another_shape_are_unsuitable():
  x = jax.ShapeDtypeStruct((2, 16), jnp.float32)
  many = jax.ShapeDtypeStruct((4,), jnp.float32)
  with pytest.raises(Unsuitable, match=r"float32 \[4\]"):
    blend_forward.KERNEL.form(x, x, many, many)
