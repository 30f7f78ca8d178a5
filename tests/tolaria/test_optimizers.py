"""Chains, schedules and warm-up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from esper_jax.tolaria import optimizers
from esper_jax.types import InputError


def as_tree(kernel, bias):
  return {
    "kernel": jnp.full((2, 2), kernel, jnp.float32),
    "bias": jnp.full((2,), bias, jnp.float32),
  }


def directions(tx, gradients, params=None):
  """The kernel's and bias's direction after each gradient pair."""
  params = as_tree(2.0, 3.0) if params is None else params
  state = tx.init(params)
  out = []
  for kernel, bias in gradients:
    direction, state = jax.jit(tx.update)(as_tree(kernel, bias), state, params)
    out.append((float(direction["kernel"][0, 0]), float(direction["bias"][0])))
  return out


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_direction_is_uphill_and_keeps_types(name):
  tx = optimizers.make_optimizer(name, weight_decay=0.1, clip_norm=5.0)
  params, gradients = as_tree(2.0, 3.0), as_tree(0.5, 0.5)
  state = tx.init(params)
  direction, new_state = jax.jit(tx.update)(gradients, state, params)
  for leaf in jax.tree.leaves(direction):
    assert leaf.dtype == jnp.float32 and not leaf.weak_type
    assert (leaf > 0).all()
  for old, new in zip(
    jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True
  ):
    assert jax.typeof(old) == jax.typeof(new)
    assert not new.weak_type


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_every_optimizer_solves_a_quadratic(name):
  tx = optimizers.make_optimizer(name, b2=0.99)
  params = as_tree(2.0, -3.0)
  state, start = tx.init(params), optax.tree.norm(params)

  @jax.jit
  def step(params, state):
    direction, state = tx.update(params, state, params)  # of |p|^2 / 2
    params = jax.tree.map(lambda p, d: p - 0.01 * d, params, direction)
    return params, state

  for _ in range(500):
    params, state = step(params, state)
  assert optax.tree.norm(params) < 0.2 * start


def test_sgd_momentum_is_heavy_ball():
  tx = optimizers.make_optimizer("sgd", momentum=0.5)
  got = [k for k, _ in directions(tx, [(1.0, 1.0)] * 3)]
  assert got == [1.0, 1.5, 1.75]


def test_sgd_without_momentum_keeps_no_state():
  tx = optimizers.make_optimizer("sgd", momentum=0.0)
  assert not jax.tree.leaves(tx.init(as_tree(0.0, 0.0)))
  assert directions(tx, [(0.25, 4.0)]) == [(0.25, 4.0)]


def test_decay_is_decoupled_and_spares_vectors():
  for name in ("sgd", "adamw", "lion", "rmsprop"):
    plain = optimizers.make_optimizer(name)
    decayed = optimizers.make_optimizer(name, weight_decay=0.25)
    (kernel, bias), (kernel2, bias2) = (
      directions(tx, [(0.5, 0.5)])[0] for tx in (plain, decayed)
    )
    assert kernel2 == pytest.approx(kernel + 0.25 * 2.0, rel=1e-6)
    assert bias2 == bias


def test_adam_does_not_decay():
  plain = optimizers.make_optimizer("adam")
  decayed = optimizers.make_optimizer("adam", weight_decay=0.25)
  pair = [(0.5, 0.5)] * 3
  assert directions(plain, pair) == directions(decayed, pair)


def test_b2_and_momentum_reach_the_moments():
  pairs = [(1.0, 1.0), (-0.1, 0.2), (3.0, 0.2)]
  for name in ("adamw", "adam", "lion", "rmsprop"):
    base = directions(optimizers.make_optimizer(name, b2=0.999), pairs)
    assert base != directions(optimizers.make_optimizer(name, b2=0.5), pairs)
  for name in ("adamw", "adam", "lion", "rmsprop", "sgd"):
    base = directions(optimizers.make_optimizer(name, b2=0.5), pairs)
    assert base != directions(
      optimizers.make_optimizer(name, momentum=0.0, b2=0.5), pairs
    )


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_first_step_of_a_newborn_has_unit_length(name):
  ((kernel, bias),) = directions(
    optimizers.make_optimizer(name), [(1e-2, 10.0)]
  )
  assert kernel == pytest.approx(1.0, rel=1e-3)
  assert bias == pytest.approx(1.0, rel=1e-3)


def test_clip_bounds_the_norm_of_the_group():
  tx = optimizers.make_optimizer("sgd", momentum=0.0, clip_norm=1.0)
  (large,) = directions(tx, [(3.0, 4.0)])
  norm = (4 * large[0] ** 2 + 2 * large[1] ** 2) ** 0.5
  assert norm == pytest.approx(1.0, rel=1e-6)
  assert large[0] / large[1] == pytest.approx(3 / 4, rel=1e-6)
  assert directions(tx, [(0.25, 0.25)]) == [(0.25, 0.25)]


def test_accumulation_averages_then_clips():
  tx = optimizers.make_optimizer(
    "sgd", momentum=0.0, accumulate_steps=2, weight_decay=0.5
  )
  got = directions(tx, [(1.0, 1.0), (3.0, 5.0), (2.0, 2.0), (4.0, 4.0)])
  assert got == [(0.0, 0.0), (3.0, 3.0), (0.0, 0.0), (4.0, 3.0)]


def test_unknown_names_list_the_valid_ones():
  with pytest.raises(InputError, match="'adamx' is unknown; valid: sgd, adamw"):
    optimizers.make_optimizer("adamx")
  with pytest.raises(InputError, match="'cos' is unknown; valid: constant"):
    optimizers.make_schedule("cos", peak=1.0, total_steps=1)


def rates(name, steps, **kwargs):
  rate = optimizers.make_schedule(name, **kwargs)
  out = jax.jit(jax.vmap(rate))(jnp.arange(steps, dtype=jnp.int32))
  assert out.dtype == jnp.float32 and not out.weak_type
  eager = [float(rate(jnp.int32(i))) for i in range(steps)]
  np.testing.assert_allclose(out, eager, rtol=1e-6, atol=1e-6)
  return np.asarray(out)


def test_constant_schedule_warms_up_to_the_peak():
  got = rates("constant", 10, peak=0.5, total_steps=10, warmup_steps=4)
  np.testing.assert_allclose(got[:5], 0.5 * np.arange(1, 6) / 5, rtol=1e-6)
  assert (got[4:] == 0.5).all()


def test_cosine_schedule():
  got = rates("cosine", 101, peak=2.0, total_steps=100, final_factor=0.1)
  assert got[0] == 2.0
  assert got[50] == pytest.approx(2.0 * (0.1 + 0.9 / 2), rel=1e-5)
  assert got[100] == pytest.approx(0.2, rel=1e-5)
  assert (np.diff(got) < 0).all()


def test_cosine_schedule_starts_after_warmup():
  got = rates("cosine", 20, peak=1.0, total_steps=20, warmup_steps=5)
  assert got.argmax() == 5 and got[5] == 1.0
  assert (got > 0).all()


def test_wsd_is_stable_then_linear():
  got = rates(
    "wsd", 101, peak=1.0, total_steps=100, warmup_steps=9, decay_fraction=0.2
  )
  assert (got[9:81] == 1.0).all()
  np.testing.assert_allclose(got[80:], np.linspace(1, 0, 21), atol=1e-6)


def test_wsd_without_decay_and_with_warmup_to_the_end():
  flat = rates("wsd", 10, peak=1.0, total_steps=10, decay_fraction=0.0)
  assert (flat == 1.0).all()
  late = rates("wsd", 10, peak=1.0, total_steps=10, warmup_steps=9)
  assert (np.diff(late) > 0).all() and late[9] == 1.0


def test_schedule_is_flat_beyond_the_run():
  got = rates("cosine", 30, peak=1.0, total_steps=10, final_factor=0.25)
  assert (got[10:] == 0.25).all()


def test_newborn_factor_rises_to_exactly_one():
  ages = jnp.arange(60, dtype=jnp.int32)
  got = jax.jit(lambda a: optimizers.newborn_factor(a, 50))(ages)
  assert got.dtype == jnp.float32 and not got.weak_type
  assert float(got[0]) == pytest.approx(1 / 51, rel=1e-6)
  assert (jnp.diff(got[:51]) > 0).all()
  assert (got[50:] == 1.0).all()
  assert (optimizers.newborn_factor(ages, 0) == 1.0).all()


@pytest.mark.parametrize(
  "tx",
  [
    optax.scale_by_adam(),
    optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9)),
    optax.chain(optax.scale_by_rms(), optax.add_decayed_weights(1e-4)),
    optax.masked(optax.trace(0.9), {"kernel": True, "bias": False}),
    optax.identity(),
  ],
)
def test_good_chains_pass_and_work_under_strict_promotion(tx):
  chain = optimizers.check_user_chain(tx)
  (got,) = directions(chain, [(1.0, 1.0)])
  assert got[0] > 0 and got[1] > 0


def falling(count):
  return 0.1 / (1 + count.astype(jnp.float32))


@pytest.mark.parametrize(
  "tx",
  [
    optax.adam(falling),
    optax.chain(optax.identity(), optax.scale_by_schedule(falling)),
    optax.masked(
      optax.scale_by_schedule(falling), {"kernel": True, "bias": False}
    ),
    optax.add_decayed_weights(falling),
    optax.inject_hyperparams(optax.sgd)(learning_rate=falling),
    optax.MultiSteps(optax.sgd(falling), 2).gradient_transformation(),
  ],
)
def test_chains_with_a_schedule_are_refused(tx):
  with pytest.raises(InputError, match="carries its own schedule"):
    optimizers.check_user_chain(tx)


@pytest.mark.parametrize("tx", [optax.adam(1e-3), optax.sgd(0.1)])
def test_chains_with_a_learning_rate_are_refused(tx):
  with pytest.raises(InputError, match="its own learning rate"):
    optimizers.check_user_chain(tx)


def test_chains_that_need_more_are_refused():
  tx = optax.scale_by_backtracking_linesearch(max_backtracking_steps=3)
  with pytest.raises(InputError, match=r"needs more than \(gradients"):
    optimizers.check_user_chain(tx)
  with pytest.raises(InputError, match="line searches"):
    optimizers.check_user_chain(contrib.reduce_on_plateau())


def half(updates, state, params=None):
  del params
  halved = jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates)
  return halved, state


def grow(updates, state, params=None):
  del params
  return updates, (*state, jnp.zeros(()))


@pytest.mark.parametrize(
  ("update", "what"), [(half, "updates"), (grow, "state")]
)
def test_chains_that_change_their_form_are_refused(update, what):
  tx = optax.GradientTransformation(lambda params: (), update)
  with pytest.raises(InputError, match=f"shape or dtype of its {what}"):
    optimizers.check_user_chain(tx)


def test_accumulating_state_keeps_its_types_through_a_scan():
  tx = optimizers.make_optimizer("adamw", accumulate_steps=3, clip_norm=1.0)
  params = as_tree(2.0, 3.0)
  state = tx.init(params)

  def body(state, gradient):
    direction, state = tx.update(gradient, state, params)
    return state, direction

  gradients = jax.tree.map(lambda p: jnp.stack([p] * 6), as_tree(1.0, 1.0))
  new, out = jax.jit(lambda s: jax.lax.scan(body, s, gradients))(state)
  assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
  moved = [bool((step != 0).any()) for step in out["kernel"]]
  assert moved == [False, False, True, False, False, True]
