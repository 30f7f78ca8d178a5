"""The lives of seeds as an event log tells them."""

import pytest

from esper_jax.oona import growth_log, jsonl
from esper_jax.oona.growth_log import Life, Move
from esper_jax.types import InputError, Stage

END = ("run_finished", 9, {"status": "completed"})
BORN = {"slot": "a", "blueprint": "dense", "initializer": "zero_out"}
CULLED = {"slot": "a", "was": "TRAINING"}


def now(stage):
  return {"slot": "a", "was": "", "now": stage}


LIFE = (
  ("germinated", 2, BORN),
  ("stage_changed", 3, now("BLENDING")),
  ("stage_changed", 5, now("HOLDING")),
  ("fossilized", 6, {"slot": "a"}),
)


@pytest.fixture
def write(tmp_path):
  """Writes an event log of (type, epoch, fields); returns its path."""

  def write(*events, **changes):
    path = tmp_path / "events.jsonl"
    path.write_bytes(
      b"".join(
        jsonl.encode(
          {"v": 1, "id": 0, "epoch": epoch, "type": kind, **fields, **changes}
        )
        for kind, epoch, fields in events
      )
    )
    return path

  return write


@pytest.fixture
def read(write):
  return lambda *events: growth_log.read_lives(write(*events))


def story(life):
  return [(move.epoch, move.stage.name) for move in life.moves]


def test_a_whole_life(read):
  (life,) = read(("run_started", 0, {}), *LIFE, END)
  assert life == Life(
    "a",
    0,
    "dense",
    "zero_out",
    (
      Move(0, 2, Stage.TRAINING),
      Move(1, 3, Stage.BLENDING),
      Move(2, 5, Stage.HOLDING),
      Move(3, 6, Stage.FOSSILIZED),
    ),
  )
  assert (life.planted, life.ended, life.culled) == (2, 6, False)


def test_what_is_not_growth_changes_nothing(read):
  plain = read(*LIFE, END)
  told = [
    ("run_started", 0, {"policy": "heuristic"}),
    ("compile", 0, {}),
    ("decision", 1, {"slot": "a", "action": "germinate"}),
    ("growth_cancelled", 1, {"slot": "b", "reason": "too large"}),
    *LIFE[:2],
    ("resumed", 0, {}),  # of the process: its epoch may be any
    ("gate_refused", 4, {"slot": "a"}),
    *LIFE[2:],
    ("checkpoint", 9, {}),
    END,
    ("fault", 9, {}),
  ]
  assert read(*told) == plain
  assert growth_log.digest(read(*told)) == growth_log.digest(plain)


def test_a_slot_grows_again_and_lanes_are_apart(read):
  first, second, other = read(
    *LIFE[:2],
    ("culled", 4, CULLED),
    ("germinated", 6, BORN),
    ("germinated", 6, {**BORN, "lane": 1}),
    ("fossilized", 7, {"slot": "a", "lane": 1}),
    ("culled", 9, CULLED),
    END,
  )
  assert story(first) == [(2, "TRAINING"), (3, "BLENDING"), (4, "CULLED")]
  assert first.culled
  assert story(second) == [(6, "TRAINING"), (9, "CULLED")]
  assert (other.lane, story(other)) == (1, [(6, "TRAINING"), (7, "FOSSILIZED")])


def test_what_a_rollback_undid_is_left_out(read):
  (life,) = read(
    *LIFE[:3],
    ("fossilized", 6, {"slot": "a"}),
    ("germinated", 7, {**BORN, "slot": "b"}),
    ("fault", 7, {}),
    ("rolled_back", 3, {"attempt": 1}),
    ("quarantined", 3, {"slot": "a"}),
    ("culled", 3, CULLED),
    END,
  )
  assert story(life) == [(2, "TRAINING"), (3, "BLENDING"), (3, "CULLED")]


def test_a_rollback_to_the_start_undoes_what_was_planted_there(read):
  start = (("germinated", 0, BORN), ("fossilized", 0, {"slot": "a"}))
  (life,) = read(*start, ("rolled_back", 0, {"attempt": 1}), *start, END)
  assert story(life) == [(0, "TRAINING"), (0, "FOSSILIZED")]
  (again,) = read(*start, ("rolled_back", 1, {"attempt": 1}), END)
  assert again == life


def test_a_seed_whose_first_step_failed_never_was(read):
  (life,) = read(
    ("germinated", 2, BORN),
    ("growth_cancelled", 2, {"slot": "a"}),
    ("germinated", 4, BORN),
    ("fossilized", 6, {"slot": "a"}),
    ("growth_cancelled", 7, {"slot": "a"}),  # decided again, never planted
    END,
  )
  assert life.planted == 4


def test_a_run_without_growth(read):
  assert read(("run_started", 0, {}), END) == ()


def test_the_digest_is_of_what_is_replayed(read):
  digests = {
    growth_log.digest(read(*events, END))
    for events in (
      LIFE,
      (("germinated", 1, BORN), *LIFE[1:]),
      (("germinated", 2, {**BORN, "blueprint": "norm"}), *LIFE[1:]),
      (("germinated", 2, {**BORN, "initializer": "random"}), *LIFE[1:]),
      (*LIFE[:3], ("culled", 6, CULLED)),
    )
  }
  assert len(digests) == 5


@pytest.mark.parametrize(
  ("events", "says"),
  [
    ([], "does not end with the run_finished of a completed run"),
    (LIFE, "does not end with the run_finished"),
    ([("run_finished", 9, {"status": "failed"})], "does not end with"),
    ([*LIFE[:3], END], "seed 'dense' in slot 'a' has no end"),
    ([LIFE[1], END], "line 1: 'stage_changed' cannot happen to slot 'a'"),
    ([LIFE[0], *LIFE, END], "line 2: 'germinated' cannot happen to slot 'a'"),
    ([*LIFE, LIFE[3], END], "line 5: 'fossilized' cannot happen to slot 'a'"),
    (
      [LIFE[0], LIFE[2], ("stage_changed", 5, now("BLENDING")), END],
      "line 3: 'stage_changed' cannot happen",
    ),
    ([LIFE[0], ("culled", 1, CULLED), END], "line 2: epoch 1 comes after"),
    (
      [LIFE[0], ("stage_changed", 3, now("CULLED")), END],
      "line 2: 'now' of the event is 'CULLED', not one of BLENDING, HOLDING",
    ),
    (
      [("germinated", 2, {"slot": 3}), END],
      "'slot' of the event is 3, not a t",
    ),
    ([("germinated", 2, {"slot": "a"}), END], "'blueprint' of the event is No"),
    ([("germinated", "x", BORN), END], "'epoch' of the event is 'x', not a wh"),
    ([("germinated", True, BORN), END], "'epoch' of the event is True"),
    ([("bloomed", 2, BORN), END], "line 1: not an event of version 1"),
  ],
)
def test_a_log_that_cannot_be_replayed_is_refused(read, events, says):
  with pytest.raises(InputError) as caught:
    read(*events)
  message = str(caught.value)
  assert says in message
  assert "events.jsonl" in message
  assert message.endswith("the events.jsonl of a run that has completed")
  assert "\n" not in message


def test_other_files_are_refused(tmp_path, write):
  for make, says in (
    (lambda path: None, "No such file"),
    (lambda path: path.mkdir(), "Is a directory"),
    (lambda path: path.write_text("no\n"), "line 1: not a JSON object"),
    (lambda path: path.write_text('{"step": 4}\n'), "line 1: not an event"),
  ):
    path = tmp_path / says.replace(" ", "_")
    make(path)
    with pytest.raises(InputError, match=f"{says}.*give --config.tamiyo.repl"):
      growth_log.read_lives(path)
  with pytest.raises(InputError, match="line 1: not an event of version 1"):
    growth_log.read_lives(write(*LIFE, END, v=2))
