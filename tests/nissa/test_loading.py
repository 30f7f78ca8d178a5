"""What is loaded of a run: what counts, flat, by type and by slot."""

import math
import subprocess
import sys

import pytest

import esper_jax
from esper_jax.nissa import loading
from esper_jax.types import InputError


def told(records, *keys):
  return [tuple(record.get(key) for key in keys) for record in records]


@pytest.fixture
def rolled_back(written):
  """Two epochs, a third that a fault undid, and a second and third anew."""
  written.event("run_started", 0, policy="never")
  written.event("checkpoint", 1, kind="scheduled")
  written.step(8)
  written.epoch(1)
  written.event("germinated", 2, slot="slot2", blueprint="dense")
  written.step(18)
  written.epoch(2, slot2="TRAINING")
  written.step(28)
  written.event("fault", 2, step=28, kind="non_finite_loss")
  written.event("rolled_back", 1, attempt=1, reason="the loss is NaN")
  written.event("quarantined", 1, slot="slot2")
  written.step(18, attempt=1)
  written.epoch(2, attempt=1, block_1="TRAINING")
  written.event("germinated", 2, slot="block_1/slot", blueprint="norm")
  return written


def test_events_come_in_order_without_what_a_rollback_undid(rolled_back):
  events = esper_jax.load_events(rolled_back.path)
  assert told(events, "type", "epoch", "slot") == [
    ("run_started", 0, None),
    ("checkpoint", 1, None),
    ("fault", 2, None),
    ("rolled_back", 1, None),
    ("quarantined", 1, "slot2"),
    ("germinated", 2, "block_1/slot"),
  ]


def test_metrics_come_in_order_without_what_a_rollback_undid(rolled_back):
  lines = esper_jax.load_metrics(rolled_back.path)
  assert told(lines, "step", "attempt", "val/loss") == [
    (8, 0, None),
    (10, 0, 0.5),
    (18, 1, None),
    (20, 1, 0.5),
  ]


def test_events_by_type_and_slot(rolled_back):
  def types(**filters):
    events = loading.load_events(rolled_back.path, **filters)
    return [event["type"] for event in events]

  assert types(type="fault") == ["fault"]
  assert types(type=["fault", "run_started"]) == ["run_started", "fault"]
  assert types(slot="slot2") == ["quarantined"]
  both = ["quarantined", "germinated"]
  assert types(slot=("slot2", "block_1/slot")) == both
  assert types(type="germinated", slot="slot2") == []


def test_metrics_by_type_and_slot(rolled_back):
  def load(**filters):
    return loading.load_metrics(rolled_back.path, **filters)

  assert told(load(type="step"), "step") == [(8,), (18,)]
  assert told(load(type="epoch"), "step") == [(10,), (20,)]
  assert load(type=("step", "epoch")) == load()
  lines = load(slot="block_1/slot")
  key = "slots/block_1/slot/stage"
  assert told(lines, "step", key) == [(10, "DORMANT"), (20, "TRAINING")]
  assert all("val/loss" in line for line in lines)
  assert not any(key.startswith("slots/slot2/") for x in lines for key in x)
  assert load(slot=("block_1/slot", "slot2")) == load(type="epoch")


def test_a_slot_that_never_grew_has_no_events(written):
  """And one of several lanes is known by the name of the slot."""
  written.event("run_started", 0)
  written.add("metrics.jsonl", {"attempt": 0, "step": 1, "slots/a#2/stage": ""})
  assert loading.load_events(written.path, slot="a") == []


def test_values_are_flat_and_numbers_are_numbers(written):
  written.event(
    "run_finished",
    1,
    status="completed",
    metrics={"test": {"mae": 0.5, "mse": "Infinity"}},
  )
  written.step(8, **{"train/loss": math.nan, "learning_rate": -math.inf})
  (event,) = loading.load_events(written.path)
  assert event["metrics/test/mae"] == 0.5
  assert event["metrics/test/mse"] == math.inf
  assert "metrics" not in event
  (line,) = loading.load_metrics(written.path)
  assert math.isnan(line["train/loss"])
  assert line["learning_rate"] == -math.inf
  (as_it_stands,) = loading.select_events(written.path)
  assert as_it_stands["metrics"] == {"test": {"mae": 0.5, "mse": "Infinity"}}


@pytest.mark.parametrize("name", [loading.EVENTS, loading.METRICS])
def test_a_last_line_that_is_being_written_is_left(written, name):
  written.event("run_started", 0)
  written.step(8)
  written.raw(name, b'{"v": 1, "id"')
  assert len(loading.load_events(written.path)) == 1
  assert len(loading.load_metrics(written.path)) == 1


@pytest.mark.parametrize("text", [b"no JSON\n", b"7\n"])
@pytest.mark.parametrize("name", [loading.EVENTS, loading.METRICS])
def test_a_damaged_line_is_named(written, name, text):
  written.event("run_started", 0)
  written.step(8)
  written.raw(name, text)
  written.step(16)
  written.event("interrupted", 1)
  with pytest.raises(InputError, match=rf"{name}, line 2: not a JSON object"):
    loading.load_metrics(written.path)


def test_a_line_of_something_else_is_named(written):
  written.event("run_started", 0)
  written.add("metrics.jsonl", {"step": 8, "attempt": "first"})
  with pytest.raises(InputError, match="metrics.jsonl, line 1: 'attempt' is"):
    loading.load_metrics(written.path)
  written.event("rolled_back", 0)
  with pytest.raises(InputError, match="events.jsonl, a rolled_back: 'attem"):
    loading.load_metrics(written.path)
  written.add("events.jsonl", {"type": "wilted"})
  with pytest.raises(InputError, match="line 3: not an event of version 1"):
    loading.load_events(written.path)


@pytest.mark.parametrize("load", [loading.load_events, loading.load_metrics])
def test_what_is_not_there_is_named(written, load):
  with pytest.raises(InputError, match="absent: no such folder; give the run"):
    load(written.path / "absent")
  with pytest.raises(InputError, match="holds no events.jsonl, so no run has"):
    load(written.path)
  written.event("run_started", 0)
  written.epoch(1)
  with pytest.raises(InputError, match="'bloom' is no type of .*; valid: .*s"):
    load(written.path, type="bloom")
  with pytest.raises(
    InputError,
    match=r"'slot3' is no slot of .*/run; valid: block_1/slot, slot2",
  ):
    load(written.path, slot="slot3")


def test_before_the_first_epoch_no_slot_is_known(written):
  written.event("run_started", 0)
  with pytest.raises(InputError, match="'slot2' is no slot .*: none so far"):
    loading.load_events(written.path, slot="slot2")


def test_nothing_that_is_slow_is_needed():
  code = (
    "import sys; from esper_jax import load_events, load_metrics;"
    "sys.exit(bool({'jax', 'numpy', 'pandas'} & {*sys.modules}))"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
