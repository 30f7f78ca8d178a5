"""Slots: how a seed's output joins the host, and how it does not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina import blueprints
from esper_jax.kasmina.slot import (
  BLEND_MODES,
  Seed,
  Slot,
  all_seeds,
  apply_seeds,
  apply_slot,
  blend,
  fork,
  group_name,
  init_gate,
  observe_slots,
  seeds_at,
  with_seeds_at,
)
from esper_jax.types import SlotSpec

NAN = float("nan")


def f32(value):
  return jnp.asarray(value, jnp.float32)


def normal(n, shape):
  return jax.random.normal(jax.random.key(n), shape)


def _linear_init(key, spec):
  shape = (spec.channels, spec.channels)
  return {"kernel": jax.random.normal(key, shape)}, {"calls": f32(0)}


def _linear(params, state, x, *, train, key):
  del key
  y = x @ params["kernel"].astype(x.dtype)
  return y, {"calls": state["calls"] + (1.0 if train else 0.0)}


def _drop(params, state, x, *, train, key):
  y, state = _linear(params, state, x, train=train, key=key)
  return (y if key is None else y * jax.random.normal(key, y.shape)), state


LINEAR, DROP = "slot_test_linear", "slot_test_drop"


@pytest.fixture(autouse=True, scope="module")
def _registered():
  for name, apply in ((LINEAR, _linear), (DROP, _drop)):
    blueprint = blueprints.Blueprint(
      name, _linear_init, apply, ("features",), ("kernel",)
    )
    blueprints.register(blueprint, check=False)
  yield
  for name in (LINEAR, DROP):
    blueprints.unregister(name)


def make_seed(
  channels,
  n=0,
  *,
  alpha=1.0,
  isolation=0.0,
  proximal=1.0,
  blend="add",
  depth=0,
  blueprint=LINEAR,
  fill=None,
):
  spec = SlotSpec("slot", (channels,), "float32", "features")
  keys = jax.random.split(jax.random.key(100 + n))
  branch, state = _linear_init(keys[0], spec)
  params = {"branch": branch}
  if blend == "gate":
    params["gate"] = init_gate(keys[1], spec)
  if fill is not None:
    params, state = jax.tree.map(
      lambda a: jnp.full_like(a, fill), (params, state)
    )
  return Seed(
    params=params,
    state=state,
    alpha=f32(alpha),
    isolation=f32(isolation),
    proximal=f32(proximal),
    updates=f32(1),
    blueprint=blueprint,
    blend=blend,
    depth=depth,
  )


def kernel(seed):
  return seed.params["branch"]["kernel"]


def same(a, b):
  """Bitwise, so that NaN would count; none is expected."""
  leaves, other = jax.tree.leaves(a), jax.tree.leaves(b)
  assert len(leaves) == len(other)
  for x, y in zip(leaves, other, strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# --- fork and blend -------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
def test_fork_adds_the_seed_s_cotangent_only_where_live(live):
  x, g, h = (normal(n, (3, 4)) for n in range(3))
  (a, b), pull = jax.vjp(lambda x: fork(x, jnp.asarray(live)), x)
  same((a, b), (x, x))
  same(pull((g, h))[0], g + h if live else g)
  if not live:
    same(pull((g, jnp.full_like(h, NAN)))[0], g)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_blend_when_live_is_x_plus_alpha_r(dtype, alpha):
  x, r, g = (normal(n, (3, 4)).astype(dtype) for n in range(3))
  y, pull = jax.vjp(lambda x, r: blend(x, r, f32(alpha), f32(0), f32(1)), x, r)
  expected, reference = jax.vjp(
    lambda x, r: x + jnp.asarray(alpha, dtype) * r, x, r
  )
  same((y, pull(g)), (expected, reference(g)))
  assert y.dtype == dtype


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("proximal", [0.0, 3.0])
def test_blend_isolated_is_straight_through_plus_the_proximal_pull(
  alpha, proximal
):
  batch = 5
  x, r, g = (normal(n, (batch, 4)) for n in range(3))

  def surrogate(r):
    """Its gradient is what an isolated output must receive."""
    return (g * r).sum() + proximal / (2 * batch) * (r * r).sum()

  y, pull = jax.vjp(
    lambda x, r: blend(x, r, f32(alpha), f32(1), f32(proximal)), x, r
  )
  same(y, x)
  dx, dr = pull(g)
  same(dx, g)
  np.testing.assert_allclose(dr, jax.grad(surrogate)(r), rtol=1e-5, atol=1e-6)


def test_blend_silent_selects_x_and_no_gradient():
  x, g = normal(0, (3, 4)), normal(1, (3, 4))
  r = jnp.full_like(x, NAN)
  y, pull = jax.vjp(lambda x, r: blend(x, r, f32(0), f32(0), f32(1)), x, r)
  same((y, pull(g)), (x, (g, jnp.zeros_like(g))))


def test_the_leaves_get_no_gradient():
  x, r = normal(0, (3, 4)), normal(1, (3, 4))
  grads = jax.grad(lambda *a: blend(x, r, *a).sum(), (0, 1, 2))(
    f32(0.5), f32(0), f32(1)
  )
  same(grads, (f32(0),) * 3)


# --- seeds of one slot ----------------------------------------------------


SHAPES = {"features": (2, 3), "tokens": (2, 4, 3), "nhwc": (2, 5, 5, 3)}


@pytest.mark.parametrize("mode", BLEND_MODES)
@pytest.mark.parametrize("kind", SHAPES)
def test_blend_modes(kind, mode):
  x = normal(0, SHAPES[kind])
  seed = make_seed(3, alpha=0.5, blend=mode)
  y, _ = apply_seeds({"a": seed}, x, train=False)
  branch = x @ kernel(seed)
  if mode == "multiply":
    branch = x * jnp.tanh(branch)
  elif mode == "gate":
    gate = seed.params["gate"]
    seen = x.mean((1, 2), keepdims=True) if kind == "nhwc" else x
    logit = seen * gate["kernel"][:, 0].reshape((1,) * (x.ndim - 1) + (3,))
    logit = logit.sum(-1, keepdims=True) + gate["bias"][0]
    branch = branch / (1 + jnp.exp(-logit))
  np.testing.assert_allclose(y, x + 0.5 * branch, rtol=1e-4, atol=1e-5)
  assert y.dtype == x.dtype


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_every_seed_parameter_learns_in_bfloat16_too(mode):
  x = normal(0, (2, 5, 5, 3)).astype(jnp.bfloat16)
  seed = make_seed(3, alpha=0.5, blend=mode)

  def loss(params):
    y, _ = apply_seeds({"a": seed.replace(params=params)}, x, train=True)
    assert y.dtype == jnp.bfloat16
    return (y.astype(jnp.float32) ** 2).sum()

  grads = jax.grad(loss)(seed.params)
  for leaf in jax.tree.leaves(grads):
    assert leaf.dtype == jnp.float32
    assert (leaf != 0).any()


def test_init_gate_has_the_documented_form():
  spec = SlotSpec("slot", (8, 8, 64), "bfloat16", "nhwc")
  gate = init_gate(jax.random.key(0), spec)
  assert jax.tree.map(lambda a: (a.shape, a.dtype.name), gate) == {
    "kernel": ((64, 1), "float32"),
    "bias": ((1,), "float32"),
  }
  assert 0.05 < gate["kernel"].std() < 0.25  # 64 ** -0.5 = 0.125


def test_no_seed_is_the_identity():
  x = normal(0, (2, 3))
  y, new = apply_seeds({}, x, train=True)
  assert y is x
  assert new == {}


def test_seeds_of_equal_depth_share_the_input():
  x = normal(0, (2, 3))
  a, b = make_seed(3, 1, alpha=0.5), make_seed(3, 2)
  y, _ = apply_seeds({"a": a, "b": b}, x, train=False)
  expected = x + 0.5 * (x @ kernel(a)) + x @ kernel(b)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_deeper_seed_reads_the_shallower_ones_whatever_their_names():
  x = normal(0, (2, 3))
  deep, shallow = make_seed(3, 1, depth=2), make_seed(3, 2, depth=0)
  y, new = apply_seeds({"a": deep, "b": shallow}, x, train=False)
  middle = x + x @ kernel(shallow)
  np.testing.assert_allclose(
    y, middle + middle @ kernel(deep), rtol=1e-5, atol=1e-5
  )
  assert set(new) == {"a", "b"}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(("alpha", "isolation"), [(0, 1), (1, 1), (0, 0)])
def test_a_sick_seed_leaves_its_neighbour_alone(depth, alpha, isolation):
  x = normal(0, (2, 3))
  well = make_seed(3, 1, alpha=0.5)
  sick = make_seed(
    3, 2, alpha=alpha, isolation=isolation, depth=depth, fill=NAN
  )

  def loss(params, x, others):
    seeds = {"m": well.replace(params=params), **others}
    return (apply_seeds(seeds, x, train=True)[0] ** 2).sum()

  both = jax.value_and_grad(loss, (0, 1))
  alone = both(well.params, x, {})
  same(both(well.params, x, {"a": sick}), alone)
  same(both(well.params, x, {"z": sick}), alone)


def test_an_isolated_seed_learns_from_the_host_s_cotangent():
  """Gradient of <g, F(x)> + proximal / (2 batch) |F(x)|^2 with x held."""
  x, target = normal(0, (4, 3)), normal(1, (4, 3))
  seed = make_seed(3, isolation=1.0, alpha=0.0, proximal=2.0)

  def loss(params, x):
    y, _ = apply_seeds({"a": seed.replace(params=params)}, x, train=True)
    return ((y - target) ** 2).sum()

  g = 2 * (x - target)

  def surrogate(weights):
    r = x @ weights
    return (g * r).sum() + 2.0 / (2 * 4) * (r * r).sum()

  grads, dx = jax.grad(loss, (0, 1))(seed.params, x)
  np.testing.assert_allclose(
    grads["branch"]["kernel"],
    jax.grad(surrogate)(kernel(seed)),
    rtol=1e-4,
    atol=1e-4,
  )
  same(dx, g)


def test_state_follows_training_and_the_rest_of_the_seed_stays():
  x = normal(0, (2, 3))
  seed = make_seed(3)
  for train, calls in ((True, 1), (False, 0)):
    _, new = apply_seeds({"a": seed}, x, train=train)
    assert new["a"].state["calls"] == calls
    same(new["a"].replace(state=seed.state), seed)


def test_a_seed_s_draws_do_not_depend_on_its_neighbours():
  x, key = normal(0, (2, 3)), jax.random.key(7)
  seed = make_seed(3, blueprint=DROP)
  alone, _ = apply_seeds({"m": seed}, x, train=True, key=key)
  for name in ("a", "z"):
    silent = make_seed(3, 1, alpha=0.0, blueprint=DROP)
    y, _ = apply_seeds({"m": seed, name: silent}, x, train=True, key=key)
    same(y, alone)
  twin, _ = apply_seeds({"a": seed, "b": seed}, x, train=True, key=key)
  assert not np.allclose(twin - x, 2 * (alone - x))
  other, _ = apply_seeds({"m": seed}, x, train=True, key=jax.random.key(8))
  assert (other != alone).any()


def test_vmapped_environments_each_have_their_own_stage():
  x = normal(0, (4, 2, 3))
  leaves = [(0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (1.0, 0.0)]
  seeds = [make_seed(3, alpha=a, isolation=i) for a, i in leaves]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *seeds)

  def f(seed, x):
    def loss(x):
      y, _ = apply_seeds({"a": seed}, x, train=True)
      return (y**2).sum(), y

    return jax.grad(loss, has_aux=True)(x)

  batched = jax.vmap(f)(stacked, x)
  for n, seed in enumerate(seeds):
    one = f(seed, x[n])
    for a, b in zip(batched, one, strict=True):
      np.testing.assert_allclose(a[n], b, rtol=1e-5, atol=1e-5)


# --- the functional form and the tree -------------------------------------


def test_apply_slot_equals_slot():
  x = normal(0, (4, 3))
  seeds = {
    "encoder": {
      "slot": {"a": make_seed(3, 1), "b": make_seed(3, 2, isolation=1.0)}
    }
  }

  class Holder(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      return Slot(name="slot", causal=True)(x, train=train)

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      return Holder(name="encoder")(x, train=train)

  with observe_slots() as first:
    y, new = Outer().apply({"seeds": seeds}, x, train=True, mutable=["seeds"])
  with observe_slots() as second:
    z, tree = apply_slot(seeds, "encoder/slot", x, train=True, causal=True)
  same(y, z)
  same(new["seeds"], tree)
  assert jax.tree.structure(new["seeds"]) == jax.tree.structure(tree)
  assert first.specs == second.specs
  assert first.consumed == second.consumed


def test_apply_slot_hands_its_key_to_the_seeds():
  x = normal(0, (4, 3))
  seeds = {"s": {"a": make_seed(3, blueprint=DROP)}}
  y, _ = apply_slot(seeds, "s", x, key=jax.random.key(3))
  expected, _ = apply_seeds(seeds["s"], x, train=False, key=jax.random.key(3))
  same(y, expected)


def test_apply_slot_without_seeds_is_the_identity():
  x = normal(0, (4, 3))
  other = {"other": {"a": make_seed(3)}}
  y, tree = apply_slot(other, "encoder/slot", x)
  assert y is x
  assert tree == other


def test_the_tree_by_path():
  a, b, c = (make_seed(3, n) for n in range(3))
  tree = with_seeds_at({}, "encoder/slot", {"a": a})
  tree = with_seeds_at(tree, "encoder/last", {"c": c})
  both = with_seeds_at(tree, "encoder/slot", {"b": b, "a": a})
  assert seeds_at(both, "encoder/slot") == {"a": a, "b": b}
  assert seeds_at(both, "encoder/nothing/here") == {}
  assert list(all_seeds(both)) == [
    ("encoder/last", "c"),
    ("encoder/slot", "a"),
    ("encoder/slot", "b"),
  ]
  assert all_seeds(both)["encoder/slot", "b"] is b
  assert list(all_seeds(tree)) == [("encoder/last", "c"), ("encoder/slot", "a")]
  emptied = with_seeds_at(tree, "encoder/slot", {})
  assert set(emptied["encoder"]) == {"last"}
  assert with_seeds_at(emptied, "encoder/last", {}) == {}
  assert with_seeds_at({}, "encoder/slot", {}) == {}
  assert group_name("encoder/slot", "a") == "encoder/slot/a"
