"""Every benchmark runs in its smallest form and writes its figures."""

import argparse
import json
import math
import sys

import numpy as np
import pytest

from benchmarks import (
  _common,
  bottleneck,
  criteria,
  demo_gain,
  loop_efficiency,
  observability_cost,
)
from esper_jax.data import datasets
from esper_jax.kasmina import blueprints
from esper_jax.tamiyo import policy
from esper_jax.types import InputError

TINY = (
  "--config.data.train_limit=128",
  "--config.host.width=2",
  "--config.kasmina.blend_epochs=1",
  "--config.kasmina.min_training_epochs=1",
  "--config.tamiyo.warmup_epochs=1",
  "--config.tamiyo.plateau_epochs=1",
  "--config.tamiyo.plateau_delta=1.0",
)


@pytest.fixture(autouse=True, scope="module")
def _own_names():
  """Other tests of this process must not meet what benchmarks register."""
  yield
  module = sys.modules.pop(criteria.MODULE, None)
  for name in module.CRITERIA if module else ():
    policy.unregister(name)
  module = sys.modules.pop("benchmarks._wide_block", None)
  if module:
    blueprints.unregister(module.NAME)


def read(path):
  document = json.loads(path.read_text())
  assert document["jax"] and document["device"] and document["cores"] >= 1
  return document


@pytest.mark.full
def test_criteria(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(criteria, "POLICIES", ("heuristic", "by_place"))
  path = tmp_path / "out.json"
  flags = ["--seeds=2", f"--json={path}", "--config.train.epochs=8"]
  figures = criteria.main([*flags, *TINY])
  policies = read(path)["policies"]
  assert list(policies) == ["heuristic", "by_place"]
  less = policies["by_place"]["val_accuracy_less_heuristic"]
  assert less["n"] == 2
  means = [policies[p]["mean"]["val_accuracy"] for p in policies]
  assert less["mean"] == pytest.approx(means[1] - means[0])
  assert figures["policies"] == policies
  lines = [x for x in capsys.readouterr().out.splitlines() if "seed" in x]
  assert len(lines) == 4
  assert not any(" 0 germinated" in line for line in lines)


SMALL_WORLDS = (
  "--config.population.steps=2",
  "--config.population.width=8",
  "--config.population.depth=1",
  "--config.population.units=(8,)",
  "--config.population.layers=(1,)",
  "--config.population.blueprints=('bottleneck_dense',)",
  "--config.population.missing=0",
  "--config.kasmina.epochs=7",
)


def test_criteria_in_worlds(tmp_path, monkeypatch):
  monkeypatch.setattr(criteria, "POLICIES", ("heuristic", "by_whole"))
  path = tmp_path / "out.json"
  criteria.main(["--worlds=2", f"--json={path}", *SMALL_WORLDS])
  document = read(path)
  assert document["worlds"] == 2
  less = document["policies"]["by_whole"]["earned_less_heuristic"]
  assert (less["mean"], less["n"]) == (0.0, 2)  # one blueprint: the same


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("missing/out.json", "missing is no folder; make it, or give another fi"),
    ("folder", "it is a folder; give a file in it"),
  ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path, capsys, name, says):
  (tmp_path / "folder").mkdir()
  parser = argparse.ArgumentParser()
  _common.add_json(parser)
  with pytest.raises(SystemExit) as ended:
    parser.parse_args([f"--json={tmp_path / name}"])
  told = capsys.readouterr().err
  assert ended.value.code == 2 and told.count("\n") == 1
  assert told.startswith(f"error: --json={tmp_path / name}: cannot be written:")
  assert says in told
  for good in (tmp_path / "new.json", "new.json"):
    assert parser.parse_args([f"--json={good}"]).json == str(good)


def test_demo_gain(tmp_path, capsys):
  path = tmp_path / "out.json"
  flags = ["--seeds=2", "--first=100", f"--json={path}"]
  figures = demo_gain.main([*flags, *TINY, "--config.train.epochs=2"])
  document = read(path)
  assert document["benchmark"] == "demo_gain"
  assert [pair["seed"] for pair in document["pairs"]] == [100, 101]
  assert document["gain"]["n"] == 2
  assert document["positive"] == sum(p["gain"] > 0 for p in document["pairs"])
  assert document["gain"] == figures["gain"]
  for pair in document["pairs"]:
    difference = 100 * (pair["grown"] - pair["never"])
    assert pair["gain"] == pytest.approx(difference)
  assert "gain in validation accuracy" in capsys.readouterr().out


@pytest.mark.full
def test_bottleneck(tmp_path, capsys):
  path = tmp_path / "out.json"
  flags = ["--seeds=1", "--first=100", f"--json={path}"]
  bottleneck.main([*flags, *TINY, "--config.train.epochs=6"])
  document = read(path)
  (row,) = document["seeds"]
  assert row["narrowed"] == bottleneck.SLOTS[bottleneck.narrowed_stage(100)]
  assert row["first"] in bottleneck.SLOTS
  assert "germination score" in row["reason"]
  assert set(row["closed"]) == set(bottleneck.SLOTS)
  assert document["hits"] == (row["first"] == row["narrowed"])
  assert document["gap"]["mean"] == pytest.approx(row["gap"])
  assert "first choice at the narrowed stage" in capsys.readouterr().out


@pytest.mark.full
def test_bottleneck_without_any_growth(tmp_path):
  path = tmp_path / "out.json"
  flags = ["--seeds=1", f"--json={path}", *TINY]
  bottleneck.main([*flags, "--config.train.epochs=1"])
  document = read(path)
  assert document["hits"] == 0 and not document["met"]
  assert document["seeds"][0]["first"] is None
  assert document["seeds"][0]["closed"] == {}


@pytest.mark.full
def test_loop_efficiency(tmp_path, capsys):
  path = tmp_path / "out.json"
  flags = ["--shapes", "digits", f"--json={path}", *TINY]
  loop_efficiency.main([*flags, "--config.train.epochs=6"])
  shape = read(path)["digits"]
  assert shape["n"] == len(shape["epochs"]) == 6
  assert shape["germinated"] >= 1
  for epoch in shape["epochs"]:
    assert 0 < epoch["strict"] <= epoch["bare"]
    assert epoch["trainer"] > 0
  low, high = shape["spread"]
  assert low <= shape["median"] <= high
  assert shape["strict_median"] <= shape["median"]
  assert "of the bare loop's speed" in capsys.readouterr().out


def test_observability_cost(tmp_path, capsys):
  path = tmp_path / "out.json"
  flags = ["--config=configs/digits.py:smoke", f"--json={path}"]
  observability_cost.main(flags)
  figures = read(path)
  parts = ("report", "tensorboard", "console", "histograms", "threads")
  total = sum(figures[name] for name in parts)
  assert figures["share"] == pytest.approx(total / figures["seconds"])
  assert all(figures[name] > 0 for name in parts[:3])
  assert figures["dropped"] == 0
  assert "of the training thread" in capsys.readouterr().out


def test_random_cifar_is_a_data_set(tmp_path):
  loop_efficiency.write_random_cifar(tmp_path)
  data = datasets.load("cifar10", dir=str(tmp_path), train_limit=100)
  assert data.train_images.shape == (100, 32, 32, 3)
  assert set(data.train_labels) == set(range(10))
  assert data.train_images.std() > 70  # uniform noise: 73.9


def test_the_interval_is_students():
  values = [1.0, 2.0, 4.0]
  estimate = _common.interval(values)
  half = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)  # t, 2 degrees
  assert estimate.mean == pytest.approx(7 / 3)
  assert estimate.high - estimate.mean == pytest.approx(half)
  assert estimate.mean - estimate.low == pytest.approx(half)
  assert math.isnan(_common.interval([1.0]).low)


def test_every_stage_is_drawn():
  stages = [bottleneck.narrowed_stage(seed) for seed in range(20)]
  assert set(stages) == {0, 1, 2}


def test_unknown_keys_are_refused():
  with pytest.raises(InputError, match=r"host\.width"):
    bottleneck.make_config(0, narrowed=None, overrides=["--config.host.wdth=3"])
