"""Small runs in this process, and disks that are full."""

import contextlib
import resource
import subprocess

import pytest

from configs import base
from esper_jax.oona import jsonl
from esper_jax.tolaria import arrays
from esper_jax.tolaria.trainer import Trainer

STEPS = 7  # an epoch of a small run


@pytest.fixture
def file_size_limit():
  """A context manager: files cannot grow beyond so many bytes."""

  @contextlib.contextmanager
  def limit(num_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
      yield
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  return limit


@pytest.fixture
def tiny_disk(tmp_path):
  """A file system of 128 KiB, where the user may mount one."""
  path = tmp_path / "disk"
  path.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(path)]
  mounted = subprocess.run(command, capture_output=True, check=False)
  if mounted.returncode:
    pytest.skip("mounting a tmpfs needs root: sudo make test")
  yield path
  subprocess.run(["umount", str(path)], check=True)


def small_config(**changes):
  """Digits, a narrow MLP with two slots, five epochs of seven steps."""
  config = base.get_config()
  values = {
    "data.name": "digits",
    "data.validation_fraction": 0.3,
    "data.batch_size": 64,
    "data.train_limit": 64 * STEPS,
    "host.name": "mlp",
    "host.width": 8,
    "optimizer.learning_rate": 5e-3,
    "oona.fsync": False,
    "train.epochs": 5,
    "train.log_every": 3,
    "kasmina.blueprints": ("dense",),
    "kasmina.min_training_epochs": 1,
    "kasmina.blend_epochs": 1,
    "kasmina.gain_sigmas": 0.0,
    "kasmina.measure_examples": 64,
    "tamiyo.policy": "never",
    "tamiyo.probe_examples": 32,
    "tamiyo.warmup_epochs": 1,
  }
  for name, value in (values | changes).items():
    section, _, key = name.rpartition(".")
    (config[section] if section else config)[key] = value
  return config


class Watched:
  """A trainer, and what it told."""

  def __init__(self, path, callbacks=(), display=None, kernels=None, **changes):
    self.path = path
    self.events = []
    config = small_config(**changes)
    self.trainer = Trainer(
      config, path, display=display, callbacks=callbacks, kernels=kernels
    )
    self.trainer.bus.subscribe(self.events.append)

  def train(self):
    self.result = self.trainer.train()
    return self

  def times(self, *types):
    return [(e["type"], e["epoch"]) for e in self.events if e["type"] in types]

  def lines(self, key="train/loss"):
    return [x[key] for x in jsonl.read(self.path / "metrics.jsonl") if key in x]

  def arrays(self):
    return arrays.flatten(self.trainer.run.arrays())


def _watch(folder):
  numbers = iter(range(100))

  def make(**options):
    name = options.pop("name", f"run{next(numbers)}")
    return Watched(folder / name, **options)

  return make


@pytest.fixture
def watch(tmp_path):
  """Makes trainers that are watched: watch(name=..., **{"train.epochs": 3}).

  Without a name each has a directory of its own.
  """
  return _watch(tmp_path)


@pytest.fixture(scope="module")
def watch_shared(tmp_path_factory):
  """As `watch`, for what several tests of a file look at."""
  return _watch(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def make_config():
  """The config that `watch` makes a trainer of."""
  return small_config
