"""The learners beside PPO: evolution and imitation."""

import jax
import jax.numpy as jnp
import numpy as np
from tests.simic import toy

from esper_jax.simic import evolution, imitation, rollout
from esper_jax.simic.learner import examine
from esper_jax.simic.reward import Prices, returns
from esper_jax.tamiyo import policy

PRICES = Prices(parameters=0.01, flops=0.01)


def _learn(learner, params, pool, iterations):
  update = jax.jit(learner.update)
  state = learner.init(params, jax.random.key(1))
  for _ in range(iterations):
    state, figures = update(state, pool)
  assert all(jnp.isfinite(value) for value in figures.values())
  return learner.params(state)


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
  pool = rollout.make_pool(toy.ENVIRONMENT, jax.random.key(0), 64)
  start = toy.ACTOR.init(jax.random.key(0))
  settings = evolution.Settings(
    pairs=24, environments=12, deviation=0.3, learning_rate=0.1
  )
  learner = evolution.learner(toy.ACTOR, toy.ENVIRONMENT, PRICES, settings)
  params = _learn(learner, start, pool, 30)
  before, _ = examine(toy.ACTOR, toy.ENVIRONMENT, start, pool, PRICES)
  after, _ = examine(toy.ACTOR, toy.ENVIRONMENT, params, pool, PRICES)
  assert after.mean() > before.mean() + 0.25 * toy.GAIN


def test_imitation_copies_its_teacher():
  pool = rollout.make_pool(toy.ENVIRONMENT, jax.random.key(0), 64)
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
  start = toy.ACTOR.init(jax.random.key(0))
  params = _learn(learner, start, pool, 12)
  shown = rollout.play_policy(
    toy.ENVIRONMENT, teacher, pool.keys, jax.random.key(2)
  )
  earned = returns(shown.outcome, pool.still, PRICES)
  copied, played = examine(
    toy.ACTOR, toy.ENVIRONMENT, params, pool, PRICES
  )
  same = played.decisions.action == shown.decisions.action
  assert same.mean() > 0.95
  np.testing.assert_allclose(copied.mean(), earned.mean(), atol=0.02)
