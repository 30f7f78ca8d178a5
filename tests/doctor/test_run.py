"""What the doctor says of a run, by its status.json."""

import json

import pytest

from esper_jax.doctor import run
from esper_jax.doctor.report import Level, Line
from esper_jax.types import InputError

NOW = 1000.0


@pytest.fixture
def look(tmp_path):
  """The lines of a run whose status is this."""

  def look(state="running", *, age=4.0, **fields):
    document = {
      "version": 1,
      "pid": 123,
      "heartbeat": NOW - age,
      "state": state,
      "reason": "",
      "epoch": 3,
      "epochs": 30,
      "step": 93,
      "parts": {},
      "devices": [],
      **fields,
    }
    (tmp_path / "status.json").write_text(json.dumps(document))
    return run.check(tmp_path, now=NOW)

  return look


def part(state="ready", **changes):
  well = {"queued": 0, "dropped": 0, "error": "", "seconds": 0.25}
  return {"state": state, **well, **changes}


def test_a_run_that_lives(look):
  text = "running, epoch 3/30, step 93, heartbeat 4 s ago"
  assert look() == [Line("run", Level.OK, text)]
  assert look(age=59.9)[0].level == Level.OK
  assert "heartbeat 0 s ago" in look(age=-5.0)[0].found  # another clock


def test_a_run_that_was_killed(look):
  (line,) = look(age=60.1)
  assert line.level == Level.FAIL
  assert (
    "heartbeat 1 min 0 s ago: process 123 was killed, or stand" in line.found
  )
  assert line.remedy == "the command that started it resumes it"


@pytest.mark.parametrize(
  ("state", "level", "resumes"),
  [
    ("completed", Level.OK, False),
    ("interrupted", Level.OK, True),
    ("stopped", Level.OK, True),
    ("failed", Level.FAIL, False),
  ],
)
def test_a_run_that_ended_is_not_stale(look, state, level, resumes):
  (line,) = look(state, age=1e6, reason="the disk is full")
  assert line.level == level
  assert line.found.startswith(
    f"{state}, epoch 3/30, step 93, ended 277 h 46 min ago"
  )
  assert ("the disk is full" in line.found) == (state == "failed")
  assert ("resumes" in line.remedy) == resumes


def test_each_part(look):
  _, *lines = look(
    parts={
      "data": part(),
      "redis": part("degraded", queued=7, dropped=2, error="refused"),
      "store": part("failed", error="gone"),
    }
  )
  assert lines == [
    Line("data", Level.OK, "ready after 0.2 s"),
    Line(
      "redis",
      Level.WARN,
      "degraded after 0.2 s, 7 waiting, 2 dropped, refused",
    ),
    Line("store", Level.FAIL, "failed after 0.2 s, gone"),
  ]


def test_nothing_waits_where_a_run_has_ended(look):
  parts = {"tezzeret": part(queued=1, dropped=2)}
  assert "1 waiting, 2 dropped" in look(parts=parts)[1].found
  run_line, line = look("completed", parts=parts)
  assert run_line.found.startswith("completed, epoch 3/30")
  assert line.found == "ready after 0.2 s, 2 dropped"
  parts = {"redis": part("degraded", queued=7, error="refused")}
  _, line = look("completed", parts=parts)
  assert line.found == "degraded after 0.2 s, 7 left undone, refused"


def test_the_memory_of_devices_that_tell(look):
  names = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
  cpu = {"device": "cpu:0", **dict.fromkeys(names)}
  gpu = {"device": "gpu:0", **dict.fromkeys(names, 2**31), "bytes_limit": None}
  _, line = look(devices=[cpu, gpu])
  text = "2.0 GiB of unknown in use, 2.0 GiB at the peak"
  assert line == Line("gpu:0", Level.OK, text)


def test_what_is_no_run_is_one_line(tmp_path):
  with pytest.raises(InputError, match="absent: no such folder; give the run"):
    run.check(tmp_path / "absent")
  with pytest.raises(InputError, match="holds no status.json, so no run has"):
    run.check(tmp_path)
  (tmp_path / "status.json").write_text("{")
  with pytest.raises(InputError, match="status.json is not JSON"):
    run.check(tmp_path)
  for state in ({}, {"epoch": 1, "epochs": 2, "step": 3, "parts": []}):
    document = {"state": "running", "heartbeat": 1.0, **state}
    (tmp_path / "status.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="status.json is not what a run writ"):
      run.check(tmp_path)
