"""A run that was stopped, in whatever way, ends as if it had not been.

ESPER_TEST_FULL=1 stops it 20 times in each way instead of 2, and damages its
newest checkpoint in three ways instead of one.
"""

import os
import random
import signal

import pytest

FULL = os.environ.get("ESPER_TEST_FULL") == "1"
TIMES = 20 if FULL else 2


def test_kill_at_random_moments(lab, whole, same):
  rng = random.Random(0)
  moments = [rng.uniform(0, whole.size()) for _ in range(TIMES)]
  kills = 0
  for moment in sorted(moments):
    process = lab.start("killed")
    # Logged bytes are the run's own clock: they go on after a resume where
    # they stood, so that every part of the run is hit.
    if process.wait_until(lambda p=process, m=moment: p.left.size() >= m):
      process.send(signal.SIGKILL)
      kills += 1
      assert process.end()[0] == -signal.SIGKILL
    else:
      assert process.end()[0] == 0
  left = lab.run("killed")
  assert kills >= 0.7 * TIMES
  same(left, whole)
  assert left.result["redone_steps"] > 0
  assert left.result["redone_flops"] > 0
  assert whole.result["redone_steps"] == 0
  (resumed, *_) = left.events("resumed")
  assert resumed["redone_steps"] <= left.result["redone_steps"]


@pytest.mark.full
def test_sigterm_at_random_moments(lab, whole, same):
  rng = random.Random(1)
  stops = 0
  for moment in sorted(rng.uniform(200, whole.size()) for _ in range(TIMES)):
    process = lab.start("stopped")
    process.wait_until(
      lambda p=process, m=moment: p.begun() and p.left.size() >= m
    )
    process.send(signal.SIGTERM)
    code, _, err = process.end()
    assert code == 0, err
    if process.left.result["status"] == "completed":
      break
    assert process.left.result["status"] == "interrupted"
    assert process.left.events("interrupted")[-1]["signal"] == "SIGTERM"
    stops += 1
  left = lab.run("stopped")
  assert stops >= 0.6 * TIMES
  same(left, whole)
  assert left.result["redone_steps"] == 0


@pytest.mark.parametrize("extent", ["bit", "cut", "gone"] if FULL else ["bit"])
def test_a_damaged_newest_checkpoint(lab, whole, same, extent):
  """The one before is used, and the end is the same."""
  process = lab.start("damaged")

  def ready():
    path = process.left.path / "events.jsonl"
    return path.exists() and len(process.left.events("fossilized")) == 1

  assert process.wait_until(ready)
  process.send(signal.SIGKILL)
  process.end()
  newest = process.left.checkpoint().checkpoint
  victim = max(
    (path for path in newest.path.rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  content = bytearray(victim.read_bytes())
  if extent == "bit":
    content[len(content) // 2] ^= 4
  elif extent == "cut":
    del content[-1]
  victim.write_bytes(content)
  if extent == "gone":
    victim.unlink()
  assert process.left.checkpoint().checkpoint.number == newest.number - 1

  left = lab.run("damaged")
  (fault,) = left.events("fault")
  assert fault["kind"] == "damaged_checkpoint"
  assert newest.path.name in fault["reason"]
  (resumed,) = left.events("resumed")
  assert resumed["step"] < newest.step
  same(left, whole)


def test_a_completed_run_only_shows_its_result(lab):
  left = lab.run("static", "static")
  before = left.files()
  process = lab.start("static", "static")
  code, out, err = process.end()
  assert code == 0, err
  assert left.files() == before
  accuracy = left.result["test_accuracy"]
  assert f"{100 * accuracy:.2f} %" in out
  assert "completed" in out
  assert len(left.events("run_finished")) == 1


@pytest.mark.full
def test_another_config_is_refused(lab):
  left = lab.run("static", "static")
  before = left.files()
  process = lab.start("static", "static", "optimizer.learning_rate=0.1")
  code, _, err = process.end()
  assert code == 2
  (line,) = err.splitlines()
  assert "optimizer.learning_rate is 0.005 there and 0.1 here" in line
  assert left.files() == before
  # What is kept on the disk may change; then the run goes on, or is shown.
  assert lab.start("static", "static", "checkpoint.keep_last=1").end()[0] == 0


@pytest.mark.full
def test_two_processes_do_not_share_a_directory(lab):
  first = lab.start("shared", "static", "train.epochs=500")
  assert first.wait_until(lambda: first.left.size() > 0)
  code, _, err = lab.start("shared", "static", "train.epochs=500").end()
  assert code == 2
  (line,) = err.splitlines()
  assert f"in use by process {first.popen.pid}" in line
  first.send(signal.SIGTERM)
  assert first.end()[0] == 0
