"""The learners beside PPO: evolution, imitation and Monte Carlo control."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.simic import evolution, imitation, monte_carlo, rollout
from esper_jax.simic.learning import examine, minibatches
from esper_jax.simic.reward import Prices, returns
from esper_jax.tamiyo import policy, rules
from tests.simic import toy

PRICES = Prices(parameters=0.01, flops=0.01)
FREE = Prices(0.0, 0.0)


def test_centred_ranks_by_hand():
  got = evolution.centred_ranks(jnp.asarray([3.0, -1.0, 7.0]))
  np.testing.assert_allclose(got, [0.0, -0.5, 0.5])
  tied = evolution.centred_ranks(jnp.asarray([2.0, 2.0, 5.0]))
  np.testing.assert_allclose(tied, [-0.25, -0.25, 0.5])


def test_the_gradient_by_hand():
  noise = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
  # ranks of 4, 1 | 3, 2: 1/2, -1/2 | 1/6, -1/6
  got = evolution.gradient(
    noise, jnp.asarray([4.0, 1.0]), jnp.asarray([3.0, 2.0]), 0.5
  )
  np.testing.assert_allclose(got, [1 / 3 / 2, -2 / 3 / 2], rtol=1e-6)


def test_evolution_improves_on_the_toy():
  pool = toy.trials()
  settings = evolution.Settings(
    pairs=24, environments=12, deviation=0.5, learning_rate=0.3
  )
  learner = evolution.learner(toy.ACTOR, toy.ENVIRONMENT, FREE, settings)
  update = toy.fast_jit(learner.update)
  key = jax.random.key(1)
  state = learner.init(toy.ACTOR.init(key), key)
  found = []
  for _ in range(8):
    state, figures = update(state, pool)
    found.append(float(figures["return"]))
  assert found[0] < 0.5 * toy.GAIN
  assert found[-1] > 0.9 * toy.GAIN


def test_imitation_copies_its_teacher():
  pool = toy.trials()
  teacher = policy.make(
    "heuristic", warmup_epochs=0, max_adaptations_per_epoch=1
  )
  learner = imitation.learner(
    toy.ACTOR,
    toy.ENVIRONMENT,
    teacher,
    PRICES,
    imitation.Settings(environments=32, learning_rate=0.1),
  )
  update = toy.fast_jit(learner.update)
  key = jax.random.key(1)
  state = learner.init(toy.ACTOR.init(key), key)
  for _ in range(12):
    state, figures = update(state, pool)

  @toy.fast_jit
  def compare(params):
    shown = rollout.play_policy(toy.ENVIRONMENT, teacher, pool.keys, key)
    copied, played = examine(toy.ACTOR, toy.ENVIRONMENT, params, pool, PRICES)
    same = played.decisions.action == shown.decisions.action
    earned = returns(shown.outcome, pool.still, PRICES)
    return same.astype(jnp.float32).mean(), copied.mean(), earned.mean()

  same, copied, earned = compare(learner.params(state))
  assert figures["loss/agreement"] > 0.95
  assert same > 0.95
  np.testing.assert_allclose(copied, earned, atol=0.02)


def _control(settings):
  coin = rules.Settings(warmup_epochs=0, max_adaptations_per_epoch=1)
  return monte_carlo.learner(toy.ACTOR, toy.ENVIRONMENT, coin, FREE, settings)


@pytest.mark.parametrize(
  "margin", [0.0, pytest.param(2.0, marks=pytest.mark.full), 20.0]
)
def test_monte_carlo_control_learns_what_a_germination_is_worth(margin):
  pool = toy.trials()
  settings = monte_carlo.Settings(
    iterations=12,
    environments=64,
    passes=8,
    minibatches=4,
    learning_rate=0.1,
    least=0.1,
    most=0.3,
    follow=1.0,
    margin=margin,
  )
  learner = _control(settings)
  update = toy.fast_jit(learner.update)
  key = jax.random.key(1)
  state = learner.init(toy.ACTOR.init(key), key)
  for _ in range(settings.iterations):
    state, figures = update(state, pool)
  assert int(state.iteration) == settings.iterations
  assert figures["loss/surprise"] < 0.1  # the moves are the shepherd's

  @toy.fast_jit
  def use(params):
    earned, played = examine(toy.ACTOR, toy.ENVIRONMENT, params, pool, FREE)
    _, start = jax.vmap(toy.ENVIRONMENT.reset)(pool.keys)
    place, _, _ = jax.vmap(lambda o: toy.ACTOR.apply(params, o)[0])(start)
    logits = settings.scale * (place - place[:, -1:])[:, :-1]
    room = 1.0 - pool.still.val_accuracy[:, -1:]
    worth = settings.unit * room * (logits + settings.margin)
    right = start.scores[:, :, toy.GOOD].argmax(axis=1)
    return earned, worth.reshape(-1, toy.ROWS, toy.BLUEPRINTS), right

  earned, worth, right = use(learner.params(state))
  if margin > toy.GAIN / (settings.unit * 0.5):  # twins get half right
    assert (earned == 0.0).all()
    return
  assert earned.mean() > 0.9 * toy.GAIN
  # At the start, of the nine pairs, "good" in the right row above all.
  n = np.arange(len(right))
  best = worth[n, right, toy.GOOD]
  assert 0.6 * toy.GAIN < best.min() and best.max() < toy.GAIN
  others = worth.at[n, right, toy.GOOD].set(-1.0)
  assert (others.max(axis=(1, 2)) < best - 0.1 * toy.GAIN).all()


def test_monte_carlo_control_lets_the_network_play_more_and_more():
  pool = toy.trials()
  learner = _control(
    monte_carlo.Settings(iterations=1, environments=64, passes=1, own=1.0)
  )
  key = jax.random.key(1)
  state = learner.init(toy.ACTOR.init(key), key)
  never = state.average | {"stay": state.average["stay"] + 100.0}
  update = toy.fast_jit(learner.update)
  _, first = update(state.replace(average=never), pool)
  done = state.replace(average=never, iteration=jnp.int32(1))
  _, last = update(done, pool)
  assert first["germinated"] > 0.3  # the coin's
  assert last["germinated"] == 0.0  # the network's


def test_the_network_plays_as_it_will_be_used_but_for_stray_epochs():
  pool = toy.trials()
  key = jax.random.key(1)
  params = toy.ACTOR.init(key)
  # To stay is likelier than each of the nine pairs, not than all of them.
  params = params | {"stay": params["stay"] + 0.3}
  grown = []
  for stray in (0.0, 0.2):
    learner = _control(
      monte_carlo.Settings(
        iterations=1, environments=64, passes=1, own=1.0, stray=stray
      )
    )
    state = learner.init(params, key).replace(iteration=jnp.int32(1))
    _, figures = toy.fast_jit(learner.update)(state, pool)
    grown.append(float(figures["germinated"]))
  assert grown[0] == 0.0
  assert 0.5 < grown[1] < 2.5  # of at most 3


def test_returns_are_counted_in_shares_of_what_the_twin_gets_wrong():
  accuracy = np.float32([[0.1, 0.75], [0.9, 0.5], [0.2, 1.0]])
  room = monte_carlo.room(types.SimpleNamespace(val_accuracy=accuracy))
  np.testing.assert_allclose(room, [[0.25], [0.5], [0.02]])


def test_what_plays_follows_what_learns():
  learner = _control(
    monte_carlo.Settings(iterations=2, environments=64, passes=1, follow=0.25)
  )
  key = jax.random.key(1)
  before = learner.init(toy.ACTOR.init(key), key)
  after, _ = toy.fast_jit(learner.update)(before, toy.trials())
  assert learner.params(after) is after.average
  for name, new in after.params.items():
    old, average = before.params[name], after.average[name]
    assert (new != old).any()
    np.testing.assert_allclose(average, 0.75 * old + 0.25 * new, rtol=1e-5)


def test_each_pass_has_every_episode_once():
  order = minibatches(jax.random.key(0), 12, passes=3, parts=4)
  assert order.shape == (12, 3)
  passes = np.asarray(order).reshape(3, 12)
  np.testing.assert_array_equal(np.sort(passes), [range(12)] * 3)
  assert (passes[0] != passes[1]).any()
