import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from esper_jax.kasmina import layers


def reference_conv(x, kernel, stride, groups):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def draw(seed, shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("im2col", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
  ("size", "groups", "out"),
  [(1, 1, 6), (3, 1, 6), (2, 1, 6), (3, 4, 4), (3, 4, 8), (3, 2, 6)],
)
def test_conv_equals_lax_in_value_and_gradient(
  im2col, stride, size, groups, out
):
  x = draw(0, (2, 5, 4, 4))
  kernel = draw(1, (size, size, 4 // groups, out))

  def ours(x, kernel):
    return layers.conv(x, kernel, stride=stride, groups=groups, im2col=im2col)

  def reference(x, kernel):
    return reference_conv(x, kernel, stride, groups)

  g = draw(2, jax.eval_shape(reference, x, kernel).shape)

  @jax.jit
  def both(x, kernel):
    results = []
    for function in (ours, reference):
      y, pull = jax.vjp(function, x, kernel)
      results.append((y, *pull(g)))
    return results

  for got, want in zip(*both(x, kernel), strict=True):
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"im2col": True}, {"groups": 4}])
def test_conv_computes_in_the_dtype_of_its_input(options):
  x = draw(0, (2, 5, 4, 4))
  kernel = draw(1, (3, 3, 1 if "groups" in options else 4, 4))
  y = layers.conv(x.astype(jnp.bfloat16), kernel, **options)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    y.astype(jnp.float32), layers.conv(x, kernel, **options), atol=0.15
  )


def test_im2col_has_no_convolution_and_depthwise_neither():
  x, kernel = draw(0, (2, 5, 4, 4)), draw(1, (3, 3, 4, 4))
  depthwise = draw(1, (3, 3, 1, 4))

  def text(function, *args):
    return jax.jit(function).lower(*args).as_text()

  assert "convolution" in text(layers.conv, x, kernel)
  assert "convolution" not in text(
    lambda x, k: layers.conv(x, k, im2col=True), x, kernel
  )
  assert "convolution" not in text(
    lambda x, k: layers.conv(x, k, groups=4), x, depthwise
  )


@pytest.mark.parametrize(
  ("channels", "groups"),
  [(1, 1), (2, 1), (4, 1), (6, 1), (8, 2), (12, 3), (32, 8), (64, 8)],
)
def test_normalize_images_by_group(channels, groups):
  x = 3 * draw(0, (2, 4, 3, channels)) + 5
  scale, bias = draw(1, (channels,)), draw(2, (channels,))

  z = np.asarray(x).reshape(2, 12, groups, channels // groups)
  z = z - z.mean(axis=(1, 3), keepdims=True)
  z = z / np.sqrt(np.square(z).mean(axis=(1, 3), keepdims=True) + 1e-5)

  np.testing.assert_allclose(
    jax.jit(layers.normalize)(x, scale, bias),
    z.reshape(x.shape) * np.asarray(scale) + np.asarray(bias),
    atol=1e-4,
  )


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8)])
def test_normalize_vectors_and_tokens_each_on_its_own(shape):
  x = 3 * draw(0, shape) + 5
  y = np.asarray(layers.normalize(x, jnp.ones((8,)), jnp.zeros((8,))))
  np.testing.assert_allclose(y.mean(-1), np.zeros(shape[:-1]), atol=1e-5)
  np.testing.assert_allclose(y.std(-1), np.ones(shape[:-1]), atol=1e-3)


def test_normalize_keeps_bfloat16_and_takes_its_statistics_in_float32():
  # 1000 + noise: bfloat16 statistics would lose the noise altogether.
  x = (1000 + 8 * draw(0, (2, 6, 6, 8))).astype(jnp.bfloat16)
  y = layers.normalize(x, **layers.identity_norm(8))
  wide = layers.normalize(x.astype(jnp.float32), **layers.identity_norm(8))
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), wide, atol=0.02)
  assert 0.9 < float(wide.std()) < 1.1


def test_draw_kernel_has_the_variance_asked_for():
  kernel = layers.draw_kernel(jax.random.key(0), (3, 3, 32, 64), gain=2.0)
  assert kernel.dtype == jnp.float32
  assert float(kernel.std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)
