"""Normalization with ReLU and its gradients, against formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.urza import dispatch
from esper_jax.urza.dispatch import Dispatcher
from esper_jax.urza.kernel import Unsuitable
from esper_jax.urza.kernels import (
  group_norm_backward,
  layer_norm_backward,
  plain,
)
from esper_jax.urza.kernels.norm_backward import normalize_relu
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.lowered import for_cuda, launches

C = 16
SHAPES = ((2, 3, 5, C), (2, 1, 1, C), (4, 3, C), (1, C))


def kernel_for(shape):
  images = len(shape) == 4
  return (group_norm_backward if images else layer_norm_backward).KERNEL


def drawn(dtype, shape):
  draw = np.random.default_rng(0)
  x, g = (draw.normal(size=shape) for _ in range(2))
  scale, bias = (draw.normal(size=shape[-1:]) for _ in range(2))
  own = jnp.float64 if dtype == "float64" else jnp.float32
  return (
    jnp.asarray(x, dtype),
    jnp.asarray(scale, own),
    jnp.asarray(bias, own),
    jnp.asarray(g, dtype),
  )


def by_formula(x, scale, bias, g):
  """The value and the gradients, as papers write them."""
  x, scale, bias, g = (np.asarray(a, np.float64) for a in (x, scale, bias, g))
  axes = (1, 2, 4) if x.ndim == 4 else (-1,)
  groups = 4 if x.ndim == 4 else 1  # of 16 channels
  parts = (*x.shape[:-1], groups, C // groups)
  v = x.reshape(parts)
  rate = 1 / np.sqrt(v.var(axes, keepdims=True) + 1e-5)
  z = (v - v.mean(axes, keepdims=True)) * rate
  flat = z.reshape(x.shape)
  y = flat * scale + bias
  own = np.where(y > 0, g, 0)
  dz = (own * scale).reshape(parts)
  common = dz.mean(axes, keepdims=True)
  common = common + z * (dz * z).mean(axes, keepdims=True)
  dx = (rate * (dz - common)).reshape(x.shape)
  over = tuple(range(x.ndim - 1))
  return np.maximum(y, 0), dx, (own * flat).sum(over), own.sum(over)


@jax.jit
def gradients(x, scale, bias, g):
  y, pull = jax.vjp(normalize_relu, x, scale, bias)
  return y, *pull(g)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_reference_equal_the_formula(shape):
  args = drawn("float32", shape)
  got = jax.jit(
    lambda *a: (normalize_relu(*a[:3]), kernel_for(shape).reference(*a))
  )(*args)
  got = (got[0], *got[1])
  for one, two in zip(got, by_formula(*args), strict=True):
    np.testing.assert_allclose(one, two, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_reference_equals_the_formula_for_float64(shape):
  # Statistics are float32 whatever x is, which bounds what float64 shows.
  with jax.enable_x64(True):
    args = drawn("float64", shape)
    got = jax.jit(kernel_for(shape).reference)(*args)
    for one, two in zip(got, by_formula(*args)[1:], strict=True):
      assert one.dtype == jnp.float64
      np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_without_a_dispatcher_the_program_is_the_plain_one(shape):
  args = drawn("float32", shape)

  def both(function):
    return lambda x, s, b, g: jax.vjp(function, x, s, b)[1](g)

  got = jax.make_jaxpr(both(normalize_relu))(*args)
  assert str(got) == str(jax.make_jaxpr(both(plain.normalize_relu))(*args))


@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_with_a_stored_kernel_only_the_gradient_takes_it(tmp_path, shape):
  args = drawn("bfloat16", shape)
  plainly = gradients(*args)
  registry = open_registry(layers=[tmp_path / "urza"])
  registry.put(*handmade.artefact(kernel_for(shape), *args))
  dispatcher = Dispatcher(registry, handmade.H100, require="nothing")
  with dispatch.using(dispatcher):
    assert not launches(for_cuda(lambda *a: normalize_relu(*a), *args[:3]))
    lowered = for_cuda(lambda *a: gradients.__wrapped__(*a), *args)
    assert len(launches(lowered)) == 1
    here = jax.jit(lambda *a: gradients.__wrapped__(*a))(*args)
  for one, two in zip(here, plainly, strict=True):
    one, two = (np.asarray(a, np.float32) for a in (one, two))
    np.testing.assert_allclose(one, two, rtol=2**-7, atol=2**-7)
  np.testing.assert_array_equal(here[0], plainly[0])
  assert dispatcher.fallbacks() == []


def test_relu_has_no_gradient_at_zero():
  x, _, _, g = drawn("float32", (2, C))
  nothing = jnp.zeros((C,), jnp.float32)
  for gradient in jax.jit(layer_norm_backward.KERNEL.reference)(
    x, nothing, nothing, g
  ):
    assert not np.asarray(gradient).any()


def test_unsuitable_arguments_are_refused():
  image = jax.ShapeDtypeStruct((2, 3, 5, 48), jnp.float32)
  tokens = jax.ShapeDtypeStruct((2, 3, 48), jnp.float32)
  scale = jax.ShapeDtypeStruct((48,), jnp.float32)
  group, layer = group_norm_backward.KERNEL, layer_norm_backward.KERNEL
  with pytest.raises(Unsuitable, match="power of two"):
    group.form(image, scale, scale, image)
  with pytest.raises(Unsuitable, match="no image"):
    group.form(tokens, scale, scale, tokens)
  with pytest.raises(Unsuitable, match="in groups"):
    layer.form(image, scale, scale, image)
  assert dict(layer.form(tokens, scale, scale, tokens).constants) == {"C": 48}


def test_groups_lie_whole_in_a_program():
  for constants in group_norm_backward.KERNEL.shipped:
    kernel = group_norm_backward.KERNEL
    args = kernel.arguments("float32", constants, 2, 3, 5)
    for tiles in kernel.tiles(kernel.form(*args)):
      assert constants["C"] % tiles["BC"] == 0
      assert tiles["BC"] % constants["GROUP"] == 0
