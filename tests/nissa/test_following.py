"""A run as another process sees it: what it shows, and when it ends."""

import json

import pytest

from esper_jax.nissa import following
from esper_jax.oona.jsonl import encode
from esper_jax.types import InputError
from tests.nissa.run_files import RESULT


class Watched:
  """A run that goes on by one step whenever its follower sleeps."""

  def __init__(self, written):
    self.run = written
    self.shown = ""
    self.steps = []
    self.naps = 0

  def status(self, state="running", **fields):
    document = {"state": state, "heartbeat": self.run.now, "epochs": 3}
    path = self.run.path / "status.json"
    path.write_text(json.dumps(document | fields))

  def result(self, **changes):
    path = self.run.path / "result.json"
    path.write_text(json.dumps(RESULT | changes))

  def then(self, step):
    self.steps.append(step)

  def follow(self, folder=None):
    def write(text):
      self.shown += text

    def sleep(seconds):
      assert 0 < seconds <= 1
      self.naps += 1
      if self.steps:
        self.steps.pop(0)()
      else:
        self.run.now += 30.0
      assert self.naps < 100

    return following.follow(
      folder or self.run.path, write, clock=lambda: self.run.now, sleep=sleep
    )


@pytest.fixture
def watched(written):
  return Watched(written)


def test_what_a_console_would_show_until_the_run_completes(watched):
  run = watched.run
  watched.status()
  run.event("run_started", 0, policy="never")
  run.step(8)
  run.event("decision", 1, slot="slot2", action="germinate", reason="why")
  run.epoch(1, block_1="BLENDING")

  def complete():
    run.event("germinated", 1, slot="slot2", blueprint="dense")
    run.epoch(2, slot2="TRAINING")
    run.event("run_finished", 3, status="completed")
    watched.result()
    watched.status("completed")

  watched.then(lambda: run.event("checkpoint", 1, kind="scheduled"))
  watched.then(complete)
  assert watched.follow() == "completed"
  assert watched.naps == 2
  lines = watched.shown.splitlines()
  figures = "train loss 0.2500 acc 0.8750  val loss 0.5000 acc 0.7500  1.5 s"
  assert lines[:4] == [
    "    slot2: decision (action germinate) -- why",
    f"epoch   1/3  {figures}  [block_1/slot blending 0.50]",
    "    slot2: germinated (blueprint dense)",
    f"epoch   2/3  {figures}  [slot2 training]",
  ]
  assert "test accuracy (read once)" in watched.shown
  assert f"completed\n  {run.path / 'result.json'}\n" in watched.shown


def test_a_run_that_has_yet_to_begin_is_waited_for(watched):
  watched.then(lambda: None)
  watched.then(lambda: watched.run.event("fault", 0, kind="x", reason="why"))
  watched.then(lambda: watched.status("failed", reason="the disk is full"))
  assert watched.follow() == "failed"
  assert watched.shown.splitlines() == [
    f"waiting for the first events in {watched.run.path}",
    "    fault (kind x) -- why",
    "failed: the disk is full",
    f"with the workdir {watched.run.path} the same command resumes the run",
  ]


def test_a_run_that_was_killed_ends_when_its_heartbeat_is_old(watched):
  watched.run.event("run_started", 0)
  watched.status()
  assert watched.follow() == "killed"
  assert watched.naps == 3  # 60 seconds are not over 60 seconds
  assert watched.shown.startswith("no sign of life since ")
  assert watched.shown.endswith(" the same command resumes the run\n")


def test_each_heartbeat_keeps_a_silent_run_alive(watched):
  watched.run.event("run_started", 0)
  watched.status()

  def compile_long():
    watched.run.now += 50
    watched.status()

  for _ in range(10):
    watched.then(compile_long)
  assert watched.follow() == "killed"
  assert watched.naps == 13


def test_lines_keep_a_run_alive_that_cannot_write_its_status(watched):
  def go_on():
    watched.run.now += 50
    watched.run.step(8)

  watched.run.event("run_started", 0)
  for _ in range(3):
    watched.then(go_on)
  watched.then(lambda: watched.run.event("run_finished", 1, status="failed"))
  watched.then(lambda: watched.result(status="failed", reason="no disk"))
  assert watched.follow() == "failed"
  assert watched.naps == 8
  assert "failed: no disk" in watched.shown


def test_without_a_status_the_config_knows_the_epochs(watched):
  document = {"config": {"train": {"epochs": 30}}}
  (watched.run.path / "config.json").write_text(json.dumps(document))
  watched.run.event("run_started", 0)
  watched.run.epoch(1)
  watched.follow()
  assert watched.shown.startswith("epoch   1/30  train")


def test_a_run_that_is_resumed_is_followed_though_its_last_end_is_told(watched):
  run = watched.run
  watched.status("interrupted")
  watched.result(status="interrupted")
  run.event("resumed", 1)  # its heartbeat is still to come

  def end():
    run.event("interrupted", 2, signal="SIGINT")
    watched.status("interrupted")

  watched.then(watched.status)
  watched.then(end)
  assert watched.follow() == "interrupted"
  assert "    resumed after epoch 1, step 10\n" in watched.shown
  assert "    interrupted (signal SIGINT)\n" in watched.shown
  assert "the same command resumes the run" in watched.shown


def test_a_run_whose_process_let_it_go(watched):
  watched.run.event("run_started", 0)
  watched.status("stopped")
  assert watched.follow() == "stopped"
  assert watched.shown.startswith("stopped: no result was written\n")


@pytest.mark.parametrize(
  ("line", "says"),
  [
    (b"7\n", "metrics.jsonl, line 1: not a JSON object"),
    (encode({"val/loss": 0.5}), r"not what a run writes \(KeyError\('epoch'\)"),
    (encode({"time": "noon"}), r"not what a run writes \(TypeError"),
  ],
)
def test_what_no_run_wrote_is_one_line(watched, line, says):
  watched.run.event("run_started", 0)
  watched.run.raw("metrics.jsonl", line)
  with pytest.raises(InputError, match=says) as caught:
    watched.follow()
  assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_come_is_one_line(watched):
  with pytest.raises(InputError, match="absent: no such folder; give the run"):
    watched.follow(watched.run.path / "absent")
  assert watched.shown.count("absent, which is not there yet\n") == 1
  assert watched.naps == 2  # which take 30 seconds each here


def test_a_folder_may_come_a_little_later(watched, tmp_path):
  late = tmp_path / "late"

  def come():
    watched.run.event("run_started", 0)
    watched.result()
    watched.status("completed")
    watched.run.path.rename(late)

  watched.then(come)
  assert watched.follow(late) == "completed"
  assert watched.shown.startswith(f"waiting for {late}, which is not there yet")
