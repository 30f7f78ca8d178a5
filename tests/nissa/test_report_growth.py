"""Lives of seeds and the table of decisions, as events tell them."""

import pytest

from esper_jax.nissa.report import growth, record
from tests.nissa.run_files import event, planted, recorded


def decided(epoch, slot, action, **fields):
  known = {"blueprint": "dense", "reason": "because"}
  return event(
    "decision", epoch, slot=slot, action=action, **{**known, **fields}
  )


def moved(epoch, slot, was, now, **fields):
  return event("stage_changed", epoch, slot=slot, was=was, now=now, **fields)


def told(events, measured=None):
  return growth.read(events, measured or {})


def test_seeds_of_the_recorded_run(tmp_path):
  seeds = record.read(recorded(tmp_path)).growth.seeds
  assert [(s.slot, s.key, s.planted, s.ended, s.fate) for s in seeds] == [
    ("slot3_1", "conv3x3", 8, 13, "fossilized"),
    ("slot2_1", "conv3x3", 12, 17, "culled"),
    ("slot3_1", "conv3x3_2", 16, 22, "culled"),
    ("slot1_1", "conv3x3", 21, 26, "culled"),
  ]
  assert seeds[0].contribution == 0.04518618434667587
  assert seeds[0].error == 0.014960839413106441
  assert [s.parameters for s in seeds] == [4640, 1168, 4640, 296]


def test_decisions_of_the_recorded_run(tmp_path):
  run = record.read(recorded(tmp_path))
  entries = [e for e in run.growth.entries if e.action]
  events = [e for e in run.events if e["type"] == "decision"]
  assert [(e.epoch, e.slot, e.action, e.reason) for e in entries] == [
    (e["epoch"], e["slot"], e["action"], e["reason"]) for e in events
  ]
  assert all(e.outcome for e in entries)
  first, *_, last = entries
  assert first.outcome == "planted after epoch 8"
  assert first.seed is run.growth.seeds[0]
  assert last.outcome.startswith("culled: its contribution is not above")
  assert last.contribution == -0.009009593166410923
  advanced = entries[1]
  assert advanced.outcome == "training to blending"
  assert advanced.contribution == 0.003274983959272504


def test_a_seed_that_lives_shows_its_last_measurement():
  measured = {
    (1, "slot1"): (0.5, 0.1),  # of the one before
    (3, "slot1"): (0.1, 0.02),
    (4, "slot1"): (0.2, 0.03),
    (4, "slot2"): (0.7, None),
  }
  events = [planted(2, "slot1"), moved(3, "slot1", "TRAINING", "BLENDING")]
  (seed,) = told(events, measured).seeds
  assert (seed.fate, seed.stage, seed.ended) == ("alive", "BLENDING", None)
  assert (seed.contribution, seed.error) == (0.2, 0.03)
  (young,) = told([planted(2, "slot1")], {(2, "slot1"): (0.5, 0.1)}).seeds
  assert young.contribution is None


def test_what_happens_without_a_decision_stands_alone():
  events = [
    planted(1, "slot1"),
    event("gate_refused", 2, slot="slot1", reason="too young"),
    event("culled", 3, slot="slot1", was="HOLDING", reason="the run ended"),
    event("embargo_ended", 6, slot="slot1"),
  ]
  found = told(events)
  assert [(e.action, e.outcome, e.reason) for e in found.entries] == [
    ("", "planted after epoch 1", ""),
    ("", "held back by the gate", "too young"),
    ("", "culled", "the run ended"),
  ]
  assert all(entry.seed is found.seeds[0] for entry in found.entries)


def test_a_decision_that_is_refused_says_why():
  events = [
    decided(1, "slot1", "germinate"),
    event(
      "gate_refused", 1, slot="slot1", action="germinate", reason="no room"
    ),
  ]
  (entry,) = told(events).entries
  assert (entry.reason, entry.outcome) == ("because", "refused: no room")
  assert entry.seed is None


def test_a_growth_that_is_given_up_before_it_is_planted():
  events = [
    decided(1, "slot1", "germinate"),
    event("growth_cancelled", 2, slot="slot1", reason="it did not compile"),
  ]
  found = told(events)
  (entry,) = found.entries
  assert entry.outcome == "given up: it did not compile"
  assert (entry.seed, found.seeds) == (None, [])


def test_a_growth_that_is_given_up_at_its_first_step():
  events = [
    decided(1, "slot1", "germinate"),
    planted(2, "slot1"),
    event("growth_cancelled", 2, slot="slot1", reason="memory", late=True),
    planted(5, "slot1"),
  ]
  found = told(events)
  assert [s.fate for s in found.seeds] == ["cancelled", "alive"]
  assert found.seeds[0].ended == 2
  assert [e.outcome for e in found.entries] == [
    "planted after epoch 2",
    "given up",
    "planted after epoch 5",
  ]


def test_a_permanent_seed_stays_as_it_was_when_another_is_decided():
  events = [
    planted(1, "slot1"),
    event("fossilized", 3, slot="slot1", contribution=0.1, contribution_se=0.0),
    event("growth_cancelled", 5, slot="slot1", reason="too late"),
  ]
  (seed,) = told(events).seeds
  assert (seed.fate, seed.ended, seed.contribution) == ("fossilized", 3, 0.1)


def test_lanes_are_told_apart():
  events = [
    planted(1, "slot1", lane=0),
    planted(1, "slot1", lane=1),
    event("fossilized", 3, slot="slot1", lane=1, contribution=None),
  ]
  found = told(events).seeds
  assert [(s.slot, s.fate) for s in found] == [
    ("slot1", "alive"),
    ("slot1#2", "fossilized"),
  ]


def test_a_contribution_that_is_not_finite_is_not_known():
  events = [
    planted(1, "slot1"),
    event("culled", 3, slot="slot1", contribution="NaN", contribution_se="NaN"),
  ]
  found = told(events)
  assert found.seeds[0].contribution is None
  assert found.entries[-1].contribution is None


@pytest.mark.parametrize(
  ("value", "found"),
  [(None, None), ("NaN", None), ("Infinity", None), (2, 2.0), (0.5, 0.5)],
)
def test_numbers_of_a_log(value, found):
  assert growth.number(value) == found


@pytest.mark.parametrize("kind", ["run_started", "rolled_back", "quarantined"])
def test_other_events_are_no_growth(kind):
  assert told([event(kind, 0)]) == ([], [])
