"""A network that has grown, as a host of its own."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts import grown, naming
from esper_jax.kasmina import blueprints, surgery
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.kasmina.slot import Slot, contribution, observe_slots
from esper_jax.types import InputError

FEATURES = 8
SPEC = {
  "name": "slot1",
  "shape": [FEATURES],
  "dtype": "float32",
  "kind": "features",
  "causal": False,
}
COUNTING = "grown_counting"


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, *, train=False):
    x = Slot(name="slot1")(x, train=train)
    x = Slot(name="slot2")(x, train=train)
    return nn.Dense(3, name="head")(x)


def record(blueprint="dense", **changes):
  name = changes.get("name", f"slot1_{blueprint}")
  return {
    "name": name,
    "slot": "slot1",
    "key": blueprint,
    "blueprint": blueprint,
    "blend": "add",
    "depth": 0,
    "strength": 1.0,
    "input": SPEC,
    **changes,
  }


def planted(blueprint="dense", seed=3):
  one = surgery.make_seed(
    grown.spec_of(record(blueprint)),
    blueprint,
    key=jax.random.key(seed),
    initializer="random",
  )
  return one.replace(alpha=jnp.float32(1), isolation=jnp.float32(0))


def some_x():
  return jax.random.normal(jax.random.key(1), (4, FEATURES))


def head(params, x):
  return x @ params["head"]["kernel"] + params["head"]["bias"][None]


def added(seed, x):
  return contribution(seed, x, train=False, key=None)[0]


def drawn(host):
  """Variables of a host, its seeds as training may leave them."""
  params, others = host.init(jax.random.key(0), some_x())
  rng = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
  return jax.tree.map(draw, params), others


def test_seeds_run_in_their_slot_and_before_what_grows_there():
  records = [
    record(strength=0.5),
    record(name="slot1_dense_", depth=1, blend="gate"),
  ]
  host = grown.as_host(Net(), records, ("slot1", "slot2"))
  params, others = drawn(host)
  assert others == {}
  assert set(params) == {
    "head",
    "slot1_dense",
    "slot1_dense_",
    naming.gate_name("slot1_dense_"),
  }
  x, new = some_x(), planted()
  seeds = {"slot1": {"dense": new}}
  with observe_slots() as trace:
    y, _, after = host.apply(params, others, seeds, x, train=True, key=None)
  assert list(trace.specs) == ["slot1", "slot2"]
  assert trace.consumed == {("slot1", "dense")}
  assert set(after["slot1"]) == {"dense"}
  for number, strength in enumerate((0.5, 1.0)):
    seed = grown.seed_of(records[number], {"params": params})
    x = (
      x + np.float32(strength) * contribution(seed, x, train=False, key=None)[0]
    )
  x = x + contribution(new, x, train=False, key=None)[0]
  np.testing.assert_allclose(y, head(params, x), rtol=1e-5)


def test_a_slot_that_may_not_grow_holds_what_grew():
  records = [record()]
  host = grown.as_host(Net(), records, ("slot2",))
  params, others = drawn(host)
  with observe_slots() as trace:
    y = host.apply(params, others, {}, some_x(), train=False, key=None)[0]
  assert list(trace.specs) == ["slot2"]
  seed = grown.seed_of(records[0], {"params": params})
  x = some_x()
  x = x + added(seed, x)
  np.testing.assert_allclose(y, head(params, x), rtol=1e-5)


def test_what_grew_is_trained():
  host = grown.as_host(Net(), [record()], ())
  params, others = drawn(host)

  def loss(params):
    out = host.apply(params, others, {}, some_x(), train=True, key=None)[0]
    return (out**2).sum()

  gradients = jax.grad(loss)(params)
  for leaf in jax.tree.leaves(gradients):
    assert float(jnp.abs(leaf).max()) > 0


@pytest.fixture
def counting():
  """A blueprint that draws, and counts how often it was trained."""

  def init(key, spec):
    state = {"times": jnp.zeros((), jnp.int32)}
    return {"w": jnp.ones((spec.channels,), jnp.float32)}, state

  def apply(params, state, x, *, train, key):
    if train:
      state = {"times": state["times"] + jnp.int32(1)}
    noise = 0.0 if key is None else jax.random.normal(key, ())
    return x * params["w"][None] * noise, state

  blueprints.register(
    Blueprint(COUNTING, init, apply, ("features",), ("w",)), check=False
  )
  yield COUNTING
  blueprints.unregister(COUNTING)


def test_a_state_is_kept_and_keys_are_the_seeds_own(counting):
  records = [record(counting, name=name) for name in ("one", "two")]
  host = grown.as_host(Net(), records, ())
  params, others = host.init(jax.random.key(0), some_x())
  assert set(others) == {naming.SEED_STATE}

  def run(params, others, train, key=None):
    return host.apply(params, others, {}, some_x(), train=train, key=key)

  _, after, _ = run(params, others, True)
  _, after, _ = run(params, after, True)
  _, same, _ = run(params, after, False)
  for state in (after, same):
    times = {n: int(v["times"]) for n, v in state[naming.SEED_STATE].items()}
    assert times == {"one": 2, "two": 2}
  key = jax.random.key(2)
  params, _ = drawn(host)
  without = jax.tree.map(jnp.zeros_like, params["two"])
  one = run(
    {**params, "one": params["two"], "two": without}, others, True, key
  )[0]
  two = run({**params, "one": without}, others, True, key)[0]
  none = head(params, some_x())
  assert not np.allclose(one - none, two - none)


def test_a_folder_that_is_no_export(tmp_path):
  with pytest.raises(InputError, match="cannot read .*topology.json: No such"):
    grown.read(tmp_path)
  path = tmp_path / "topology.json"
  path.write_text("{")
  with pytest.raises(InputError, match="topology.json is not JSON"):
    grown.read(tmp_path)
  path.write_text(json.dumps({"schema": 99}))
  with pytest.raises(InputError, match="has schema 99, this version reads 1"):
    grown.read(tmp_path)
  path.write_text(json.dumps({"schema": 1}))
  with pytest.raises(InputError, match="cannot read .*weights.safetensors"):
    grown.read(tmp_path)
