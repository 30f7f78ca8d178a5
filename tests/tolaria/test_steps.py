"""The programs of a run: what a step does, and what a seed leaves alone.

ESPER_TEST_FULL=1 plants every blueprint in every slot of every host family
alone; otherwise each family is tried once, with several seeds at a time.
"""

import functools
import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esper_jax.data import datasets
from esper_jax.hosts import make_host
from esper_jax.hosts.host import Host, from_linen
from esper_jax.hosts.norms import BatchNorm
from esper_jax.kasmina import blueprints, surgery
from esper_jax.kasmina.slot import (
  BLEND_MODES,
  Slot,
  all_seeds,
  apply_slot,
  contribution,
  group_name,
  observe_slots,
  seeds_at,
)
from esper_jax.tezzeret.forge import Forge
from esper_jax.tolaria import steps
from esper_jax.tolaria.accounting import flops
from esper_jax.tolaria.optimizers import make_optimizer, newborn_factor
from esper_jax.tolaria.state import TrainState, abstract
from esper_jax.types import SlotTable

FULL = os.environ.get("ESPER_TEST_FULL") == "1"
BATCH, CLASSES = 8, 10
OPTIMIZERS = {
  "adamw": make_optimizer("adamw", weight_decay=1e-2, clip_norm=0.5),
  "sgd": make_optimizer("sgd", weight_decay=1e-2, clip_norm=0.5),
  "plain": make_optimizer("sgd", momentum=0.0),
}
NOISY = "steps_test_noisy"


def _noisy_init(key, spec):
  shape = (spec.channels, spec.channels)
  params = {"kernel": jax.random.normal(key, shape) / spec.channels}
  return params, {"mean": jnp.zeros((spec.channels,))}


def _noisy(params, state, x, *, train, key):
  """A branch with a state and random draws."""
  y = x @ params["kernel"]
  if train:
    y = y * jax.random.bernoulli(key, 0.5, y.shape).astype(y.dtype)
    state = {"mean": 0.9 * state["mean"] + 0.1 * y.mean(axis=0)}
  return y, state


@pytest.fixture(autouse=True, scope="module")
def _registered():
  blueprint = blueprints.Blueprint(
    NOISY, _noisy_init, _noisy, ("features",), ("kernel",)
  )
  blueprints.register(blueprint, check=False)
  yield
  blueprints.unregister(NOISY)


# --- hosts, data, states --------------------------------------------------


class Dropping(nn.Module):
  """Batch statistics, dropout and a nested slot."""

  @nn.compact
  def __call__(self, x, *, train):
    x = BatchNorm(name="norm")(x, train=train)
    x = nn.relu(nn.Dense(8, name="hidden")(x.reshape(x.shape[0], -1)))
    x = nn.Dropout(0.5, deterministic=not train)(x)
    x = Slot(name="slot1")(x, train=train)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(CLASSES, name="head")(x)


def _functional_init(key, x):
  keys = jax.random.split(key, 3)
  shapes = {"in": (x[0].size, 8), "mid": (8, 4), "out": (4, CLASSES)}
  return {
    name: jax.random.normal(k, shape) / shape[0] ** 0.5
    for k, (name, shape) in zip(keys, shapes.items(), strict=True)
  }, {}


def _functional(params, collections, seeds, x, *, train, key):
  """No Flax: two slots, at "slot1" and "tail/slot"."""
  h = jnp.tanh(x.reshape(x.shape[0], -1) @ params["in"])
  h, seeds = apply_slot(seeds, "slot1", h, train=train, key=key)
  h = jnp.tanh(h @ params["mid"])
  h, seeds = apply_slot(seeds, "tail/slot", h, train=train, key=key)
  return h @ params["out"], collections, seeds


HOSTS = {
  "batch": lambda: from_linen(make_host("resnet8", **_SMALL)),
  "group": lambda: from_linen(make_host("resnet8", norm="group", **_SMALL)),
  "mlp": lambda: from_linen(make_host("mlp", depth=1, **_SMALL)),
  "dropout": lambda: from_linen(Dropping()),
  "functional": lambda: Host(_functional_init, _functional),
}
_SMALL = {"num_classes": CLASSES, "width": 8}


class Family(NamedTuple):
  host: Host
  params: Any
  collections: Any
  slots: SlotTable


@functools.cache
def data():
  """Digits: (training images, labels, validation images, labels)."""
  digits = datasets.load("digits", train_limit=96)
  train, held = digits.train_images, digits.validation_images
  return tuple(
    jnp.asarray(part)
    for part in (
      train,
      digits.train_labels,
      held[: BATCH * 16],
      digits.validation_labels[: BATCH * 16],
    )
  )


def preprocess(images, key):
  del key
  return images.astype(jnp.float32) / 127.5 - 1.0


@functools.cache
def family(name: str) -> Family:
  host = HOSTS[name]()
  x = preprocess(data()[0][:2], None)
  shapes = jax.eval_shape(host.init, jax.random.key(0), x)
  rng = np.random.default_rng(0)

  def draw(leaf):
    noise = rng.standard_normal(leaf.shape).astype(np.float32)
    if leaf.ndim > 1:
      fan_in = np.prod(leaf.shape[:-1], dtype=np.float32)
      return jnp.asarray(noise * np.sqrt(1.5 / fan_in).astype(np.float32))
    return jnp.asarray(1 + np.float32(0.1) * noise)

  params, collections = jax.tree.map(draw, shapes)
  slots = surgery.slot_table(
    lambda: host.apply(params, collections, {}, x, train=False, key=None)
  )
  return Family(host, params, collections, slots)


def dormant(name: str, optimizer: str = "plain", *, average=False):
  own = family(name)
  copy = jax.tree.map(jnp.copy, own.params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=copy,
    collections=own.collections,
    seeds={},
    optimizer={"host": OPTIMIZERS[optimizer].init(own.params)},
    age={"host": jnp.zeros((), jnp.int32)},
    average={"host": own.params} if average else None,
    lr_factor=jnp.ones((), jnp.float32),
    key=jax.random.key(5),
  )


def plant(name, state, slot, blueprint, n=0, *, optimizer="plain", **options):
  options.setdefault("initializer", "random")
  return surgery.germinate(
    state,
    family(name).slots[slot],
    blueprint,
    key=jax.random.key(n),
    optimizer=OPTIMIZERS[optimizer],
    **options,
  )[0]


def options(optimizer="plain", **changes):
  return steps.StepOptions(
    **{
      "preprocess": preprocess,
      "optimizer": OPTIMIZERS[optimizer],
      "learning_rate": lambda step: jnp.float32(0.02),
      "newborn_factor": lambda age: jnp.float32(1.0),
      **changes,
    }
  )


@functools.cache
def stepper(name: str, optimizer: str = "plain"):
  return jax.jit(
    steps.make_train_step(family(name).host, options(optimizer, ema_decay=0.9))
  )


def batch(n):
  return jnp.arange(n * BATCH, (n + 1) * BATCH, dtype=jnp.int32)


def run(step, state, *, first=0, last=2):
  """Two steps, and what they add up."""
  sums = steps.empty_sums(state)
  for n in range(first, last):
    state, sums = step(state, sums, *data()[:2], batch(n))
  return state, sums


def same(a, b):
  """Bitwise, so that NaN counts."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def differs(a, b):
  return any(
    (np.asarray(x) != np.asarray(y)).any()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def finite(tree):
  return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def change_seeds(state, function):
  """The state with every seed put through a function."""
  return state.replace(
    seeds=jax.tree.map(
      function, state.seeds, is_leaf=lambda node: hasattr(node, "blueprint")
    )
  )


def close(a, b, tolerance=1e-5):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


# --- isolation ------------------------------------------------------------


def blueprints_of(kind: str) -> list[str]:
  return [n for n in blueprints.names() if kind in blueprints.get(n).kinds]


IMAGE_PAIRS = [
  (slot, blueprint)
  for slot in ("slot1_1", "slot2_1", "slot3_1")
  for blueprint in blueprints_of("nhwc")
]
VECTOR_PAIRS = [("slot1", b) for b in blueprints_of("features")]
DIAGONAL = [IMAGE_PAIRS[n] for n in (0, 1, 8, 9, 16, 17)]


def plantings():
  """(family, optimizer, [(slot, blueprint, blend)])."""
  quick = {
    ("batch", "adamw"): DIAGONAL,
    ("group", "sgd"): DIAGONAL[::2],
    ("mlp", "adamw"): VECTOR_PAIRS,
    ("dropout", "sgd"): [("slot1", NOISY), ("slot1", "dense")],
    ("functional", "adamw"): [("slot1", NOISY), ("tail/slot", "norm")],
  }
  chosen = [
    (*at, [(*pair, BLEND_MODES[n % 3]) for n, pair in enumerate(pairs)])
    for at, pairs in quick.items()
  ]
  if FULL:
    pairs = {"batch": IMAGE_PAIRS, "group": IMAGE_PAIRS, "mlp": VECTOR_PAIRS}
    chosen += [
      (name, ("adamw", "sgd")[n % 2], [(*pair, BLEND_MODES[n % 3])])
      for name, own in pairs.items()
      for n, pair in enumerate(own)
    ]
  return chosen


def _label(value):
  if isinstance(value, str):
    return value
  return "+".join(f"{slot}:{blueprint}" for slot, blueprint, _ in value)


@functools.cache
def without_seeds(name, optimizer):
  return run(stepper(name, optimizer), dormant(name, optimizer, average=True))


def host_part(state, sums):
  """All that a step gives back of the host; with plain momentum the optimizer
  state after one step is the gradient itself."""
  return (
    state.params,
    state.collections,
    state.optimizer["host"],
    state.average["host"],
    state.age["host"],
    (state.step, state.lr_factor, state.key),
    (sums.loss, sums.correct, sums.examples, sums.steps),
    (sums.square["host"], sums.finite["host"]),
  )


def grown(name, optimizer, seeds):
  state = dormant(name, optimizer, average=True)
  for n, (slot, blueprint, blend) in enumerate(seeds):
    state = plant(
      name, state, slot, blueprint, n, optimizer=optimizer, blend=blend
    )
  return state


def nan(seed):
  return seed.replace(
    params=jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), seed.params),
    state=jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), seed.state),
  )


def leaves(**values):
  return lambda seed: seed.replace(
    **{name: jnp.asarray(v, jnp.float32) for name, v in values.items()}
  )


@pytest.mark.parametrize(
  ("name", "optimizer", "seeds"), plantings(), ids=_label
)
def test_an_isolated_seed_leaves_the_host_bitwise_alone(name, optimizer, seeds):
  step = stepper(name, optimizer)
  expected = host_part(*without_seeds(name, optimizer))
  assert finite(expected[:4])

  born = grown(name, optimizer, seeds)
  state, sums = run(step, born)
  same(host_part(state, sums), expected)
  for at, seed in all_seeds(state.seeds).items():
    group = group_name(*at)
    assert finite(seed)
    assert differs(seed.params, all_seeds(born.seeds)[at].params)  # it learns
    assert float(sums.square[group]) > 0
    assert bool(sums.finite[group])
    assert int(state.age[group]) == 2

  sick, sums = run(step, change_seeds(born, nan))
  same(host_part(sick, sums), expected)
  for at, seed in all_seeds(sick.seeds).items():
    assert not finite(seed.params)
    assert not bool(sums.finite[group_name(*at)])

  silent = change_seeds(
    change_seeds(born, nan), leaves(alpha=0.0, isolation=0.0, updates=0.0)
  )
  same(host_part(*run(step, silent)), expected)

  joined = change_seeds(born, leaves(alpha=0.5, isolation=0.0))
  assert differs(host_part(*run(step, joined))[0], expected[0])


def test_a_sick_seed_that_has_joined_reaches_the_host():
  step = stepper("functional", "adamw")
  seeds = plantings()[4][2]
  born = change_seeds(grown("functional", "adamw", seeds), nan)
  joined = change_seeds(born, leaves(alpha=1.0, isolation=0.0))
  state, sums = run(step, joined)
  assert not finite(state.params)
  assert not bool(sums.finite["host"])


def test_seed_states_are_kept_and_host_and_seeds_draw_apart():
  state, _ = run(
    stepper("dropout", "sgd"), grown("dropout", "sgd", plantings()[3][2])
  )
  own = seeds_at(state.seeds, "slot1")[NOISY]
  assert (own.state["mean"] != 0).any()


# --- twenty isolated epochs -----------------------------------------------


def twenty_epochs(name, seeds, proximal):
  """(worst loss at alpha 1 over loss at alpha 0, worst rms(r) / rms(x))."""
  host = family(name).host
  step = stepper(name, "adamw")
  state = change_seeds(grown(name, "adamw", seeds), leaves(proximal=proximal))
  steps_per_epoch = len(data()[0]) // BATCH
  for _ in range(20):
    state, _ = run(step, state, last=steps_per_epoch)

  images, labels = data()[2:]
  mask = jnp.ones(len(labels), jnp.float32)

  @jax.jit
  def loss(seeds):
    evaluate = steps.make_evaluate(host, preprocess)
    losses, _ = evaluate(
      state.params, state.collections, seeds, images, labels, mask
    )
    return losses.mean()

  @jax.jit
  def sizes():
    with observe_slots() as trace:
      host.apply(
        state.params,
        state.collections,
        state.seeds,
        preprocess(images, None),
        train=False,
        key=None,
      )
    ratios = []
    for (path, _), seed in all_seeds(state.seeds).items():
      x = trace.outputs[path]  # of an isolated seed also the input
      r, _ = contribution(seed, x, train=False, key=None)
      ratios.append(jnp.sqrt(jnp.square(r).mean() / jnp.square(x).mean()))
    return jnp.stack(ratios)

  off = loss(state.seeds)
  on = [
    loss(surgery.set_leaves(state, *at, alpha=1.0, isolation=0.0).seeds)
    for at in all_seeds(state.seeds)
  ]
  return float(max(on) / off), sizes()


@pytest.mark.parametrize("name", ["batch", "mlp"])
def test_twenty_isolated_epochs_leave_a_seed_bounded(name):
  seeds = DIAGONAL if name == "batch" else VECTOR_PAIRS
  planted = [(*p, BLEND_MODES[n % 3]) for n, p in enumerate(seeds)]
  worst, sizes = twenty_epochs(name, planted, 1.0)
  print(name, worst, sizes)
  wild, wild_sizes = twenty_epochs(name, planted, 0.0)
  print(name, wild, wild_sizes)
  assert worst <= 1.05
  assert (sizes <= 1).all()
  assert wild > 1.05  # what the proximal term prevents
  assert (wild_sizes > 2 * sizes).any()
