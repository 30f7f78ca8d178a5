"""Run directories that are written by hand."""

import pytest

from esper_jax.oona import jsonl

SLOTS = ("block_1/slot", "slot2")


class Written:
  """A run directory, and what adds lines to its logs.

  Each line is a second later than the one before.
  """

  def __init__(self, path):
    self.path = path
    self.now = 1000.0

  def event(self, kind, epoch, /, step=None, **fields):
    step = 10 * epoch if step is None else step
    event = {"v": 1, "id": 0, "seq": 0, "time": self._later()}
    event |= {"epoch": epoch, "step": step, "type": kind, **fields}
    return self.add("events.jsonl", event)

  def step(self, step, *, attempt=0, **figures):
    line = {"epoch": (step - 1) // 10, "step": step, "attempt": attempt}
    line |= {"train/loss": 1 / step, "time": self._later(), **figures}
    return self.add("metrics.jsonl", line)

  def epoch(self, epoch, *, attempt=0, **stages):
    line = {"epoch": epoch, "step": 10 * epoch, "attempt": attempt}
    line |= {"val/loss": 0.5, "val/accuracy": 0.75, "train/epoch_loss": 0.25}
    line |= {"train/epoch_accuracy": 0.875, "time": self._later()}
    line |= {"time/epoch": 1.5}
    for slot in SLOTS:
      stage = stages.get(slot.rpartition("/")[0] or slot, "DORMANT")
      line[f"slots/{slot}/stage"] = stage
      line[f"slots/{slot}/alpha"] = 0.5
    return self.add("metrics.jsonl", line)

  def add(self, name, record):
    self.raw(name, jsonl.encode(record))
    return record

  def raw(self, name, data):
    with open(self.path / name, "ab") as log:
      log.write(data)

  def _later(self):
    self.now += 1
    return self.now


@pytest.fixture
def written(tmp_path):
  """An empty run directory to write into."""
  path = tmp_path / "run"
  path.mkdir()
  return Written(path)
