"""status.json: written by a thread, read by others, and never in the way."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest

from esper_jax.oona.health import Health, State
from esper_jax.tolaria import status
from esper_jax.tolaria.roster import Roster
from esper_jax.tolaria.status import Heartbeat
from esper_jax.types import InputError, RunFailedError


def until(ready):
  end = time.monotonic() + 60
  while not ready():
    assert time.monotonic() < end
    time.sleep(0.002)


@pytest.fixture
def beat(tmp_path):
  """Starts heartbeats of tmp_path; stops those that are left."""
  roster = Roster()

  def beat(look=lambda: {"state": "running"}, every=status.EVERY, **options):
    path = tmp_path / status.NAME
    return roster.start(
      "status",
      lambda: Heartbeat(path, look, every=every, **options),
      stop=Heartbeat.stop,
    )

  yield beat
  roster.stop()


def test_it_is_written_at_once_then_again_and_at_the_end(tmp_path, beat):
  now, step = [100.0], [0]
  heartbeat = beat(
    lambda: {"state": "running", "step": step[0]},
    every=0.005,
    clock=lambda: now[0],
  )
  first = status.read(tmp_path)
  assert first == {
    "version": 1,
    "pid": os.getpid(),
    "started": 100.0,
    "heartbeat": 100.0,
    "state": "running",
    "step": 0,
  }
  now[0], step[0] = 110.0, 7
  until(lambda: status.read(tmp_path)["step"] == 7)
  assert status.read(tmp_path)["heartbeat"] == 110.0
  assert status.read(tmp_path)["started"] == 100.0
  now[0] = 111.0
  heartbeat.stop()
  assert status.read(tmp_path) == first | {
    "heartbeat": 111.0,
    "state": "stopped",
    "step": 7,
  }
  assert [path.name for path in tmp_path.iterdir()] == [status.NAME]


def test_how_a_run_ended_is_kept(tmp_path, beat):
  ending = ["running"]
  heartbeat = beat(lambda: {"state": ending[0]})
  ending[0] = "completed"
  heartbeat.stop()
  assert status.read(tmp_path)["state"] == "completed"


def test_the_end_waits_for_no_beat(beat):
  heartbeat = beat(every=3600.0)
  start = time.monotonic()
  heartbeat.stop()
  assert time.monotonic() - start < 10


def test_a_run_that_is_forgotten_is_let_go(tmp_path):
  class Run:
    def look(self):
      return {"state": "running"}

  before = set(threading.enumerate())
  run = Run()
  run.heartbeat = Heartbeat(tmp_path / status.NAME, run.look, every=0.005)
  (thread,) = set(threading.enumerate()) - before
  gone = weakref.ref(run)
  del run
  until(lambda: gc.collect() >= 0 and gone() is None)
  thread.join(60)
  assert not thread.is_alive()


def test_a_full_disk_stops_nothing_and_is_told_of_later(
  tmp_path, beat, monkeypatch
):
  def full(*args, **options):
    raise RunFailedError("No space left\non device")

  roster = Roster()
  with monkeypatch.context() as patch:
    patch.setattr(status, "write_json", full)
    heartbeat = beat(
      lambda: {"state": "running", "parts": roster.health()}, every=0.005
    )
    roster.start("status", lambda: heartbeat)
    until(lambda: heartbeat.health().dropped > 1)
    assert not (tmp_path / status.NAME).exists()
  until((tmp_path / status.NAME).exists)
  row = status.read(tmp_path)["parts"]["status"]
  assert row["dropped"] >= 2
  assert row["error"] == "No space left on device"
  assert row["state"] == "ready"


def test_a_part_that_dies_shows_degraded_and_then_ready(tmp_path, beat):
  """As a sink whose server dies and comes back."""

  class Sink:
    def __init__(self):
      self.queue, self.alive = 0, True

    def health(self):
      if self.alive:
        return Health(queued=self.queue)
      return Health(State.DEGRADED, self.queue, error="connection refused")

  def row():
    return status.read(tmp_path)["parts"]["sink"]

  roster = Roster()
  sink = roster.start("sink", Sink)
  beat(lambda: {"state": "running", "parts": roster.health()}, every=0.005)
  assert row()["state"] == "ready"
  sink.alive, sink.queue = False, 5
  until(lambda: row()["state"] == "degraded")
  until(lambda: row()["queued"] == 5)
  assert row()["error"] == "connection refused"
  sink.alive, sink.queue = True, 0
  until(lambda: row()["state"] == "ready")
  assert row()["error"] == ""


# --- In runs ------------------------------------------------------------------


def test_a_run_shows_where_it_stands_and_how_it_ended(watch, monkeypatch):
  monkeypatch.setattr(status, "EVERY", 0.005)
  seen = []

  def look(trainer, metrics):
    until(lambda: status.read(run.path)["epoch"] == metrics.epoch)
    seen.append(status.read(run.path))

  class Part:
    def health(self):
      return Health(State.DEGRADED, error="gone")

  run = watch(callbacks=[look], **{"train.epochs": 2})
  run.trainer.roster.start("mine", Part)
  assert status.read(run.path)["state"] == "running"
  run.train()
  assert [(x["state"], x["epoch"], x["step"]) for x in seen] == [
    ("running", 1, 7),
    ("running", 2, 14),
  ]
  last = status.read(run.path)
  assert (last["state"], last["reason"]) == ("completed", "")
  assert (last["epoch"], last["epochs"]) == (2, 2)
  assert (last["step"], last["steps"]) == (14, 14)
  assert last["devices"] == status.device_memory()
  assert [*last["parts"]] == [
    "oona",
    "urza",
    "data",
    "kasmina",
    "tezzeret",
    "tamiyo",
    "store",
    "nissa",
    "tolaria",
    "status",
    "mine",
  ]
  assert last["parts"].pop("mine")["error"] == "gone"
  assert {row["state"] for row in last["parts"].values()} == {"ready"}
  path = run.path / status.NAME
  before = path.read_bytes()
  watch(name=run.path.name, **{"train.epochs": 2}).train()
  assert path.read_bytes() == before  # what has completed stays as it is


def test_a_run_that_did_not_complete_says_why(watch):
  def broken(event):
    raise RuntimeError("no disk")

  run = watch()
  run.trainer.stop()
  assert run.train().result["status"] == "interrupted"
  assert status.read(run.path)["state"] == "interrupted"
  run = watch(name=run.path.name)
  assert status.read(run.path)["state"] == "running"
  run.trainer.shutdown()
  assert status.read(run.path)["state"] == "stopped"
  run = watch(name=run.path.name)
  run.trainer.bus.subscribe(broken, name="mine", required=True)
  with pytest.raises(RunFailedError, match="no disk"):
    run.train()
  last = status.read(run.path)
  assert last["state"] == "failed"
  assert last["reason"].startswith("the run needs 'mine', which failed")


# --- What is read -------------------------------------------------------------


def test_the_memory_of_each_device_is_told_or_unknown(monkeypatch):
  (cpu, *_) = status.device_memory()
  assert cpu == {
    "device": "cpu:0",
    "bytes_in_use": None,
    "peak_bytes_in_use": None,
    "bytes_limit": None,
  }

  class Gpu:
    platform, id = "gpu", 1

    def memory_stats(self):
      return {"bytes_in_use": 5, "bytes_limit": 9, "num_allocs": 3}

  monkeypatch.setattr("jax.local_devices", lambda: [Gpu()])
  assert status.device_memory() == [
    {
      "device": "gpu:1",
      "bytes_in_use": 5,
      "peak_bytes_in_use": None,
      "bytes_limit": 9,
    }
  ]


def test_a_directory_without_one_has_none(tmp_path):
  assert status.read(tmp_path) is None


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("{", "status.json is not JSON"),
    ("[]", "status.json is not a JSON object"),
    (
      '{"state": "running"}',
      "'heartbeat' is None and 'state' 'running', so no",
    ),
    ('{"heartbeat": 1, "state": "well"}', "'state' 'well', so no run wrote it"),
  ],
)
def test_a_damaged_one_is_one_line(tmp_path, text, says):
  (tmp_path / status.NAME).write_text(text)
  with pytest.raises(InputError, match=says) as caught:
    status.read(tmp_path)
  assert "\n" not in str(caught.value)


def test_it_is_read_without_jax():
  code = "import sys, esper_jax.tolaria.status; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
