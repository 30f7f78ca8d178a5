"""Several displays told as one."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from esper_jax.kasmina import surgery
from esper_jax.nissa import displays, tensorboard
from esper_jax.nissa.behind import Behind
from esper_jax.nissa.console import Console
from esper_jax.nissa.displays import Displays
from esper_jax.oona.health import Health, State
from esper_jax.tolaria.display import Silent
from esper_jax.types import InputError, SlotSpec
from tests.nissa.run_files import recorded

MOMENTS = {
  "part": (("data", "digits"), {}),
  "begin": ((), {"epoch": 0, "epochs": 2, "steps_per_epoch": 3}),
  "pace": ((20, 0.5), {}),
  "steps": ((3, 0.5, 100.0), {}),
  "epoch": (("metrics", {"slot1": {}}), {}),
  "event": (({"type": "checkpoint"},), {}),
  "finish": (({"status": "completed"}, Path("run")), {}),
  "close": ((), {}),
}


class Recorder:
  """Notes what it is told."""

  def __init__(self):
    self.told = []

  def __getattr__(self, moment):
    return lambda *args, **named: self.told.append((moment, args, named))


class Broken:
  """Fails at everything."""

  def __init__(self, error):
    self.error = error

  def __getattr__(self, moment):
    def fail(*args, **named):
      raise self.error

    return fail


def tell_everything(shown):
  for moment, (args, named) in MOMENTS.items():
    getattr(shown, moment)(*args, **named)


def test_the_moments_are_those_of_a_display():
  assert set(MOMENTS) == {n for n in vars(Silent) if not n.startswith("_")}


def test_everything_reaches_every_display():
  first, second = Recorder(), Recorder()
  shown = Displays({"first": first, "second": second})
  tell_everything(shown)
  assert first.told == [(m, *a) for m, a in MOMENTS.items()]
  assert second.told == first.told
  assert shown.failures == {}


def test_one_that_fails_is_counted_and_told_of_once():
  other = Recorder()
  broken = Broken(OSError("no space\nis left"))
  shown = Displays({"report": broken, "other": other})
  tell_everything(shown)
  words = ("part", ("report", "failed: no space is left; the run goes on"), {})
  assert other.told.count(words) == 1
  assert len(other.told) == len(MOMENTS) + 1
  assert shown.failures == {"report": len(MOMENTS) + 1}  # its own line, too


def test_all_of_them_may_fail():
  shown = Displays({"a": Broken(KeyError()), "b": Broken(KeyError())})
  tell_everything(shown)
  assert set(shown.failures) == {"a", "b"}


def test_an_error_without_words_is_named():
  stream = io.StringIO()
  shown = Displays(
    {"report": Broken(MemoryError()), "console": Console(stream=stream)}
  )
  shown.pace(1, 0.1)
  assert (
    "report   failed: MemoryError(); the run goes on\n" in stream.getvalue()
  )


def test_what_a_run_is_shown_by(tmp_path, capsys):
  path = recorded(tmp_path)
  shown = displays.of_run(path, verbosity=1, report=True)
  shown.event({"type": "interrupted", "reason": ""})
  shown.finish(json.loads((path / "result.json").read_text()), path)
  assert capsys.readouterr().out.endswith(f"  {path / 'report.html'}\n")
  assert shown.failures == {}


def test_without_a_report_none_is_written(tmp_path, capsys):
  path = recorded(tmp_path)
  shown = displays.of_run(path, verbosity=0, report=False, hint="hint")
  shown.event({"type": "interrupted"})
  shown.finish({}, path)
  assert not (path / "report.html").exists()
  assert capsys.readouterr() == ("", "")


def test_what_was_dropped_is_told_at_the_end():
  behind = Behind(Broken(OSError("no space")))
  other = Recorder()
  shown = Displays({"tensorboard": behind, "other": other})
  shown.pace(20, 0.5)
  shown.close()
  kind, args, _ = other.told[-1]
  assert kind == "part"
  said = "dropped 2 of its calls: OSError('no space')"
  assert args == ("tensorboard", said)


def test_tensorboard_gets_the_weights_of_seeds(tmp_path):
  shown = displays.of_run(tmp_path, verbosity=0, report=False, tensorboard=True)
  shown.begin(epoch=0, epochs=2, steps_per_epoch=3)
  seed = surgery.make_seed(
    SlotSpec("slot1", (4,), "float32", "features"),
    "dense",
    key=jax.random.key(0),
  )
  state = SimpleNamespace(seeds={"slot1": {"dense": seed}})
  trainer = SimpleNamespace(run=SimpleNamespace(state=state))
  (callback,) = shown.callbacks
  callback(trainer, SimpleNamespace(step=3))
  shown.close()
  (found,) = (tmp_path / "tensorboard").iterdir()
  assert b"seeds/slot1/dense" in found.read_bytes()
  (weights,) = tensorboard.weights(state.seeds).values()
  assert weights.shape == (sum(x.size for x in jax.tree.leaves(seed.params)),)


def test_what_is_not_installed_is_told_before_the_run(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match="nissa.wandb=growing needs wandb"):
    displays.of_run(tmp_path, verbosity=0, report=False, wandb="growing")


def test_how_it_is_for_whoever_asks():
  shown = Displays({"other": Recorder()})
  assert shown.health() == Health()
  shown = Displays({"report": Broken(OSError("no\nspace"))})
  shown.pace(20, 0.5)
  degraded = State.DEGRADED
  assert shown.health() == Health(degraded, dropped=2, error="report: no space")
  shown = Displays({"tensorboard": Behind(Broken(OSError("full")))})
  shown.pace(20, 0.5)
  shown.close()
  assert shown.health() == Health(degraded, dropped=2, error="OSError('full')")
