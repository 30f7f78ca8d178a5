"""The depthwise convolution and its gradients, against XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from esper_jax.urza import dispatch
from esper_jax.urza.dispatch import Dispatcher
from esper_jax.urza.kernel import Unsuitable
from esper_jax.urza.kernels import plain
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.kernels.depthwise_forward import depthwise3x3
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.lowered import for_cuda, launches

C = 16
FORWARD, BACKWARD = "depthwise_forward", "depthwise_backward"
KERNEL = KERNELS[BACKWARD]


def drawn(dtype, batch=2, height=5, width=3):
  draw = np.random.default_rng(0)
  shape = (batch, height, width, C)
  x, g = (jnp.asarray(draw.normal(size=shape), dtype) for _ in range(2))
  exact = dtype == "float64"
  kernel = draw.normal(size=(3, 3, 1, C)) / 3
  return x, jnp.asarray(kernel, jnp.float64 if exact else jnp.float32), g


def convolution(x, kernel):
  return lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=C,
  )


@jax.jit
def expected_of(x, kernel, g):
  y, pull = jax.vjp(convolution, x, kernel)
  return y, *pull(g)


@jax.jit
def together(x, kernel, g):
  return depthwise3x3(x, kernel), *KERNEL.reference(x, kernel, g)


@jax.jit
def gradients(x, kernel, g):
  y, pull = jax.vjp(depthwise3x3, x, kernel)
  return y, *pull(g)


@pytest.mark.parametrize(
  ("dtype", "tolerance", "size"),
  [
    ("float64", 1e-13, (2, 5, 3)),
    ("float32", 2e-6, (2, 5, 3)),
    ("float64", 1e-13, (3, 1, 1)),
    ("float64", 1e-13, (1, 1, 4)),
  ],
)
def test_reference_equals_the_gradient_of_a_convolution(dtype, tolerance, size):
  with jax.enable_x64(dtype == "float64"):
    args = drawn(dtype, *size)
    expected = expected_of(*args)
    got = together(*args)
    for one, two in zip(got, expected, strict=True):
      assert one.dtype == two.dtype == dtype
      np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


def test_without_a_dispatcher_the_program_is_the_plain_one():
  x, kernel, g = drawn("float32")

  def both(function):
    return lambda x, k, g: (function(x, k), jax.vjp(function, x, k)[1](g))

  got = jax.make_jaxpr(both(depthwise3x3))(x, kernel, g)
  expected = jax.make_jaxpr(both(plain.depthwise))(x, kernel, g)
  assert str(got) == str(expected)


@pytest.mark.parametrize(
  "stored", [(FORWARD,), (BACKWARD,), (FORWARD, BACKWARD)], ids="+".join
)
def test_each_way_takes_its_kernel_if_it_is_stored(tmp_path, stored):
  x, kernel, g = drawn("bfloat16")
  plainly = gradients(x, kernel, g)
  registry = open_registry(layers=[tmp_path / "urza"])
  for name in stored:
    args = (x, kernel) if name == FORWARD else (x, kernel, g)
    registry.put(*handmade.artefact(KERNELS[name], *args))
  dispatcher = Dispatcher(registry, handmade.H100, require="nothing")
  with dispatch.using(dispatcher):
    forward = for_cuda(lambda *a: depthwise3x3(*a), x, kernel)
    assert len(launches(forward)) == (FORWARD in stored)
    lowered = for_cuda(lambda *a: gradients.__wrapped__(*a), x, kernel, g)
    assert len(launches(lowered)) == len(stored)
    here = jax.jit(lambda *a: gradients.__wrapped__(*a))(x, kernel, g)
  for one, two in zip(here, plainly, strict=True):
    np.testing.assert_array_equal(one, two)
  missing = {fallback.kernel for fallback in dispatcher.fallbacks()}
  assert missing == {FORWARD, BACKWARD} - {*stored}


@pytest.mark.parametrize("name", [FORWARD, BACKWARD])
def test_unsuitable_arguments_are_refused(name):
  own = KERNELS[name]
  x, kernel, *g = own.arguments("float32", {"C": C}, 2, 3, 5)
  with pytest.raises(Unsuitable, match="no image"):
    flat = jax.ShapeDtypeStruct((2, 3, C), x.dtype)
    own.form(flat, kernel, *[flat for _ in g])
  with pytest.raises(Unsuitable, match="parameter"):
    own.form(x, jax.ShapeDtypeStruct((1, 1, 1, C), x.dtype), *g)
  for channels in (24, 1024):
    with pytest.raises(Unsuitable, match="channels"):
      own.form(*own.arguments("float32", {"C": channels}, 2, 3, 5))


@pytest.mark.parametrize("name", [FORWARD, BACKWARD])
def test_channels_are_cut_without_a_rest(name):
  own = KERNELS[name]
  for channels in (48, 80, 512):
    args = own.arguments("bfloat16", {"C": channels}, 2, 3, 5)
    for tiles in own.tiles(own.form(*args)):
      assert channels % tiles["BC"] == 0 and tiles["BC"] >= 16
      assert tiles["BM"] & (tiles["BM"] - 1) == 0
