import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tamiyo.policy import make
from esper_jax.types import Action, Stage

GROW = int(Action.GERMINATE)
CLEAR = {
  "scores": [[1e-5, 2e-5], [1e-5, 3.2e-4], [1.6e-4, 1e-5]],
  "scores_known": [True] * 3,
}
NAMES = ["slot1", "slot2", "slot3"], ["conv", "depthwise"]


def _decide(policy, o):
  return jax.jit(policy.decide)((), o, jax.random.key(0))[1]


def _grown(policy, o):
  decisions = _decide(policy, o)
  rows = np.flatnonzero(decisions.action == GROW)
  return [(int(r), int(decisions.blueprint[r])) for r in rows]


def test_a_plateau_grows_where_the_score_is_highest(observe):
  assert _grown(make("heuristic"), observe(**CLEAR)) == [(1, 1)]


@pytest.mark.parametrize(
  "change",
  [
    {"val_loss": [0.5] * 6 + [0.49, 0.48]},
    {"history_known": [False] * 6 + [True] * 2},
    {"val_loss": [0.5] * 7 + [np.nan]},
    {"epoch": 1},
    {"growths_left": 0},
    {"scores_known": [False] * 3},
    {"scores": np.zeros((3, 2))},
    {"scores": np.full((3, 2), np.nan)},
    {"stage": [Stage.GERMINATED, 0, 0]},
    {"stage": [Stage.TRAINING, 0, 0], "gate": [1, 0, 0]},
  ],
)
def test_no_growth_without_its_conditions(observe, change):
  o = observe(**{**CLEAR, **change})
  assert _grown(make("heuristic"), o) == []


def test_a_seed_in_holding_does_not_stop_growth(observe):
  o = observe(**CLEAR, stage=[Stage.HOLDING, 0, 0], gate=[1, 0, 0])
  assert _grown(make("heuristic"), o) == [(1, 1)]


def test_a_rising_loss_is_a_plateau(observe):
  o = observe(**CLEAR, val_loss=[0.5] * 6 + [0.6, 0.7])
  assert _grown(make("heuristic"), o) == [(1, 1)]


@pytest.mark.parametrize(
  "knob, off",
  [
    ({"plateau_delta": 0.0}, []),
    ({"plateau_epochs": 1}, []),
    ({"warmup_epochs": 11}, []),
    ({"max_adaptations_per_epoch": 0}, []),
  ],
)
def test_every_knob_counts(observe, knob, off):
  o = observe(**CLEAR, val_loss=[0.5] * 6 + [0.51, 0.499])
  assert _grown(make("heuristic"), o) == [(1, 1)]
  assert _grown(make("heuristic", **knob), o) == off


def test_not_sequential_fills_the_cap(observe):
  policy = make("heuristic", sequential=False)
  o = observe(**CLEAR, stage=[Stage.TRAINING, 0, 0], gate=[1, 0, 0])
  assert _grown(policy, o) == [(1, 1), (2, 0)]
  assert _grown(policy, o.replace(growths_left=jnp.int32(1))) == [(1, 1)]


def test_scores_are_wanted_only_where_they_would_be_used(observe):
  policy = make("heuristic")
  flat = observe()
  assert policy.wants_scores((), flat)
  assert not policy.wants_scores((), observe(**CLEAR))
  assert not policy.wants_scores((), observe(growths_left=0))
  assert not policy.wants_scores((), observe(stage=[Stage.TRAINING, 0, 0]))
  closed = flat.replace(legal=flat.legal.at[:, GROW].set(False))
  assert not policy.wants_scores((), closed)
  falling = observe(val_loss=0.9 ** np.arange(8))
  assert not policy.wants_scores((), falling)


def test_lookahead_wants_scores_before_the_plateau(observe):
  # The fall over two epochs is 1.5 % now and 0.8 % or so at the next boundary.
  loss = np.array([1, 1, 1, 1, 1, 1, 0.989, 0.985])
  o = observe(val_loss=loss, scores=CLEAR["scores"])
  assert _grown(make("heuristic"), o) == []
  assert not make("heuristic").wants_scores((), o)
  assert make("heuristic", lookahead=True).wants_scores((), o)


def test_the_sentence_quotes_loss_score_and_runner_up(observe):
  policy = make("heuristic")
  o = observe(**CLEAR, val_loss=[0.5] * 6 + [0.499, 0.498])
  (record,) = policy.explain(_decide(policy, o), o, *NAMES)
  assert (record.slot, record.action) == ("slot2", Action.GERMINATE)
  assert (record.blueprint, record.initializer) == ("depthwise", "")
  assert record.reason == (
    "validation loss improved 0.4 % over 2 epochs (plateau below 1 %); slot2"
    " has the highest germination score, 3.2e-04 per parameter of depthwise,"
    " 2.0 times the runner-up's (slot3 with conv)"
  )


def test_the_sentence_without_a_runner_up(observe):
  policy = make("heuristic", plateau_epochs=1)
  scores = np.zeros((3, 2))
  scores[1, 0] = 2e-3
  o = observe(
    val_loss=[0.5] * 7 + [0.51], scores=scores, scores_known=[True] * 3
  )
  (record,) = policy.explain(_decide(policy, o), o, *NAMES)
  assert record.reason == (
    "validation loss worsened 2 % over 1 epoch (plateau below 1 %); slot2 has"
    " the highest germination score, 2.0e-03 per parameter of conv; no other"
    " slot has a legal one above zero"
  )


def test_the_second_of_two_is_called_the_next_highest(observe):
  policy = make("heuristic", sequential=False)
  o = observe(**CLEAR)
  first, second = policy.explain(_decide(policy, o), o, *NAMES)
  assert "slot2 has the highest germination score, 3.2e-04" in first.reason
  assert "slot3 has the next highest germination score," in second.reason
  assert "8.0 times the runner-up's (slot1 with depthwise)" in second.reason


COSTLY = {
  "scores": [[1e-5, 2e-4], [2e-4, 1e-5], [4e-5, 1e-6]],
  "scores_known": [True] * 3,
  "cost": [[100.0, 10.0], [10.0, 100.0], [100.0, 100.0]],
}


def test_blueprints_compete_by_the_whole_score_and_slots_per_parameter(observe):
  two = make("heuristic", sequential=False)
  o = observe(**COSTLY)  # whole: 1e-3, 2e-3; 2e-3, 1e-3; 4e-3, 1e-4
  assert _grown(two, o) == [(0, 1), (1, 0)]
  large = o.cost.at[0, 0].set(1000.0).at[1, 1].set(1000.0)
  # The large ones lead at their slots, but buy less per parameter than slot3.
  assert _grown(make("heuristic"), o.replace(cost=large)) == [(2, 0)]


def test_only_legal_blueprints_compete(observe):
  o = observe(**COSTLY)
  o = o.replace(legal=o.legal.at[:2, GROW, :].set(jnp.array([True, False])))
  assert _grown(make("heuristic", sequential=False), o) == [(1, 0), (2, 0)]
