"""A model of one's own, grown on one's own images, is taken home."""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import esper_jax
from esper_jax.export import command_line
from esper_jax.oona import lineage

TIMEOUT = 300  # seconds

# A user's program: ours cannot be imported in it.
USER = """
import sys
sys.modules["esper_jax"] = None
from pathlib import Path
import numpy as np
from jax import export
from PIL import Image

paths = sorted(Path("shapes").rglob("*.png"))[:7]
images = np.stack([np.asarray(Image.open(path)) for path in paths])
data = Path("out/network.stablehlo").read_bytes()
logits = export.deserialize(bytearray(data)).call(images)
np.save("logits.npy", logits)
"""


class Net(nn.Module):
  """A convolution, and two places to grow."""

  width: int = 4

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Conv(self.width, (3, 3), strides=2, use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    x = esper_jax.Slot(name="maps")(x, train=train).mean(axis=(1, 2))
    return nn.Dense(2)(esper_jax.Slot(name="vector")(x, train=train))


def half_way(trainer, metrics):
  """Stops a run while a seed is blended in."""
  seeds = trainer.run.state.seeds.get("vector", {})
  if any(0 < float(seed.alpha) < 1 for seed in seeds.values()):
    trainer.stop()


def grow(*callbacks):
  """As the documents show it."""
  return esper_jax.grow(
    Net(),
    "folder:shapes",
    policy="schedule",
    blueprints=["norm", "dense"],
    config={
      "train.epochs": 8,
      "data.batch_size": 16,
      "data.validation_fraction": 0.3,
      "data.cache_dir": "cache",
      "tamiyo.schedule": ((1, "maps", "norm"), (1, "vector", "dense")),
      "kasmina.min_training_epochs": 1,
      "kasmina.blend_epochs": 2,
      "kasmina.training_gain_sigmas": -1e9,
      "oona.fsync": False,
    },
    workdir="run",
    callbacks=callbacks,
    verbosity=0,
  )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with images, a run and its export."""
  place = tmp_path_factory.mktemp("own")
  rng = np.random.default_rng(0)
  for n in range(60):
    path = place / "shapes" / ("dark", "bright")[n % 2] / f"{n}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    low = 100 * (n % 2)
    pixels = rng.integers(low, low + 150, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    grown = grow(half_way)
    done = grown.export("out")
    assert grown.result["status"] == "interrupted"
    paths = sorted((place / "shapes").rglob("*.png"))[:7]
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.savez("expected", images=images, logits=grown.predict(images))
  assert done.folder == place / "out"
  notes = " ".join(done.notes)
  assert "no model.py: the model is your own (Net)" in notes
  assert "the run is interrupted: this is its network after epoch" in notes
  return place


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
  monkeypatch.chdir(place)


@pytest.fixture
def expected(place):
  with np.load(place / "expected.npz") as arrays:
    return arrays["images"], arrays["logits"]


def test_a_user_needs_none_of_our_code(expected):
  done = subprocess.run(
    [sys.executable, "-I", "-c", USER],
    text=True,
    capture_output=True,
    timeout=TIMEOUT,
  )
  assert done.returncode == 0, done.stderr
  found = np.load("logits.npy")
  assert found.shape == (7, 2)
  np.testing.assert_allclose(found, expected[1], rtol=1e-4, atol=1e-5)


def test_what_is_there_and_what_leads_to_it(place):
  files = {path.name for path in (place / "out").iterdir()}
  assert files == {*lineage.FILES, lineage.LINEAGE} - {lineage.MODULE}
  assert lineage.verify("out").changes > 4
  report = json.loads((place / "out" / lineage.REPORT).read_text())
  assert report["checked_on"] == "cpu"
  differences = report["max_abs_difference"]
  assert differences.keys() == {"load_grown", lineage.SEEDS, lineage.PROGRAM}
  assert max(differences.values()) <= report["tolerance"]
  topology = json.loads((place / "out" / lineage.TOPOLOGY).read_text())
  assert {s["slot"] for s in topology["seeds"]} == {"maps", "vector"}
  assert {s["strength"] for s in topology["seeds"]} == {1.0}  # alpha is inside
  assert topology["input"]["shape"] == ["batch", 8, 8, 3]
  assert topology["parameters"] == report["parameters_trained"]


def test_it_loads_with_the_model_alone(expected):
  images, logits = expected
  network = esper_jax.load_grown("out", model=Net())
  found = jax.jit(network.__call__)(images)
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
  with pytest.raises(esper_jax.InputError, match=r"yours \(Net\); give what"):
    esper_jax.load_grown("out")
  with pytest.raises(esper_jax.InputError, match="the one that grew: differe"):
    esper_jax.load_grown("out", model=Net(width=5))


def test_the_command_says_who_can_export_it(place, capsys):
  assert command_line.main([str(place / "run"), "--to=other"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert f"workdir='{place / 'run'}'" in error and ".export(DIR)" in error
  assert not (place / "other").exists()


def test_the_same_call_exports_later(place, monkeypatch):
  finished = grow().result
  later = grow()
  assert later.result == finished
  assert finished["status"] == "completed"
  with pytest.raises(esper_jax.InputError, match="is there already"):
    later.export(place / "out")

  def no_cpu(*, backend):
    raise RuntimeError(f"Unknown backend {backend}")

  with monkeypatch.context() as patch:
    patch.setattr(jax, "local_devices", no_cpu)
    with pytest.raises(esper_jax.InputError, match="add cpu to it"):
      later.export(place / "later")
  assert not (place / "later").exists()
  assert lineage.verify(later.export(place / "later").folder).files
