"""The reward: what it is by hand, and what hacks earn."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.simic import rollout
from esper_jax.simic.records import Outcome
from esper_jax.simic.reward import Prices, coming, returns, rewards, standing
from tests.simic import hacks, toy

PRICES = Prices(parameters=0.01, flops=0.02)


def _outcome(accuracy, parameters, flops):
  accuracy = jnp.asarray(accuracy)
  none = jnp.zeros(accuracy.shape, jnp.int32)
  return Outcome(
    val_loss=1.0 - accuracy,
    val_accuracy=accuracy,
    report_accuracy=accuracy,
    parameters=jnp.asarray(parameters),
    flops=jnp.asarray(flops),
    done=none > 0,
    germinated=none,
    fossilized=none,
    culled=none,
  )


STILL = _outcome([0.5, 0.6, 0.7], [10.0, 10.0, 10.0], [2.0, 2.0, 2.0])
GROWN = _outcome([0.5, 0.5, 0.9], [10.0, 20.0, 40.0], [2.0, 5.0, 5.0])


def test_the_standing_by_hand():
  # size: 0, 1, 2 doublings; spent more: 0, 3, 6 of a whole run of 6
  expected = [0.0, -0.1 - 0.01 - 0.01, 0.2 - 0.02 - 0.02]
  got = standing(GROWN, STILL, PRICES)
  np.testing.assert_allclose(got, expected, atol=1e-6)
  np.testing.assert_allclose(returns(GROWN, STILL, PRICES), 0.16, atol=1e-6)


def test_dense_credit_adds_up_to_the_return():
  dense = rewards(GROWN, STILL, PRICES, dense=True)
  final = rewards(GROWN, STILL, PRICES, dense=False)
  np.testing.assert_allclose(dense, [0.0, -0.12, 0.28], atol=1e-6)
  np.testing.assert_allclose(final, [0.0, 0.0, 0.16], atol=1e-6)


def test_what_is_still_to_come_is_the_dense_credit_ahead():
  got = coming(GROWN, STILL, PRICES)
  np.testing.assert_allclose(got, [0.16, 0.16, 0.28], atol=1e-6)
  dense = np.asarray(rewards(GROWN, STILL, PRICES, dense=True))
  np.testing.assert_allclose(got, dense[::-1].cumsum()[::-1], atol=1e-6)


def test_doing_nothing_earns_exactly_nothing():
  got = rewards(STILL, STILL, PRICES, dense=True)
  np.testing.assert_array_equal(got, np.zeros(3))


def test_a_hack_earns_no_more_than_doing_nothing():
  keys = jax.random.split(jax.random.key(0), 32)

  @toy.fast_jit
  def play(which):
    played = rollout.play_policy(
      toy.ENVIRONMENT, hacks.policy(which), keys, jax.random.key(1)
    )
    still = rollout.play_still(toy.ENVIRONMENT, keys)
    dense = rewards(played.outcome, still, PRICES, dense=True)
    return dense.sum(axis=1), played.outcome.germinated.sum()

  for number, script in enumerate(hacks.SCRIPTS):
    earned, germinated = play(jnp.int32(number))
    assert germinated > 0, script.__name__
    assert earned.max() <= 0.0, script.__name__
