"""Slots inside networks: isolation, dormancy, a user's module, observation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts import make_host
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.slot import (
  Seed,
  Slot,
  apply_seeds,
  apply_slot,
  observe_slots,
)
from esper_jax.types import SlotSpec

NAN = float("nan")
LINEAR, DROP = "host_test_linear", "host_test_drop"


def f32(value):
  return jnp.asarray(value, jnp.float32)


def normal(n, shape):
  return jax.random.normal(jax.random.key(n), shape)


def _init(key, spec):
  shape = (spec.channels, spec.channels)
  return {"kernel": jax.random.normal(key, shape)}, {"calls": f32(0)}


def _linear(params, state, x, *, train, key):
  del key
  calls = state["calls"] + (1.0 if train else 0.0)
  return x @ params["kernel"].astype(x.dtype), {"calls": calls}


def _drop(params, state, x, *, train, key):
  y, state = _linear(params, state, x, train=train, key=None)
  return (y if key is None else y * jax.random.normal(key, y.shape)), state


@pytest.fixture(autouse=True, scope="module")
def _registered():
  for name, apply in ((LINEAR, _linear), (DROP, _drop)):
    blueprint = blueprints.Blueprint(
      name, _init, apply, ("features",), ("kernel",)
    )
    blueprints.register(blueprint, check=False)
  yield
  for name in (LINEAR, DROP):
    blueprints.unregister(name)


def make_seed(
  channels, n=0, *, alpha=1.0, isolation=0.0, blueprint=LINEAR, fill=None
):
  spec = SlotSpec("slot", (channels,), "float32", "features")
  variables = _init(jax.random.key(100 + n), spec)
  if fill is not None:
    variables = jax.tree.map(lambda a: jnp.full_like(a, fill), variables)
  return Seed(
    params={"branch": variables[0]},
    state=variables[1],
    alpha=f32(alpha),
    isolation=f32(isolation),
    proximal=f32(1),
    updates=f32(1),
    blueprint=blueprint,
  )


def kernel(seed):
  return seed.params["branch"]["kernel"]


def same(a, b):
  """Bitwise, so that NaN would count; none is expected."""
  leaves, other = jax.tree.leaves(a), jax.tree.leaves(b)
  assert len(leaves) == len(other)
  for x, y in zip(leaves, other, strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# --- isolation in whole hosts ---------------------------------------------


def host_step(host, variables, seeds, images, labels):
  """Loss, host gradients, batch statistics, and the seeds' gradients."""
  rest = {k: v for k, v in variables.items() if k != "params"}

  def loss_of(params, grown):
    logits, new = host.apply(
      {"params": params, **rest, "seeds": grown},
      images,
      train=True,
      mutable=["batch_stats", "seeds"],
    )
    chosen = jnp.take_along_axis(
      jax.nn.log_softmax(logits), labels[:, None], axis=1
    )
    return -chosen.mean(), new.get("batch_stats", {})

  (loss, stats), (grads, own) = jax.value_and_grad(
    loss_of, (0, 1), has_aux=True
  )(variables["params"], seeds)
  return (loss, grads, stats), own


@pytest.mark.parametrize(
  ("name", "norm", "slot", "channels"),
  [
    ("resnet8", "batch", "slot2_1", 8),
    pytest.param("resnet8", "group", "slot2_1", 8, marks=pytest.mark.full),
    ("mlp", "batch", "slot1", 4),
  ],
)
def test_an_isolated_or_silent_seed_leaves_the_host_bitwise_alone(
  name, norm, slot, channels
):
  host = make_host(name, num_classes=3, width=4, norm=norm)
  images = normal(0, (6, 8, 8, 1))
  labels = jnp.arange(6, dtype=jnp.int32) % 3
  variables = jax.jit(host.init)(jax.random.key(1), images)
  traces = []

  @jax.jit
  def step(variables, seeds):
    traces.append(seeds)
    return host_step(host, variables, seeds, images, labels)

  plain, _ = step(variables, {})
  assert np.isfinite(plain[0])
  leaves = [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
  for fill in (None, NAN):
    for alpha, isolation in leaves:
      seed = make_seed(channels, alpha=alpha, isolation=isolation, fill=fill)
      outcome, own = step(variables, {slot: {"a": seed}})
      same(outcome, plain)
      gradient = kernel(own[slot]["a"])
      assert (gradient != 0).any() == (isolation == 1)
  assert len(traces) == 2  # the plain host, and all stages of a seed


def test_a_live_seed_reaches_the_host():
  host = make_host("mlp", num_classes=3, width=4)
  images, labels = normal(0, (6, 8, 8, 1)), jnp.arange(6) % 3
  variables = jax.jit(host.init)(jax.random.key(1), images)
  plain, _ = host_step(host, variables, {}, images, labels)
  seeds = {"slot1": {"a": make_seed(4, alpha=0.5)}}
  grown, _ = host_step(host, variables, seeds, images, labels)
  assert grown[0] != plain[0]
  assert any(
    (a != b).any()
    for a, b in zip(
      jax.tree.leaves(grown[1]), jax.tree.leaves(plain[1]), strict=True
    )
  )


# --- a user's own module --------------------------------------------------


class Encoder(nn.Module):
  growing: bool = True

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Dense(3, name="dense")(x)
    if self.growing:
      x = Slot(name="slot")(x, train=train)  # the one line
    return nn.Dropout(0.5, deterministic=not train)(x)


class Mine(nn.Module):
  growing: bool = True

  @nn.compact
  def __call__(self, x, *, train=False):
    x = Encoder(self.growing, name="encoder")(x, train=train)
    if self.growing:
      x = Slot(name="last", causal=True)(x, train=train)
    return nn.Dense(1, name="head")(x).sum()


def mine():
  x = normal(0, (4, 3))
  return Mine(), x, Mine().init(jax.random.key(1), x)


def test_a_dormant_slot_adds_no_variable_and_no_operation():
  host, x, variables = mine()
  plain = Mine(growing=False)
  assert jax.tree.structure(variables) == jax.tree.structure(
    plain.init(jax.random.key(1), x)
  )

  def text(host):
    def loss(params, key):
      return host.apply(
        {"params": params, "seeds": {}}, x, train=True, rngs={"dropout": key}
      )

    f = jax.jit(jax.value_and_grad(loss))
    return f.lower(variables["params"], jax.random.key(2)).as_text()

  assert text(host) == text(plain)


def test_a_planted_seed_changes_the_output_and_returns_its_state():
  host, x, variables = mine()
  seeds = {"encoder": {"slot": {"a": make_seed(3)}}}
  before = host.apply(variables, x)
  after = host.apply({**variables, "seeds": seeds}, x)  # nothing mutable
  assert before != after
  _, new = host.apply(
    {**variables, "seeds": seeds},
    x,
    train=True,
    mutable=["seeds"],
    rngs={"dropout": jax.random.key(0)},
  )
  assert new["seeds"]["encoder"]["slot"]["a"].state["calls"] == 1


def test_an_isolated_seed_that_draws_leaves_the_host_s_dropout_alone():
  host, x, variables = mine()

  def loss(seeds, key):
    return host.apply(
      {**variables, "seeds": seeds},
      x,
      train=True,
      mutable=["seeds"],
      rngs={"dropout": key},
    )[0]

  def planted(**leaves):
    return {"encoder": {"slot": {"a": make_seed(3, blueprint=DROP, **leaves)}}}

  one, two = jax.random.key(5), jax.random.key(6)
  same(loss(planted(isolation=1.0), one), loss({}, one))
  assert loss(planted(), one) != loss(planted(), two)


# --- observation ----------------------------------------------------------


def test_observe_slots_announces_every_slot_in_order():
  host, x, variables = mine()
  seeds = {"encoder": {"slot": {"a": make_seed(3), "b": make_seed(3, 1)}}}
  with observe_slots() as trace:
    host.apply({**variables, "seeds": seeds}, x)
  assert list(trace.specs.items()) == [
    (
      "encoder/slot",
      SlotSpec("encoder/slot", (3,), "float32", "features", False),
    ),
    ("last", SlotSpec("last", (3,), "float32", "features", True)),
  ]
  assert trace.consumed == {("encoder/slot", "a"), ("encoder/slot", "b")}
  hidden = x @ variables["params"]["encoder"]["dense"]["kernel"]
  expected, _ = apply_seeds(seeds["encoder"]["slot"], hidden, train=False)
  np.testing.assert_allclose(
    trace.outputs["encoder/slot"], expected, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize(
  ("kind", "shape"),
  [
    ("features", (2, 3)),
    ("tokens", (2, 4, 3)),
    ("nhwc", (2, 5, 5, 3)),
  ],
)
def test_the_kind_follows_the_rank(kind, shape):
  with observe_slots() as trace:
    Slot(name="s").apply({}, jnp.zeros(shape, jnp.bfloat16))
  spec = next(iter(trace.specs.values()))
  assert (spec.kind, spec.dtype) == (kind, "bfloat16")
  assert spec.shape == shape[1:]


@pytest.mark.parametrize("shape", [(3,), (2, 3, 3, 3, 3)])
def test_a_wrong_rank_is_refused_by_name(shape):
  with observe_slots():
    with pytest.raises(ValueError) as error:
      apply_slot({}, "encoder/slot", jnp.zeros(shape))
  assert "'encoder/slot'" in str(error.value)
  assert str(shape) in str(error.value)
  assert "[batch, features]" in str(error.value)


def test_the_gradient_of_a_zero_offset_is_the_cotangent():
  host, x, variables = mine()

  def loss(offsets):
    with observe_slots(offsets) as trace:
      value: Any = host.apply(variables, x)
    return value, trace.outputs

  offsets = {"encoder/slot": jnp.zeros((4, 3)), "last": jnp.zeros((4, 3))}
  cotangents, outputs = jax.grad(loss, has_aux=True)(offsets)
  head = variables["params"]["head"]["kernel"]
  for name in offsets:
    np.testing.assert_allclose(
      cotangents[name], jnp.ones((4, 1)) @ head.T, rtol=1e-6
    )
    assert outputs[name].shape == (4, 3)
  moved, _ = loss({**offsets, "last": jnp.ones((4, 3))})
  np.testing.assert_allclose(
    moved - loss(offsets)[0], 4 * head.sum(), rtol=1e-4
  )


def test_an_offset_has_the_slot_s_dtype():
  x = jnp.ones((2, 3), jnp.bfloat16)
  with observe_slots({"s": jnp.full((2, 3), 0.5)}):
    y, _ = apply_slot({}, "s", x)
  assert y.dtype == jnp.bfloat16
  assert (y == 1.5).all()


def test_observation_ends_with_its_block_and_nests():
  x = jnp.zeros((2, 3))
  with observe_slots() as outer:
    with observe_slots() as inner:
      apply_slot({}, "a", x)
    with pytest.raises(KeyError), observe_slots():
      raise KeyError
    apply_slot({}, "b", x)
  apply_slot({}, "c", x)
  assert (set(outer.specs), set(inner.specs)) == ({"b"}, {"a"})
