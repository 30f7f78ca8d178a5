import dataclasses
import functools
import inspect
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina import blueprints, builtin_blueprints
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.types import InputError, SlotSpec

IMAGES = ("conv3x3", "bottleneck", "depthwise", "squeeze_excite", "norm")
IMAGES += ("lowrank",)
VECTORS = ("norm", "dense", "bottleneck_dense", "lowrank_dense")
TOKENS = (*VECTORS, "causal_attention")
SHAPES = {
  "nhwc": [(5, 4, 8), (1, 1, 16)],
  "features": [(8,)],
  "tokens": [(3, 16), (4, 48)],
}


def spec_of(shape, kind, dtype="float32"):
  return SlotSpec("slot1", shape, dtype, kind, causal=kind == "tokens")


BUILT_IN_CASES = [
  pytest.param(name, spec_of(shape, kind), id=f"{name}-{shape}")
  for kind, names in [
    ("nhwc", IMAGES),
    ("features", VECTORS),
    ("tokens", TOKENS),
  ]
  for name in names
  for shape in SHAPES[kind]
]


def draw(seed, shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def born(name, spec, seed=0):
  blueprint = blueprints.get(name)
  params, state = jit_init(blueprint, jax.random.key(seed), spec)
  return blueprint, params, state


@functools.partial(jax.jit, static_argnums=(0, 2))
def jit_init(blueprint, key, spec):
  return blueprint.init(key, spec)


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(blueprint, params, state, x, train=False):
  return blueprint.apply(params, state, x, train=train, key=None)[0]


# One factor is a scale, the other a number: the smallest thing that learns.
def init_scale(key, spec):
  scale = jax.random.normal(key, (spec.channels,), jnp.float32)
  return {"scale": scale, "gain": jnp.ones((), jnp.float32)}, {}


def apply_scale(params, state, x, *, train, key):
  del train, key
  scale = (params["gain"] * params["scale"]).astype(x.dtype)
  return x * scale.reshape((1,) * (x.ndim - 1) + (-1,)), state


SCALE = Blueprint("scale", init_scale, apply_scale, ("features",), ("scale",))


@pytest.fixture
def registered():
  """Registers for one test."""
  before = blueprints.names()
  yield blueprints.register
  for name in set(blueprints.names()) - set(before):
    blueprints.unregister(name)


@pytest.mark.parametrize(("name", "spec"), BUILT_IN_CASES)
def test_built_in_passes_the_check_of_a_registration(name, spec):
  blueprints.check_blueprint(blueprints.get(name), spec)


@pytest.mark.parametrize(("name", "spec"), BUILT_IN_CASES)
def test_built_in_agrees_with_itself_in_bfloat16(name, spec):
  blueprint, params, state = born(name, spec)
  x = draw(1, (3, *spec.shape))
  wide = apply(blueprint, params, state, x)
  narrow = apply(blueprint, params, state, x.astype(jnp.bfloat16))

  assert narrow.dtype == jnp.bfloat16
  error = np.asarray(narrow.astype(jnp.float32) - wide)
  assert np.sqrt(np.square(error).mean()) < 0.03 * float(wide.std())


@pytest.mark.parametrize("name", blueprints.names())
def test_birth_depends_on_the_key_alone(name):
  kind = blueprints.get(name).kinds[0]
  spec = spec_of(SHAPES[kind][0], kind)
  leaves = [jax.tree.leaves(born(name, spec, seed)[1]) for seed in (0, 0, 1)]
  assert all(map(np.array_equal, leaves[0], leaves[1]))
  assert not all(map(np.array_equal, leaves[0], leaves[2]))
  assert all(np.any(leaf) or leaf.ndim == 1 for leaf in leaves[0])


@pytest.mark.parametrize("name", VECTORS)
def test_on_tokens_no_position_sees_another(name):
  blueprint, params, state = born(name, spec_of((3, 16), "tokens"))
  x = draw(1, (2, 3, 16))
  changed = x.at[:, 1].set(draw(2, (2, 16)))
  y, z = (apply(blueprint, params, state, v) for v in (x, changed))
  moved = np.any(np.asarray(y != z), axis=(0, 2))
  assert moved.tolist() == [False, True, False]


@pytest.mark.parametrize("name", TOKENS)
def test_on_tokens_no_position_sees_a_later_one(name):
  blueprint, params, state = born(name, spec_of((4, 48), "tokens"))
  x = draw(1, (2, 4, 48))
  for position in range(4):
    changed = x.at[:, position].set(draw(2, (2, 48)))
    y, z = (apply(blueprint, params, state, v) for v in (x, changed))
    moved = np.any(np.asarray(y != z), axis=(0, 2))
    assert not moved[:position].any() and moved[position]


def test_attention_looks_back():
  blueprint, params, state = born(
    "causal_attention", spec_of((3, 16), "tokens")
  )
  x = draw(1, (2, 3, 16))
  y, z = (
    apply(blueprint, params, state, v)
    for v in (x, x.at[:, 0].set(draw(2, (2, 16))))
  )
  assert np.any(np.asarray(y != z), axis=(0, 2)).all()


@pytest.mark.parametrize(
  ("channels", "heads"), [(4, 1), (32, 2), (48, 3), (128, 8), (256, 8)]
)
def test_heads_of_attention_have_16_channels_or_more(channels, heads):
  assert builtin_blueprints.heads_of(channels) == heads


@pytest.mark.parametrize("name", blueprints.names())
def test_examples_do_not_see_each_other(name):
  kind = blueprints.get(name).kinds[0]
  spec = spec_of(SHAPES[kind][0], kind)
  blueprint, params, state = born(name, spec)
  x = draw(1, (4, *spec.shape))
  whole = apply(blueprint, params, state, x, train=True)
  part = apply(blueprint, params, state, x[1:2], train=True)
  np.testing.assert_allclose(whole[1:2], part, atol=1e-5)


def test_names_start_with_the_built_in_ones():
  assert blueprints.names()[:10] == (
    "conv3x3",
    "bottleneck",
    "depthwise",
    "squeeze_excite",
    "norm",
    "lowrank",
    "dense",
    "bottleneck_dense",
    "lowrank_dense",
    "causal_attention",
  )


@pytest.mark.parametrize(
  ("shape", "kind", "expected"),
  [
    ((4, 4, 16), "nhwc", IMAGES),
    ((4, 4, 4), "nhwc", tuple(n for n in IMAGES if n != "bottleneck")),
    ((4, 4, 3), "nhwc", ("conv3x3", "depthwise", "squeeze_excite", "norm")),
    ((4, 4, 1), "nhwc", ()),
    ((16,), "features", VECTORS),
    ((7,), "features", ("norm", "dense", "lowrank_dense")),
    ((3,), "features", ("norm", "dense")),
    ((5, 16), "tokens", TOKENS),
    ((5, 3), "tokens", ("norm", "dense")),
  ],
)
def test_fitting_goes_by_kind_and_channels(shape, kind, expected):
  fitting = blueprints.fitting(spec_of(shape, kind))
  assert sorted(fitting) == sorted(expected)


def test_a_slot_that_is_too_narrow_is_refused_by_name():
  with pytest.raises(InputError, match="'bottleneck'.* 8 .*'slot1' has 4"):
    born("bottleneck", spec_of((4, 4, 4), "nhwc"))


def test_get_lists_the_names():
  with pytest.raises(InputError, match="'conv5x5'.*conv3x3, bottleneck"):
    blueprints.get("conv5x5")


def test_cost_of_a_dense_seed_is_its_two_matrices():
  parameters, flops = blueprints.cost("dense", spec_of((64,), "features"))
  assert parameters == 2 * 64 * 64 + 2 * 64
  products = 2 * 2 * 64 * 64
  assert products < flops < 1.1 * products


def test_cost_of_a_conv_seed_counts_taps_inside_the_image():
  parameters, flops = blueprints.cost("conv3x3", spec_of((8, 8, 16), "nhwc"))
  assert parameters == 2 * 9 * 16 * 16 + 2 * 16
  inside = (3 * 8 - 2) ** 2  # (tap, pixel) pairs that do not fall on padding
  products = 2 * 2 * inside * 16 * 16
  assert products < flops < 1.1 * products


def test_cost_is_zero_where_nothing_is_computed(registered):
  def flip(params, state, x, *, train, key):
    return jnp.flip(x, axis=-1), state

  registered(SCALE._replace(apply=flip), check=False)
  assert blueprints.cost("scale", spec_of((8,), "features")) == (9, 0.0)


def test_cost_of_a_slot_that_does_not_fit_names_the_slot():
  with pytest.raises(InputError, match="'slot1'"):
    blueprints.cost("bottleneck", spec_of((4, 4, 4), "nhwc"))


def test_import_computes_nothing_and_is_not_circular():
  code = """
import jax
from esper_jax.kasmina import blueprints, builtin_blueprints
from jax._src import xla_bridge
assert blueprints.get("conv3x3").zero == ("conv2", "kernel")
print(xla_bridge.backends_are_initialized())
"""
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert run.stdout == "False\n"


def test_ones_own_blueprint_takes_under_20_lines(registered):
  def register_mine():
    def init(key, spec):
      first, second = jax.random.split(key)
      shape = (spec.channels, spec.channels)
      return {
        "a": jax.random.normal(first, shape, jnp.float32),
        "b": jax.random.normal(second, shape, jnp.float32),
      }, {}

    def apply(params, state, x, *, train, key):
      hidden = jax.nn.relu(x @ params["a"].astype(x.dtype))
      return hidden @ params["b"].astype(x.dtype), state

    registered(Blueprint("mine", init, apply, ("nhwc", "features"), ("b",)))

  register_mine()

  assert len(inspect.getsource(register_mine).splitlines()) < 20
  assert blueprints.names()[-1] == "mine"
  assert "mine" in blueprints.fitting(spec_of((4, 4, 3), "nhwc"))
  assert blueprints.cost("mine", spec_of((8,), "features"))[0] == 128


def test_state_and_randomness_are_supported(registered):
  def init(key, spec):
    params, _ = init_scale(key, spec)
    return params, {"mean": jnp.zeros((spec.channels,), jnp.float32)}

  def apply(params, state, x, *, train, key):
    if not train:
      return apply_scale(params, state, x, train=train, key=key)
    mean = 0.9 * state["mean"] + 0.1 * x.mean(axis=0).astype(jnp.float32)
    kept = jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)
    return apply_scale(params, {"mean": mean}, kept * x, train=train, key=key)

  registered(SCALE._replace(name="stateful", init=init, apply=apply))
  assert "stateful" in blueprints.names()


def test_the_zero_factor_may_be_a_subtree(registered):
  def init(key, spec):
    params, state = init_scale(key, spec)
    return {"gain": params.pop("gain"), "out": params}, state

  def apply(params, state, x, **options):
    flat = {"gain": params["gain"], **params["out"]}
    return apply_scale(flat, state, x, **options)

  blueprint = SCALE._replace(init=init, apply=apply, zero=("out",))
  registered(blueprint)
  params, _ = init(jax.random.key(0), spec_of((8,), "features"))
  zeroed = blueprints.zeroed(blueprint, params)
  assert not np.any(zeroed["out"]["scale"]) and zeroed["gain"] == 1
  assert np.any(params["out"]["scale"]), "the argument is left as it was"


def test_a_taken_name_is_refused_until_it_is_forgotten(registered):
  registered(SCALE)
  with pytest.raises(InputError, match="'scale' is already registered"):
    registered(SCALE, check=False)
  blueprints.unregister("scale")
  registered(SCALE, check=False)
  assert blueprints.get("scale") is SCALE
  with pytest.raises(InputError, match="'missing' is not registered"):
    blueprints.unregister("missing")
  nearest = "the nearest is conv3x3. One of yours .*register_blueprint"
  with pytest.raises(InputError, match=nearest):
    blueprints.get("conv3x")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "2a", "conv_2", "é"])
def test_a_name_that_cannot_be_a_key_is_refused(registered, name):
  with pytest.raises(InputError, match="blueprint name .* is not valid"):
    registered(SCALE._replace(name=name))


@pytest.mark.parametrize("kinds", [(), ("image",), ["features"]])
def test_kinds_must_be_known(registered, kinds):
  with pytest.raises(InputError, match="'scale' has kinds .* nhwc, features"):
    registered(SCALE._replace(kinds=kinds))


def mean_of_tokens(params, state, x, *, train, key):
  """Every token sees all of them."""
  pooled = x + x.mean(axis=1, keepdims=True)
  return apply_scale(params, state, pooled, train=train, key=key)


def test_a_causal_slot_takes_no_blueprint_that_looks_ahead(registered):
  blueprint = SCALE._replace(apply=mean_of_tokens, kinds=("tokens",))
  message = "changes with a token after it.*raise InputError where spec.causal"
  with pytest.raises(InputError, match=message):
    registered(blueprint)

  def init(key, spec):
    if spec.causal:
      raise InputError("sees every token")
    return init_scale(key, spec)

  registered(blueprint._replace(init=init))
  spec = spec_of((5, 16), "tokens")
  assert "scale" not in blueprints.fitting(spec)
  free = dataclasses.replace(spec, causal=False)
  assert "scale" in blueprints.fitting(free)


def with_apply(change):
  def apply(params, state, x, *, train, key):
    y, state = apply_scale(params, state, x, train=train, key=key)
    return change(y, params, state, train)

  return {"apply": apply}


def with_init(change):
  def init(key, spec):
    return change(*init_scale(key, spec))

  return {"init": init}


def raise_type_error(*_):
  raise TypeError("two\nlines")


def refuse(*_):
  raise InputError("needs 64 channels")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
  "shape": (with_apply(lambda y, p, s, t: (y[:, :3], s)), r"makes bfloat16"),
  "dtype": (
    with_apply(lambda y, p, s, t: (y.astype(jnp.float32), s)),
    r"float32\[2, 32\] of bfloat16\[2, 32\]: .* give layers dtype=spec.dtype",
  ),
  "state": (with_apply(lambda y, p, s, t: (y, {"a": y})), "returns a state"),
  "raises": (with_apply(raise_type_error), "raised TypeError: two$"),
  "refuses": (with_init(refuse), r"shape \(32,\): needs 64 channels"),
  "identity": (
    with_apply(lambda y, p, s, t: (y + jnp.ones_like(y), s)),
    "not exactly zero where 'scale' is",
  ),
  "identity in evaluation": (
    with_apply(lambda y, p, s, t: (y if t else y + jnp.ones_like(y), s)),
    "not exactly zero where 'scale' is",
  ),
  "gradient": (
    with_apply(lambda y, p, s, t: (jnp.where(y == 0, 0, jnp.sqrt(y)), s)),
    "F or a gradient is not finite",
  ),
  "dead": (
    with_apply(lambda y, p, s, t: (y * y * y, s)),
    "'scale' has no gradient where it is zero",
  ),
  "zero": (
    with_init(lambda p, s: (jax.tree.map(jnp.zeros_like, p), s)),
    "F is zero at its random birth",
  ),
  "nan": (
    with_init(lambda p, s: ({**p, "gain": p["gain"] * jnp.nan}, s)),
    "init gives values that are not finite",
  ),
  "half": (
    with_init(lambda p, s: ({**p, "scale": p["scale"].astype("float16")}, s)),
    "parameter 'scale' is float16",
  ),
  "weak": (
    with_init(lambda p, s: ({**p, "gain": jnp.asarray(1.0)}, s)),
    "'gain' is weakly typed",
  ),
  "path": (
    {"zero": ("out", "kernel")},
    r"^blueprint 'scale' on a slot of shape \(32,\): names out/kernel as the .*"
    " no 'out' there: init made 'gain', ",
  ),
  "deep": ({"zero": ("scale", "kernel")}, "no 'kernel' there"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_and_not_registered(registered, case):
  change, message = BROKEN[case]
  with pytest.raises(InputError, match=message) as caught:
    registered(SCALE._replace(**change))
  assert "blueprint 'scale'" in str(caught.value)
  assert "\n" not in str(caught.value)
  assert "scale" not in blueprints.names()
