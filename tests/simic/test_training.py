"""A training run on the toy: what it leaves behind, and resumption."""

import jax
import numpy as np

from esper_jax.oona import jsonl
from esper_jax.simic import evolution, ppo, training
from esper_jax.simic.learning import Learner
from esper_jax.simic.reward import Prices
from esper_jax.tolaria import workdir
from tests.simic import toy

PRICES = Prices(0.0, 0.0)
SETTINGS = training.Settings(
  environments=16, held_out=16, test_every=2, patience=0, checkpoint_every=3
)


def _phases():
  small = ppo.Settings(iterations=5, environments=8, minibatches=2, passes=1)
  few = evolution.Settings(pairs=2, environments=2)
  parts = (toy.ACTOR, toy.ENVIRONMENT, PRICES)
  return (
    training.Phase("ppo", ppo.learner(*parts, small), 5),
    training.Phase("evolution", evolution.learner(*parts, few), 3),
  )


def _train(path, phases, **options):
  with workdir.acquire(path) as work:
    return training.train(
      toy.ACTOR,
      toy.ENVIRONMENT,
      phases,
      PRICES,
      options.pop("settings", SETTINGS),
      work,
      say=lambda line: None,
      jit=toy.fast_jit,
      **options,
    )


def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(tmp_path):
  phases = _phases()
  whole = _train(tmp_path / "whole", phases)
  assert whole.finished
  assert whole.iteration == 8
  killed = tmp_path / "killed"
  for most in (2, 4, 6):  # in the first phase, again, and in the second
    asked = iter(range(most))
    part = _train(killed, phases, stop=lambda a=asked: next(a) == 1)
    assert not part.finished
  resumed = _train(killed, phases)
  assert resumed.finished
  assert resumed.score == whole.score
  for one, two in zip(
    jax.tree.leaves(resumed.params), jax.tree.leaves(whole.params), strict=True
  ):
    np.testing.assert_array_equal(one, two)
  lines = [
    jsonl.read(tmp_path / n / "metrics.jsonl") for n in ("whole", "killed")
  ]
  assert lines[0] == lines[1]
  assert [line["iteration"] for line in lines[0]] == list(range(1, 9))
  assert "held_out/return" in lines[0][1]
  again = _train(killed, phases)  # a finished run is only read
  assert again.iteration == 8


def test_a_run_that_no_longer_improves_ends(tmp_path):
  idle = Learner(
    init=lambda params, key: params,
    update=lambda params, pool: (params, {}),
    params=lambda params: params,
  )
  trained = _train(tmp_path, (training.Phase("idle", idle, 50, patience=2),))
  # The first test is the best; two more are not better.
  assert trained.iteration == 3 * SETTINGS.test_every
  assert trained.finished
