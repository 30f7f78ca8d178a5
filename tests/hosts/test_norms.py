"""Our norms against Flax's, their running statistics, and dtypes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts.norms import EPSILON, BatchNorm, GroupNorm, group_count


def images(shape=(4, 6, 6, 8), seed=0):
  x = jax.random.normal(jax.random.key(seed), shape)
  return 3 * x + 2


def parameters(channels=8):
  keys = jax.random.split(jax.random.key(1))
  return {
    "scale": jax.random.normal(keys[0], (channels,)),
    "bias": jax.random.normal(keys[1], (channels,)),
  }


def test_batch_norm_training_matches_flax():
  x, params = images(), parameters()
  stats = {"mean": jnp.full((8,), 0.5), "var": jnp.full((8,), 2.0)}
  variables = {"params": params, "batch_stats": stats}
  ours, new = BatchNorm().apply(
    variables, x, train=True, mutable=["batch_stats"]
  )
  theirs, expected = nn.BatchNorm(
    use_running_average=False, momentum=0.9, epsilon=EPSILON
  ).apply(variables, x, mutable=["batch_stats"])
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
  for name in ("mean", "var"):
    np.testing.assert_allclose(
      new["batch_stats"][name], expected["batch_stats"][name], rtol=1e-5
    )


def test_batch_norm_gradient_matches_flax():
  x, params = images(), parameters()
  stats = {"mean": jnp.zeros(8), "var": jnp.ones(8)}
  weights = jax.random.normal(jax.random.key(2), x.shape)

  def gradient(apply):
    def f(params, x):
      y, _ = apply(
        {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
      )
      return (y * weights).sum()

    return jax.grad(f, (0, 1))(params, x)

  def ours(variables, x, mutable):
    return BatchNorm().apply(variables, x, train=True, mutable=mutable)

  theirs = nn.BatchNorm(use_running_average=False, epsilon=EPSILON).apply
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    gradient(ours),
    gradient(theirs),
  )


def test_batch_norm_evaluation_uses_the_running_statistics():
  x, params = images(), parameters()
  stats = {"mean": jnp.full((8,), 0.5), "var": jnp.full((8,), 2.0)}
  y: Any = BatchNorm().apply(
    {"params": params, "batch_stats": stats}, x, train=False
  )
  expected = (np.asarray(x) - 0.5) / np.sqrt(2.0 + EPSILON) * np.asarray(
    params["scale"]
  ) + np.asarray(params["bias"])
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_starts_with_mean_0_and_variance_1():
  variables = BatchNorm().init(jax.random.key(0), images(), train=True)
  assert (variables["batch_stats"]["mean"] == 0).all()
  assert (variables["batch_stats"]["var"] == 1).all()


def test_batch_norm_of_a_constant_is_finite():
  x = jnp.full((4, 6, 6, 8), 1234.567)
  variables = BatchNorm().init(jax.random.key(0), x, train=False)
  y, new = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
  assert jnp.isfinite(y).all()
  assert (new["batch_stats"]["var"] >= 0).all()


def test_group_norm_matches_flax():
  x, params = images(), parameters()
  variables = {"params": params}
  theirs = nn.GroupNorm(num_groups=group_count(8), epsilon=EPSILON)
  for train in (False, True):
    y: Any = GroupNorm().apply(variables, x, train=train)
    expected: Any = theirs.apply(variables, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_group_norm_does_not_mix_examples():
  x = images()
  variables = GroupNorm().init(jax.random.key(0), x, train=True)
  changed = x.at[1].set(100.0)
  before: Any = GroupNorm().apply(variables, x, train=True)
  after: Any = GroupNorm().apply(variables, changed, train=True)
  assert (before[0] == after[0]).all()
  assert (before[1] != after[1]).any()


@pytest.mark.parametrize("norm", [BatchNorm, GroupNorm])
def test_bfloat16_in_and_out_float32_within(norm):
  x = images().astype(jnp.bfloat16)
  module = norm(jnp.bfloat16)
  variables = module.init(jax.random.key(0), x, train=True)
  assert {a.dtype.name for a in jax.tree.leaves(variables)} == {"float32"}
  y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
  assert y.dtype == jnp.bfloat16
  assert {a.dtype.name for a in jax.tree.leaves(new)} <= {"float32"}
  exact, _ = norm().apply(
    variables, x.astype(jnp.float32), train=True, mutable=["batch_stats"]
  )
  np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
  ("channels", "groups"),
  [(1, 1), (2, 1), (4, 1), (7, 1), (8, 2), (12, 2), (16, 4), (64, 16)]
  + [(128, 32), (512, 32)],
)
def test_group_count(channels, groups):
  assert group_count(channels) == groups
