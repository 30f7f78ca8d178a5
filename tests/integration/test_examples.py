"""The examples of --help, each in its :smoke form, and what a run prints."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from esper_jax.usage import EXAMPLES

ROOT = Path(__file__).parents[2]
PARTS = ("data", "oona", "tamiyo", "kasmina", "tolaria", "device")
FILES = (
  "result.json",
  "events.jsonl",
  "metrics.jsonl",
  "checkpoints",
  "report.html",
)
SMALL = (
  "--config=configs/digits.py:smoke",
  "--config.host.name=mlp",
  "--config.host.width=4",
  "--config.host.inner_widths=()",
  "--config.kasmina.blueprints=dense",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
  """A folder to work in: the configs, images, and CIFAR-10 at its real size.

  One random file stands under all six names.
  """
  place = tmp_path_factory.mktemp("place")
  (place / "configs").symlink_to(ROOT / "configs")
  rng = np.random.default_rng(1)
  for n in range(600):
    image = place / "data" / "images" / f"class{n % 10}" / f"{n}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(image)
  data = place / "data" / "cifar-10-batches-bin"
  data.mkdir(parents=True)
  records = np.random.default_rng(0).integers(0, 256, (10_000, 3073), np.uint8)
  records[:, 0] %= 10
  (data / "test_batch.bin").write_bytes(records.tobytes())
  for i in range(1, 6):
    os.link(data / "test_batch.bin", data / f"data_batch_{i}.bin")
  return place


@pytest.fixture
def run(place, monkeypatch, capsys):
  """Runs a command line there; returns what it printed."""
  monkeypatch.chdir(place)

  def run(*arguments: str) -> str:
    assert main.main(["main.py", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out

  return run


def smoke(example: str) -> list[str]:
  """An example made short; what it would download is there already."""
  arguments = example.replace(".py", ".py:smoke").split()
  arguments.append("--config.data.cache_dir=cache")
  if "cifar" in example and "--config.data.dir" not in example:
    arguments.append("--config.data.dir=data/cifar-10-batches-bin")
  return arguments


def workdir_of(out: str) -> Path:
  """The run directory, by the paths at the end; each of them must exist."""
  paths = [Path(line.strip()) for line in out.splitlines()[-len(FILES) :]]
  assert tuple(path.name for path in paths) == FILES
  assert all(path.exists() for path in paths)
  assert len({path.parent for path in paths}) == 1
  return paths[0].parent


def long(example: str) -> tuple[pytest.MarkDecorator, ...]:
  return (pytest.mark.full,) if "resnet18" in example else ()


@pytest.mark.parametrize(
  "example",
  [pytest.param(a, id=what, marks=long(a)) for what, a in EXAMPLES],
)
def test_example(run, place, example):
  arguments = smoke(example)
  out = run(*arguments)
  lines = out.splitlines()
  if "--dry_run" in arguments:
    assert lines[0].split()[:4] == ["slot", "shape", "kind", "blueprint"]
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == [
      "slot1_1",
      "slot2_1",
      "slot3_1",
      "config",
    ]
    assert re.fullmatch(r"config [0-9a-f]{8} is valid", lines[-1])
    return
  assert tuple(line.split()[0] for line in lines[: len(PARTS)]) == PARTS
  workdir = workdir_of(out)
  given = [a.partition("=")[2] for a in arguments if a.startswith("--workdir")]
  assert workdir == place / (given[0] if given else "runs/digits-smoke")
  result = json.loads((workdir / "result.json").read_text())
  assert (result["status"], result["steps"]) == ("completed", 2)
  assert "\ncompleted\n" in out
  assert "test accuracy (read once)" in out
  if "policy=never" not in example:
    assert result["policy_used"] == "learned"  # the shipped one can be used


@pytest.mark.full
def test_the_examples_show_what_they_say(place):
  """What `test_example` left behind; it runs first."""

  def config(name):
    document = json.loads((place / "runs" / name / "config.json").read_text())
    return document["config"]

  assert config("cifar10-50")["host"]["name"] == "resnet18"
  assert config("cifar10-50")["train"]["epochs"] == 50
  assert config("digits-never")["tamiyo"]["policy"] == "never"
  assert config("cifar10-own")["data"]["dir"] == "data/cifar-10-batches-bin"


def test_start_lines_say_what_the_run_is_made_of(run):
  out = run(*SMALL, "--workdir=start")
  said = dict(line.split(maxsplit=1) for line in out.splitlines()[:6])
  assert tuple(said) == PARTS
  assert "256 train, 431 validation, 359 test, 10 classes" in said["data"]
  assert said["oona"].endswith("start/events.jsonl")
  assert "policy learned" in said["tamiyo"]
  assert "2 slots (slot1, slot2), 1 blueprint" in said["kasmina"]
  assert said["tolaria"].startswith("2 steps, ")
  assert "batch 16, adamw at 0.005" in said["tolaria"]
  assert said["device"].startswith("cpu:")
  assert re.search(r"^epoch   1/1  train loss .* val loss .* s$", out, re.M)


def test_after_twenty_steps_the_pace_is_known(run):
  longer = ("--config.train.max_steps=0", "--config.train.epochs=2")
  out = run(*SMALL, *longer, "--config.data.train_limit=0", "--workdir=pace")
  paces = re.findall(r"^pace .*$", out, re.M)
  assert len(paces) == 1
  assert re.fullmatch(
    r"pace     [\d.e-]+ s an epoch, about .+ to go; growth and compiling come"
    " on top",
    paces[0],
  )
  assert out.index("device ") < out.index(paces[0]) < out.index("epoch   1/2")


def test_each_growth_event_is_told_with_its_reason(run):
  growing = (
    "--config.train.max_steps=0",
    "--config.train.epochs=8",
    "--config.tamiyo.policy=schedule",
    "--config.tamiyo.schedule=((1,'slot1','dense'),)",
  )
  out = run(*SMALL, *growing, "--workdir=growing")
  events = [line for line in out.splitlines() if line.startswith("    ")]
  decided = next(line for line in events if "decision" in line)
  assert "slot1" in decided
  assert "-- the schedule asks for dense at slot1 after epoch 1" in decided
  assert any("slot1: germinated" in line for line in events)
  assert "validation accuracy before growth" in out


def test_quiet_prints_nothing_and_verbose_prints_more(run):
  assert run(*SMALL, "--workdir=quiet", "--quiet") == ""
  normal = run(*SMALL, "--workdir=normal").splitlines()
  verbose = run(*SMALL, "--workdir=verbose", "--verbose").splitlines()
  more = [line for line in verbose if line.startswith("    ")]
  assert any("checkpoint (kind scheduled)" in line for line in more)
  assert any("compile (program train" in line for line in more)
  assert not any("checkpoint (kind" in line for line in normal)
  assert {line for line in normal if line.startswith("    ")} <= set(more)


def test_a_dry_run_writes_nothing(run, place):
  before = sorted(place.iterdir())
  out = run(*SMALL, "--dry_run", "--workdir=dry")
  rows = [line.split() for line in out.splitlines()[1:-1]]
  assert [row[0] for row in rows] == ["slot1", "slot2"]
  assert all(row[1:4] == ["4", "features", "dense"] for row in rows)
  assert sorted(place.iterdir()) == before
