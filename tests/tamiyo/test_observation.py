import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tamiyo import observation as obs
from esper_jax.types import Action, Stage


def test_unknown_observation_knows_nothing_and_allows_only_waiting():
  o = obs.unknown(3, 2)
  for name in (
    "history_known",
    "contribution_known",
    "signal_known",
    "parity_known",
    "scores_known",
  ):
    assert not getattr(o, name).any()
  assert o.legal.shape == (3, len(Action), 2)
  assert o.legal[:, int(Action.WAIT)].all()
  assert not o.legal[:, 1:].any()
  assert (o.stage == int(Stage.DORMANT)).all()


def test_leaves_are_strongly_typed():
  leaves = jax.tree.leaves(obs.unknown(3, 2))
  assert {str(leaf.dtype) for leaf in leaves} == {"float32", "int32", "bool"}
  assert not any(leaf.weak_type for leaf in leaves)


def test_every_reason_is_one_bit_with_a_text():
  assert all(bit > 0 and bit & (bit - 1) == 0 for bit in obs.REASONS)
  assert len(set(obs.REASONS.values())) == len(obs.REASONS)


@pytest.mark.parametrize("epochs, fall", [(1, 0.2), (2, 0.5)])
def test_improvement_is_relative_to_the_earlier_loss(observe, epochs, fall):
  loss = [9.0] * 5 + [2.0, 1.25, 1.0]
  gain, known = obs.improvement(observe(val_loss=loss), epochs)
  assert known
  np.testing.assert_allclose(gain, fall, rtol=1e-6)


def test_improvement_is_unknown_before_the_look_back_is_full(observe):
  known = [False] * 6 + [True] * 2
  o = observe(history_known=known)
  assert bool(obs.improvement(o, 1)[1])
  assert not bool(obs.improvement(o, 2)[1])


def test_trend_of_a_geometric_curve_has_no_noise(observe):
  mean, noise = obs.trend(observe(val_loss=0.9 ** np.arange(8)))
  np.testing.assert_allclose(mean, 0.1, rtol=1e-5)
  np.testing.assert_allclose(noise, 0.0, atol=1e-6)


def test_trend_ignores_unknown_epochs_and_their_nan(observe):
  loss = [np.nan] * 6 + [1.0, 0.8]
  known = [False] * 6 + [True] * 2
  mean, noise = obs.trend(observe(val_loss=loss, history_known=known))
  np.testing.assert_allclose(mean, 0.2, rtol=1e-6)
  np.testing.assert_allclose(noise, 0.0, atol=1e-6)


def test_trend_of_one_known_epoch_is_nothing(observe):
  o = observe(history_known=[False] * 7 + [True])
  assert tuple(map(float, obs.trend(o))) == (0.0, 0.0)


def test_imagine_follows_the_trend_and_ages_seeds(planted):
  o = planted(
    Stage.TRAINING,
    val_loss=0.9 ** np.arange(8),
    val_accuracy=np.arange(8) / 10,
    life=[4, 0],
    contribution_age=[1, 0],
  )
  future = obs.imagine(o, 2)
  np.testing.assert_allclose(
    future.val_loss, 0.9 ** np.arange(2, 10), rtol=1e-5
  )
  np.testing.assert_allclose(
    future.val_accuracy, np.array([2, 3, 4, 5, 6, 7, 7, 7]) / 10, rtol=1e-6
  )
  assert int(future.epoch) == 12
  assert int(future.epochs_left) == 18
  assert future.age.tolist() == [5, 0]
  assert future.life.tolist() == [6, 0]
  assert future.contribution_age.tolist() == [3, 0]


def test_imagine_keeps_shapes_and_dtypes(observe):
  o = observe()
  future = obs.imagine(o, 3)
  same = jax.tree.map(
    lambda a, b: a.shape == b.shape and a.dtype == b.dtype, o, future
  )
  assert all(jax.tree.leaves(same))
  assert jnp.isfinite(future.val_loss).all()
