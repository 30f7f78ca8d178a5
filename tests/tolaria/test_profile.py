"""A trace holds the steps that were asked for, is whole, and costs no run."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from esper_jax.oona.health import Health, State
from esper_jax.tolaria import profile, status
from esper_jax.tolaria.profile import Profile
from esper_jax.types import RunFailedError


def traced(run):
  """The steps in the trace of a run, which is whole and alone."""
  assert not list(run.glob(".incomplete-*"))
  folder = run / profile.FOLDER
  (path,) = folder.rglob("*.xplane.pb")  # the same events, for XProf
  assert profile.STEP.encode() in path.read_bytes()
  (path,) = folder.rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  return [
    int(event["args"]["step_num"])
    for event in sorted(events, key=lambda event: event.get("ts", 0))
    if event.get("name") == profile.STEP
  ]


def make_steps(tracer, *firsts, count=1):
  for first in firsts:
    made = tracer.steps(first, count, lambda at=first: jnp.int32(at) + 1)
    assert made == first + 1


# --- Of a run ----------------------------------------------------------------


def test_a_run_traces_what_it_was_asked_to(watch):
  run = watch(**{"train.epochs": 2, "nissa.profile_steps": (5, 9)}).train()
  assert traced(run.path) == [5, 6, 7, 8]
  assert "profile" in status.read(run.path)["parts"]
  plain = watch(**{"train.epochs": 2}).train()
  assert not (plain.path / "profile").exists()
  assert plain.lines() == run.lines()


def test_a_run_that_ends_first_leaves_a_whole_trace(watch):
  run = watch(**{"train.epochs": 1, "nissa.profile_steps": (5, 99)}).train()
  assert traced(run.path) == [5, 6]


def test_a_run_that_is_interrupted_leaves_one_whole_trace(watch):
  asked = {"train.epochs": 2, "nissa.profile_steps": (5, 99)}
  run = watch(callbacks=[lambda trainer, _: trainer.stop()], **asked).train()
  assert run.result["status"] == "interrupted"
  assert traced(run.path) == [5, 6]
  resumed = watch(name=run.path.name, **asked).train()
  assert resumed.result["status"] == "completed"
  assert traced(run.path) == [5, 6]


def test_a_run_that_fails_leaves_a_whole_trace(watch):
  def broken(event):
    if event["type"] == "checkpoint" and event["epoch"]:
      raise OSError("no room")

  run = watch(**{"nissa.profile_steps": (5, 99)})
  run.trainer.bus.subscribe(broken, name="mine", required=True)
  with pytest.raises(RunFailedError, match="no room"):
    run.train()
  assert traced(run.path) == [5, 6]


# --- By itself ---------------------------------------------------------------


def test_steps_that_are_made_at_once_are_traced_at_once(tmp_path):
  tracer = Profile((5, 9), tmp_path)
  make_steps(tracer, 0, 4, 8, 12, count=4)
  assert traced(tmp_path) == [4, 8]


def test_steps_after_a_rollback_are_not_traced(tmp_path):
  tracer = Profile((2, 9), tmp_path)
  make_steps(tracer, 1, 2, 3, 0)
  assert traced(tmp_path) == [2, 3]
  make_steps(tracer, 1, 2, 3)
  tracer.close()
  assert traced(tmp_path) == [2, 3]


def test_a_step_that_fails_is_made_again_and_traced(tmp_path):
  tracer = Profile((0, 2), tmp_path)
  with pytest.raises(ZeroDivisionError):
    tracer.steps(0, 1, lambda: 1 // 0)
  make_steps(tracer, 0, 1)
  assert traced(tmp_path) == [0, 0, 1]


def test_a_run_goes_on_where_another_trace_is_being_made(tmp_path):
  tracer = Profile((0, 2), tmp_path)
  assert tracer.health() == Health()
  with jax.profiler.trace(tmp_path / "other"):
    make_steps(tracer, 0, 1)
    tracer.close()
  health = tracer.health()
  assert health.state == State.DEGRADED
  assert health.error.startswith("no trace: Profile has already been started")
  assert not (tmp_path / "profile").exists()
  assert list((tmp_path / "other").rglob("*.xplane.pb"))


def test_a_run_goes_on_where_the_disk_takes_no_trace(tmp_path, file_size_limit):
  tracer = Profile((0, 2), tmp_path)
  with file_size_limit(100):
    make_steps(tracer, 0, 1, 2)
  assert tracer.health().state == State.DEGRADED
  assert "File too large" in tracer.health().error
  assert not list(tmp_path.iterdir())
  jax.profiler.stop_trace()  # JAX holds on to what it could not write
