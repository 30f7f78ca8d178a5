"""Real faults around kernels, in runs that live: each is told of, none matters.

The runs believe in an H100 beside them and look up, verify and fall back as
they would there; on this CPU a kernel that is taken still computes by its
reference. That a program cannot be compiled, hangs, or has no memory for its
first step is in tests/tolaria/test_compiling.py.
"""

import os
import shutil
import signal
import sqlite3
import subprocess

import jax
import jax.numpy as jnp
import pytest

from configs import base
from esper_jax.oona import jsonl
from esper_jax.tolaria import arrays
from esper_jax.tolaria.kernels import Kernels
from esper_jax.tolaria.trainer import Trainer
from esper_jax.urza import compile, dispatch, probe
from esper_jax.urza.kernels import blend_forward, layer_norm_backward
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.handmade import H100

WIDE = 16  # channels of the slots
BATCH = 64
# What a dense seed calls, as far as it is stored here.
STORED = (layer_norm_backward.KERNEL, blend_forward.KERNEL)
GROWTH = 2  # the epoch after which the seed is planted


def shapes_of(kernel):
  x = jax.ShapeDtypeStruct((BATCH, WIDE), jnp.float32)
  channels = jax.ShapeDtypeStruct((WIDE,), jnp.float32)
  one = jax.ShapeDtypeStruct((), jnp.float32)
  if kernel is blend_forward.KERNEL:
    return x, x, one, one
  return x, channels, channels, x


def open_alone(path):
  """Without what the package brings."""
  return open_registry(layers=(path,))


def fill(path, *records):
  registry = open_alone(path)
  for kernel in STORED:
    key = registry.put(*handmade.artefact(kernel, *shapes_of(kernel)))
    for record in records:
      registry.append(key, record)
  return registry


def make_config():
  config = base.get_config()
  config.data.name = "digits"
  config.data.validation_fraction = 0.3
  config.data.batch_size = BATCH
  config.data.train_limit = 4 * BATCH
  config.host.name = "mlp"
  config.host.width = WIDE
  config.optimizer.learning_rate = 5e-3
  config.oona.fsync = False
  config.train.epochs = 7
  config.kasmina.blueprints = ("dense",)
  config.kasmina.min_training_epochs = 1
  config.kasmina.blend_epochs = 1
  config.kasmina.training_gain_sigmas = -1e6
  config.kasmina.gain_sigmas = 0.0
  config.kasmina.measure_examples = 64
  config.tamiyo.policy = "schedule"
  config.tamiyo.warmup_epochs = 1
  config.tamiyo.probe_examples = 32
  config.tamiyo.schedule = ((GROWTH, "slot1", "dense"),)
  config.tezzeret.threads = 0  # so that kernels are first met at the growth
  return config


class Done:
  """A run that has ended."""

  def __init__(self, path, folder=None, *, require="validated", at_growth=None):
    config = make_config()
    kernels = None
    if folder:
      kernels = Kernels(H100, lambda: open_alone(folder), require=require)
    strike = [] if at_growth is None else [at_growth]

    def hook(trainer, metrics):
      if trainer.run.epoch == GROWTH - 1 and strike:
        assert dispatch.installed() is not None
        assert dispatch.installed().choices == {}  # no kernel was met yet
        strike.pop()()

    trainer = Trainer(config, path, kernels=kernels, callbacks=[hook])
    self.result = trainer.train()
    assert strike == []
    assert self.result["status"] == "completed"
    assert self.result["germinated"] == 1
    assert dispatch.installed() is None
    self.kernels = trainer.run.kernels
    state = arrays.flatten(trainer.run.arrays())
    self.state = {name: array.tobytes() for name, array in state.items()}
    events = jsonl.read(path / "events.jsonl")
    self.told = [e for e in events if e["type"] == "kernel_fallback"]
    lines = jsonl.read(path / "metrics.jsonl")
    self.losses = [x["train/loss"] for x in lines if "train/loss" in x]

  def reasons(self):
    """Kernel -> why it fell back; each is told once."""
    reasons = {e["kernel"]: e["reason"] for e in self.told}
    assert len(reasons) == len(self.told)
    return reasons


@pytest.fixture(autouse=True, scope="module")
def user_folders(tmp_path_factory):
  """Nothing of the user's own is read or written."""
  home = tmp_path_factory.mktemp("home")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_DATA_HOME", str(home / "share"))
    patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    yield


@pytest.fixture(scope="module")
def references(tmp_path_factory):
  """The run where nobody asks for kernels."""
  return Done(tmp_path_factory.mktemp("references") / "run")


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
  """The run that takes its kernels, with nothing wrong."""
  path = tmp_path_factory.mktemp("taken")
  fill(path / "urza", handmade.gpu(), handmade.probe(ok=True))
  return Done(path / "run", path / "urza")


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "urza"


NAMES = sorted(kernel.name for kernel in STORED)


def check_references(run, references):
  """All stored kernels fell back, and the run is the one of references."""
  assert sorted(run.reasons()) == NAMES
  assert set(run.kernels.values()) == {dispatch.REFERENCE}
  assert run.losses == references.losses
  assert run.state == references.state


def check_taken(run, taken):
  """No kernel fell back beyond that which is not stored."""
  assert set(run.reasons()) == set(taken.reasons()) == {"blend_backward"}
  assert run.kernels == taken.kernels
  assert run.state == taken.state


def test_without_a_fault_kernels_are_taken(taken, references):
  assert len(set(taken.kernels.values()) - {dispatch.REFERENCE}) == 2
  assert taken.losses == pytest.approx(references.losses, rel=1e-4)


def test_the_folder_is_deleted(folder, tmp_path, references):
  fill(folder, handmade.gpu(), handmade.probe(ok=True))
  run = Done(tmp_path / "run", folder, at_growth=lambda: shutil.rmtree(folder))
  check_references(run, references)
  assert set(run.reasons().values()) == {"missing: it is not stored"}


def test_the_code_is_cut_short(folder, tmp_path, references):
  fill(folder, handmade.gpu(), handmade.probe(ok=True))

  def cut():
    for path in (folder / "blobs").iterdir():
      path.chmod(0o600)
      os.truncate(path, 7)

  run = Done(tmp_path / "run", folder, at_growth=cut)
  check_references(run, references)
  assert all("damaged" in reason for reason in run.reasons().values())


def test_the_folder_becomes_read_only(folder, tmp_path, taken):
  """Nothing can be recorded any more; nothing has to be."""
  folder.mkdir(mode=0o700)
  mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none"]
  mounted = subprocess.run([*mount, folder], capture_output=True, check=False)
  if mounted.returncode:
    pytest.skip("mounting a tmpfs needs root: sudo make test")
  try:
    fill(folder, handmade.gpu(), handmade.probe(ok=True))
    again = ["mount", "-o", "remount,ro", folder]

    def lock():
      subprocess.run(again, check=True)
      with pytest.raises(OSError, match="[Rr]ead-only"):
        (folder / "new").touch()

    run = Done(tmp_path / "run", folder, at_growth=lock)
  finally:
    subprocess.run(["umount", folder], check=True)
  check_taken(run, taken)


def test_the_lock_of_the_index_is_held(folder, tmp_path, taken):
  registry = fill(folder, handmade.gpu(), handmade.probe(ok=True))
  file = registry._index.path
  file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
  holder = sqlite3.connect(file, isolation_level=None)
  try:
    lock = "BEGIN EXCLUSIVE"
    run = Done(tmp_path / "run", folder, at_growth=lambda: holder.execute(lock))
    assert holder.in_transaction  # all the time
  finally:
    holder.close()
  check_taken(run, taken)


def test_a_kernel_cannot_be_built(folder, tmp_path, references):
  """Triton gives up on it: it is not stored, and its reference runs."""
  pytest.importorskip("triton")
  open_alone(folder)
  for kernel in STORED:
    form = kernel.form(*shapes_of(kernel))
    tiles = {**kernel.tiles(form)[0], "BM": 3}  # no power of two
    with pytest.raises(compile.CompilationError):
      compile.compile_kernel(kernel, form, tiles, 90)
  run = Done(tmp_path / "run", folder)
  check_references(run, references)
  assert set(run.reasons().values()) == {"missing: it is not stored"}


def test_the_probe_of_a_kernel_crashes(
  folder, tmp_path, references, monkeypatch
):
  registry = fill(folder)  # PENDING: nobody has run them
  crash = (
    "import os, signal, sys\n"
    "if 'probe' in sys.orig_argv:\n"
    f"  print({probe.LAUNCHING!r}, flush=True)\n"
    "  os.kill(os.getpid(), signal.SIGSEGV)\n"
  )
  hook = tmp_path / "hook"
  hook.mkdir()
  (hook / "sitecustomize.py").write_text(crash)
  with monkeypatch.context() as patch:
    patch.setenv("PYTHONPATH", str(hook))
    run = Done(tmp_path / "run", folder, require="probed")
  check_references(run, references)
  name = signal.Signals.SIGSEGV.name
  reason = f"its probe failed: the process ended with {name}"
  assert set(run.reasons().values()) == {reason}
  for key in registry.keys():
    (record,) = registry.record(key).evidence
    assert (record["kind"], record["ok"]) == ("probe", False)
  # It is remembered: the next run does not try again.
  again = Done(tmp_path / "again", folder, require="probed")
  check_references(again, references)
  assert set(again.reasons().values()) == {"its probe on this device failed"}


def test_there_is_no_gpu_to_probe_on(folder, tmp_path, references):
  registry = fill(folder)
  run = Done(tmp_path / "run", folder, require="probed")
  check_references(run, references)
  assert set(run.reasons().values()) == {"its probe failed: no GPU"}
  assert all(registry.record(k).evidence == () for k in registry.keys())
