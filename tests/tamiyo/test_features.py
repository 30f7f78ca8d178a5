import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_jax.tamiyo import features, traits
from esper_jax.tamiyo.features import BLUEPRINT, RUN, SLOT
from esper_jax.tamiyo.observation import HISTORY, Observation, unknown
from esper_jax.tamiyo.traits import TRAITS
from esper_jax.types import Action, Stage

ROWS, KINDS = 4, 3
# One program for all tests of this file: it takes seconds to compile.
encode = jax.jit(
  lambda o, described: features.encode(
    o, described, limits=features.Limits(max_growths=4)
  ),
  compiler_options={"xla_backend_optimization_level": 0},
)


def lively(anything, seed):
  """An observation in which everything is known, and finite."""
  draw = np.random.default_rng(seed)
  o = anything(seed, ROWS, KINDS)

  def positive(*shape):
    return jnp.asarray(draw.uniform(0.1, 10.0, shape), jnp.float32)

  yes = jnp.ones((ROWS,), jnp.bool_)
  return o.replace(
    parameters=jnp.float32(2048),
    cost=jnp.asarray(draw.integers(1, 500, (ROWS, KINDS)), jnp.float32),
    train_loss=positive(HISTORY),
    val_loss=positive(HISTORY),
    contribution_known=yes,
    activation_ms=positive(ROWS),
    cotangent_ms=positive(ROWS),
    signal_known=yes,
    parity=positive(ROWS),
    parity_known=yes,
    scores=positive(ROWS, KINDS),
    scores_known=yes,
    expansion=positive(ROWS, KINDS),
    expansion_known=yes,
  )


def described(seed=0):
  draw = np.random.default_rng(seed)
  shape = (ROWS, KINDS, len(TRAITS))
  return draw.uniform(-1, 1, shape).astype(np.float32)


def look(observation):
  return jax.device_get(encode(observation, described()))


def same(a, b):
  return all(
    np.allclose(x, y, atol=2e-5)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_features_are_named_once_and_the_schema_is_of_their_names():
  for names in (RUN, SLOT, (*BLUEPRINT, *TRAITS)):
    assert len(set(names)) == len(names)
    for name in names:
      assert not name.endswith("?") or name == "flops?" or name[:-1] in names
  text = json.dumps([features.VERSION, RUN, SLOT, BLUEPRINT, TRAITS])
  assert features.SCHEMA == hashlib.sha256(text.encode()).hexdigest()


def test_shapes_and_types(anything):
  inputs = look(lively(anything, 0))
  assert inputs.run.shape == (len(RUN),)
  assert inputs.slots.shape == (ROWS, len(SLOT))
  assert inputs.blueprints.shape == (ROWS, KINDS, len(BLUEPRINT) + len(TRAITS))
  assert {x.dtype for x in (inputs.run, inputs.slots, inputs.blueprints)} == {
    np.dtype(np.float32)
  }


def test_what_is_not_known_has_its_flag_down():
  inputs = look(unknown(ROWS, KINDS))
  for names, table in (
    (RUN, inputs.run),
    (SLOT, inputs.slots),
    (BLUEPRINT, inputs.blueprints),
  ):
    flags = [n for n, name in enumerate(names) if name.endswith("?")]
    assert flags and not table[..., flags].any()
    values = [names.index(names[n][:-1]) for n in flags]
    assert not table[..., values].any()


def test_a_measured_zero_is_told_from_an_unknown(anything):
  o = lively(anything, 1)
  flat = o.replace(
    val_loss=jnp.ones((HISTORY,), jnp.float32),
    history_known=jnp.ones((HISTORY,), jnp.bool_),
    contribution=jnp.zeros((ROWS,), jnp.float32),
  )
  inputs = look(flat)
  assert inputs.run[RUN.index("val_fall_1")] == 0
  assert inputs.run[RUN.index("val_fall_1?")] == 1
  assert not inputs.slots[:, SLOT.index("contribution")].any()
  assert inputs.slots[:, SLOT.index("contribution?")].all()


@pytest.mark.parametrize("seed", range(4))
def test_a_multiple_of_all_losses_changes_nothing(anything, seed):
  o = lively(anything, seed)
  scaled = o.replace(
    train_loss=8 * o.train_loss,
    val_loss=8 * o.val_loss,
    contribution=8 * o.contribution,
    contribution_se=8 * o.contribution_se,
    cotangent_ms=64 * o.cotangent_ms,
    scores=64 * o.scores,
  )
  assert same(look(o), look(scaled))


@pytest.mark.parametrize("seed", range(4))
def test_a_multiple_of_all_parameter_counts_changes_nothing(anything, seed):
  o = lively(anything, seed)
  scaled = o.replace(parameters=32 * o.parameters, cost=32 * o.cost)
  assert same(look(o), look(scaled))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_added_to_all_accuracies_changes_nothing(anything, seed):
  known = jnp.ones((HISTORY,), jnp.bool_)
  o = lively(anything, seed).replace(history_known=known)
  draw = np.random.default_rng(seed)
  hits = draw.uniform(0.0, 0.5, (2, HISTORY)).astype(np.float32)
  more = np.float32(0.5)
  low = o.replace(train_accuracy=hits[0], val_accuracy=hits[1])
  high = o.replace(train_accuracy=hits[0] + more, val_accuracy=hits[1] + more)
  assert same(look(low), look(high))
  swapped = o.replace(train_accuracy=hits[1], val_accuracy=hits[0])
  assert not same(look(low), look(swapped))


@pytest.mark.parametrize("seed", range(4))
def test_rows_and_blueprints_have_no_place(anything, seed):
  o = lively(anything, seed)
  draw = np.random.default_rng(seed)
  rows, kinds = draw.permutation(ROWS), draw.permutation(KINDS)
  at = {int(old): new for new, old in enumerate(kinds)} | {-1: -1}

  def moved(name):
    x = np.asarray(getattr(o, name))
    if x.shape[:1] == (ROWS,) and name not in ("train_loss", "val_loss"):
      x = x[rows]
    if x.ndim > 1:
      x = x[..., kinds]
    if name == "blueprint":
      x = np.asarray([at[int(kind)] for kind in x], np.int32)
    return x

  names = Observation.__dataclass_fields__
  permuted = o.replace(**{name: moved(name) for name in names})
  a = look(o)
  b = jax.device_get(encode(permuted, described()[rows][:, kinds]))
  assert np.allclose(a.run, b.run, atol=2e-5)
  for name in ("slots", "present"):
    assert np.allclose(getattr(a, name)[rows], getattr(b, name), atol=2e-5)
  for name in ("blueprints", "fits", "open"):
    x = getattr(a, name)[rows][:, kinds]
    assert np.allclose(x, getattr(b, name), atol=2e-5)


def test_ranks_order_what_is_known(anything):
  o = lively(anything, 0)
  legal = np.zeros((ROWS, len(Action), KINDS), bool)
  legal[:2, Action.GERMINATE] = True
  scores = np.asarray([[1, 2, 3], [4, 5, 6], [9, 9, 9], [9, 9, 9]])
  o = o.replace(
    legal=jnp.asarray(legal), scores=jnp.asarray(scores, jnp.float32)
  )
  table = look(o).blueprints
  assert np.allclose(
    table[:2, :, BLUEPRINT.index("score_rank")].ravel() * 5, range(6)
  )
  in_slot = table[0, :, BLUEPRINT.index("score_rank_in_slot")]
  assert in_slot.tolist() == [0, 0.5, 1]
  assert not table[2:, :, BLUEPRINT.index("score_rank?")].any()


EDGES = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_only_finite_numbers_come_out_whatever_goes_in(data):
  o = unknown(ROWS, KINDS)
  numbers = st.sampled_from(EDGES) | st.floats(width=32)
  fields = {}
  for name in Observation.__dataclass_fields__:
    like = getattr(o, name)
    if like.dtype == jnp.float32:
      one = numbers
    elif like.dtype == jnp.bool_:
      one = st.booleans()
    elif name in ("stage", "contribution_stage"):
      one = st.integers(0, len(Stage) - 1)
    elif name == "blueprint":
      one = st.integers(-1, KINDS - 1)
    else:
      one = st.integers(-(2**31), 2**31 - 1)
    drawn = data.draw(st.lists(one, min_size=3, max_size=3))
    values = np.resize(np.asarray(drawn), like.shape)
    fields[name] = values.astype(like.dtype)
  inputs = jax.device_get(encode(o.replace(**fields), described()))
  for table in (inputs.run, inputs.slots, inputs.blueprints):
    assert np.isfinite(table).all()
    assert (np.abs(table) <= 1).all()


def test_traits_tell_blueprints_apart_and_are_relative(anything):
  from esper_jax.types import SlotSpec

  specs = [
    SlotSpec("a", (8, 8, 16), "float32", "nhwc"),
    SlotSpec("b", (32,), "float32", "features"),
    SlotSpec("c", (8, 8, 16), "float32", "nhwc"),
  ]
  names = ("conv3x3", "lowrank", "dense")
  table = traits.describe(specs, names)
  assert table.shape == (3, 3, len(TRAITS)) and table.dtype == np.float32
  assert (table[0] == table[2]).all() and (np.abs(table) <= 1).all()
  assert not table[0, 2].any() and not table[1, :2].any()  # these do not fit
  conv, lowrank = (dict(zip(TRAITS, row, strict=True)) for row in table[0, :2])
  assert conv["flops?"] == 1 and conv["flops"] == 0 > lowrank["flops"]
  assert conv["narrowest"] == 1 > lowrank["narrowest"] > 0
  assert conv["normalises"] == 1 and lowrank["normalises"] == 0
  assert not traits.unknown(2, 3).any()
