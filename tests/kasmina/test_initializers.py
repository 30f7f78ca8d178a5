import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina import blueprints, initializers
from esper_jax.types import InputError, SlotSpec

SPECS = {
  "nhwc": SlotSpec("slot1", (3, 4, 8), "float32", "nhwc"),
  "features": SlotSpec("slot1", (24,), "float32", "features"),
}
CASES = [
  pytest.param(name, spec, id=f"{name}-{kind}")
  for kind, spec in SPECS.items()
  for name in blueprints.fitting(spec)
]


def draw_signal(seed, spec, dtype=jnp.float32):
  """Activations after a ReLU and the cotangents of a mean loss."""
  x, g = np.random.default_rng(seed).normal(size=(2, 16, *spec.shape))
  return jnp.asarray(np.maximum(x, 0), dtype), jnp.asarray(g / 16, dtype)


score_of = jax.jit(initializers.germination_score, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def apply(blueprint, params, state, x):
  return blueprint.apply(params, state, x, train=True, key=None)[0]


def initialize(initializer, name, spec, seed=0, signal=None):
  key = jax.random.key(seed)
  return initializers.initialize(
    initializer, blueprints.get(name), key, spec, signal=signal
  )


def norms(params):
  return [
    float(jnp.linalg.norm(p.reshape(-1))) for p in jax.tree.leaves(params)
  ]


@pytest.mark.parametrize("initializer", ["zero_out", "gradient"])
@pytest.mark.parametrize(("name", "spec"), CASES)
def test_exactly_one_factor_is_zero_and_the_output_too(initializer, name, spec):
  signal = draw_signal(0, spec)
  blueprint = blueprints.get(name)
  params, state = initialize(initializer, name, spec, signal=signal)
  random, _ = initialize("random", name, spec)

  y = apply(blueprint, params, state, signal[0])
  assert not np.any(y)
  zero_before = jax.tree.map(lambda p: not np.any(p), random)
  zero_now = jax.tree.map(lambda p: not np.any(p), params)
  assert zero_now == blueprints.with_factor(blueprint, zero_before, True)
  assert zero_now != zero_before


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_random_is_the_plain_draw(name, spec):
  blueprint = blueprints.get(name)
  params, state = initialize("random", name, spec)
  expected, _ = blueprint.init(jax.random.key(0), spec)
  assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))
  assert np.any(apply(blueprint, params, state, draw_signal(0, spec)[0]))


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_gradient_raises_the_score_and_keeps_every_norm(name, spec):
  blueprint = blueprints.get(name)
  for seed in range(5):
    signal = draw_signal(seed, spec)
    plain, state = initialize("zero_out", name, spec, seed)
    turned, _ = initialize("gradient", name, spec, seed, signal)
    before, after = (
      float(score_of(blueprint, p, state, *signal)) for p in (plain, turned)
    )
    assert after > 1.2 * before > 0
    np.testing.assert_allclose(norms(turned), norms(plain), rtol=1e-5)


@pytest.mark.parametrize("name", ["lowrank_dense", "dense"])
def test_gradient_keeps_every_unit_and_does_not_collapse_the_rank(name):
  spec = SPECS["features"]
  signal = draw_signal(0, spec)
  plain, turned = (
    np.asarray(jax.tree.leaves(initialize(n, name, spec, 0, signal)[0])[0])
    for n in ("zero_out", "gradient")
  )
  np.testing.assert_allclose(
    np.linalg.norm(turned, axis=0), np.linalg.norm(plain, axis=0), rtol=1e-5
  )

  def effective_rank(kernel):
    energy = np.linalg.svd(kernel, compute_uv=False) ** 2
    share = energy / energy.sum()
    return np.exp(-(share * np.log(share)).sum())

  assert effective_rank(turned) > 0.7 * effective_rank(plain)


def test_gradient_turns_scales_only_where_there_is_no_kernel():
  spec = SPECS["nhwc"]
  signal = draw_signal(0, spec)
  conv, _ = initialize("gradient", "conv3x3", spec, signal=signal)
  norm, _ = initialize("gradient", "norm", spec, signal=signal)
  assert np.all(np.asarray(conv["conv1"]["norm"]["scale"]) == 1)
  assert np.any(np.asarray(norm["norm"]["scale"]) != 1)


def test_gradient_works_on_bfloat16_signals():
  spec = SPECS["nhwc"]
  signal = draw_signal(0, spec, jnp.bfloat16)
  blueprint = blueprints.get("conv3x3")
  plain, state = initialize("zero_out", "conv3x3", spec)
  turned, _ = initialize("gradient", "conv3x3", spec, signal=signal)
  before, after = (
    score_of(blueprint, p, state, *signal) for p in (plain, turned)
  )
  assert after.dtype == jnp.float32 and after > 1.2 * before
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(turned))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_signal_that_is_not_finite_leaves_the_birth_as_it_was(bad):
  spec = SPECS["features"]
  x, g = draw_signal(0, spec)
  plain, _ = initialize("zero_out", "dense", spec)
  turned, _ = initialize(
    "gradient", "dense", spec, signal=(x.at[0, 0].set(bad), g)
  )
  assert jax.tree.all(jax.tree.map(np.array_equal, plain, turned))


def test_a_zero_signal_leaves_the_birth_as_it_was():
  spec = SPECS["features"]
  x, g = draw_signal(0, spec)
  plain, _ = initialize("zero_out", "dense", spec)
  turned, _ = initialize(
    "gradient", "dense", spec, signal=(x, jnp.zeros_like(g))
  )
  assert jax.tree.all(jax.tree.map(np.array_equal, plain, turned))


def test_score_is_the_squared_gradient_per_parameter():
  spec = SPECS["features"]
  blueprint = blueprints.get("lowrank_dense")
  x, g = draw_signal(0, spec)
  params, state = initialize("zero_out", "lowrank_dense", spec)
  down = np.asarray(params["down"]["kernel"])
  gradient = (np.asarray(x) @ down).T @ np.asarray(g)
  expected = np.square(gradient).sum() / blueprints.count(params)
  score = initializers.germination_score(blueprint, params, state, x, g)
  assert score.shape == () and score.dtype == jnp.float32
  assert float(score) == pytest.approx(expected, rel=1e-5)


def test_score_predicts_the_first_drop_of_the_loss():
  spec = SPECS["nhwc"]
  blueprint = blueprints.get("conv3x3")
  x, _ = draw_signal(0, spec)
  target, _ = draw_signal(7, spec)
  params, state = initialize("zero_out", "conv3x3", spec)

  def loss(params):
    y = apply(blueprint, params, state, x)
    return 0.5 * jnp.square(x + y - target).mean()

  g = (x - target) / x.size
  score = initializers.germination_score(blueprint, params, state, x, g)
  own = blueprints.factor(blueprint, jax.grad(loss)(params))
  rate = 0.01
  after = loss(blueprints.with_factor(blueprint, params, -rate * own))
  predicted = rate * float(score) * blueprints.count(params)
  assert predicted == pytest.approx(float(loss(params) - after), rel=0.05)


def test_first_gain_predicts_a_step_in_signs():
  spec = SPECS["nhwc"]
  blueprint = blueprints.get("conv3x3")
  x, _ = draw_signal(0, spec)
  target, _ = draw_signal(7, spec)
  params, state = initialize("zero_out", "conv3x3", spec)

  def loss(params):
    y = apply(blueprint, params, state, x)
    return 0.5 * jnp.square(x + y - target).mean()

  g = (x - target) / x.size
  gain = initializers.first_gain(blueprint, params, state, x, g)
  assert gain.shape == () and gain.dtype == jnp.float32
  own = blueprints.factor(blueprint, jax.grad(loss)(params))
  rate = 1e-4  # Adam's first step: every parameter by the learning rate
  step = jax.tree.map(lambda leaf: -rate * jnp.sign(leaf), own)
  after = loss(blueprints.with_factor(blueprint, params, step))
  assert rate * float(gain) == pytest.approx(
    float(loss(params) - after), rel=0.05
  )


def test_score_is_the_same_jitted_and_vmapped():
  spec = SPECS["nhwc"]
  blueprint = blueprints.get("depthwise")
  params, state = initialize("zero_out", "depthwise", spec)
  signals = [draw_signal(seed, spec) for seed in range(3)]

  def score(x, g):
    return initializers.germination_score(blueprint, params, state, x, g)

  eager = [float(score(*signal)) for signal in signals]
  jitted = [float(jax.jit(score)(*signal)) for signal in signals]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *signals)
  np.testing.assert_allclose(jitted, eager, rtol=1e-5)
  np.testing.assert_allclose(jax.vmap(score)(*stacked), eager, rtol=1e-5)


def test_an_unknown_initializer_lists_the_known():
  with pytest.raises(InputError, match="'ones' is unknown: .* zero_out, rand"):
    initialize("ones", "dense", SPECS["features"])


def test_a_blueprint_of_another_kind_is_refused():
  with pytest.raises(
    InputError, match="'dense' is for .*'slot1' is nhwc.*conv"
  ):
    initialize("zero_out", "dense", SPECS["nhwc"])


def test_gradient_without_a_signal_is_refused():
  with pytest.raises(InputError, match="needs a signal for slot 'slot1'"):
    initialize("gradient", "dense", SPECS["features"])
