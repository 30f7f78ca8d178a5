"""PPO: its formulas by hand, and that it solves what can be solved."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.simic import ppo, rollout
from esper_jax.simic.learning import examine, follow, no_moments, spread
from esper_jax.simic.reward import Prices
from tests.simic import toy

PRICES = Prices(parameters=0.01, flops=0.01)


def test_gae_by_hand():
  # differences: 1 + 0.5*4 - 2 = 1, 0 + 0.5*6 - 4 = -1, 3 - 6 = -3;
  # decay 0.25: -3; -1 - 0.75 = -1.75; 1 - 0.4375 = 0.5625
  got = ppo.gae(
    jnp.asarray([1.0, 0.0, 3.0]),
    jnp.asarray([2.0, 4.0, 6.0]),
    discount=0.5,
    trace=0.5,
  )
  np.testing.assert_allclose(got, [0.5625, -1.75, -3.0])


def test_gae_without_discount_is_the_return_less_the_value():
  reward, value = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([7.0, 5.0, 1.0])
  got = ppo.gae(reward, value, discount=1.0, trace=1.0)
  np.testing.assert_allclose(got, [6.0 - 7.0, 5.0 - 5.0, 3.0 - 1.0])


def test_the_clipped_objective_by_hand():
  ratio = jnp.asarray([1.0, 1.5, 1.5, 0.5, 0.5, 1.1])
  advantage = jnp.asarray([2.0, 2.0, -2.0, 2.0, -2.0, 1.0])
  got = ppo.clipped(jnp.log(ratio), advantage, 0.2)
  np.testing.assert_allclose(got, [2.0, 2.4, -3.0, 1.0, -1.6, 1.1], rtol=1e-6)


def test_the_clipped_objective_gives_no_gradient_beyond_the_clip():
  slope = jax.grad(lambda x: ppo.clipped(x, jnp.float32(2.0), 0.2))
  assert slope(jnp.log(jnp.float32(1.5))) == 0.0
  np.testing.assert_allclose(slope(jnp.float32(0.0)), 2.0)


def test_no_environment_speaks_louder_than_the_others():
  advantage = jnp.asarray([[10.0, -10.0], [1.0, -1.0], [0.0, 0.0]])
  got = ppo.scale(advantage, jnp.ones((3, 2)))
  overall = np.sqrt((200 + 2) / 6)
  expected = [[1.0, -1.0], [1 / overall, -1 / overall], [0.0, 0.0]]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_epochs_without_a_decision_do_not_count_in_the_scale():
  advantage = jnp.asarray([[4.0, 0.0, 100.0]])
  got = ppo.scale(advantage, jnp.asarray([[1.0, 1.0, 0.0]]))
  np.testing.assert_allclose(got[0, :2], [1.0, -1.0], rtol=1e-6)


def test_moments_are_those_of_the_values_from_the_start():
  assert [float(x) for x in spread(no_moments())] == [0.0, 0.0]
  moments = follow(no_moments(), jnp.asarray([1.0, 3.0]), 0.1)
  np.testing.assert_allclose(spread(moments), [2.0, 1.0], rtol=1e-5)
  moments = follow(moments, jnp.asarray([1.0, 3.0]), 0.1)
  np.testing.assert_allclose(spread(moments), [2.0, 1.0], rtol=1e-5)


SETTINGS = ppo.Settings(
  iterations=40, environments=64, learning_rate=0.03, entropy_start=0.02
)


def test_ppo_solves_the_toy():
  key = jax.random.key(0)
  pool = toy.trials()
  learner = ppo.learner(toy.ACTOR, toy.ENVIRONMENT, PRICES, SETTINGS)
  update = toy.fast_jit(learner.update)

  @toy.fast_jit
  def judge(params):
    earned, played = examine(toy.ACTOR, toy.ENVIRONMENT, params, pool, PRICES)
    return earned.mean(), rollout.decision_statistics(played)

  state = learner.init(toy.ACTOR.init(key), key)
  first, _ = judge(learner.params(state))
  for _ in range(SETTINGS.iterations):
    state, figures = update(state, pool)
  last, statistics = judge(learner.params(state))
  assert all(jnp.isfinite(value) for value in figures.values())
  # The best is GAIN less the price of one small seed for a whole run, 0.0024.
  assert first < 0.0
  assert last > 0.9 * toy.GAIN
  assert statistics["fossilized"] >= 0.9
