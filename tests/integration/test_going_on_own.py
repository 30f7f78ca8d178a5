"""A user's model grows, is taken home, and grows further, twice in a row."""

import json

import jax
import numpy as np
import pytest

import esper_jax
from esper_jax.oona import lineage
from tests.export.own_models import Net, X, Y

CONFIG = {
  "train.epochs": 7,
  "data.batch_size": 16,
  "optimizer.learning_rate": 5e-3,
  "tamiyo.schedule": ((1, "middle", "dense"),),
  "kasmina.min_training_epochs": 1,
  "kasmina.blend_epochs": 1,
  "kasmina.training_gain_sigmas": -1e9,
  "kasmina.gain_sigmas": 1e6,  # none is permanent before the run stops
  "oona.fsync": False,
  "tezzeret.threads": 0,
}


def grow(model, workdir, epochs=5):
  """A seed is planted in a slot that may hold others; it holds at the end."""

  def stop(trainer, metrics):
    if trainer.run.epoch == epochs:
      trainer.stop()

  return esper_jax.grow(
    model,
    (X, Y),
    config=CONFIG,
    policy="schedule",
    blueprints=["dense"],
    workdir=workdir,
    callbacks=[stop],
    verbosity=0,
  )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """(folder, what `grow` gave): three runs, each on the network before."""
  place, model, found = tmp_path_factory.mktemp("own"), Net(), []
  for n in range(3):
    found.append(grow(model, place / f"run{n}"))
    found[-1].export(place / f"out{n}")
    model = esper_jax.load_grown(place / f"out{n}", model=Net())
  return place, found


def test_each_export_has_the_seeds_of_all_runs(runs):
  place, found = runs
  for n, run in enumerate(found):
    folder = place / f"out{n}"
    seeds = json.loads((folder / lineage.TOPOLOGY).read_text())["seeds"]
    names = [(s["generation"], s["name"], s["depth"]) for s in seeds]
    assert names == [(k, f"middle_dense{'_' * k}", k) for k in range(n + 1)]
    assert lineage.verify(folder).head
    logits = run.predict(X)
    network = esper_jax.load_grown(folder, model=Net())
    np.testing.assert_allclose(network(X), logits, rtol=1e-4, atol=1e-5)
    own = Net().apply(run.variables, X)  # the class itself takes them
    np.testing.assert_allclose(own, logits, rtol=1e-4, atol=1e-5)
    keys = [*(f"{k}:dense" for k in range(n)), "dense"]
    assert list(run.variables["seeds"]["middle"]) == keys


def test_the_lineage_goes_on_from_the_head_before(runs):
  place, _ = runs
  last = json.loads((place / "out2" / lineage.LINEAGE).read_text())["entries"]
  began = [e for e in last if e["type"] in ("began", "continued")]
  heads = [lineage.head_of(place / f"out{n}") for n in range(2)]
  assert [e["previous"] for e in began[1:]] == heads
  assert [e["host"]["title"] for e in began] == ["Net"] * 3
  report = (place / "run2" / "report.html").read_text()
  assert f"the network of {place / 'out1'}" in report


def test_resuming_equals_never_having_stopped(runs, tmp_path):
  place, found = runs
  network = esper_jax.load_grown(place / "out0", model=Net())
  assert grow(network, tmp_path / "run", 3).result["epochs"] == 3
  last = grow(network, tmp_path / "run")
  assert last.result["epochs"] == 5
  same = jax.tree.map(np.array_equal, last.variables, found[1].variables)
  assert all(jax.tree.leaves(same))
  with pytest.raises(esper_jax.InputError, match="on with another network"):
    grow(esper_jax.load_grown(place / "out1", model=Net()), tmp_path / "run")
