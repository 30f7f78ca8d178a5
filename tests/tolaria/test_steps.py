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
from esper_jax.tezzeret.lowering import abstract
from esper_jax.tolaria import steps
from esper_jax.tolaria.accounting import flops
from esper_jax.tolaria.objective import classification
from esper_jax.tolaria.optimizers import make_optimizer, newborn_factor
from esper_jax.tolaria.state import TrainState
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


def _reading():
  """A GPT that reads the middle rows of an image as text, for one answer."""
  gpt = from_linen(
    make_host("gpt", depth=1, heads=2, context=_TOKENS, **_SMALL)
  )

  def tokens(x):  # images of -1 to 1
    rows = x.reshape(x.shape[0], -1)[:, 24 : 24 + _TOKENS]
    return jnp.clip((rows + 1) * 5, 0, CLASSES - 1).astype(jnp.int32)

  def apply(params, collections, seeds, x, *, train, key):
    out, *rest = gpt.apply(
      params, collections, seeds, tokens(x), train=train, key=key
    )
    return out.mean(axis=1), *rest

  return Host(lambda key, x: gpt.init(key, tokens(x)), apply)


HOSTS = {
  "batch": lambda: from_linen(make_host("resnet8", **_SMALL)),
  "group": lambda: from_linen(make_host("resnet8", norm="group", **_SMALL)),
  "mlp": lambda: from_linen(make_host("mlp", depth=1, **_SMALL)),
  "dropout": lambda: from_linen(Dropping()),
  "functional": lambda: Host(_functional_init, _functional),
  "gpt": _reading,
}
_TOKENS = 16
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
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=own.params,
    collections=own.collections,
    seeds={},
    optimizer={"host": OPTIMIZERS[optimizer].init(own.params)},
    age={"host": jnp.zeros((), jnp.int32)},
    average={"host": own.params} if average else None,
    lr_factor=jnp.ones((), jnp.float32),
    key=jax.random.key(5),
  )
  return jax.tree.map(jnp.copy, state)  # a step may reuse its arguments


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


def options(name="plain", **changes):
  return steps.StepOptions(
    preprocess=preprocess,
    optimizer=OPTIMIZERS[name],
    learning_rate=lambda step: jnp.float32(0.02),
    newborn_factor=lambda age: jnp.float32(1.0),
  )._replace(**changes)


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
TOKEN_PAIRS = [("slot1", b) for b in blueprints_of("tokens")]
DIAGONAL = [IMAGE_PAIRS[n] for n in (0, 1, 8, 9, 16, 17)]


def plantings():
  """(family, optimizer, [(slot, blueprint, blend)])."""
  quick = {
    ("batch", "adamw"): DIAGONAL,
    ("group", "sgd"): DIAGONAL[::2],
    ("mlp", "adamw"): VECTOR_PAIRS,
    ("dropout", "sgd"): [("slot1", NOISY), ("slot1", "dense")],
    ("functional", "adamw"): [("slot1", NOISY), ("tail/slot", "norm")],
    ("gpt", "adamw"): TOKEN_PAIRS,
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


def grown(name, optimizer, seeds, *, initializer="random"):
  state = dormant(name, optimizer, average=True)
  for n, (slot, blueprint, blend) in enumerate(seeds):
    state = plant(
      name,
      state,
      slot,
      blueprint,
      n,
      optimizer=optimizer,
      blend=blend,
      initializer=initializer,
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


# XLA for CPU may round otherwise in a program with seeds than in one without.
# Of all plantings here it does so in two: it fuses an update's multiplication
# and addition (the first; one element of a momentum, jax 0.10.2), or sums
# gradients in another order (the second, jax 0.11.2). Within one program
# nothing differs.
ROUNDED_APART = [
  ("batch", "sgd", [("slot2_1", "lowrank", "gate")]),
  next(planting for planting in plantings() if planting[0] == "gpt"),
]


def same_but_for_rounding(a, b):
  """Hits and counts bitwise, losses and the gradients' squares to 1e-6.

  Not parameters: of a gradient that is 0 but for rounding, as a key's bias
  has, AdamW makes a whole step.
  """
  (loss, *hits), (square, finite) = a[6:]
  (expected_loss, *expected_hits), (expected_square, expected_finite) = b[6:]
  same((a[4:6], hits, finite), (b[4:6], expected_hits, expected_finite))
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  np.testing.assert_allclose(square, expected_square, rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "optimizer", "seeds"), plantings(), ids=_label
)
def test_an_isolated_seed_leaves_the_host_bitwise_alone(name, optimizer, seeds):
  rounded = (name, optimizer, seeds) in ROUNDED_APART
  compare = same_but_for_rounding if rounded else same
  step = stepper(name, optimizer)
  expected = host_part(*without_seeds(name, optimizer))
  assert finite(expected[:4])

  born = grown(name, optimizer, seeds)
  state, sums = run(step, born)
  found = host_part(state, sums)
  compare(found, expected)
  for at, seed in all_seeds(state.seeds).items():
    group = group_name(*at)
    assert finite(seed)
    assert differs(seed.params, all_seeds(born.seeds)[at].params)  # it learns
    assert float(sums.square[group]) > 0
    assert bool(sums.finite[group])
    assert int(state.age[group]) == 2

  sick, sums = run(step, change_seeds(born, nan))
  same(host_part(sick, sums), found)
  for at, seed in all_seeds(sick.seeds).items():
    assert not finite(seed.params)
    assert not bool(sums.finite[group_name(*at)])

  silent = change_seeds(
    change_seeds(born, nan), leaves(alpha=0.0, isolation=0.0, updates=0.0)
  )
  same(host_part(*run(step, silent)), found)

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
  """(worst loss at alpha 1 over loss at alpha 0, rms(r) / rms(x) per seed)."""
  host = family(name).host
  step = stepper(name, "adamw")
  state = grown(name, "adamw", seeds, initializer="zero_out")
  state = change_seeds(state, leaves(proximal=proximal))
  state = state.replace(lr_factor=jnp.float32(0.25))
  for _ in range(20):
    state, _ = run(step, state, last=len(data()[0]) // BATCH)

  images, labels = data()[2:]
  evaluate = jax.jit(steps.make_evaluate(host, preprocess))

  def loss(state):
    view = (state.params, state.collections, state.seeds)
    mask = jnp.ones(len(labels), jnp.float32)
    return float(evaluate(*view, images, labels, mask)[0].mean())

  @jax.jit
  def sizes(state):
    x = preprocess(images, None)
    view = (state.params, state.collections, state.seeds)
    with observe_slots() as trace:
      host.apply(*view, x, train=False, key=None)
    ratios = []
    for (path, _), seed in all_seeds(state.seeds).items():
      x = trace.outputs[path]  # of an isolated seed also the input
      r, _ = contribution(seed, x, train=False, key=None)
      ratios.append(jnp.sqrt(jnp.square(r).mean() / jnp.square(x).mean()))
    return jnp.stack(ratios)

  joined = [
    surgery.set_leaves(state, *at, alpha=1.0, isolation=0.0)
    for at in all_seeds(state.seeds)
  ]
  return max(map(loss, joined)) / loss(state), sizes(state)


@pytest.mark.parametrize(
  ("name", "pairs"), [("batch", DIAGONAL), ("mlp", VECTOR_PAIRS)]
)
def test_twenty_isolated_epochs_leave_a_seed_bounded(name, pairs):
  seeds = [(*p, BLEND_MODES[n % 3]) for n, p in enumerate(pairs)]
  worst, sizes = twenty_epochs(name, seeds, 1.0)
  assert worst <= 1.05
  assert (sizes <= 1).all()
  assert (sizes > 0).all()  # bounded, not dead
  # Without the proximal term none of it would hold.
  worst, wild = twenty_epochs(name, seeds, 0.0)
  assert worst > 1.5
  assert (wild > 3 * sizes).all()


# --- one step, by hand ----------------------------------------------------


def by_hand(params, x, labels, smoothing=0.0):
  """Mean loss, count of hits of the functional host without seeds."""
  h = jnp.tanh(x.reshape(len(x), -1) @ params["in"])
  logits = jnp.tanh(h @ params["mid"]) @ params["out"]
  target = jax.nn.one_hot(labels, CLASSES)
  target = (1 - smoothing) * target + smoothing / CLASSES
  losses = -(target * jax.nn.log_softmax(logits)).sum(axis=-1)
  return losses.mean(), (logits.argmax(-1) == labels).sum()


def test_a_step_descends_by_rate_and_adds_up():
  changes = {
    "learning_rate": lambda step: 0.1 / (1 + step.astype(jnp.float32)),
    "objective": classification(label_smoothing=0.2),
    "ema_decay": 0.75,
  }
  step = jax.jit(
    steps.make_train_step(family("functional").host, options(**changes))
  )
  state = dormant("functional", average=True)
  state = state.replace(lr_factor=jnp.float32(0.5))
  sums = steps.empty_sums(state)
  params, average = state.params, state.params
  loss, hits, square = 0.0, 0.0, 0.0
  for n, rate in enumerate((0.05, 0.025)):  # of the run's step, halved
    x = preprocess(data()[0][batch(n)], None)
    (value, hit), gradient = jax.value_and_grad(by_hand, has_aux=True)(
      params, x, data()[1][batch(n)], 0.2
    )
    params = jax.tree.map(lambda p, g, r=rate: p - r * g, params, gradient)
    average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, params)
    loss, hits = loss + BATCH * float(value), hits + float(hit)
    flat = jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient)])
    square += float(jnp.square(flat).mean())
    state, sums = step(state, sums, *data()[:2], batch(n))
  close(state.params, params)
  close(state.average, {"host": average})
  assert int(state.step) == int(state.age["host"]) == 2
  np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)
  np.testing.assert_allclose(sums.square["host"], square, rtol=1e-4)
  assert float(sums.correct) == hits
  assert (float(sums.examples), float(sums.steps)) == (2 * BATCH, 2)
  assert bool(sums.finite["host"])


def test_a_step_keeps_the_form_of_its_arguments():
  state = grown("functional", "plain", plantings()[4][2])
  new = stepper("functional")(
    state, steps.empty_sums(state), *data()[:2], batch(0)
  )
  old = (state, steps.empty_sums(state))
  assert jax.tree.structure(new) == jax.tree.structure(old)
  for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert not jax.typeof(a).weak_type


def noisy(images, key):
  x = preprocess(images, None)
  return x if key is None else x + jax.random.normal(key, x.shape)


def test_augmentation_is_keyed_by_seed_and_step():
  step = jax.jit(
    steps.make_train_step(family("functional").host, options(preprocess=noisy))
  )
  state = dormant("functional")
  others = {
    "same": state,
    "step": state.replace(step=state.step + 1),
    "seed": state.replace(key=jax.random.key(6)),
  }
  sums = steps.empty_sums(state)
  loss = {
    name: float(step(other, sums, *data()[:2], batch(0))[1].loss)
    for name, other in others.items()
  }
  again, _ = step(state, sums, *data()[:2], batch(0))
  assert float(step(state, sums, *data()[:2], batch(0))[1].loss) == loss["same"]
  assert len(set(loss.values())) == 3
  same(again.key, state.key)  # never consumed


def test_a_chunk_is_its_steps():
  state = grown("functional", "adamw", plantings()[4][2])
  step = steps.make_train_step(
    family("functional").host, options("adamw", ema_decay=0.9)
  )
  rows = jnp.stack([batch(n) for n in range(3)])
  chunked = jax.jit(steps.make_chunk(step))(
    state, steps.empty_sums(state), *data()[:2], rows
  )
  single = run(stepper("functional", "adamw"), state, last=3)
  keys = [pair[0].key for pair in (chunked, single)]
  same(*keys)
  close(
    *((pair[0].replace(key=None), pair[1]) for pair in (chunked, single)),
    tolerance=1e-4,
  )
  assert int(chunked[0].step) == 3


# --- a seed's updates -----------------------------------------------------


@functools.cache
def warming():
  """A step whose newborns warm up over four steps, and its seeded state."""
  changes = {"newborn_factor": lambda age: newborn_factor(age, 4)}
  step = jax.jit(
    steps.make_train_step(family("functional").host, options(**changes))
  )
  return step, plant("functional", dormant("functional"), "slot1", "dense")


def moved(state):
  """How far one step takes the host and the seed."""
  new, _ = run(warming()[0], state, last=1)
  groups = [surgery.group_params(s.params, s.seeds) for s in (new, state)]
  return jax.tree.map(jnp.subtract, *groups)


def test_a_newborn_warms_up_by_its_own_age():
  state = warming()[1]
  host, seed = "host", "slot1/dense"
  first = moved(state)
  aged = state.age | {seed: jnp.asarray(3, jnp.int32)}
  fourth = moved(state.replace(age=aged))
  grey = moved(state.replace(age=aged | {seed: jnp.asarray(90, jnp.int32)}))
  close(fourth[seed], jax.tree.map(lambda d: 4 * d, first[seed]), 1e-4)
  close(grey[seed], jax.tree.map(lambda d: 5 * d, first[seed]), 1e-4)
  same(first[host], fourth[host])
  assert differs(first[seed], jax.tree.map(jnp.zeros_like, first[seed]))
  old = state.age | {host: jnp.asarray(90, jnp.int32)}
  same(moved(state.replace(age=old)), first)


def test_the_update_multiplier_scales_and_freezes():
  state = warming()[1]
  whole = moved(state)["slot1/dense"]
  half = moved(change_seeds(state, leaves(updates=0.5)))
  close(half["slot1/dense"], jax.tree.map(lambda d: d / 2, whole), 1e-4)
  same(half["host"], moved(state)["host"])
  for frozen in (state, change_seeds(state, nan)):
    frozen = change_seeds(frozen, leaves(updates=0.0))
    new, _ = run(warming()[0], frozen)
    for at, seed in all_seeds(new.seeds).items():
      same(seed.params, all_seeds(frozen.seeds)[at].params)


def test_a_frozen_seed_outlives_a_sick_optimizer_state():
  state = grown("functional", "adamw", plantings()[4][2])
  sick = {
    group: own
    if group == "host"
    else jax.tree.map(
      lambda leaf: jnp.full_like(leaf, jnp.nan) if leaf.ndim else leaf, own
    )
    for group, own in state.optimizer.items()
  }
  state = change_seeds(state.replace(optimizer=sick), leaves(updates=0.0))
  new, _ = run(stepper("functional", "adamw"), state)
  for at, seed in all_seeds(new.seeds).items():
    same(seed.params, all_seeds(state.seeds)[at].params)
  assert not finite(new.optimizer)


# --- average and accumulation ---------------------------------------------


def test_average_and_accumulation_grow_by_the_same_surgery():
  optimizer = make_optimizer("adamw", accumulate_steps=2)
  step = jax.jit(
    steps.make_train_step(
      family("functional").host, options(optimizer=optimizer, ema_decay=0.5)
    )
  )
  plain = dormant("functional", average=True)
  plain = plain.replace(optimizer={"host": optimizer.init(plain.params)})
  plain, _ = run(step, plain, last=1)  # the host's first half
  same(plain.params, family("functional").params)
  born, key = surgery.germinate(
    plain,
    family("functional").slots["slot1"],
    "dense",
    key=jax.random.key(0),
    optimizer=optimizer,
    initializer="random",
  )
  group = f"slot1/{key}"
  same(born.optimizer["host"], plain.optimizer["host"])
  same(born.average[group], seeds_at(born.seeds, "slot1")[key].params)

  def seed_params(state):
    return seeds_at(state.seeds, "slot1")[key].params

  first, _ = run(step, born, first=1, last=2)
  second, _ = run(step, first, first=2, last=3)
  alone, _ = run(step, plain, first=1, last=2)
  for state, expected in (
    (first, alone),
    (second, run(step, alone, first=2, last=3)[0]),
  ):
    for part in ("params", "optimizer", "average"):
      have, want = (getattr(s, part) for s in (state, expected))
      if part != "params":
        have, want = have["host"], want["host"]
      same(have, want)
  assert differs(first.params, born.params)  # the host's second half
  same(second.params, first.params)
  same(seed_params(first), seed_params(born))  # the newborn's own first half
  assert differs(seed_params(second), seed_params(born))
  halfway = jax.tree.map(
    lambda a, b: (a + b) / 2, seed_params(born), seed_params(second)
  )
  close(second.average[group], halfway)
  culled = surgery.cull(second, "slot1", key)
  assert set(culled.average) == set(culled.optimizer) == {"host"}
  assert jax.tree.structure(culled) == jax.tree.structure(alone)


# --- programs by topology -------------------------------------------------


def test_germination_costs_one_trace_and_nothing_else_does():
  name = "functional"
  host = family(name).host
  forge = Forge(cost=flops)
  forge.add("train", steps.make_train_step(host, options()), donate=(0, 1))
  forge.add("evaluate", steps.make_evaluate(host, preprocess))

  def go(state):
    """A training and an evaluation step; (state, traces so far)."""
    sums = steps.empty_sums(state)
    args = (state, sums, *data()[:2], batch(0))
    state, _ = forge.program("train", *args).call(*args)
    mask = jnp.ones(BATCH, jnp.float32)
    view = (state.params, state.collections, state.seeds)
    args = (*view, data()[0][:BATCH], data()[1][:BATCH], mask)
    forge.program("evaluate", *args).call(*args)
    assert forge.traces["train"] == forge.traces["evaluate"]
    assert forge.compiles == 2 * forge.traces["train"]
    return state, forge.traces["train"]

  state, traces = go(dormant(name, average=True))
  assert traces == 1
  seedless = abstract(state)

  state, traces = go(plant(name, state, "slot1", "norm"))
  assert traces == 2  # exactly one more
  one_seed = abstract(state)
  key = "norm"
  for change in (
    {"alpha": 0.0, "isolation": 0.0},  # BLENDING
    {"alpha": 0.3},
    {"alpha": 1.0},  # HOLDING
    {"updates": 0.0},
  ):
    state = surgery.set_leaves(state, "slot1", key, **change)
    state, traces = go(state)
    assert traces == 2
  state, traces = go(surgery.silence(state, "slot1", key))
  assert traces == 2
  state, traces = go(surgery.fossilize(state, "slot1", key))
  assert traces == 2
  state, traces = go(state.replace(lr_factor=state.lr_factor / 2))
  assert traces == 2

  state, traces = go(plant(name, state, "slot1", "norm"))  # after the fossil
  assert traces == 3
  state, traces = go(surgery.cull(state, "slot1", "norm_2"))
  assert traces == 3  # the topology was seen before
  assert abstract(state) == one_seed
  state, traces = go(surgery.cull(state, "slot1", "norm"))
  assert traces == 3
  assert abstract(state) == seedless
  state, traces = go(plant(name, state, "slot1", "norm", 9))
  assert traces == 3


# --- evaluation -----------------------------------------------------------


def test_evaluation_by_hand_with_a_mask():
  host, params, collections, _ = family("functional")
  evaluate = jax.jit(steps.make_evaluate(host, noisy))  # no key: no noise
  images, labels = (part[:BATCH] for part in data()[:2])
  x = preprocess(images, None)
  guesses = host.apply(params, {}, {}, x, train=False, key=None)[0].argmax(-1)
  labels = jnp.where(jnp.arange(BATCH) < 4, guesses, labels)  # some hits
  mask = jnp.asarray([1, 1, 0, 1, 1, 1, 0, 1], jnp.float32)
  losses, hits = evaluate(params, collections, {}, images, labels, mask)
  for n in range(BATCH):
    own = slice(n, n + 1)
    loss, hit = by_hand(params, preprocess(images[own], None), labels[own])
    np.testing.assert_allclose(losses[n], mask[n] * loss, rtol=1e-4)
    assert float(hits[n]) == float(mask[n]) * float(hit)
  assert losses.dtype == hits.dtype == jnp.float32


def test_evaluation_is_also_the_ablation():
  state = plant("functional", dormant("functional"), "slot1", "dense")
  evaluate = jax.jit(steps.make_evaluate(family("functional").host, preprocess))

  def losses(state):
    view = (state.params, state.collections, state.seeds)
    mask = jnp.ones(BATCH, jnp.float32)
    return evaluate(*view, data()[0][:BATCH], data()[1][:BATCH], mask)[0]

  without = losses(state.replace(seeds={}))
  same(losses(state), without)  # isolated
  on = change_seeds(state, leaves(alpha=1.0, isolation=0.0))
  assert (losses(on) != without).all()
  same(losses(change_seeds(on, leaves(alpha=0.0))), without)


# --- the probe ------------------------------------------------------------


def test_the_probe_s_cotangents_are_autodiff_by_hand():
  own = family("functional")
  images, labels = (part[:BATCH] for part in data()[:2])
  state = plant("functional", dormant("functional"), "slot1", "dense")
  state = surgery.fossilize(state, "slot1", "dense")
  state = plant("functional", state, "tail/slot", "norm")  # isolated
  probe = jax.jit(steps.make_probe(own.host, noisy, own.slots))
  found = probe(own.params, own.collections, state.seeds, images, labels)
  signal = found.signals
  assert list(signal) == ["slot1", "tail/slot"]

  x = preprocess(images, None).reshape(BATCH, -1)
  fossil = {"slot1": state.seeds["slot1"]}
  first, _ = apply_slot(fossil, "slot1", jnp.tanh(x @ own.params["in"]))
  second = jnp.tanh(first @ own.params["mid"])

  def head(second):
    logits = second @ own.params["out"]
    chosen = jax.nn.one_hot(labels, CLASSES)
    return -(chosen * jax.nn.log_softmax(logits)).sum(axis=-1).mean()

  def tail(first):
    return head(jnp.tanh(first @ own.params["mid"]))

  close(signal["slot1"], (first, jax.grad(tail)(first)))
  close(signal["tail/slot"], (second, jax.grad(head)(second)))
  scale = float(jnp.abs(signal["slot1"][1]).max())
  assert scale > 1e-3  # the tolerance means something


def test_the_probe_s_supply_is_what_feeds_each_slot():
  own = family("functional")
  images, labels = (part[:BATCH] for part in data()[:2])
  state = plant("functional", dormant("functional"), "slot1", "dense")
  state = surgery.fossilize(state, "slot1", "dense")
  probe = jax.jit(steps.make_probe(own.host, preprocess, own.slots))
  found = probe(own.params, own.collections, state.seeds, images, labels)
  seed = state.seeds["slot1"]["dense"]

  def loss(params, branch):
    seeds = {"slot1": {"dense": seed.replace(params=branch)}}
    x = preprocess(images, None)
    logits, _, _ = own.host.apply(params, {}, seeds, x, train=True, key=None)
    chosen = jax.nn.one_hot(labels, CLASSES)
    return -(chosen * jax.nn.log_softmax(logits)).sum(axis=-1).mean()

  host, branch = jax.grad(loss, argnums=(0, 1))(own.params, seed.params)
  size = {name: float(jnp.abs(leaf).sum()) for name, leaf in host.items()}
  grown = sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(branch))
  expected = {"slot1": size["in"] + grown, "tail/slot": size["mid"]}
  assert list(found.supply) == list(expected)
  for path, value in expected.items():
    assert float(found.supply[path]) == pytest.approx(value, rel=1e-4)


def test_a_slot_that_nothing_feeds_is_compared_with_the_whole_host():
  def apply(params, collections, seeds, x, *, train, key):
    x = x.reshape(x.shape[0], -1)
    x, seeds = apply_slot(seeds, "bare", x, train=train)
    x, seeds = apply_slot(seeds, "fed", x @ params["w"], train=train)
    return x @ params["out"], collections, seeds

  images, labels = (part[:BATCH] for part in data()[:2])
  x = preprocess(images, None)
  keys = jax.random.split(jax.random.key(0))
  params = {
    "w": jax.random.normal(keys[0], (x[0].size, 4)),
    "out": jax.random.normal(keys[1], (4, CLASSES)),
  }
  host = Host(lambda key, x: (params, {}), apply)
  slots = surgery.slot_table(
    lambda: apply(params, {}, {}, x, train=False, key=None)
  )
  probe = jax.jit(steps.make_probe(host, preprocess, slots))
  supply = probe(params, {}, {}, images, labels).supply

  def loss(params):
    logits, _, _ = apply(params, {}, {}, x, train=True, key=None)
    chosen = jax.nn.one_hot(labels, CLASSES)
    return -(chosen * jax.nn.log_softmax(logits)).sum(axis=-1).mean()

  size = {n: float(jnp.abs(g).sum()) for n, g in jax.grad(loss)(params).items()}
  assert float(supply["fed"]) == pytest.approx(size["w"], rel=1e-4)
  assert float(supply["bare"]) == pytest.approx(sum(size.values()), rel=1e-4)


def test_the_probe_takes_hosts_with_dropout_and_statistics():
  host, params, collections, slots = family("dropout")
  images, labels = (part[:BATCH] for part in data()[:2])
  probe = jax.jit(steps.make_probe(host, preprocess, slots))
  found = probe(params, collections, {}, images, labels)
  same(probe(params, collections, {}, images, labels), found)
  other = jax.tree.map(lambda leaf: leaf + 3, collections)
  same(probe(params, other, {}, images, labels), found)  # the batch's own
  for part in found.signals["slot1"]:
    assert part.shape == (BATCH, 8)
    assert (part != 0).any()


def test_the_probe_is_float32_in_a_bfloat16_host():
  host = from_linen(make_host("mlp", depth=1, dtype=jnp.bfloat16, **_SMALL))
  own = family("mlp")
  images, labels = (part[:BATCH] for part in data()[:2])
  signal = {}
  for name, module in (("bfloat16", host), ("float32", own.host)):
    probe = jax.jit(steps.make_probe(module, preprocess, own.slots))
    found = probe(own.params, {}, {}, images, labels)
    signal[name] = found.signals["slot1"]
    assert {part.dtype for part in signal[name]} == {jnp.dtype("float32")}
  for a, b in zip(*signal.values(), strict=True):
    np.testing.assert_allclose(a, b, atol=0.1 * float(jnp.abs(b).max()))


def test_mean_square_is_over_all_elements():
  tree = {"a": jnp.full((3,), 2.0), "b": jnp.ones((1, 1), jnp.bfloat16)}
  assert float(steps.mean_square(tree)) == (3 * 4 + 1) / 4
  assert steps.mean_square(tree).dtype == jnp.float32
