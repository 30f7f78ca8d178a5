"""Faults, responses, and what survives a rollback."""

import dataclasses
import json
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from esper_jax.tolaria import governor
from esper_jax.tolaria.governor import GovernorState, Rules

RULES = Rules(chance=0.1)


def feed(state, losses, rules=RULES):
  for loss in losses:
    state, fault = governor.observe(state, rules, loss=loss)
    assert fault is None
  return state


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_is_a_fault_at_once(loss):
  state, fault = governor.observe(GovernorState(), RULES, loss=loss)
  assert fault.kind == "non_finite_loss"
  assert str(loss) in fault.reason
  assert state == GovernorState()


def test_loss_above_three_medians_is_a_fault():
  state = feed(GovernorState(), [2.0, 1.0, 1.5])
  assert governor.observe(state, RULES, loss=4.5)[1] is None
  after, fault = governor.observe(state, RULES, loss=4.6)
  assert fault.kind == "loss_jump"
  assert "4.6" in fault.reason and "1.5" in fault.reason
  assert after == state


def test_first_loss_has_no_median():
  state, fault = governor.observe(GovernorState(), RULES, loss=1e6)
  assert fault is None and state.losses == (1e6,)


def test_median_runs_over_the_window_only():
  rules = RULES._replace(window=3)
  state = feed(GovernorState(), [9.0, 9.0, 9.0, 3.0, 2.0, 1.0], rules)
  assert state.losses == (3.0, 2.0, 1.0)
  assert governor.observe(state, rules, loss=6.1)[1].kind == "loss_jump"


def test_tiny_losses_may_vary_below_the_floor():
  state = feed(GovernorState(), [1e-4] * 5)
  assert governor.observe(state, RULES, loss=0.29)[1] is None
  assert governor.observe(state, RULES, loss=0.31)[1].kind == "loss_jump"
  literal = RULES._replace(loss_floor=0.0)
  assert governor.observe(state, literal, loss=4e-4)[1].kind == "loss_jump"


def test_loss_factor_is_read():
  state = feed(GovernorState(), [1.0])
  rules = RULES._replace(loss_factor=5.0)
  assert governor.observe(state, rules, loss=4.9)[1] is None
  assert governor.observe(state, rules, loss=5.1)[1].kind == "loss_jump"


@pytest.mark.parametrize(
  ("best", "now", "collapsed"),
  [
    (0.21, 0.115, True),
    (0.21, 0.05, True),
    (0.21, 0.13, False),
    (0.19, 0.10, False),
    (0.0, 0.10, False),
  ],
)
def test_collapse_to_chance(best, now, collapsed):
  state, fault = governor.observe(GovernorState(), RULES, accuracy=best)
  assert fault is None and state.best_accuracy == best
  after, fault = governor.observe(state, RULES, accuracy=now)
  assert (fault is not None) == collapsed
  if collapsed:
    assert fault.kind == "collapse" and after == state
    assert f"{now:.4f}" in fault.reason and f"{best:.4f}" in fault.reason
  else:
    assert after.best_accuracy == max(best, now)


def test_margins_are_read():
  state, _ = governor.observe(GovernorState(), RULES, accuracy=0.3)
  near = RULES._replace(chance_margin=0.05)
  assert governor.observe(state, RULES, accuracy=0.14)[1] is None
  assert governor.observe(state, near, accuracy=0.14)[1].kind == "collapse"
  far = near._replace(above_margin=0.3)
  assert governor.observe(state, far, accuracy=0.14)[1] is None


def test_nothing_new_changes_nothing():
  state = GovernorState(losses=(1.0,), best_accuracy=0.5)
  assert governor.observe(state, RULES) == (state, None)


def a_fault():
  return governor.observe(GovernorState(), RULES, loss=math.nan)[1]


def respond(state, *, epoch=10, rules=RULES, **last_changed):
  return governor.respond(
    state, a_fault(), rules, epoch=epoch, last_changed=last_changed
  )


def test_the_slot_changed_last_is_quarantined():
  state, response = respond(GovernorState(), slot1=7, slot2=9, slot3=3)
  assert response.quarantine == "slot2"
  assert state.quarantined == ("slot2",)
  assert response.lr_factor == state.lr_factor == 1.0
  assert response.attempt == state.attempt == 1
  assert not response.give_up
  assert "'slot2'" in response.reason and "nan" in response.reason


def test_responsibility_expires():
  state, response = respond(GovernorState(), slot1=7)
  assert response.quarantine == "slot1"
  state, response = respond(GovernorState(), slot1=6)
  assert response.quarantine is None
  assert response.lr_factor == state.lr_factor == 0.5
  assert "halved" in response.reason
  rules = RULES._replace(responsible_epochs=4)
  assert respond(GovernorState(), rules=rules, slot1=6)[1].quarantine == "slot1"
  _, late = respond(GovernorState(), slot1=9)
  assert "changed 1 epoch before, is" in late.reason


def test_a_tie_goes_to_the_first_name_whatever_the_order():
  assert respond(GovernorState(), b=9, a=9)[1].quarantine == "a"
  assert respond(GovernorState(), a=9, b=9)[1].quarantine == "a"


def test_a_quarantined_slot_is_not_blamed_twice():
  state, _ = respond(GovernorState(), slot1=9, slot2=8)
  state, response = respond(state, slot1=9, slot2=8)
  assert response.quarantine == "slot2"
  assert state.quarantined == ("slot1", "slot2")
  state, response = respond(state, slot1=9, slot2=8)
  assert response.quarantine is None
  assert (state.lr_factor, state.attempt) == (0.5, 3)


def test_gives_up_after_the_last_rollback():
  state = GovernorState()
  for attempt in (1, 2, 3):
    state, response = respond(state)
    assert (response.attempt, response.give_up) == (attempt, False)
  assert state.lr_factor == 0.125
  after, response = respond(state, slot1=10)
  assert response.give_up and response.quarantine is None
  assert after == state
  assert (response.attempt, response.lr_factor) == (3, 0.125)
  assert "given up after 3 rollbacks" in response.reason


def test_no_rollback_allowed():
  rules = RULES._replace(max_rollbacks=0)
  assert respond(GovernorState(), rules=rules)[1].give_up


def test_what_a_rollback_keeps_and_what_it_restores():
  early = GovernorState(losses=(2.0,), best_accuracy=0.2)
  late = feed(dataclasses.replace(early, best_accuracy=0.9), [1.5, 1.0])
  kept, _ = respond(late, slot1=10)
  kept, _ = respond(kept)
  joined = governor.after_rollback(kept, early)
  assert joined == GovernorState(
    losses=(2.0,),
    best_accuracy=0.2,
    attempt=2,
    lr_factor=0.5,
    quarantined=("slot1",),
  )


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@hypothesis.given(
  st.builds(
    GovernorState,
    losses=st.lists(FINITE).map(tuple),
    best_accuracy=st.floats(0, 1),
    attempt=st.integers(0, 9),
    lr_factor=st.floats(0, 1),
    quarantined=st.lists(st.text()).map(tuple),
  )
)
def test_record_survives_json(state):
  text = json.dumps(state.to_dict(), allow_nan=False)
  assert GovernorState.from_dict(json.loads(text)) == state


@hypothesis.given(
  st.lists(st.floats(), max_size=40), st.integers(1, 6), st.integers(0, 3)
)
def test_every_run_of_losses_ends_or_goes_on(losses, window, limit):
  """No sequence breaks the record: finite window, bounded attempts."""
  rules = RULES._replace(window=window, max_rollbacks=limit)
  state, gave_up = GovernorState(), False
  for loss in losses:
    new, fault = governor.observe(state, rules, loss=loss)
    if fault is None:
      assert new.losses[-1] == loss
    else:
      assert new == state
      new, response = governor.respond(
        state, fault, rules, epoch=0, last_changed={}
      )
      gave_up = response.give_up
      assert gave_up == (state.attempt == limit)
    state = new
    assert len(state.losses) <= window
    assert all(math.isfinite(x) for x in state.losses)
    assert state.lr_factor == 0.5**state.attempt
    assert state.attempt <= limit
