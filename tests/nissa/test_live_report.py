"""When a run that goes on writes its report."""

import os

import pytest

from esper_jax.nissa import live_report
from esper_jax.nissa.live_report import LiveReport
from esper_jax.nissa.report import writing
from tests.nissa.run_files import event, recorded, write


class Clock:
  """Says what it is told to; writing a report takes `cost` seconds."""

  def __init__(self, monkeypatch, cost=0.0):
    self.now, self.cost, self.written = 1000.0, cost, []
    real = writing.write_run

    def write_run(path):
      self.now += self.cost
      self.written.append(self.now)
      real(path)

    monkeypatch.setattr(writing, "write_run", write_run)

  def __call__(self):
    return self.now


def shown(path, clock):
  return LiveReport(path, clock=clock)


def test_it_writes_at_epochs_but_not_too_often(tmp_path, monkeypatch):
  clock = Clock(monkeypatch)
  display = shown(write(tmp_path), clock)
  for _ in range(100):
    clock.now += 7.0
    display.epoch(None, {})
  gaps = [b - a for a, b in zip(clock.written, clock.written[1:], strict=False)]
  assert clock.written[0] == 1035.0
  assert set(gaps) == {35.0}
  assert "running, epoch 0 of 30" in (tmp_path / "report.html").read_text()


def test_it_takes_no_more_than_its_share(tmp_path, monkeypatch):
  clock = Clock(monkeypatch, cost=0.7)
  display = shown(write(tmp_path), clock)
  for _ in range(1000):
    clock.now += 1.0
    display.epoch(None, {})
  assert 10 <= len(clock.written) <= 15
  passed = clock.now - 1000.0
  assert 0.7 * len(clock.written) <= live_report.SHARE * passed


def test_it_writes_at_the_end_of_what_was_under_way(tmp_path, monkeypatch):
  clock = Clock(monkeypatch)
  display = shown(recorded(tmp_path), clock)
  display.event(event("resumed", 3))
  display.finish({}, tmp_path)
  text = (tmp_path / "grown" / "report.html").read_text()
  assert "The run completed 30 epochs" in text


def test_a_run_that_was_completed_before_is_left_alone(tmp_path):
  path = recorded(tmp_path)
  before = sorted(os.listdir(path))
  display = LiveReport(path)
  display.part("tolaria", "this run was completed before")
  display.finish({}, path)
  assert sorted(os.listdir(path)) == before


def test_a_report_that_fails_is_tried_again_later(tmp_path, monkeypatch):
  clock = Clock(monkeypatch)
  display = shown(tmp_path / "gone", clock)
  for seconds, fails in ((31.0, True), (10.0, False), (31.0, True)):
    clock.now += seconds
    if fails:
      with pytest.raises(ValueError, match="not a run directory"):
        display.epoch(None, {})
    else:
      display.epoch(None, {})
  assert len(clock.written) == 2
