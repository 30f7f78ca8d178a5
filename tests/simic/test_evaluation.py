"""The comparison of policies: paired, at equal counts."""

import jax
import numpy as np
import pytest

from esper_jax.simic import evaluation
from esper_jax.simic.reward import Prices
from esper_jax.tamiyo import rules
from tests.simic import toy


def test_a_paired_interval_by_hand():
  # differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653
  got = evaluation.paired(np.asarray([2.0, 4.0, 6.0]), np.asarray([1, 2, 3]))
  half = 4.302653 / np.sqrt(3)
  np.testing.assert_allclose(got, (2.0, 2.0 - half, 2.0 + half), rtol=1e-6)


def test_a_least_difference_by_hand():
  # differences 1, 2, 3: mean 2, deviation 1, t(0.95, 2) = 2.919986
  got = evaluation.least(np.asarray([2.0, 4.0, 6.0]), np.asarray([1, 2, 3]))
  np.testing.assert_allclose(got, 2.0 - 2.919986 / np.sqrt(3), rtol=1e-6)


@pytest.fixture(scope="module")
def played():
  settings = rules.Settings(warmup_epochs=0, max_adaptations_per_epoch=1)
  return evaluation.compare(
    toy.ENVIRONMENT,
    toy.ACTOR,
    toy.ACTOR.init(jax.random.key(0)),  # grows whenever it can
    Prices(0.0, 0.0),
    settings,
    jax.random.key(7),
    20,
    batch=16,
    jit=toy.fast_jit,
  )


def test_a_coin_is_matched_to_a_count():
  found = evaluation.match_coin(lambda p: 4.0 * p, 1.0)
  np.testing.assert_allclose(found, 0.25, atol=1 / 256)
  assert evaluation.match_coin(lambda p: 4.0 * p, 5.0) == 1.0
  assert evaluation.match_coin(lambda p: 0.0, 0.0) == 0.0


def test_the_coin_germinates_as_often_as_the_learned_policy(played):
  ours = played["learned"].germinated.mean()
  assert ours > 1
  assert abs(played["random"].germinated.mean() - ours) < 0.3
  assert (played["never"].germinated == 0).all()
  assert (played["never"].earned == 0).all()


def test_the_table_has_every_policy(played):
  text = evaluation.table(played)
  for name in played:
    assert any(line.startswith(name) for line in text.splitlines())
  figures = evaluation.document(played)["policies"]
  assert figures["never"]["fossilized_share"] is None
  assert figures["random"]["learned_less_this"]["earned"]["low"] <= 0.0


def test_the_last_line_says_whether_it_is_no_worse_than_the_heuristic(played):
  def last(change):
    theirs = played["heuristic"]
    ours = theirs._replace(accuracy=theirs.accuracy + change)
    return evaluation.table({**played, "learned": ours}).splitlines()[-1]

  assert last(0.0).startswith("learned is not worse than the heuristic")
  assert "+0.00 at least" in last(0.0)
  assert last(-0.001).startswith("learned is not worse")
  assert last(-0.003).startswith("learned is not shown to be no worse")
