"""The peer benchmarks compare equal steps and say what they did not run."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from benchmarks import _peers_jax, peers_cpu, peers_gpu


def run(main, path, *flags):
  """The figures of a run, which are those that it writes."""
  figures = main([*flags, f"--json={path}"])
  document = json.loads(path.read_text())
  assert document["jax"] and document["cores"] >= 1
  assert document["status"] == figures["status"]
  return document


def without_torch(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: None if name == "torch" else find(name, *rest),
  )


def test_without_torch_the_cpu_is_skipped(tmp_path, capsys, monkeypatch):
  without_torch(monkeypatch)
  document = run(peers_cpu.main, tmp_path / "out.json")
  assert document["status"] == "skipped"
  assert document["reason"] == peers_cpu.MISSING
  assert capsys.readouterr().out == f"skipped: {peers_cpu.MISSING}\n"


@pytest.mark.parametrize(
  ("main", "flag", "valid"),
  [
    (peers_cpu.main, "--rounds=0", "at least 1"),
    (peers_cpu.main, "--width=-1", "at least 0"),
    (peers_cpu.main, "--width=4", "0 or at least 8"),
    (peers_cpu.main, "--threads=100000", "0 to"),
    (peers_gpu.main, "--batch=0", "at least 1"),
  ],
)
def test_bad_numbers_are_refused(main, flag, valid, capsys):
  with pytest.raises(SystemExit) as stopped:
    main([flag])
  assert stopped.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: {flag.partition('=')[0]} is ")
  assert valid in line


@pytest.mark.skipif(
  not hasattr(os, "sched_setaffinity"), reason="no CPU sets on this system"
)
def test_threads_are_the_cpus_that_may_be_used():
  code = (
    "from benchmarks import peers_cpu as p\n"
    "print(p.use_threads(1), len(p.usable_cpus()), p.use_threads(0))"
  )
  found = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert found.stdout.split() == ["1", "1", "1"]


def test_ratios_are_speeds_and_the_faster_layout_judges():
  seconds = {
    "bare JAX": [2.0] * 3,
    "dormant": [2.0, 2.0, 4.0],
    "growing": [4.0] * 3,
    "dormant, PyTorch contiguous": [4.0] * 3,
    "dormant, PyTorch channels_last": [1.0] * 3,
    "growing, PyTorch contiguous": [8.0] * 3,
    "growing, PyTorch channels_last": [9.0] * 3,
  }
  found = peers_cpu.compare(seconds, images=8)
  assert found["images_per_second"]["dormant"] == 4
  ratios = found["ratios"]["dormant"]
  assert ratios["dormant, PyTorch contiguous"]["median"] == 2
  assert ratios["bare JAX"]["median"] == 1
  faster = found["dormant_to_faster"]
  assert faster["layout"] == "channels_last" and faster["median"] == 0.5
  assert found["growing_to_faster"]["layout"] == "contiguous"
  assert found["met"] is False
  seconds["dormant"] = [1.1] * 3
  assert peers_cpu.compare(seconds, images=8)["met"] is True


def test_other_steps_are_refused():
  losses = {"dormant, ours": 2.3, "dormant, PyTorch": 2.3001}
  same = {f"growing, {n}": 2.0 for n in ("ours", "PyTorch")}
  peers_cpu.require_same("cnn", losses | same)
  for other in (2.31, float("nan")):
    with pytest.raises(SystemExit, match="FAILED: cnn: not the same steps"):
      peers_cpu.require_same("cnn", losses | same | {"dormant, x": other})


def test_pooling_is_flaxs():
  import flax.linen as nn
  import jax
  import numpy as np

  x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
  for f, g in (
    (_peers_jax.max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2))),
    (
      jax.grad(lambda x: (_peers_jax.max_pool(x) ** 3).sum()),
      jax.grad(lambda x: (nn.max_pool(x, (2, 2), (2, 2)) ** 3).sum()),
    ),
  ):
    np.testing.assert_array_equal(f(x), g(x))


def test_without_a_gpu_nothing_is_run(tmp_path, capsys):
  document = run(peers_gpu.main, tmp_path / "out.json")
  assert document["status"] == "not run"
  assert document["reason"] == peers_gpu.NO_GPU
  assert capsys.readouterr().out == f"not run: {peers_gpu.NO_GPU}\n"


@pytest.mark.full
def test_smoke_runs_our_steps(tmp_path, capsys, monkeypatch):
  without_torch(monkeypatch)
  document = run(peers_gpu.main, tmp_path / "out.json", "--smoke")
  assert document["status"] == peers_gpu.SMOKE
  rows = document["rows"]
  assert rows["PyTorch"] == {"not_run": peers_gpu.NO_TORCH}
  for name in ("trainer", "bare JAX"):
    assert rows[name]["images_per_second"] > 0
    assert len(document["seconds"][name]) == document["size"]["rounds"]
  assert document["chunk"] == document["size"]["chunk"] == 2
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 and all(peers_gpu.SMOKE in line for line in lines)


def test_the_bare_loop_makes_the_trainers_steps():
  from esper_jax.tolaria import assembly

  config = _peers_jax.make_config("cnn", width=2, batch=4)
  parts = _peers_jax.make_parts("cnn", config, _peers_jax.noise(8))
  state = assembly.new_state(config, parts)
  assert list(parts.growth.slots) == ["slot1", "slot2", "slot3"]
  module = _peers_jax.plain_module("cnn", config, "float32")
  own = _peers_jax.trainer_block(parts, state, 4)
  bare = _peers_jax.bare_block(module, parts, state, 4)
  assert own.loss(3) == pytest.approx(bare.loss(3), rel=1e-5)
  assert own.run(1) > 0 and bare.run(1) > 0


def test_torch_makes_the_same_steps(tmp_path, capsys):
  pytest.importorskip("torch", reason="PyTorch is not a dependency")
  flags = ("--networks", "cnn", "--width=8", "--batch=4", "--rounds=2")
  document = run(peers_cpu.main, tmp_path / "out.json", *flags, "--steps=1")
  row = document["networks"]["cnn"]
  assert document["threads"] == document["cores"]
  assert len(row["seconds"]) == 7
  assert row["ratios"]["growing"]["bare JAX"]["n"] == 2
  assert row["met"] == (row["dormant_to_faster"]["median"] >= peers_cpu.TARGET)
  assert "as fast as PyTorch channels_last" in capsys.readouterr().out


def test_torch_makes_the_same_resnet():
  """Values and gradients; the benchmark itself compares whole steps."""
  torch = pytest.importorskip("torch", reason="PyTorch is not a dependency")
  import jax
  import numpy as np

  from benchmarks import _peers_torch
  from esper_jax.kasmina.surgery import group_params
  from esper_jax.tolaria import assembly

  config = _peers_jax.make_config("resnet8", width=2, batch=4)
  parts = _peers_jax.make_parts("resnet8", config, _peers_jax.noise(8))
  state, slot = _peers_jax.planted(assembly.new_state(config, parts), parts)
  assert slot == "slot2_1"
  groups = group_params(state.params, state.seeds)
  model = _peers_torch.make_model("resnet8", groups, exact=True)
  x = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
  ours, _, _ = jax.jit(parts.host.apply, static_argnames=("train", "key"))(
    state.params, state.collections, state.seeds, x, train=True, key=None
  )
  theirs = model(torch.from_numpy(x.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(theirs.detach().numpy(), ours, 1e-4, 1e-4)
  plain = _peers_torch.make_model("resnet8", groups, exact=False)
  assert plain(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_crop_keeps_pixels_together():
  torch = pytest.importorskip("torch", reason="PyTorch is not a dependency")
  from benchmarks import _peers_torch

  x = torch.arange(1, 65.0).reshape(1, 1, 8, 8).expand(16, 2, 8, 8)
  y = _peers_torch.augment(x)
  assert y.shape == x.shape and y.is_contiguous(
    memory_format=torch.channels_last
  )
  assert torch.equal(y[:, 0], y[:, 1])
  inside = (y[:, 0, :, 1:] != 0) & (y[:, 0, :, :-1] != 0)
  across = (y[:, 0, :, 1:] - y[:, 0, :, :-1])[inside]
  assert set(across.tolist()) == {-1.0, 1.0}  # some flipped, some not
