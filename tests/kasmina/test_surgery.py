"""Surgery: what is planted changes nothing, what survives stays as it is.

ESPER_TEST_FULL=1 plants every blueprint in every slot of every host family
alone; otherwise each family is tried once, with several seeds at a time.
"""

import functools
import os
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esper_jax.hosts import make_host
from esper_jax.hosts.host import Host, from_linen
from esper_jax.kasmina import blueprints, surgery
from esper_jax.kasmina.slot import (
  BLEND_MODES,
  Slot,
  all_seeds,
  apply_slot,
  group_name,
  seeds_at,
)
from esper_jax.tolaria.state import TrainState
from esper_jax.types import InputError, PyTree, SlotSpec, SlotTable

FULL = os.environ.get("ESPER_TEST_FULL") == "1"
FAMILIES = {
  "batch": ("resnet8", "batch"),
  "group": ("resnet8", "group"),
  "mlp": ("mlp", "batch"),
  "gpt": ("gpt", "batch"),
}
IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 1), np.float32)
TOKENS = np.random.default_rng(1).integers(0, 3, (4, 6), np.int32)
ADAM = optax.scale_by_adam()
VECTOR = SlotSpec("encoder/slot", (8,), "float32", "features")
OTHER = SlotSpec("last", (4,), "float32", "features")
IMAGE = SlotSpec("image", (4, 4, 8), "float32", "nhwc")


def filled(tree: PyTree, seed: int = 0) -> PyTree:
  """The tree with every float leaf drawn; vectors and scalars near 1."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    noise = rng.standard_normal(leaf.shape).astype(np.float32)
    if leaf.ndim > 1:
      return jnp.asarray(noise / np.float32(leaf.shape[-2] ** 0.5))
    if leaf.dtype == jnp.float32:
      return jnp.asarray(1 + np.float32(0.1) * noise)
    return jnp.asarray(rng.integers(1, 9, leaf.shape).astype(leaf.dtype))

  return jax.tree.map(draw, tree)


def make_state(params, collections=None, *, average=True) -> TrainState:
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    collections=collections or {},
    seeds={},
    optimizer={"host": filled(jax.eval_shape(ADAM.init, params), 1)},
    age={"host": jnp.asarray(7, jnp.int32)},
    average={"host": filled(params, 2)} if average else None,
    lr_factor=jnp.ones((), jnp.float32),
    key=jax.random.key(0),
  )


def small_state(*, average=True) -> TrainState:
  return make_state({"kernel": jnp.ones((3, 2))}, average=average)


def germinate(state, spec, blueprint, n=0, **options):
  return surgery.germinate(
    state, spec, blueprint, key=jax.random.key(n), optimizer=ADAM, **options
  )


def trained(state: TrainState, seed: int) -> TrainState:
  """As if steps had been made: nothing is as it was at birth."""
  groups = filled(surgery.group_params(state.params, state.seeds), seed)
  average = state.average
  return state.replace(
    params=groups["host"],
    seeds=surgery.with_group_params(state.seeds, groups),
    optimizer=filled(state.optimizer, seed + 1),
    age={g: age + 1 for g, age in state.age.items()},
    average=None if average is None else filled(average, seed + 2),
  )


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def differs(a, b):
  return any(
    (x != y).any()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def group_of(state, group):
  """Everything that one group owns."""
  params = surgery.group_params(state.params, state.seeds)
  return (
    params[group],
    state.optimizer[group],
    state.age[group],
    state.average[group] if state.average is not None else None,
  )


# --- birth ----------------------------------------------------------------


class Family(NamedTuple):
  host: Host
  state: TrainState
  slots: SlotTable


def example(name: str) -> jax.Array:
  return jnp.asarray(TOKENS if name == "gpt" else IMAGES)


@functools.cache
def family(name: str) -> Family:
  kind, norm = FAMILIES[name]
  host = from_linen(make_host(kind, num_classes=3, width=8, norm=norm))
  x = example(name)
  shapes = jax.eval_shape(host.init, jax.random.key(0), x)
  params, collections = filled(shapes)
  state = make_state(params, collections)
  slots = surgery.slot_table(
    lambda: host.apply(params, collections, {}, x, train=False, key=None)
  )
  return Family(host, state, slots)


@functools.cache
def forward(name: str):
  """(state) -> logits in train and in eval mode."""
  host, x = family(name).host, example(name)

  @jax.jit
  def run(params, collections, seeds):
    return [
      host.apply(params, collections, seeds, x, train=train, key=None)[0]
      for train in (True, False)
    ]

  return lambda state: run(state.params, state.collections, state.seeds)


@functools.cache
def outputs_without_seeds(name: str):
  return forward(name)(family(name).state)


def blueprints_of(kind: str) -> list[str]:
  return [n for n in blueprints.names() if kind in blueprints.get(n).kinds]


SHAPES = {"slot1_1": (8, 8, 8), "slot2_1": (4, 4, 16), "slot3_1": (2, 2, 32)}
IMAGE_PAIRS = [(s, b) for s in SHAPES for b in blueprints_of("nhwc")]
PAIRS = {  # every blueprint x distinct slot shape
  "batch": IMAGE_PAIRS,
  "group": IMAGE_PAIRS,
  "mlp": [("slot1", b) for b in blueprints_of("features")],
  "gpt": [("slot1", b) for b in blueprints_of("tokens")],
}


def plantings():
  """(family, [(slot, blueprint, blend)]): what is planted together."""
  if FULL:
    return [
      (name, [(slot, blueprint, blend) for blend in BLEND_MODES])
      for name, pairs in PAIRS.items()
      for slot, blueprint in pairs
    ]
  # Every blueprint once, two in each slot; fewer the second time.
  diagonal = [IMAGE_PAIRS[n] for n in (0, 1, 8, 9, 16, 17)]
  chosen = {**PAIRS, "batch": diagonal, "group": diagonal[::2]}
  return [
    (name, [(*p, BLEND_MODES[n % 3]) for n, p in enumerate(pairs)])
    for name, pairs in chosen.items()
  ]


def _label(value):
  if isinstance(value, str):
    return value
  return "+".join(f"{slot}:{blueprint}" for slot, blueprint, _ in value)


def test_the_quick_selection_has_every_blueprint_family_and_blend():
  chosen = list(plantings())
  assert {name for name, _ in chosen} == set(FAMILIES)
  seeds = [seed for _, planted in chosen for seed in planted]
  assert {blueprint for _, blueprint, _ in seeds} == set(blueprints.names())
  assert {blend for _, _, blend in seeds} == set(BLEND_MODES)
  assert {slot for slot, _, _ in seeds} == {*SHAPES, "slot1"}
  for name, pairs in PAIRS.items():  # and every pair is one that fits
    for slot, blueprint in pairs:
      assert blueprint in blueprints.fitting(family(name).slots[slot])


def planted(name, seeds, initializer, **options):
  state, keys = family(name).state, []
  for n, (slot, blueprint, blend) in enumerate(seeds):
    state, key = germinate(
      state,
      family(name).slots[slot],
      blueprint,
      n,
      initializer=initializer,
      blend=blend,
      **options,
    )
    keys.append((slot, key))
  return state, keys


def signal_for(spec: SlotSpec):
  rng = np.random.default_rng(3)
  return tuple(
    jnp.asarray(rng.standard_normal((4, *spec.shape), np.float32))
    for _ in range(2)
  )


def opened(state, keys, alpha):
  for slot, key in keys:
    state = surgery.set_leaves(state, slot, key, alpha=alpha, isolation=0.0)
  return state


def assert_difference_is_zero(outputs, expected):
  for a, b in zip(outputs, expected, strict=True):
    assert jnp.isfinite(b).all()
    assert jnp.abs(a - b).max() == 0.0


@pytest.mark.parametrize(("name", "seeds"), plantings(), ids=_label)
def test_outputs_are_equal_at_birth(name, seeds):
  run, expected = forward(name), outputs_without_seeds(name)
  random, keys = planted(name, seeds, "random")
  assert_difference_is_zero(run(random), expected)
  silent, _ = planted(name, seeds, "zero_out")
  for alpha in (0.0, 0.5, 1.0):  # identity, not only isolation
    assert_difference_is_zero(run(opened(silent, keys, alpha)), expected)
  assert_difference_is_zero(run(silent), expected)
  assert differs(run(opened(random, keys, 1.0)), expected)
  assert_difference_is_zero(run(opened(random, keys, 0.0)), expected)


SIGNALLED = [(name, *pair) for name, pairs in PAIRS.items() for pair in pairs]
if not FULL:
  SIGNALLED = [
    ("group", "slot3_1", "squeeze_excite"),
    ("mlp", "slot1", "lowrank_dense"),
  ]


@pytest.mark.parametrize(("name", "slot", "blueprint"), SIGNALLED)
def test_outputs_are_equal_at_a_birth_from_gradients(name, slot, blueprint):
  seeds = [(slot, blueprint, "add")]
  signal = signal_for(family(name).slots[slot])
  state, keys = planted(name, seeds, "gradient", signal=signal)
  zero_out, _ = planted(name, seeds, "zero_out")
  if blueprint != "norm":  # it has no kernel to turn beside its zero factor
    assert differs(state.seeds, zero_out.seeds)
  for alpha in (0.0, 1.0):
    assert_difference_is_zero(
      forward(name)(opened(state, keys, alpha)), outputs_without_seeds(name)
    )


def test_a_seed_is_born_isolated_and_typed():
  state, key = germinate(small_state(), VECTOR, "dense", proximal=0.5)
  seed = seeds_at(state.seeds, VECTOR.name)[key]
  leaves = (seed.alpha, seed.isolation, seed.proximal, seed.updates)
  assert [float(leaf) for leaf in leaves] == [0.0, 1.0, 0.5, 1.0]
  assert (seed.blueprint, seed.blend, seed.depth) == ("dense", "add", 0)
  assert set(seed.params) == {"branch"}
  for leaf in jax.tree.leaves(seed):
    assert leaf.dtype == jnp.float32
    assert not leaf.weak_type


def test_a_gated_seed_has_a_gate_and_its_own_draws():
  seeds = [
    surgery.make_seed(VECTOR, "dense", key=jax.random.key(n), blend="gate")
    for n in (0, 0, 1)
  ]
  assert seeds[0].params["gate"]["kernel"].shape == (8, 1)
  same(seeds[0], seeds[1])
  assert differs(seeds[0], seeds[2])


def _weak_init(key, spec):
  del key
  state = {"calls": jnp.asarray(0, jnp.int32), "weak": jnp.asarray(1.0)}
  return {"scale": jnp.ones((spec.channels,)) * 2.0}, state


def test_no_leaf_is_weakly_typed_whatever_the_blueprint_makes():
  def apply(params, state, x, *, train, key):
    del train, key
    return x * params["scale"].reshape(1, -1), state

  name = "surgery_test_weak"
  blueprints.register(
    blueprints.Blueprint(name, _weak_init, apply, ("features",), ("scale",)),
    check=False,
  )
  try:
    state, key = germinate(small_state(), VECTOR, name)
  finally:
    blueprints.unregister(name)
  seed = seeds_at(state.seeds, VECTOR.name)[key]
  assert _weak_init(None, VECTOR)[1]["weak"].weak_type
  assert seed.state["calls"].dtype == jnp.int32
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(seed))


# --- survivors ------------------------------------------------------------


SPECS = [
  *(SlotSpec(n, shape, "float32", "nhwc") for n, shape in SHAPES.items()),
  SlotSpec("slot1", (8,), "float32", "features"),
]
SURVIVORS = [
  (spec, blueprint)
  for spec in SPECS
  for blueprint in blueprints_of(spec.kind)[: None if FULL else 1]
]


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize(("spec", "blueprint"), SURVIVORS)
def test_survivors_keep_every_leaf(spec, blueprint, average):
  state, first = germinate(small_state(average=average), spec, blueprint, 0)
  state, _ = germinate(state, VECTOR, "lowrank_dense", 1)
  old = trained(state, 10)
  groups = ["host", f"{spec.name}/{first}", "encoder/slot/lowrank_dense"]
  assert set(old.optimizer) == set(old.age) == set(groups)

  grown, second = germinate(old, spec, blueprint, 2)
  newborn = group_name(spec.name, second)
  assert set(grown.optimizer) == set(grown.age) == {*groups, newborn}
  assert int(grown.age[newborn]) == 0
  same(
    grown.optimizer[newborn],
    ADAM.init(seeds_at(grown.seeds, spec.name)[second].params),
  )
  permanent = surgery.fossilize(grown, spec.name, second)
  back = surgery.cull(permanent, spec.name, second)
  for state in (grown, permanent, back):
    for group in groups:
      same(group_of(state, group), group_of(old, group))
  same(back, old)
  if average:
    params = seeds_at(grown.seeds, spec.name)[second].params
    same(grown.average[newborn], params)
    for a, b in zip(
      jax.tree.leaves(grown.average[newborn]),
      jax.tree.leaves(params),
      strict=True,
    ):
      assert a is not b  # both are donated to the next step
  else:
    assert grown.average is None

  rest = surgery.cull(grown, spec.name, first)
  assert (
    set(rest.optimizer)
    == set(rest.age)
    == {
      "host",
      newborn,
      "encoder/slot/lowrank_dense",
    }
  )
  for group in rest.optimizer:
    same(group_of(rest, group), group_of(grown, group))


def test_the_old_state_is_untouched():
  state, key = germinate(small_state(), VECTOR, "dense")
  before = jax.tree.map(jnp.copy, state)
  germinate(state, VECTOR, "dense")
  surgery.fossilize(state, VECTOR.name, key)
  surgery.cull(state, VECTOR.name, key)
  same(state, before)


def test_culling_the_only_seed_leaves_no_trace():
  old = small_state()
  grown, key = germinate(old, VECTOR, "dense")
  back = surgery.cull(grown, VECTOR.name, key)
  assert back.seeds == {}
  same(back, old)
  avals = [jax.tree.leaves(jax.eval_shape(lambda s=s: s)) for s in (old, back)]
  assert avals[0] == avals[1]


def test_leaves_move_one_at_a_time():
  state, key = germinate(small_state(), VECTOR, "dense")
  old = seeds_at(state.seeds, VECTOR.name)[key]
  for name, value in (("alpha", 0.25), ("isolation", 0.0), ("updates", 0.0)):
    new = surgery.set_leaves(state, VECTOR.name, key, **{name: value})
    seed = seeds_at(new.seeds, VECTOR.name)[key]
    same(seed, old.replace(**{name: jnp.asarray(value, jnp.float32)}))
    assert not getattr(seed, name).weak_type
  same(surgery.set_leaves(state, VECTOR.name, key), state)


@pytest.mark.parametrize(
  ("operation", "expected"),
  [
    (surgery.silence, (0.0, 0.0, 0.0)),
    (surgery.fossilize, (1.0, 0.0, 1.0)),
  ],
)
def test_silence_and_fossilize(operation, expected):
  state, key = germinate(small_state(), VECTOR, "dense")
  new = operation(state, VECTOR.name, key)
  seed = seeds_at(new.seeds, VECTOR.name)[key]
  leaves = (seed.alpha, seed.isolation, seed.updates)
  assert tuple(float(leaf) for leaf in leaves) == expected
  same(seed.params, seeds_at(state.seeds, VECTOR.name)[key].params)


# --- newborn rules, keys, depth -------------------------------------------


def test_newborn_reset_starts_every_group_afresh():
  state, _ = germinate(small_state(), VECTOR, "dense")
  old = trained(state, 5)
  new, key = germinate(old, OTHER, "lowrank_dense", newborn="reset")
  groups = surgery.group_params(new.params, new.seeds)
  assert set(new.optimizer) == set(groups)
  for group, params in groups.items():
    same(new.optimizer[group], ADAM.init(params))
  same(new.age, {**old.age, f"last/{key}": jnp.zeros((), jnp.int32)})
  assert new.average is not None
  assert old.average is not None
  same(new.average["host"], old.average["host"])


def test_newborn_global_count_starts_at_zero_at_the_hosts_step():
  state = trained(small_state(), 5)
  new, key = germinate(state, VECTOR, "dense", newborn="global_count")
  born = new.optimizer[f"encoder/slot/{key}"]
  fresh = ADAM.init(seeds_at(new.seeds, VECTOR.name)[key].params)
  count = optax.tree_utils.tree_get(state.optimizer["host"], "count")
  assert int(count) > 1
  same(born, optax.tree_utils.tree_set(fresh, count=count))
  host = optax.tree_utils.tree_get(new.optimizer["host"], "count")
  own = optax.tree_utils.tree_get(born, "count")
  assert own is not host  # the step is given both to reuse
  same(new.optimizer["host"], state.optimizer["host"])


def test_newborn_copy_inherits_from_the_youngest_that_fits():
  wide = VECTOR
  narrow = SlotSpec("narrow", (4,), "float32", "features")
  state = small_state()
  for spec, blueprint in (
    (wide, "lowrank_dense"),  # the oldest that fits
    (SlotSpec("b", (8,), "float32", "features"), "lowrank_dense"),
    (narrow, "lowrank_dense"),  # other shapes
    (wide, "dense"),  # another blueprint
  ):
    state, _ = germinate(state, spec, blueprint)
    state = trained(state, 3)
  donor = state.optimizer["b/lowrank_dense"]
  target = SlotSpec("target", (8,), "float32", "features")
  new, key = germinate(state, target, "lowrank_dense", newborn="copy")
  born = new.optimizer[f"target/{key}"]
  same(born, donor)
  assert int(new.age[f"target/{key}"]) == 0
  for a, b in zip(jax.tree.leaves(born), jax.tree.leaves(donor), strict=True):
    assert a is not b  # the step is given both to reuse
  for group in state.optimizer:
    same(group_of(new, group), group_of(state, group))


def test_newborn_copy_without_a_donor_starts_at_zero():
  state, _ = germinate(small_state(), VECTOR, "dense")
  state = trained(state, 3)
  new, key = germinate(state, VECTOR, "lowrank_dense", newborn="copy")
  seed = seeds_at(new.seeds, VECTOR.name)[key]
  same(new.optimizer[f"encoder/slot/{key}"], ADAM.init(seed.params))


def test_keys_are_the_lowest_free_and_survivors_keep_theirs():
  state = small_state()
  keys = []
  for n in range(3):
    state, key = germinate(state, VECTOR, "dense", n)
    keys.append(key)
  state, other = germinate(state, VECTOR, "norm", 3)
  assert [*keys, other] == ["dense", "dense_2", "dense_3", "norm"]
  third = seeds_at(state.seeds, VECTOR.name)["dense_3"]
  state = surgery.cull(state, VECTOR.name, "dense_2")
  assert set(seeds_at(state.seeds, VECTOR.name)) == {
    "dense",
    "dense_3",
    "norm",
  }
  state, key = germinate(state, VECTOR, "dense", 4)
  assert key == "dense_2"
  same(seeds_at(state.seeds, VECTOR.name)["dense_3"], third)
  state = surgery.cull(state, VECTOR.name, "dense")
  state, key = germinate(state, VECTOR, "dense", 5)
  assert key == "dense"


def test_a_seed_planted_after_a_fossil_reads_its_output():
  def depth(state, key):
    return seeds_at(state.seeds, VECTOR.name)[key].depth

  state, first = germinate(small_state(), VECTOR, "dense", 0)
  state, lane = germinate(state, VECTOR, "norm", 1)  # in parallel
  assert (depth(state, first), depth(state, lane)) == (0, 0)
  state = surgery.fossilize(state, VECTOR.name, first)
  state, after = germinate(state, VECTOR, "dense", 2)
  assert depth(state, after) == 1
  state = surgery.fossilize(state, VECTOR.name, after)
  state, last = germinate(state, VECTOR, "dense", 3)
  assert depth(state, last) == 2
  state, told = germinate(state, VECTOR, "dense", 4, permanent=[first])
  assert depth(state, told) == 1
  state, none = germinate(state, VECTOR, "dense", 5, permanent=[])
  assert depth(state, none) == 0


def test_the_seed_after_a_fossil_acts_on_the_fossil_s_output():
  x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 8), np.float32))
  state, first = germinate(
    small_state(), VECTOR, "lowrank_dense", 0, initializer="random"
  )
  state = surgery.fossilize(state, VECTOR.name, first)
  state, second = germinate(
    state, VECTOR, "lowrank_dense", 1, initializer="random"
  )
  state = surgery.fossilize(state, VECTOR.name, second)
  own = seeds_at(state.seeds, VECTOR.name)

  def add(x, key):
    branch = own[key].params["branch"]
    return x + x @ branch["down"]["kernel"] @ branch["up"]["kernel"]

  y, _ = apply_slot(state.seeds, VECTOR.name, x)
  np.testing.assert_allclose(y, add(add(x, first), second), rtol=1e-5)


# --- errors ---------------------------------------------------------------


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"newborn": "new"}, "newborn 'new' is unknown; use one of zero, reset"),
    ({"blend": "mix"}, "blend 'mix' is unknown; use one of add, multiply"),
    ({"initializer": "ones"}, "'ones' is unknown"),
    ({"initializer": "gradient"}, "needs a signal"),
    ({"blueprint": "conv9x9"}, "'conv9x9' is not registered"),
    ({"spec": IMAGE}, "slot 'image' is nhwc"),
  ],
)
def test_germinate_refuses(options, message):
  arguments = {"spec": VECTOR, "blueprint": "dense", **options}
  with pytest.raises(InputError, match=message):
    germinate(small_state(), **arguments)


def test_a_seed_that_is_not_there_is_refused_by_name():
  for operation in (surgery.cull, surgery.silence, surgery.fossilize):
    with pytest.raises(InputError) as error:
      operation(small_state(), "last", "dense")
    assert str(error.value) == (
      "slot 'last' holds no seed 'dense'; planted are: none"
    )
  state, _ = germinate(small_state(), VECTOR, "dense")
  with pytest.raises(InputError, match="planted are: encoder/slot/dense"):
    surgery.cull(state, VECTOR.name, "dense_2")


# --- groups ---------------------------------------------------------------


def test_groups_are_the_host_and_every_seed():
  state, _ = germinate(small_state(), VECTOR, "dense", 0)
  state, _ = germinate(state, OTHER, "lowrank_dense", 1)
  groups = surgery.group_params(state.params, state.seeds)
  assert set(groups) == {"host", "encoder/slot/dense", "last/lowrank_dense"}
  assert groups["host"] is state.params
  same(surgery.with_group_params(state.seeds, groups), state.seeds)
  new = filled(groups, 9)
  seeds = surgery.with_group_params(state.seeds, new)
  for (path, key), seed in all_seeds(seeds).items():
    same(seed.params, new[group_name(path, key)])
    old = seeds_at(state.seeds, path)[key]
    same(seed.replace(params=old.params), old)
  assert surgery.with_group_params({}, {"host": state.params}) == {}


# --- the slot table and check_consumed ------------------------------------


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    x = nn.relu(nn.Dense(4, name="dense")(x))
    return Slot(name="slot")(x), None


class Deep(nn.Module):
  """Three layers in a scan that carries "seeds" by axis, shared or not."""

  carry: str

  @nn.compact
  def __call__(self, x, *, train=False):
    del train
    scanned = nn.scan(
      Layer,
      variable_axes={
        "params": 0,
        **({"seeds": 0} if self.carry == "axis" else {}),
      },
      variable_broadcast="seeds" if self.carry == "shared" else False,
      split_rngs={"params": True},
      length=3,
    )
    return scanned(name="layers")(x, None)[0]


def deep(carry):
  """The host's forward pass over seeds, and one seed per layer, stacked."""
  host, x = from_linen(Deep(carry)), jnp.ones((2, 4))
  params, _ = filled(jax.eval_shape(host.init, jax.random.key(0), x))
  spec = SlotSpec("layers/slot", (4,), "float32", "features")
  layers = [
    surgery.make_seed(spec, "lowrank_dense", key=jax.random.key(n))
    for n in range(3)
  ]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

  def apply(seeds, *, train=False):
    return host.apply(params, {}, seeds, x, train=train, key=None)

  return apply, spec, {"layers": {"slot": {"lowrank_dense": stacked}}}


@pytest.mark.parametrize("train", [True, False])
def test_a_scan_that_carries_the_seeds_reads_them(train):
  apply, _, seeds = deep("axis")
  surgery.check_consumed(lambda: apply(seeds, train=train), seeds)


@pytest.mark.parametrize("train", [True, False])
def test_a_scan_may_share_one_seed_among_its_layers(train):
  apply, spec, _ = deep("shared")
  state, _ = germinate(small_state(), spec, "lowrank_dense")
  surgery.check_consumed(lambda: apply(state.seeds, train=train), state.seeds)


def test_a_scan_that_does_not_carry_the_seeds_is_named():
  apply, _, seeds = deep("")
  with pytest.raises(InputError) as error:
    surgery.check_consumed(lambda: apply(seeds), seeds)
  message = str(error.value)
  assert "slot 'layers/slot'" in message
  assert "'lowrank_dense'" in message
  assert "variable_broadcast='seeds'" in message


def test_a_mistyped_path_is_named():
  name, x = "encoder/slot", jnp.ones((2, 8))
  state, _ = germinate(small_state(), VECTOR, "dense")
  good = state.seeds
  surgery.check_consumed(lambda: apply_slot(good, name, x)[0], good)
  wrong = SlotSpec("encoder/slto", (8,), "float32", "features")
  state, _ = germinate(state, wrong, "norm")
  with pytest.raises(InputError, match="slot 'encoder/slto'.*'norm'.*mistyped"):
    surgery.check_consumed(
      lambda: apply_slot(state.seeds, name, x)[0], state.seeds
    )
  surgery.check_consumed(lambda: x, {})


def test_the_slot_table_lists_slots_in_order():
  table = family("batch").slots
  assert list(table) == list(SHAPES)
  assert {n: spec.shape for n, spec in table.items()} == SHAPES
  assert {spec.kind for spec in table.values()} == {"nhwc"}
  apply, spec, _ = deep("axis")
  assert surgery.slot_table(lambda: apply({})) == {spec.name: spec}


def test_one_forward_function_can_be_asked_again():
  apply, spec, seeds = deep("axis")

  def forward():
    return apply(seeds)

  for _ in range(2):
    assert surgery.slot_table(forward) == {spec.name: spec}
    surgery.check_consumed(forward, seeds)
