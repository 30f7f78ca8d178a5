"""SIGINT and SIGTERM end a run in order; a second one ends it at once."""

import os
import signal
import time

import pytest

LONG = ("train.epochs=400",)
# Seconds; the quick run shares its cores with other tests, so it allows more.
SLACK = 1.0 if os.environ.get("ESPER_TEST_FULL") else 4.0
GRACE, AT_ONCE = 10.0 * SLACK, 2.0 * SLACK


def under_way(process):
  """Whether steps are being made."""
  path = process.left.path / "metrics.jsonl"
  return path.exists() and path.stat().st_size > 2000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_run_in_order(lab, number):
  process = lab.start("run", "static", *LONG)
  assert process.wait_until(lambda: under_way(process))
  start = time.monotonic()
  process.send(number)
  code, out, err = process.end()
  seconds = time.monotonic() - start
  assert code == 0, err
  assert err == ""
  assert seconds < GRACE
  left = process.left
  result = left.result
  assert result["status"] == "interrupted"
  assert result["test_accuracy"] is None
  assert 0 < result["steps"] < 400 * 15
  assert "\nto resume the run: " in out.split("interrupted")[-1]
  loaded = left.checkpoint()
  assert loaded.checkpoint.kind == "interrupt"
  assert loaded.checkpoint.step == result["steps"]
  (event,) = left.events("interrupted")
  assert event["signal"] == number.name
  assert event["step"] == result["steps"]
  assert left.events()[-1]["type"] == "checkpoint"


def test_a_second_signal_ends_it_at_once_and_damages_nothing(lab):
  process = lab.start("run", "static", *LONG)
  assert process.wait_until(lambda: under_way(process))
  process.send(signal.SIGINT)
  process.send(signal.SIGTERM)
  code, _, _ = process.end()
  assert code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
  process = lab.start("run", "static", *LONG)
  assert process.wait_until(
    lambda: under_way(process) and bool(process.left.events("resumed"))
  )
  process.send(signal.SIGTERM)
  code, _, err = process.end()
  assert code == 0, err
  assert process.left.events("fault") == []


def test_a_compilation_holds_up_no_signal(lab):
  process = lab.start("slow", "cpu", config="configs/digits.py", cached=False)
  assert process.wait_until(
    lambda: process.left.size() > 0 and bool(process.left.events("run_started"))
  )
  time.sleep(0.5)
  start = time.monotonic()
  process.send(signal.SIGTERM)
  code, _, err = process.end()
  assert time.monotonic() - start < AT_ONCE
  assert (code, err) == (0, "")
  assert process.left.result["status"] == "interrupted"
  assert process.left.result["steps"] == 0
  names = [e["program"] for e in process.left.events("compile")]
  assert "train" not in names  # it was under way
