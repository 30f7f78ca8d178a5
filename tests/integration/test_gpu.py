"""What only a GPU can show; elsewhere skipped.

JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export

import esper_jax
from configs import base
from esper_jax.export import command_line as exporting
from esper_jax.oona import jsonl
from esper_jax.tolaria import arrays
from esper_jax.tolaria.kernels import Kernels
from esper_jax.tolaria.trainer import Trainer
from esper_jax.urza import dispatch, launching, numerics, probe, samples
from esper_jax.urza.judging import parts_of
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.registry import PACKAGE, open_registry

DEVICE = probe.gpu()
pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(
    DEVICE is None,
    reason="no NVIDIA GPU that JAX may use (JAX_PLATFORMS=cuda,cpu)",
  ),
]
GROWTH = 2  # the epoch after which seeds are planted


@pytest.fixture(autouse=True)
def _user_folders(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stored(kernel, dtype):
  """The package's artefacts of a kernel that run here, and their bytes."""
  registry = open_registry(layers=(PACKAGE,))
  found = [
    launching.Loaded(*registry.load(key))
    for key in registry.keys()
    if registry.record(key).artefact.spec.kernel == kernel
  ]
  return [
    loaded
    for loaded in found
    if loaded.artefact.spec.dtype == dtype
    and dispatch.runs_on(loaded.artefact.spec.target, DEVICE)
  ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_kernel_equals_its_reference(name, dtype):
  there = stored(name, dtype)
  assert there
  # The fewest and the most channels; every one of them is probed by Urza.
  there.sort(key=lambda each: dict(each.artefact.spec.constants).get("C", 0))
  for loaded in (there[0], there[-1]):
    kernel, _, constants = parts_of(loaded.artefact)
    launch = launching.launcher(kernel, loaded, DEVICE)
    found = numerics.check(launch, kernel, dtype, constants)
    assert found.ok, found
    args = samples.samples(kernel, dtype, constants, 64, 8, 8)
    args = tuple(map(jax.device_put, args))
    assert numerics.deterministic(launch, args)


def make_config():
  config = base.get_config()
  config.deterministic = True
  config.data.name = "digits"
  config.data.validation_fraction = 0.3
  config.data.batch_size = 64
  config.data.train_limit = 512
  config.host.name = "resnet8"
  config.host.width = 16
  config.optimizer.learning_rate = 2e-3
  config.train.epochs = 7
  config.train.log_every = 4
  config.kasmina.blueprints = ("lowrank", "depthwise")
  config.kasmina.min_training_epochs = 1
  config.kasmina.blend_epochs = 1
  config.kasmina.training_gain_sigmas = -1e6
  config.kasmina.measure_examples = 64
  config.tamiyo.policy = "schedule"
  config.tamiyo.warmup_epochs = 1
  config.tamiyo.schedule = (
    (GROWTH, "slot1_1", "lowrank"),
    (GROWTH, "slot2_1", "depthwise"),
  )
  return config


class Done:
  """A run that has ended."""

  def __init__(self, path: Path, *, kernels: bool):
    def without_evidence():
      """The package's kernels: what is known of them must not matter."""
      registry = open_registry(layers=(path.with_name(f"{path.name}-urza"),))
      package = open_registry(layers=(PACKAGE,))
      for key in package.keys():
        registry.put(*package.load(key))
      return registry

    own = Kernels(
      DEVICE, without_evidence, require="nothing" if kernels else "validated"
    )
    trainer = Trainer(make_config(), path, kernels=own)
    result = trainer.train()
    assert result["status"] == "completed"
    assert result["germinated"] == 2
    package = open_registry(layers=(PACKAGE,))
    taken = [key for key in trainer.run.kernels.values() if key]
    self.kernels = {package.record(k).artefact.spec.kernel for k in taken}
    state = arrays.flatten(trainer.run.arrays())
    self.state = {name: array.tobytes() for name, array in state.items()}
    self.losses = [
      line["train/loss"]
      for line in jsonl.read(path / "metrics.jsonl")
      if "train/loss" in line
    ]


def test_a_grown_run_with_kernels(tmp_path):
  reference = Done(tmp_path / "reference", kernels=False)
  run = Done(tmp_path / "run", kernels=True)
  again = Done(tmp_path / "again", kernels=True)
  assert reference.kernels == set()
  assert run.kernels >= {
    "lowrank_forward",
    "lowrank_backward",
    "lowrank_weights",
    "depthwise_forward",
    "depthwise_backward",
    "blend_forward",
    "blend_backward",
  }
  assert run.state == again.state  # bit for bit
  assert run.losses == again.losses != reference.losses
  np.testing.assert_allclose(run.losses, reference.losses, rtol=0.05)
  assert run.losses[0] == reference.losses[0]  # nothing has grown yet


def test_an_exported_program_runs_on_the_gpu(tmp_path):
  path, target = tmp_path / "run", tmp_path / "exported"
  config = make_config()
  Trainer(config, path).train()
  assert exporting.main([str(path), f"--to={target}"]) == 0
  program = export.deserialize(
    bytearray((target / "network.stablehlo").read_bytes())
  )
  images = np.random.default_rng(0).integers(0, 17, (7, 8, 8, 1), np.uint8)
  logits = program.call(images)
  assert {device.platform for device in logits.devices()} == {"gpu"}
  network = esper_jax.load_grown(target)
  np.testing.assert_allclose(logits, network(images), rtol=1e-3, atol=1e-3)
  with jax.default_device(jax.devices("cpu")[0]):
    here = network(images)
  np.testing.assert_allclose(logits, here, rtol=0.02, atol=0.02)
