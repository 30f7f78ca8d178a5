"""From a run to a folder that is whole, or to no folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from esper_jax import InputError, RunFailedError, load_grown
from esper_jax.export import command_line, writing
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.oona import lineage
from esper_jax.tolaria.state import evaluation_view
from esper_jax.tolaria.trainer import Trainer
from esper_jax.tolaria.workdir import write_json

FICKLE = "export_fickle"
TRACES = []


def _init(key, spec):
  return {"w": jax.random.normal(key, (spec.channels,), jnp.float32)}, {}


def _apply(params, state, x, *, train, key):
  """Another function in every program."""
  TRACES.append(train)
  factor = params["w"] * len(TRACES)
  return x * factor.astype(x.dtype).reshape(1, -1), state


@pytest.fixture(scope="module")
def fickle():
  blueprints.register(
    Blueprint(FICKLE, _init, _apply, ("features",), ("w",)), check=False
  )
  yield FICKLE
  blueprints.unregister(FICKLE)


def config(blueprint):
  """Two epochs of digits; the seed is in TRAINING, then BLENDING."""
  out = base.get_config()
  values = {
    "data.name": "digits",
    "data.validation_fraction": 0.3,
    "data.batch_size": 64,
    "data.train_limit": 128,
    "host.name": "mlp",
    "host.width": 8,
    "optimizer.learning_rate": 5e-3,
    "oona.fsync": False,
    "train.epochs": 8,
    "kasmina.blueprints": (blueprint,),
    "kasmina.initializer": "random",
    "kasmina.min_training_epochs": 1,
    "kasmina.blend_epochs": 2,
    "kasmina.training_gain_sigmas": -1e9,
    "kasmina.measure_examples": 64,
    "tezzeret.threads": 0,
    "tamiyo.policy": "schedule",
    "tamiyo.schedule": ((1, "slot1", blueprint),),
  }
  for name, value in values.items():
    section, _, key = name.rpartition(".")
    out[section][key] = value
  return out


def half_run(path, blueprint):
  """A run that was stopped while its seed is blended in."""

  def stop(trainer, metrics):
    seeds = trainer.run.state.seeds.get("slot1", {})
    if any(0 < float(seed.alpha) < 1 for seed in seeds.values()):
      trainer.stop()

  trainer = Trainer(config(blueprint), path, callbacks=[stop])
  assert trainer.train()["status"] == "interrupted"
  return trainer


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
  """A trainer that was stopped while its seed is blended in."""
  return half_run(tmp_path_factory.mktemp("half") / "run", "dense")


@pytest.fixture
def run(interrupted):
  """Its directory."""
  return interrupted._store.path


def test_an_interrupted_run(interrupted, run, tmp_path, capsys):
  to = tmp_path / "new" / "out"
  assert command_line.main([str(run), f"--to={to}"]) == 0
  said = capsys.readouterr()
  assert "the run is interrupted: this is its network after epoch" in said.err
  assert "lineage head" in said.out
  files = {*lineage.FILES, lineage.LINEAGE} - {lineage.SEEDS}
  assert {p.name for p in to.iterdir()} == files
  assert [p.name for p in to.parent.iterdir()] == ["out"]
  report = json.loads((to / lineage.REPORT).read_text())
  assert max(report["max_abs_difference"].values()) <= report["tolerance"]
  parts = interrupted.parts
  images = parts.validation[0].images
  view = evaluation_view(interrupted.run.state)
  x = parts.steps.preprocess(images, None)
  logits = parts.host.apply(*view, x, train=False, key=None)[0]
  assert np.allclose(load_grown(to)(images), logits, atol=1e-4)
  topology = json.loads((to / lineage.TOPOLOGY).read_text())
  assert topology["output"]["classes"] == list("0123456789")
  assert load_grown(to).classes == tuple("0123456789")
  seeds = topology["seeds"]
  assert [seed["strength"] for seed in seeds] == [1.0]  # it is in the weights
  assert lineage.verify(to).files


def test_a_folder_that_is_there_stays_as_it_is(run, tmp_path):
  (tmp_path / "file").write_text("mine")
  for place in (tmp_path, tmp_path / "file"):
    with pytest.raises(InputError, match="is there already"):
      writing.export_run(run, place)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]
  (tmp_path / "empty").mkdir()
  done = writing.export_run(run, tmp_path / "empty")
  assert lineage.verify(done.folder, head=done.head)


def test_the_same_export_again_leaves_what_is_there(run, tmp_path):
  first = writing.export_run(run, tmp_path / "out")
  times = {p: p.stat().st_mtime_ns for p in first.folder.iterdir()}
  again = writing.export_run(run, tmp_path / "out")
  assert again == first
  assert {p: p.stat().st_mtime_ns for p in times} == times
  assert [p.name for p in tmp_path.iterdir()] == ["out"]
  story = lineage.story(first.folder)
  story[0]["seed"] += 1  # as whole, but of another run
  write_json(first.folder / lineage.LINEAGE, lineage.chain(story))
  assert lineage.verify(first.folder)
  with pytest.raises(InputError, match="holds something else than this expor"):
    writing.export_run(run, tmp_path / "out")
  (first.folder / lineage.REPORT).write_text("{}")  # no longer whole
  with pytest.raises(InputError, match="holds something else than this expor"):
    writing.export_run(run, tmp_path / "out")


def test_a_network_without_its_history_is_refused(run, tmp_path, capsys):
  log = run / "events.jsonl"
  lines = log.read_text().splitlines(keepends=True)
  try:
    log.write_text("".join(x for x in lines if '"germinated"' not in x))
    code = command_line.main([str(run), f"--to={tmp_path / 'out'}"])
  finally:
    log.write_text("".join(lines))
  assert code == 2
  error = capsys.readouterr().err
  assert "events.jsonl does not tell of 'dense' in slot 'slot1'" in error
  assert list(tmp_path.iterdir()) == []


def test_a_network_that_differs_is_not_written(fickle, tmp_path, capsys):
  trainer = half_run(tmp_path / "run", fickle)
  to = tmp_path / "out"
  assert command_line.main([str(trainer._store.path), f"--to={to}"]) == 1
  error = capsys.readouterr().err
  assert "is not the network that was trained: an output differs by" in error
  assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_place_that_cannot_be_written(run, tmp_path):
  (tmp_path / "file").write_text("mine")
  with pytest.raises((InputError, RunFailedError), match="cannot write"):
    writing.export_run(run, tmp_path / "file" / "out")


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([], "--to"),
    (["nowhere", "--to=out"], "is not a run directory"),
    (["run", "--too=out"], "--help"),
  ],
)
def test_bad_input_takes_a_line(arguments, said, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert command_line.main(arguments) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


def test_what_was_written_prints_without_its_report(tmp_path):
  done = writing.Exported(tmp_path, {"run": "long"}, "abc", ["a note"])
  told = f"Exported(folder={tmp_path!r}, head='abc', notes=['a note'])"
  assert repr(done) == told
