import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina.lifecycle import Reason
from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo import shepherd
from esper_jax.types import Action, Stage

PATIENCE = {
  "max_training_epochs": 8,
  "max_holding_epochs": 4,
  "gain_sigmas": 2.0,
}
NO_GAIN = int(Reason.NO_GAIN)


def _move(o):
  """The move of row 0 and the bits behind it."""
  scores, reasons = shepherd.shepherd(o, **PATIENCE)
  full = jnp.repeat(scores[:, :, None], o.scores.shape[1], axis=2)
  action, blueprint = shepherd.select(full, o.legal, germinations=jnp.int32(0))
  return Action(int(action[0])), int(blueprint[0]), int(reasons[0, action[0]])


@pytest.mark.parametrize(
  "stage, action",
  [
    (Stage.TRAINING, Action.ADVANCE),
    (Stage.BLENDING, Action.ADVANCE),
    (Stage.HOLDING, Action.FOSSILIZE),
  ],
)
def test_a_seed_moves_up_when_its_gate_passes(planted, stage, action):
  assert _move(planted(stage)) == (action, 1, obs.GATE_PASSED)


@pytest.mark.parametrize("stage", Stage)
def test_a_young_seed_waits_while_its_gate_refuses(planted, stage):
  o = planted(stage, gate=[NO_GAIN, 0])
  assert _move(o) == (Action.WAIT, -1, 0)


@pytest.mark.parametrize(
  "stage, age, moves",
  [
    (Stage.TRAINING, 7, False),
    (Stage.TRAINING, 8, True),
    (Stage.BLENDING, 99, False),
    (Stage.HOLDING, 3, False),
    (Stage.HOLDING, 4, True),
    (Stage.FOSSILIZED, 99, False),
  ],
)
def test_patience_ends_where_the_gate_still_refuses(planted, stage, age, moves):
  o = planted(stage, gate=[NO_GAIN, 0], age=[age, 0])
  action, _, reason = _move(o)
  assert (action == Action.CULL) == moves
  assert (reason == obs.OVERDUE) == moves


def test_an_old_seed_whose_gate_passes_moves_up(planted):
  action, _, _ = _move(planted(Stage.TRAINING, age=[99, 0]))
  assert action == Action.ADVANCE


@pytest.mark.parametrize(
  "stage, culled",
  [
    (Stage.TRAINING, True),
    (Stage.BLENDING, True),
    (Stage.HOLDING, True),
    (Stage.GERMINATED, False),
    (Stage.FOSSILIZED, False),
  ],
)
def test_a_seed_that_is_not_finite_is_culled_at_once(planted, stage, culled):
  action, _, reason = _move(planted(stage, finite=[False, True]))
  assert (action == Action.CULL) == culled
  assert (reason == obs.NOT_FINITE) == culled


HARM = {
  "contribution": [-0.5, 0],
  "contribution_se": [0.2, 0],
  "contribution_known": [True, False],
  "contribution_stage": [Stage.HOLDING, 0],
  "gate": [NO_GAIN, 0],
}


def test_a_seed_that_hurts_in_holding_is_culled(planted):
  o = planted(Stage.HOLDING, **HARM)
  assert _move(o) == (Action.CULL, 1, obs.HARMFUL)


@pytest.mark.parametrize(
  "change",
  [
    {"contribution": [-0.4, 0]},  # exactly two standard errors
    {"contribution": [np.nan, 0]},
    {"contribution_known": [False, False]},
    {"contribution_stage": [Stage.BLENDING, 0]},
    {"contribution_age": [3, 0]},  # measured before this visit began
  ],
)
def test_harm_must_be_measured_in_this_visit(planted, change):
  o = planted(Stage.HOLDING, **{**HARM, **change})
  assert _move(o)[0] == Action.WAIT


def test_harm_before_holding_waits_for_the_gate(planted):
  assert _move(planted(Stage.BLENDING, **HARM))[0] == Action.WAIT


def test_a_move_that_is_not_legal_is_not_asked_for(planted):
  o = planted(Stage.TRAINING)
  legal = o.legal.at[0, int(Action.ADVANCE)].set(False)
  assert _move(o.replace(legal=legal))[0] == Action.WAIT


def _germinations(values, **cap):
  scores = jnp.zeros((len(values), len(Action), 2))
  scores = scores.at[:, int(Action.GERMINATE), 1].set(jnp.asarray(values))
  action, blueprint = shepherd.select(
    scores, jnp.ones(scores.shape, bool), **cap
  )
  grows = action == int(Action.GERMINATE)
  np.testing.assert_array_equal(blueprint, jnp.where(grows, 1, -1))
  return np.flatnonzero(grows).tolist()


@pytest.mark.parametrize(
  "cap, rows", [(0, []), (1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (9, [1, 2, 3])]
)
def test_the_best_germinations_stay(cap, rows):
  values = [0.0, 3.0, 1.0, 2.0, -1.0]
  assert _germinations(values, germinations=jnp.int32(cap)) == rows


def test_scores_that_are_not_finite_are_not_wanted():
  values = [jnp.nan, jnp.inf, -jnp.inf, 1.0]
  assert _germinations(values, germinations=jnp.int32(9)) == [3]


def test_ties_go_to_the_lower_row():
  assert _germinations([1.0, 1.0], germinations=jnp.int32(1)) == [0]


def test_one_slot_germinates_one_seed():
  values = [1.0, 2.0, 3.0, 3.0]
  cap = {"germinations": jnp.int32(9), "seeds_per_slot": 2}
  assert _germinations(values, **cap) == [1, 2]


def test_no_seed_germinates_beside_one_that_is_culled():
  scores = jnp.zeros((4, len(Action), 1))
  scores = scores.at[0, int(Action.CULL)].set(1.0)
  scores = scores.at[jnp.array([1, 2]), int(Action.GERMINATE)].set(1.0)
  action, _ = shepherd.select(
    scores,
    jnp.ones(scores.shape, bool),
    germinations=jnp.int32(9),
    seeds_per_slot=2,
  )
  wanted = [Action.CULL, Action.WAIT, Action.GERMINATE, Action.WAIT]
  assert action.tolist() == wanted


def test_waiting_asks_for_nothing():
  decisions = shepherd.waiting(2)
  assert decisions.action.tolist() == [Action.WAIT] * 2
  assert decisions.blueprint.tolist() == [-1, -1]
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(decisions))


KNOWN = {
  "contribution": [0.03, 0],
  "contribution_se": [0.01, 0],
  "contribution_known": [True, False],
}


@pytest.mark.parametrize(
  "stage, reason, fields, text",
  [
    (
      Stage.TRAINING,
      obs.GATE_PASSED,
      KNOWN,
      "contribution 3.00e-02 +- 1.0e-02, 3.0 standard errors after 3 epochs in"
      " TRAINING: the gate passes",
    ),
    (
      Stage.HOLDING,
      obs.GATE_PASSED,
      {**KNOWN, "contribution_se": [0.0, 0], "age": [1, 0]},
      "contribution 3.00e-02 +- 0.0e+00 after 1 epoch in HOLDING: the gate"
      " passes",
    ),
    (
      Stage.BLENDING,
      obs.GATE_PASSED,
      {"alpha": [1.0, 0]},
      "alpha is 1 after 3 epochs in BLENDING",
    ),
    (
      Stage.TRAINING,
      obs.NOT_FINITE,
      {},
      "a gradient or parameter of the seed is not finite after 3 epochs in"
      " TRAINING",
    ),
    (
      Stage.HOLDING,
      obs.HARMFUL,
      {**KNOWN, "contribution": [-0.03, 0]},
      "contribution -3.00e-02 +- 1.0e-02, -3.0 standard errors in HOLDING,"
      " below the limit of -2 standard errors",
    ),
    (
      Stage.HOLDING,
      obs.OVERDUE,
      {"gate": [NO_GAIN, 0], "age": [4, 0]},
      "4 epochs in HOLDING, at most 4, and the gate still refuses (its"
      " contribution is not above the required number of standard errors);"
      " contribution not measured",
    ),
    (
      Stage.TRAINING,
      obs.OVERDUE,
      {"gate": [NO_GAIN, 0], "age": [9, 0]},
      "9 epochs in TRAINING, at most 8, and the gate still refuses (its"
      " contribution is not above the required number of standard errors);"
      " contribution not measured",
    ),
  ],
)
def test_sentences_quote_the_numbers(planted, stage, reason, fields, text):
  o = planted(stage, **fields)
  assert shepherd.sentence(o, 0, reason, **PATIENCE) == text
