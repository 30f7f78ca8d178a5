"""The training state at birth, its views and counts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts.host import from_linen
from esper_jax.hosts.norms import BatchNorm
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import Slot, seeds_at
from esper_jax.tezzeret.lowering import abstract
from esper_jax.tolaria.optimizers import make_optimizer
from esper_jax.tolaria.state import (
  count_parameters,
  evaluation_view,
  init_state,
)
from esper_jax.types import SlotSpec

SPEC = SlotSpec("slot", (4,), "float32", "features")
X = jnp.ones((2, 2, 2, 3))
OPTIMIZER = make_optimizer("adamw")


class Small(nn.Module):
  @nn.compact
  def __call__(self, x, *, train):
    x = BatchNorm(name="norm")(x, train=train).mean(axis=(1, 2))
    x = Slot(name="slot")(nn.Dense(4, name="dense")(x), train=train)
    return nn.Dense(2, name="head")(x)


HOST = from_linen(Small())


@pytest.fixture(scope="module", params=[True, False], ids=["average", "none"])
def state(request):
  return init_state(HOST, OPTIMIZER, X, seed=0, average=request.param)


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def grow(state):
  return surgery.germinate(
    state, SPEC, "lowrank_dense", key=jax.random.key(1), optimizer=OPTIMIZER
  )


def test_a_host_at_birth(state):
  assert set(state.params) == {"norm", "dense", "head"}
  assert set(state.collections) == {"batch_stats"}
  assert state.seeds == {}
  assert set(state.optimizer) == set(state.age) == {"host"}
  same(state.optimizer["host"], OPTIMIZER.init(state.params))
  assert int(state.step) == int(state.age["host"]) == 0
  assert float(state.lr_factor) == 1.0
  assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
  for leaf in jax.tree.leaves(state.replace(key=None)):
    assert leaf.dtype in (jnp.float32, jnp.int32)
    assert not leaf.weak_type


def test_the_average_starts_at_the_parameters_in_its_own_arrays():
  state = init_state(HOST, OPTIMIZER, X, seed=0, average=True)
  same(state.average, {"host": state.params})
  for a, b in zip(
    jax.tree.leaves(state.average), jax.tree.leaves(state.params), strict=True
  ):
    assert a is not b  # the step is given both to reuse
  none = init_state(HOST, OPTIMIZER, X, seed=0, average=False)
  assert none.average is None
  same(none.params, state.params)


def test_the_seed_draws_parameters_and_later_keys():
  first, again, other = (
    init_state(HOST, OPTIMIZER, X, seed=seed, average=False)
    for seed in (0, 0, 1)
  )
  same(first.params, again.params)
  kernels = [s.params["dense"]["kernel"] for s in (first, other)]
  assert (kernels[0] != kernels[1]).any()
  data = [jax.random.key_data(s.key) for s in (first, again, other)]
  assert (data[0] == data[1]).all()
  assert (data[0] != data[2]).any()


def test_the_view_is_the_state_itself_without_an_average():
  state = init_state(HOST, OPTIMIZER, X, seed=0, average=False)
  grown, _ = grow(state)
  params, collections, seeds = evaluation_view(grown)
  assert params is grown.params
  assert collections is grown.collections
  assert seeds is grown.seeds


def test_the_view_takes_the_average_of_host_and_seeds():
  state, key = grow(init_state(HOST, OPTIMIZER, X, seed=0, average=True))
  average = jax.tree.map(lambda leaf: leaf + 1, state.average)
  state = state.replace(average=average)
  params, collections, seeds = evaluation_view(state)
  same(params, average["host"])
  assert collections is state.collections
  seed, own = (seeds_at(tree, "slot")[key] for tree in (seeds, state.seeds))
  same(seed.params, average[f"slot/{key}"])
  same(seed.replace(params=own.params), own)  # the leaves stay


def test_abstract_is_shapes_and_dtypes():
  state, _ = grow(init_state(HOST, OPTIMIZER, X, seed=0, average=True))
  shapes = abstract(state)
  assert jax.tree.structure(shapes) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
    assert isinstance(a, jax.ShapeDtypeStruct)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_parameters_are_counted_over_host_and_seeds(state):
  host = (3 + 3) + (3 * 4 + 4) + (4 * 2 + 2)
  assert count_parameters(state) == host
  grown, key = grow(state)
  assert count_parameters(grown) == host + 4 * 2 + 2 * 4
  assert count_parameters(surgery.cull(grown, "slot", key)) == host
