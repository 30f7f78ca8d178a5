"""What wandb is given."""

import sys
import types

import pytest

from esper_jax.nissa.weights_and_biases import WeightsAndBiases
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.types import InputError

METRICS = TrainingMetrics(2, 20, 2.0, 0.25, 1.5, 0.5, 1.25)
SLOTS = {"slot1": {"stage": "BLENDING", "alpha": 0.5, "contribution": None}}


class FakeRun:
  """As much of wandb's run as is used."""

  def __init__(self, **how):
    self.how = how
    self.logged = []
    self.config = FakeConfig()
    self.summary = {}
    self.ended = None

  def log(self, figures, step):
    self.logged.append((step, figures))

  def finish(self, exit_code):
    self.ended = exit_code


class FakeConfig(dict):
  def update(self, values, allow_val_change):
    assert allow_val_change
    super().update(values)


@pytest.fixture
def wandb(monkeypatch):
  """A module in wandb's place."""
  module = types.ModuleType("wandb")
  module.runs = []

  def init(**how):
    module.runs.append(FakeRun(**how))
    return module.runs[-1]

  module.init = init
  module.Settings = lambda silent: {"silent": silent}
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def test_a_run(wandb, tmp_path):
  display = WeightsAndBiases(tmp_path, {"seed": 3}, project="growing")
  (run,) = wandb.runs
  assert run.how["project"] == "growing" and run.how["config"] == {"seed": 3}
  assert run.how["id"] == tmp_path.name and run.how["resume"] == "allow"
  display.part("data", "digits")
  display.begin(epoch=1, epochs=3, steps_per_epoch=10)
  display.event({"type": "culled", "slot": "slot1"})
  display.event({"type": "checkpoint"})
  display.pace(15, 0.125)
  display.steps(18, 2.25, 320.0)
  display.epoch(METRICS, SLOTS)
  result = {"status": "completed", "val_accuracy": 0.75, "test_accuracy": None}
  display.finish(result, tmp_path)
  display.close()
  assert run.config == {"parts.data": "digits"}
  assert [step for step, _ in run.logged] == [10, 15, 18, 20]
  assert run.logged[0][1] == {"events/culled": "slot1: culled"}
  assert run.logged[-1][1]["slots/slot1/alpha"] == 0.5
  assert "slots/slot1/contribution" not in run.logged[-1][1]
  assert run.summary == {"val_accuracy": 0.75}
  assert run.ended == 0


def test_a_run_that_does_not_finish_has_failed(wandb, tmp_path):
  WeightsAndBiases(tmp_path, {}, project="growing").close()
  assert wandb.runs[0].ended == 1


def test_without_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match=r"install -e '\.\[wandb\]'"):
    WeightsAndBiases(tmp_path, {}, project="growing")


def test_where_wandb_cannot_begin(wandb, tmp_path):
  def refuse(**how):
    raise RuntimeError("no API key\nlog in")

  wandb.init = refuse
  with pytest.raises(InputError, match=r"cannot begin \(no API key\)"):
    WeightsAndBiases(tmp_path, {}, project="growing")
