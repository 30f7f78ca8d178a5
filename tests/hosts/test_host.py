"""A Linen module as two functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts.host import from_linen
from esper_jax.kasmina import blueprints, surgery
from esper_jax.kasmina.slot import Slot, seeds_at
from esper_jax.types import SlotSpec

SPEC = SlotSpec("slot", (4,), "float32", "features")
X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3), np.float32))


class Counting(nn.Module):
  """Keeps statistics in training, drops units, and has a slot."""

  drop: float = 0.0

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Dense(4, name="dense")(x)
    calls = self.variable("statistics", "calls", lambda: jnp.zeros(()))
    frozen = self.variable("frozen", "scale", lambda: jnp.ones(()))
    if train:
      calls.value = calls.value + 1
    x = Slot(name="slot")(x * frozen.value, train=train)
    x = nn.Dropout(self.drop, deterministic=not train)(x)
    return nn.Dense(2, name="head")(x)


def _count(params, state, x, *, train, key):
  del key
  return x * params["scale"], {"calls": state["calls"] + (1 if train else 0)}


@pytest.fixture(scope="module")
def seeds():
  """A seed that counts its training calls."""
  name = "host_test_count"

  def init(key, spec):
    del key, spec
    return {"scale": jnp.ones((1, 1))}, {"calls": jnp.zeros((), jnp.int32)}

  blueprints.register(
    blueprints.Blueprint(name, init, _count, ("features",), ("scale",)),
    check=False,
  )
  seed = surgery.make_seed(
    SPEC, name, key=jax.random.key(0), initializer="random"
  )
  seed = seed.replace(alpha=jnp.ones(()), isolation=jnp.zeros(()))
  yield {"slot": {name: seed}}
  blueprints.unregister(name)


def born(module):
  host = from_linen(module)
  return (host, *host.init(jax.random.key(0), X))


def test_init_splits_parameters_from_collections():
  host, params, collections = born(Counting())
  assert set(params) == {"dense", "head"}
  assert set(collections) == {"statistics", "frozen"}
  assert collections["statistics"]["calls"] == 0  # init is no training call
  again, _ = host.init(jax.random.key(0), X)
  other, _ = host.init(jax.random.key(1), X)
  kernel = params["dense"]["kernel"]
  assert kernel.dtype == jnp.float32
  assert (again["dense"]["kernel"] == kernel).all()
  assert (other["dense"]["kernel"] != kernel).any()


def test_a_module_without_other_variables_has_no_collections():
  class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      del train
      return nn.Dense(2)(x)

  host, params, collections = born(Plain())
  assert collections == {}
  for train in (True, False):
    logits, collections, planted = host.apply(
      params, collections, {}, X, train=train, key=None
    )
    assert logits.shape == (6, 2)
    assert (collections, planted) == ({}, {})


def test_training_updates_the_collections_and_evaluation_does_not():
  host, params, collections = born(Counting())
  for train, calls in ((True, 1), (False, 0)):
    logits, new, planted = host.apply(
      params, collections, {}, X, train=train, key=None
    )
    assert logits.dtype == jnp.float32
    assert jax.tree.structure(new) == jax.tree.structure(collections)
    assert new["statistics"]["calls"] == calls
    assert new["frozen"]["scale"] == 1
    assert planted == {}
  assert collections["statistics"]["calls"] == 0  # the argument is untouched


def test_a_seed_is_read_and_its_state_comes_back_in_training(seeds):
  host, params, collections = born(Counting())
  (name,) = seeds["slot"]
  dormant, _, _ = host.apply(params, collections, {}, X, train=False, key=None)
  for train, calls in ((True, 1), (False, 0)):
    logits, new, planted = host.apply(
      params, collections, seeds, X, train=train, key=None
    )
    head = params["head"]
    hidden = X @ params["dense"]["kernel"]
    np.testing.assert_allclose(
      logits, 2 * hidden @ head["kernel"], rtol=1e-4, atol=1e-5
    )
    assert (logits != dormant).any()
    assert set(new) == {"statistics", "frozen"}  # never the seeds
    assert jax.tree.structure(planted) == jax.tree.structure(seeds)
    assert seeds_at(planted, "slot")[name].state["calls"] == calls


def test_the_key_is_the_dropout_s(seeds):
  host, params, collections = born(Counting(drop=0.5))

  def logits(key, train=True):
    return host.apply(params, collections, seeds, X, train=train, key=key)[0]

  keys = jax.random.split(jax.random.key(3))
  assert (logits(keys[0]) == logits(keys[0])).all()
  assert (logits(keys[0]) != logits(keys[1])).any()
  assert (logits(keys[0], False) == logits(None, False)).all()
