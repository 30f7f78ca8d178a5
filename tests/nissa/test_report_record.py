"""What the report reads of a run directory."""

import json

import pytest

from esper_jax.nissa.report import record
from esper_jax.types import InputError
from tests.nissa.run_files import event, line, planted, recorded, write

STARTED = event("run_started", 0, policy="heuristic")


def test_a_recorded_run(tmp_path):
  run = record.read(recorded(tmp_path))
  assert (run.name, run.status, run.epochs, run.planned) == (
    ("grown", "completed", 30, 30)
  )
  assert run.slots == ["slot1_1", "slot2_1", "slot3_1"]
  assert [x["epoch"] for x in run.lines] == list(range(1, 31))
  assert run.config["optimizer.learning_rate"] == 0.005
  assert run.config["seed"] == 0
  assert run.environment["jax"] == "0.10.2"
  assert run.initial_parameters == 880


def test_a_run_without_its_result_has_the_figures_of_its_logs(tmp_path):
  path = recorded(tmp_path)
  known = json.loads((path / "result.json").read_text())
  (path / "result.json").unlink()
  run = record.read(path)
  found = record.figures(run)
  assert run.status == record.RUNNING
  for key in (
    "val_accuracy",
    "val_accuracy_before_growth",
    "params_initial",
    "params_final",
    "train_flops",
    "germinated",
    "fossilized",
    "culled",
    "slots",
  ):
    if key == "slots":
      same = {n: v["stage"] for n, v in known["slots"].items()}
      assert {n: v["stage"] for n, v in found["slots"].items()} == same
    else:
      assert found[key] == known[key], key
  assert [(s["slot"], s["key"]) for s in found["seeds"]] == [
    (s["slot"], s["key"]) for s in known["seeds"]
  ]
  assert found["test_accuracy"] is None
  assert found["wall_seconds"] == pytest.approx(known["wall_seconds"], abs=0.1)


def test_a_run_that_has_just_begun(tmp_path):
  run = record.read(write(tmp_path))
  assert (run.lines, run.events, run.slots, run.result) == ([], [], [], None)
  assert (run.epochs, run.initial_parameters) == (0, None)
  found = record.figures(run)
  assert (found["val_accuracy"], found["wall_seconds"]) == (None, None)


def test_a_line_that_is_half_written_is_left_out(tmp_path):
  path = write(tmp_path, lines=[line(1), line(2)], events=[STARTED])
  for name in ("metrics.jsonl", "events.jsonl"):
    with open(path / name, "a") as file:
      file.write('{"epoch": 3, "val')
  run = record.read(path)
  assert (run.epochs, len(run.events)) == (2, 1)


@pytest.mark.parametrize(
  ("after", "kept"),
  [
    ([], [1, 2, 3]),
    # A step of the second attempt, the first epoch of which is not over.
    ([{"epoch": 1, "step": 13, "attempt": 1, "train/loss": 1.0}], [1]),
    ([line(2, attempt=1)], [1, 2]),
    ([line(2, attempt=1), line(3, attempt=1)], [1, 2, 3]),
  ],
)
def test_epochs_that_were_repeated_count_once(tmp_path, after, kept):
  lines = [line(1), line(2), line(3)]
  run = record.read(write(tmp_path, lines=lines + after))
  assert [x["epoch"] for x in run.lines] == kept
  assert [x["attempt"] for x in run.lines[1:]] == [
    1 if after else 0 for _ in kept[1:]
  ]


def test_what_a_rollback_undid_did_not_grow(tmp_path):
  events = [
    STARTED,
    planted(1, "slot1"),
    planted(2, "slot2"),
    event("rolled_back", 1, reason="the loss", attempt=1),
  ]
  run = record.read(write(tmp_path, events=events, lines=[line(1)]))
  assert [seed.slot for seed in run.growth.seeds] == ["slot1"]


@pytest.mark.parametrize(
  ("last", "status"),
  [
    ([], "running"),
    ([event("interrupted", 1, signal="SIGINT")], "interrupted"),
    (
      [
        event("interrupted", 1, signal="SIGINT"),
        event("checkpoint", 1, kind="interrupt"),
      ],
      "interrupted",
    ),
    (
      [event("interrupted", 1, signal="SIGINT"), event("resumed", 1)],
      "running",
    ),
  ],
)
def test_a_result_counts_until_the_run_is_taken_up_again(
  tmp_path, last, status
):
  path = write(
    tmp_path,
    lines=[line(1)],
    events=[STARTED, *last],
    result={"status": "interrupted", "epochs": 1},
  )
  assert record.read(path).status == status


@pytest.mark.parametrize(
  ("keys", "name"),
  [
    ({}, "resnet8"),
    ({"host__name": "given"}, "a model of one's own"),
    ({"host__from": "export/a"}, "the network of export/a"),
  ],
)
def test_what_the_host_is(tmp_path, keys, name):
  assert record.read(write(tmp_path, **keys)).host == name


def test_seeds_of_the_first_epoch_are_not_the_host(tmp_path):
  path = write(
    tmp_path,
    lines=[line(1, parameters=172)],
    events=[STARTED, planted(1, "slot1")],
  )
  assert record.read(path).initial_parameters == 100


@pytest.mark.parametrize(
  "text",
  [
    None,
    "[]",
    "{}",
    '{"config": 3}',
    '{"config": {"train": {"epochs": 3}}}',
    "{",
  ],
)
def test_what_is_no_run_directory(tmp_path, text):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(InputError) as caught:
    record.read(tmp_path)
  assert str(tmp_path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_file_is_no_run_directory(tmp_path):
  path = recorded(tmp_path) / "config.json"
  with pytest.raises(InputError, match="it has no config.json of a run; give"):
    record.read(path)


def test_a_damaged_log_is_named(tmp_path):
  path = write(tmp_path, lines=[line(1)])
  (path / "events.jsonl").write_text('{"v": 1}\n')
  with pytest.raises(InputError, match="events.jsonl, line 1: not an event"):
    record.read(path)


def test_a_result_that_lacks_something_is_filled_up_from_the_logs(tmp_path):
  path = write(
    tmp_path,
    lines=[line(1, {"a": "DORMANT"}, parameters=172)],
    events=[STARTED, planted(1, "a"), event("run_finished", 1)],
  )
  known = {"status": "completed", "slots": {"a": {"contribution": "NaN"}}}
  (path / "result.json").write_text(json.dumps(known))
  run = record.read(path)
  found = record.figures(run)
  assert (run.epochs, run.initial_parameters, run.status) == (
    (1, 100, "completed")
  )
  assert (found["params_final"], found["steps"]) == (172, 10)
  assert found["slots"] == {"a": {"contribution": None}}


def test_what_a_run_waited_for_the_compiler_is_known_while_it_goes_on(tmp_path):
  compiled = [event("compile", 1, waited=w) for w in (0.5, 0.0, 1.5)]
  run = record.read(write(tmp_path, events=[STARTED, *compiled]))
  assert record.figures(run)["compilation"] == {"blocking_seconds": 2.0}
