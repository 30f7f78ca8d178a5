"""The environment: planting, silence, masks, vmap, what may be known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.data import augment, datasets
from esper_jax.kasmina import lifecycle, segments
from esper_jax.simic import environment as env_lib
from esper_jax.simic import hosts, worlds
from esper_jax.tamiyo import shepherd
from esper_jax.tolaria import optimizers, steps
from esper_jax.types import Action, InputError, Stage

WIDTH, DEPTH, STEPS, EPOCHS = 8, 2, 3, 12
NAMES = ("dense", "norm")
FAST = {"xla_backend_optimization_level": 0}  # compiling is what takes time
RULES = lifecycle.Rules(
  epochs=EPOCHS,
  lead_epochs=0,
  adaptation_frequency=1,
  max_adaptations_per_epoch=2,
  max_growths=8,
  seeds_per_slot=1,
  max_per_slot=1,
  alpha_curve="linear",
  blend_epochs=1,
  min_training_epochs=1,
  max_training_epochs=4,
  min_holding_epochs=1,
  max_holding_epochs=2,
  embargo_epochs=1,
  training_gain_sigmas=-1e6,
  gain_sigmas=0.0,
  max_gradient_ratio=1e3,
)


@functools.cache
def material():
  data = datasets.load("digits", validation_fraction=0.1, train_limit=128)
  return worlds.make_material(data, report=44)


def build(width, depth):
  return hosts.mlp(10, width=width, depth=depth)


@functools.cache
def setting():
  m = material()
  return env_lib.Setting(
    host=build(WIDTH, DEPTH),
    material=m,
    names=NAMES,
    rules=RULES,
    options=steps.StepOptions(
      preprocess=lambda images, key: augment.normalize(
        images, m.mean, m.std, jnp.float32
      ),
      optimizer=optimizers.make_optimizer("adamw", weight_decay=1e-2),
      learning_rate=lambda step: jnp.full(step.shape, 1e-2, jnp.float32),
      newborn_factor=lambda age: optimizers.newborn_factor(age, 2),
    ),
    batch=16,
    steps=STEPS,
    probe=16,
  )


def draw(**ranges):
  return worlds.make_draw(
    material(),
    worlds.Ranges(**ranges),
    build=build,
    width=WIDTH,
    depth=DEPTH,
    names=NAMES,
  )


TRACES = []


@functools.cache
def environment():
  env = env_lib.make(setting(), draw())

  def step(*args):
    TRACES.append(1)
    return env.step(*args)

  return env._replace(step=jax.jit(step, compiler_options=FAST))


def ask(row=0, action=Action.WAIT, column=0):
  waiting = shepherd.waiting(DEPTH)
  return waiting.replace(
    action=waiting.action.at[row].set(int(action)),
    blueprint=waiting.blueprint.at[row].set(column),
  )


@functools.cache
def young():
  """A network after one epoch, and its outcome."""
  env = environment()
  state, _ = env.reset(jax.random.key(0))
  state, _, outcome = env.step(state, ask(), jax.random.key(1))
  return state, outcome


@functools.cache
def seeded():
  """After one more, in which slot 1 trained a dense seed."""
  return environment().step(
    young()[0], ask(0, Action.GERMINATE), jax.random.key(2)
  )


def bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def at_rest(state):
  return state.replace(learner=state.learner.replace(rate=jnp.float32(0)))


def test_nothing_germinates_before_the_first_epoch():
  env = environment()
  state, observation = env.reset(jax.random.key(0))
  assert not observation.legal[:, int(Action.GERMINATE)].any()
  _, _, outcome = env.step(state, ask(0, Action.GERMINATE), jax.random.key(1))
  assert outcome.germinated == 0
  assert outcome.val_loss == young()[1].val_loss


@pytest.mark.parametrize("column", range(len(NAMES)))
def test_planting_keeps_the_function(column):
  state, before = young()
  state, _, after = environment().step(
    at_rest(state), ask(1, Action.GERMINATE, column), jax.random.key(2)
  )
  assert after.germinated == 1
  assert state.slots.stage[1] == int(Stage.TRAINING)
  assert float(after.val_loss) == float(before.val_loss)
  assert after.parameters > before.parameters and after.flops > before.flops


def test_a_dormant_network_trains_as_the_plain_one():
  env = setting()
  state, _ = environment().reset(jax.random.key(0))
  order = env_lib.draw_order(env, state.world, jax.random.key(1))
  params, images = state.learner.params, env.material.images
  chain = env.options.optimizer
  plain = steps.make_loss(build(WIDTH, DEPTH), env.options)
  optimizer = chain.init(params)

  @functools.partial(jax.jit, compiler_options=FAST)
  def step(params, optimizer, row):
    x = env.options.preprocess(images[row], None)
    gradient = jax.grad(
      lambda p: plain({"host": p}, state.learner.collections, {}, x, y, None)[0]
    )
    y = env.material.labels[row]
    return steps.move(
      env.options, params, gradient(params), optimizer, rate=jnp.float32(1e-2)
    )

  for row in order.batches:
    params, optimizer = step(params, optimizer, row)
  for mine, theirs in zip(
    jax.tree.leaves(young()[0].learner.params),
    jax.tree.leaves(params),
    strict=True,
  ):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_culled_seed_gives_back_what_it_owned():
  state, _, grown = seeded()
  key = jax.random.key(3)
  step, cull = environment().step, ask(0, Action.CULL)
  culled, _, outcome = step(state, cull, key)
  assert outcome.culled == 1
  assert outcome.parameters == young()[1].parameters < grown.parameters
  assert outcome.flops == young()[1].flops
  # What it left behind reaches nothing, whatever it is.
  sick = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.learner.pool)
  state = state.replace(learner=state.learner.replace(pool=sick))
  after, _, other = step(state, cull, key)
  assert bits(other) == bits(outcome)
  assert bits(after.learner.params) == bits(culled.learner.params)
  # And a seed planted there later is born whole.
  after, _, _ = step(after, ask(0, Action.WAIT), key)
  after, _, _ = step(after, ask(0, Action.GERMINATE), key)
  assert after.slots.stage[0] == int(Stage.TRAINING)
  assert after.signals.finite[0]
  assert np.isfinite(after.learner.pool.kernels[0]).all()


def test_an_isolated_newborn_leaves_the_others_alone():
  state, _, _ = seeded()
  key = jax.random.key(3)
  alone, _, _ = environment().step(state, ask(), key)
  beside, _, _ = environment().step(state, ask(1, Action.GERMINATE), key)

  def of_row_0(state):
    own = state.learner
    return jax.tree.map(lambda x: x[0], (own.pool, own.pool_optimizer, own.age))

  assert bits(of_row_0(alone)) == bits(of_row_0(beside))
  assert bits(alone.learner.optimizer) == bits(beside.learner.optimizer)
  assert bits(alone.learner.params) == bits(beside.learner.params)
  assert beside.learner.age.tolist() == [2 * STEPS, STEPS]


def test_a_trained_seed_has_signals():
  _, observation, _ = seeded()
  o = observation
  assert o.contribution_known.tolist() == [True, False]
  assert o.contribution_stage[0] == int(Stage.TRAINING)
  assert o.contribution_se[0] > 0 and o.parity[0] > 0 and o.finite.all()
  assert o.signal_known.all() and (o.activation_ms > 0).all()
  assert o.scores_known.tolist() == [False, True]
  assert (o.scores[1] > 0).all() and (o.expansion[1] > 0).all()
  assert (o.scores[0] == 0).all()


def test_all_decisions_share_one_trace():
  seeded()
  assert len(TRACES) == 1


@pytest.mark.parametrize(
  "in_turn", [pytest.param(False, marks=pytest.mark.full), True]
)
def test_vmap_is_the_loop(in_turn):
  env = environment()
  plain = env_lib.make(setting()._replace(in_turn=in_turn), draw())
  state = seeded()[0]
  asked = [ask(), ask(1, Action.GERMINATE, 1), ask(0, Action.CULL)]
  keys = jax.random.split(jax.random.key(5), len(asked))

  def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

  batched = jax.jit(jax.vmap(plain.step), compiler_options=FAST)(
    stack([state] * 3), stack(asked), keys
  )
  single = stack(
    [env.step(state, a, k) for a, k in zip(asked, keys, strict=True)]
  )
  for mine, theirs in zip(
    jax.tree.leaves((batched[1], batched[2])),
    jax.tree.leaves((single[1], single[2])),
    strict=True,
  ):
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_worlds_keep_to_their_ranges():
  make = draw(
    units=(4, 8),
    layers=(1, 2),
    examples=(0.25, 0.5),
    label_noise=(0.1, 0.3),
    learning_rate=(0.5, 2.0),
    missing=1,
    budget=(1.0, 2.0),
  )
  many = jax.vmap(make)(jax.random.split(jax.random.key(0), 64))
  total = len(material().labels)
  on = many.masks["units"].sum(1)
  assert set(on.tolist()) == {4, 8}
  deep = many.masks["layers"].sum(1)
  assert set(deep.tolist()) == {1, 2}
  assert (many.exists.sum(1) >= 1).all()
  assert not (many.exists & ~many.masks["layers"]).any()
  assert (many.exists.sum(1) < deep).any()
  assert (many.count >= total // 4).all() and (many.count <= total // 2).all()
  noisy = (many.labels != material().labels.reshape(1, -1)).mean(1)
  assert 0.02 < float(noisy.min()) and float(noisy.max()) < 0.45
  assert (many.rate >= 0.5).all() and (many.rate <= 2.0).all()
  assert (many.budget <= 2.0 * many.parameters + 1).all()
  # Where there is no slot nothing fits and the network sees none.
  assert not (many.fits & ~many.exists[:, :, None]).any()
  np.testing.assert_array_equal((many.cost > 0).any(-1), many.exists)
  # Counted as the plain host of that size.
  plain = 64 * 4 + 4 + 4 * 10 + 10
  small = (on == 4) & (deep == 1)
  assert set(many.parameters[small].tolist()) == {plain}


def test_what_nobody_waits_for_is_told_as_often_as_the_world_says():
  state, *_ = seeded()
  stage = state.slots.stage.at[0].set(int(Stage.BLENDING))
  slots = state.slots.replace(stage=stage)
  told = []
  for attention in (0.0, 1.0):
    world = state.world.replace(attention=jnp.float32(attention))
    new, *_ = environment().step(
      state.replace(world=world, slots=slots), ask(), jax.random.key(0)
    )
    told.append(int(new.signals.contribution_age[0]) == 0)
  assert told == [False, True]


def test_the_budget_is_a_matter_of_legality():
  state, _ = young()
  world = state.world.replace(budget=state.world.parameters + 30.0)
  _, observation, _ = environment().step(
    state.replace(world=world), ask(), jax.random.key(2)
  )
  legal = observation.legal[:, int(Action.GERMINATE)]
  cheap = np.asarray(observation.cost) <= 30
  np.testing.assert_array_equal(legal, cheap)
  assert cheap.any() and not cheap.all()


def test_no_observation_depends_on_the_report_split():
  state, _ = young()
  order = env_lib.draw_order(setting(), state.world, jax.random.key(0))

  def look(images):
    hidden = material()._replace(report_images=images["report"])
    advance = env_lib.make_advance(setting()._replace(material=hidden))
    new, observation, outcome = advance(state, ask(), order)
    kept = jax.tree.leaves((observation, new.signals, new.history))
    return [*kept, outcome.val_loss, outcome.report_accuracy]

  found = segments.first_reached(look, {"report": material().report_images})
  # One loop reads both splits at the end, so the last two cannot be told apart.
  assert found["report"] >= len(jax.tree.leaves(seeded()[1]))


def test_an_order_shows_every_example_as_often():
  world = draw(examples=(0.5, 0.5))(jax.random.key(0))
  order = env_lib.draw_order(setting(), world, jax.random.key(1))
  assert order.batches.shape == (STEPS, 16) and order.probe.shape == (16,)
  own = set(world.examples[: int(world.count)].tolist())
  assert set(order.batches.ravel().tolist()) <= own
  _, counts = np.unique(order.batches, return_counts=True)
  assert counts.max() - counts.min() <= 1


def test_bad_settings_are_refused():
  with pytest.raises(InputError, match="one seed per slot"):
    env_lib.make(
      setting()._replace(rules=RULES._replace(max_per_slot=2)), draw()
    )
  with pytest.raises(InputError, match="do not fit a host"):
    draw(units=(WIDTH + 1,))
  data = datasets.load("digits", validation_fraction=0.1, train_limit=128)
  with pytest.raises(InputError, match="report examples"):
    worlds.make_material(data, report=10**6)
  with pytest.raises(InputError, match="pooled by 3"):
    worlds.make_material(data, report=10, pool=3)
