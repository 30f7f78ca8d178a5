"""Plans of what is replayed, and places and times drawn at random."""

from collections import Counter

import numpy as np
import pytest

from esper_jax.kasmina.lifecycle import Rules
from esper_jax.oona.growth_log import Life, Move, numbered
from esper_jax.tamiyo import replay
from esper_jax.tamiyo.replay import Imposed, Places
from esper_jax.types import InputError, Stage

RULES = Rules(
  epochs=12,
  lead_epochs=1,
  adaptation_frequency=1,
  max_adaptations_per_epoch=2,
  max_growths=6,
  seeds_per_slot=1,
  max_per_slot=2,
  alpha_curve="linear",
  blend_epochs=2,
  min_training_epochs=1,
  max_training_epochs=8,
  min_holding_epochs=1,
  max_holding_epochs=4,
  embargo_epochs=2,
  training_gain_sigmas=0.0,
  gain_sigmas=2.0,
  max_gradient_ratio=100.0,
)
SLOTS = ("a", "b", "c")


def places(fits=None, **rules):
  rules = RULES._replace(**rules)
  if fits is None:
    fits = [[True, True]] * len(SLOTS)
  fits = np.repeat(np.asarray(fits), rules.seeds_per_slot, axis=0)
  return Places(SLOTS, ("wide", "thin"), fits, rules)


def lives(*stories):
  """(slot, blueprint, (epoch, stage), ...); by epoch, moves before births."""
  out, order = [], 0
  for slot, blueprint, *moves in stories:
    slot, _, lane = slot.partition("#")
    made = []
    for epoch, stage in moves:
      order += 1
      made.append(
        Move(order + 1000 * (epoch == moves[0][0]), epoch, Stage[stage])
      )
    out.append(Life(slot, int(lane or 0), blueprint, "random", tuple(made)))
  return numbered(out)


def seed(slot, planted, ended, *, blueprint="wide", culled=False):
  end = "CULLED" if culled else "FOSSILIZED"
  return (slot, blueprint, (planted, "TRAINING"), (ended, end))


# --- Plans -------------------------------------------------------------------


def test_a_plan_decides_ahead_and_removes_later():
  plan = replay.make_plan(
    lives(
      ("a", "thin", (3, "TRAINING"), (4, "BLENDING"), (6, "CULLED")),
      seed("a", 9, 12),
      seed("c", 3, 12, culled=True),
    ),
    places(),
  )
  assert plan == {
    2: [
      {
        0: Imposed(Stage.GERMINATED, 1, 3, "random"),
        2: Imposed(Stage.GERMINATED, 0, 3, "random"),
      }
    ],
    3: [{}],
    4: [{0: Imposed(Stage.BLENDING)}],
    6: [{0: Imposed(Stage.CULLED, due=7)}],
    8: [{0: Imposed(Stage.GERMINATED, 0, 9, "random")}],
    9: [{}],
    # No later than the last boundary.
    12: [{0: Imposed(Stage.FOSSILIZED), 2: Imposed(Stage.CULLED, due=12)}],
  }


@pytest.mark.parametrize(
  ("lead", "decided", "gone"),
  [(0, (2, 5), 4), (1, (1, 5), 4), (3, (0, 5), 4), (9, (0, 5), 4)],
)
def test_a_row_is_free_before_it_is_taken_again(lead, decided, gone):
  record = lives(seed("a", 2, 4, culled=True), seed("a", 5, 8))
  plan = replay.make_plan(record, places(lead_epochs=lead))
  found = {
    move.due: epoch
    for epoch, rounds in plan.items()
    for moves in rounds
    for move in moves.values()
    if move.stage is Stage.GERMINATED
  }
  assert (found[2], found[5]) == decided
  (moves,) = plan[4]
  assert moves[0] == Imposed(Stage.CULLED, due=gone)


def test_a_slot_may_rest_longer_than_was_recorded():
  record = lives(seed("a", 3, 5), seed("a", 7, 8, culled=True))
  plan = replay.make_plan(record, places(lead_epochs=4))
  assert plan[6][0][0].stage is Stage.GERMINATED  # 5 is taken by the fossil


def test_a_seed_that_ends_as_it_is_planted_moves_a_round_later():
  record = lives(("b", "wide", (3, "TRAINING"), (3, "CULLED")))
  plan = replay.make_plan(record, places())
  assert plan[3] == [{}, {1: Imposed(Stage.CULLED, due=4)}]
  plan = replay.make_plan(record, places(lead_epochs=0))
  assert plan == {
    3: [
      {1: Imposed(Stage.GERMINATED, 0, 3, "random")},
      {1: Imposed(Stage.CULLED, due=3)},
    ]
  }


def stages(plan):
  return [{row: move.stage for row, move in moves.items()} for moves in plan[0]]


G, F = Stage.GERMINATED, Stage.FOSSILIZED


def test_the_final_network_is_there_from_the_start():
  record = lives(
    seed("a", 2, 4, culled=True),
    seed("a", 6, 8),
    seed("b", 6, 9, blueprint="thin"),
    seed("a", 9, 12),
  )
  start = replay.from_the_start(record)
  assert [(life.slot, life.initializer) for life in start] == [
    ("a", ""),
    ("b", ""),
    ("a", ""),
  ]
  assert {(life.planted, life.ended) for life in start} == {(0, 0)}
  plan = replay.make_plan(start, places())
  assert list(plan) == [0]
  assert stages(plan) == [{0: G, 1: G}, {0: F, 1: F}, {0: G}, {0: F}]
  # A run that had it from the start can be replayed itself.
  assert replay.from_the_start(start) == start


def test_parallel_seeds_are_parallel_from_the_start():
  beside = lives(seed("a", 2, 6), seed("a#1", 4, 8), seed("a#1", 9, 11))
  plan = replay.make_plan(
    replay.from_the_start(beside), places(seeds_per_slot=2)
  )
  assert stages(plan) == [{0: G, 1: G}, {0: F, 1: F}, {1: G}, {1: F}]
  above = lives(seed("a", 2, 6), seed("a#1", 6, 8))
  plan = replay.make_plan(
    replay.from_the_start(above), places(seeds_per_slot=2)
  )
  assert stages(plan) == [{0: G}, {0: F, 1: G}, {1: F}]


# --- What a host lacks -------------------------------------------------------


@pytest.mark.parametrize(
  ("story", "says"),
  [
    (
      seed("d", 1, 2),
      "'wide' in slot 'd' is recorded, but the host lacks that",
    ),
    (seed("d", 1, 2), "(it has a, b, c); replay it in the same host"),
    (seed("a", 1, 2, blueprint="x"), "not among those of the run (wide, thin)"),
    (
      seed("b", 1, 2, blueprint="thin"),
      "it does not fit there in this host (i",
    ),
    (seed("b", 1, 2, blueprint="thin"), "(it fits a, c); replay"),
    (seed("b#1", 1, 2), "in lane 1, but slots have 1 here; give --config.kasm"),
  ],
)
def test_what_the_host_lacks_is_refused(story, says):
  host = places([[True, True], [True, False], [True, True]])
  replay.check(lives(seed("a", 1, 2), seed("c", 1, 2, blueprint="thin")), host)
  with pytest.raises(InputError) as caught:
    replay.check(lives(seed("a", 1, 2), story), host)
  assert says in str(caught.value)
  nothing = Places((), (), np.zeros((0, 0), bool), RULES)
  replay.check((), nothing)
  with pytest.raises(InputError, match="it has none"):
    replay.check(lives(story), nothing)


def test_more_epochs_than_the_run_has_are_refused():
  record = lives(seed("a", 1, 12))
  replay.check_epochs(record, 12)
  replay.check_epochs((), 1)
  with pytest.raises(InputError) as caught:
    replay.check_epochs(record, 11)
  assert str(caught.value) == (
    "growth is recorded up to epoch 12, but this run has 11 epochs; give"
    " --config.train.epochs=12 or more"
  )


# --- At random ---------------------------------------------------------------


def where(drawn):
  return tuple(life.slot for life in drawn)


def test_every_allowed_placement_is_equally_likely():
  """Two at the same time, and one after a cull: the slot rests until 8."""
  record = lives(
    seed("a", 2, 5, culled=True), seed("b", 3, 9), seed("a", 8, 12)
  )
  allowed = {
    (x, y, z)
    for x in SLOTS
    for y in SLOTS
    for z in SLOTS
    if x != y and z not in (x, y)  # decided at 7, x rests and y lives
  }
  assert len(allowed) == 6
  draws = 600
  counts = Counter(
    where(replay.place_at_random(record, places(), seed=n))
    for n in range(draws)
  )
  assert set(counts) == allowed
  mean = draws / len(allowed)
  assert sum((c - mean) ** 2 / mean for c in counts.values()) < 20.5  # p 0.001
  soon = places(embargo_epochs=1)
  counts = Counter(
    where(replay.place_at_random(record, soon, seed=n)) for n in range(300)
  )
  assert len(counts) == 12  # the slot of the first one may be used again


def test_a_placement_keeps_all_but_the_places():
  record = lives(
    ("a", "thin", (2, "TRAINING"), (4, "BLENDING"), (6, "CULLED")),
    seed("b", 3, 9),
  )
  host = places([[True, False], [True, True], [True, True]])
  drawn = [replay.place_at_random(record, host, seed=n) for n in range(50)]
  assert drawn[0] == replay.place_at_random(record, host, seed=0)
  assert {lives[0].slot for lives in drawn} == {"b", "c"}  # where it fits
  for own in drawn:
    assert [life._replace(slot="") for life in own] == [
      life._replace(slot="") for life in record
    ]


def test_slots_and_lanes_hold_what_they_may():
  three = lives(*(seed("a", n, n + 1) for n in (2, 4, 6)))
  for n in range(50):
    drawn = replay.place_at_random(three, places(max_per_slot=1), seed=n)
    assert set(where(drawn)) == set(SLOTS)
  beside = lives(*(seed("a", 2, 9) for _ in range(4)))
  host = places(seeds_per_slot=2, max_adaptations_per_epoch=1)
  for n in range(50):
    drawn = replay.place_at_random(beside, host, seed=n)
    taken = [(life.slot, life.lane) for life in drawn]
    assert len(set(taken)) == 4
    assert all((slot, 0) in taken for slot, _ in taken)
  with pytest.raises(InputError, match="give a larger --config.kasmina.max_"):
    replay.place_at_random(beside, places(), seed=0)


def when(drawn):
  return tuple(life.planted for life in drawn)


def test_every_allowed_time_is_equally_likely():
  record = lives(seed("a", 4, 7), seed("b", 4, 9))
  draws = 2000
  counts = Counter(
    tuple(life.planted for life in sorted(drawn, key=lambda life: life.slot))
    for n in range(draws)
    for drawn in [replay.time_at_random(record, RULES, warmup=3, seed=n)]
  )
  # Decided at 3 or later, ended at 12 or before.
  allowed = {(x, y) for x in range(4, 10) for y in range(4, 8)}
  assert set(counts) == allowed
  mean = draws / len(allowed)
  assert sum((c - mean) ** 2 / mean for c in counts.values()) < 49.8  # p 0.001


def test_a_life_is_moved_as_a_whole():
  record = lives(
    ("a", "thin", (2, "TRAINING"), (4, "BLENDING"), (6, "CULLED")),
    seed("b", 3, 9),
  )
  drawn = [
    replay.time_at_random(record, RULES, warmup=9, seed=n) for n in range(60)
  ]
  # The record itself began before the warm-up was over.
  assert min(min(when(own)) for own in drawn) == 2
  for own in drawn:
    by_slot = {life.slot: life for life in own}
    shifts = {
      m.epoch - o.epoch
      for m, o in zip(by_slot["a"].moves, record[0].moves, strict=True)
    }
    assert len(shifts) == 1
    assert by_slot["b"].ended - by_slot["b"].planted == 6
    assert own == numbered(own)
    assert list(when(own)) == sorted(when(own))
    orders = [m.order for life in own for m in life.moves]
    assert sorted(orders) == list(range(5))
  assert len({when(own) for own in drawn}) > 10


def test_a_life_of_no_epochs_is_moved_too():
  record = lives(("a", "wide", (3, "TRAINING"), (3, "CULLED")))
  for n in range(9):
    (life,) = replay.time_at_random(record, RULES, warmup=1, seed=n)
    assert [move.stage.name for move in life.moves] == ["TRAINING", "CULLED"]
    assert [move.order for move in life.moves] == [0, 1]


def test_times_keep_the_rules():
  same = lives(seed("a", 2, 4, culled=True), seed("a", 8, 10))
  rules = RULES._replace(adaptation_frequency=2, lead_epochs=1)
  for n in range(60):
    first, second = replay.time_at_random(same, rules, warmup=1, seed=n)
    assert {first.planted % 2, second.planted % 2} == {1}
    # Decided once the other has ended, after a cull also has rested.
    rest = 3 if first.culled else 1
    assert second.planted - 1 >= first.ended + rest
  one = RULES._replace(max_adaptations_per_epoch=1)
  apart = lives(seed("a", 2, 9), seed("b", 3, 10))
  for n in range(30):
    x, y = when(replay.time_at_random(apart, one, warmup=1, seed=n))
    assert x != y


def test_a_life_that_fits_in_nowhere():
  record = lives(seed("a", 0, 12))
  with pytest.raises(InputError, match="give more with --config.train.epochs"):
    replay.time_at_random(record, RULES, warmup=1, seed=0)


def test_draws_of_one_seed_for_places_and_times_are_apart():
  dice = [replay._dice(3, stream) for stream in (0, 1)]
  assert [d(1000) for d in dice] != [d(1000) for d in dice]
  assert replay._dice(3, 0)(1000) != replay._dice(3, 1)(1000)
