import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo.policy import make
from esper_jax.tamiyo.rules import wish
from esper_jax.types import Action, InputError, Stage

GROW = int(Action.GERMINATE)


def _grown(decisions):
  """The (row, blueprint) pairs that germinate."""
  rows = np.flatnonzero(decisions.action == GROW)
  return [(int(r), int(decisions.blueprint[r])) for r in rows]


def _history(policy, observe, epochs, **fields):
  """epoch -> the pairs germinated after it, for the epochs that grow."""
  decide = jax.jit(policy.decide)
  state = policy.init(jax.random.key(0))
  out = {}
  for epoch in epochs:
    o = observe(epoch=epoch, **fields)
    key = jax.random.fold_in(jax.random.key(1), epoch)
    state, decisions = decide(state, o, key)
    if grown := _grown(decisions):
      out[epoch] = grown
  return out


def test_wish_keeps_the_first_legal_row_of_a_slot(observe):
  o = observe(4, 2)
  o = o.replace(legal=o.legal.at[0, GROW, 1].set(False))
  w = wish(o, jnp.ones((4, 2)), count=1, seeds_per_slot=2)
  np.testing.assert_array_equal(w.scores, [[1, 0], [0, 1], [1, 1], [0, 0]])
  np.testing.assert_allclose(w.shares, np.asarray(w.scores) / 4)
  assert (int(w.count), float(w.chance)) == (1, 1.0)


def test_wish_of_nothing_legal_has_no_chance_and_no_nan(observe):
  o = obs.unknown(2, 2)
  w = wish(o, jnp.ones((2, 2)), count=2)
  assert float(w.shares.sum()) == 0.0
  assert (int(w.count), float(w.chance)) == (0, 0.0)


def test_shares_of_tiny_scores_still_sum_to_one(observe):
  w = wish(observe(2, 2), jnp.full((2, 2), 1e-37), count=1)
  np.testing.assert_allclose(w.shares, 0.25, rtol=1e-6)


def test_periodic_takes_slots_and_blueprints_in_turn(observe):
  policy = make("periodic", period_epochs=2)
  history = _history(policy, observe, range(1, 17), rows=2, blueprints=3)
  assert history == {
    2: [(0, 0)],
    4: [(1, 1)],
    6: [(0, 1)],
    8: [(1, 2)],
    10: [(0, 2)],
    12: [(1, 0)],
    14: [(0, 0)],
    16: [(1, 1)],
  }


def test_periodic_takes_the_next_slot_that_is_free(observe):
  o = observe(3, 2)
  legal = o.legal.at[0, GROW].set(False).at[1, GROW, 1].set(False)
  history = _history(
    make("periodic", period_epochs=3), observe, range(1, 10), legal=legal
  )
  # Slot 0 is never free, slot 1 takes only blueprint 0.
  assert history == {3: [(1, 0)], 6: [(2, 0)], 9: [(1, 0)]}


def test_a_period_in_which_nothing_is_legal_passes(observe):
  policy = make("periodic", period_epochs=2)
  state = policy.init(jax.random.key(0))
  key = jax.random.key(0)
  busy = obs.unknown(2, 2).replace(epoch=jnp.int32(2))
  state, decisions = policy.decide(state, busy, key)
  assert _grown(decisions) == []
  state, decisions = policy.decide(state, observe(epoch=3), key)
  assert _grown(decisions) == []
  state, decisions = policy.decide(state, observe(epoch=4), key)
  assert _grown(decisions) == [(0, 0)]


def test_periodic_asked_every_second_epoch_misses_no_period(observe):
  policy = make("periodic", period_epochs=3, adaptation_frequency=2)
  history = _history(policy, observe, range(2, 14, 2))
  assert list(history) == [4, 6, 10, 12]


def test_periodic_waits_for_the_warmup(observe):
  policy = make("periodic", period_epochs=1, warmup_epochs=4)
  assert list(_history(policy, observe, range(1, 6))) == [4, 5]


def test_periodic_uses_the_free_row_of_a_slot(observe):
  o = observe(4, 1)
  legal = o.legal.at[0, GROW].set(False)
  policy = make("periodic", period_epochs=1, seeds_per_slot=2)
  history = _history(
    policy, observe, range(2, 4), rows=4, blueprints=1, legal=legal
  )
  assert history == {2: [(1, 0)], 3: [(2, 0)]}


SCHEDULE = ((3, 0, 1), (3, 2, 0), (5, 1, 1))


def test_schedule_germinates_what_it_lists(observe):
  history = _history(make("schedule", schedule=SCHEDULE), observe, range(1, 8))
  assert history == {3: [(0, 1), (2, 0)], 5: [(1, 1)]}


def test_schedule_between_boundaries_is_met_at_the_next(observe):
  policy = make(
    "schedule",
    schedule=SCHEDULE,
    adaptation_frequency=2,
    max_adaptations_per_epoch=2,
  )
  history = _history(policy, observe, range(2, 9, 2))
  assert history == {4: [(0, 1), (2, 0)], 6: [(1, 1)]}


def test_schedule_counts_slots_not_rows(observe):
  policy = make("schedule", schedule=((1, 1, 0),), seeds_per_slot=2)
  history = _history(policy, observe, [1], rows=4, blueprints=1)
  assert history == {1: [(2, 0)]}


def test_an_empty_schedule_never_grows(observe):
  assert _history(make("schedule"), observe, range(1, 6)) == {}


def test_schedule_says_what_it_cannot_have(observe, planted):
  policy = make("schedule", schedule=((10, 0, 1), (10, 1, 0)))
  o = planted(Stage.TRAINING)
  _, decisions = policy.decide((), o, jax.random.key(0))
  assert decisions.action.tolist() == [Action.ADVANCE, GROW]
  names = ["a", "b"], ["conv", "dense"]
  advance, unmet, grow = policy.explain(decisions, o, *names)
  assert (advance.slot, advance.action) == ("a", Action.ADVANCE)
  assert (unmet.slot, unmet.action, unmet.blueprint) == ("a", Action.WAIT, "")
  assert unmet.reason == (
    "the schedule asks for dense at a after epoch 10, but it cannot germinate"
    " there now (stage TRAINING, 8 growths and 20 epochs left)"
  )
  assert (grow.slot, grow.blueprint, grow.weight) == ("b", "conv", 1.0)
  assert grow.reason == "the schedule asks for conv at b after epoch 10"


@pytest.mark.parametrize(
  "schedule, text",
  [
    (((3, 0, 0), (3, 0, 1)), "asks twice for slot number 0 at epoch 3"),
    (((3, 0, 0), (3, 1, 0), (3, 2, 0)), "3 germinations at epoch 3"),
  ],
)
def test_a_schedule_that_cannot_be_met_is_refused(schedule, text):
  with pytest.raises(InputError, match=text):
    make("schedule", schedule=schedule)


def test_random_repeats_with_its_key_and_only_with_it(observe, equal):
  policy = make("random", probability=1.0)
  o = observe(6, 4)
  decide = jax.jit(policy.decide)
  one = decide((), o, jax.random.key(3))
  assert equal(one, decide((), o, jax.random.key(3)))
  others = [decide((), o, jax.random.key(n)) for n in range(4, 8)]
  assert not all(equal(one, other) for other in others)


def test_random_takes_each_chance_with_its_probability(observe):
  policy = make("random", probability=0.3, max_adaptations_per_epoch=2)
  o = observe(4, 2)
  keys = jax.random.split(jax.random.key(0), 2000)
  _, decisions = jax.vmap(lambda key: policy.decide((), o, key))(keys)
  grows = np.asarray(decisions.action) == GROW
  counts = np.bincount(grows.sum(axis=1), minlength=3) / len(keys)
  np.testing.assert_allclose(counts, [0.49, 0.42, 0.09], atol=0.04)
  kinds = np.asarray(decisions.blueprint)[grows]
  places = np.nonzero(grows)[1]
  pairs = np.bincount(places * 2 + kinds, minlength=8) / grows.sum()
  np.testing.assert_allclose(pairs, 1 / 8, atol=0.04)


@pytest.mark.parametrize("probability, epochs", [(0.0, []), (1.0, [3, 4])])
def test_random_waits_for_the_warmup(observe, probability, epochs):
  policy = make("random", probability=probability, warmup_epochs=3)
  assert list(_history(policy, observe, range(1, 5))) == epochs


def test_sentences_of_periodic_and_random(observe):
  names = ["a", "b", "c"], ["conv", "dense"]
  key = jax.random.key(0)
  for name, text in (
    (
      "periodic",
      "after epoch 10 a period of 5 epochs is over; a is next in turn",
    ),
    (
      "random",
      "drawn with probability 1 a chance, from 6 legal pairs of slot and"
      " blueprint",
    ),
  ):
    policy = make(
      name, period_epochs=5, probability=1, max_adaptations_per_epoch=1
    )
    o = observe()
    _, decisions = policy.decide(policy.init(key), o, key)
    (record,) = policy.explain(decisions, o, *names)
    assert record.reason == text
    assert record.action == Action.GERMINATE
