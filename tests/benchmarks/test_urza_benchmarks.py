"""The benchmark of kernels runs here: what it can tell without a GPU, and its
timing with references in the kernels' places."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import _common, _kernel_steps, kernels
from esper_jax import commands
from esper_jax.types import InputError
from esper_jax.urza import dispatch, launching, orders
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.measurement import Effort
from esper_jax.urza.probe import Verdict
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.handmade import H100

BRIEF = Effort(rounds=5, calls=1)
BLEND = KERNELS["blend_backward"]
STATIC = {
  "kind": "static",
  "made": "2026-11-25T08:00:00Z",
  "by": {"triton": "3.9.0"},
  "registers": 40,
  "spills": 0,
  "shared": 256,
  "ptx_version": "8.7",
  "assembled_for": [90],
  "ok": True,
}


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
  return tmp_path / "mine"


def put(registry, kernel, dtype, *, index=0, **options):
  args = kernel.arguments(dtype, kernel.shipped[index], 1, 1, 1)
  artefact, files = handmade.artefact(kernel, *args, **options)
  registry.put(artefact, files)
  return artefact


def test_without_a_gpu_every_row_says_so(home, tmp_path, capsys):
  registry = open_registry(str(home))
  own = put(registry, BLEND, "float16")  # of which the package brings none
  registry.append(own.key, STATIC)
  path = tmp_path / "out.json"
  flags = ["--kernel", "blend_backward", f"--dir={home}", f"--json={path}"]
  flags += ["--dtype=float16", "--bandwidth=2000"]
  kernels.main([*flags, "--batch=256"])
  document = json.loads(path.read_text())
  assert document["benchmark"] == "kernels" and document["jax"]
  assert document["status"] == kernels.NOT_RUN == "compiled, not run"
  assert document["assumed_bandwidth_gb_s"] == 2000
  (row,) = [r for r in document["rows"] if r["key"] == own.key]
  assert row["registers"] == 40 and row["ptx_version"] == "8.7"
  x = 256 * 32 * 32 * 64 * 2
  assert row["bytes"] == 2 * x and row["floor_us_computed"] == x / 1e6
  assert row["intensity"] == row["flops"] / row["bytes"]
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("compiled, not run: no GPU here")
  assert lines[0].endswith(orders.ON_A_GPU)
  assert lines[1].startswith("sm_90: of each kernel, the stored code for the")
  assert "an assumed 2000 GB/s" in lines[2]
  for line, row in zip(lines[3:], document["rows"], strict=True):
    assert line.endswith("(computed); compiled, not run")
    assert row["status"] == "compiled, not run"
    assert not {"kernel_us", "gb_s", "seconds"} & row.keys()


@pytest.mark.parametrize(
  "flag, words",
  [
    ("--kernel=nope", "unknown kernel 'nope'; there are lowrank_forward, "),
    ("--dtype=int8", "unknown dtype 'int8'; there are float32, "),
    ("--target=sm_99", "unknown target '99'; there are 75, 80, "),
    ("--dir=none", "no such folder: .*/none; .* build --dir="),
  ],
)
def test_bad_input_is_told(home, monkeypatch, tmp_path, flag, words):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=words):
    kernels.main([flag])
  assert not (tmp_path / "none").exists()


def test_bad_input_is_one_line_and_code_2(capsys):
  with pytest.raises(SystemExit) as caught:
    kernels.main(["--nope"])
  assert caught.value.code == 2
  command = [sys.executable, "-m", "benchmarks.kernels", "--dtype=int8"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("error: unknown dtype 'int8'; there are ")
  assert done.stderr.count("\n") == 1


def one_line(text):
  return " ".join(text.replace("\\\n", " ").split())


def test_the_command_that_is_left_to_do_is_the_same_everywhere():
  root = pathlib.Path(kernels.__file__).parents[1]
  command = orders.ON_A_GPU.replace(commands.python(), ".venv/bin/python")
  for name in ("docs/kernels.md", "benchmarks/README.md"):
    text = one_line((root / name).read_text())
    assert f".venv/bin/pip install -e '.[cuda12]' {command}" in text, name
  assert command in one_line(kernels.__doc__)


def test_one_artefact_stands_for_each_form(home):
  tiles = BLEND.tiles(
    BLEND.form(*BLEND.arguments("float32", BLEND.shipped[0], 1, 1, 1))
  )
  registry = open_registry(str(home))
  old, new, other, future = (
    put(registry, BLEND, "float32", target=target, tiles=tiles[n])
    for target, n in ((80, 0), (90, 0), (90, 1), (100, 0))
  )
  half = put(registry, BLEND, "bfloat16", target=80)
  all_of_them = [old, new, other, future, half]
  assert set(map(id, kernels.first_of_each(all_of_them, 90))) == {
    id(new),
    id(half),
  }
  assert kernels.first_of_each([old, new, other], 86) == [old]
  assert kernels.first_of_each([new], 75) == []


def reference_of(kernel, loaded, device):
  assert device == H100 and loaded.files["ptx"]
  return jax.jit(lambda *args: kernel.reference(*args))


def test_kernels_are_timed_beside_their_references(home, capsys):
  registry = open_registry(str(home))
  good, bad = (put(registry, BLEND, d) for d in ("float32", "bfloat16"))

  def first_use(key, device):
    return Verdict(key == good.key, "off by 2")

  figures = kernels.time_kernels(
    registry,
    [good, bad],
    H100,
    batch=2,
    effort=BRIEF,
    first_use=first_use,
    launcher=reference_of,
    copy_bytes=2**20,
  )
  assert figures["status"] == "run" and figures["copy_gb_s"] > 0
  row, failed = figures["rows"]
  assert failed["status"] == "probe failed" and failed["reason"] == "off by 2"
  speed = 1e-3 * row["bytes"] / row["kernel_us"]
  assert row["gb_s"] == pytest.approx(speed)
  assert row["share_of_copy"] == pytest.approx(speed / figures["copy_gb_s"])
  ratio = row["ratio"]
  assert 0 < ratio["low"] <= ratio["high"] and ratio["n"] == 5
  assert {len(s) for s in row["seconds"].values()} == {5}
  out = capsys.readouterr().out
  assert "% of a copy" in out and "not run" not in out


# Slots of 16 channels, for which kernels are kept.
TINY = (
  "--config.data.train_limit=128",
  "--config.data.batch_size=8",
  "--config.host.name=mlp",
  "--config.host.width=16",
  "--config.host.slots=('slot1',)",
  "--config.host.inner_widths=()",
  "--config.kasmina.blueprints=lowrank_dense",
)


def test_a_training_step_is_timed_with_and_without_kernels(home, capsys):
  registry = open_registry(str(home))
  names = ("lowrank_forward", "lowrank_backward", "lowrank_weights")
  for kernel in map(KERNELS.get, names):
    for index, constants in enumerate(kernel.shipped):
      if constants["C"] == 16:
        put(registry, kernel, "float32", index=index)
  loaded = [
    launching.Loaded(*registry.load(key))
    for key in registry.keys()
    if registry.record(key).artefact.spec.kernel in KERNELS
  ]
  own = launching.dispatcher(loaded, H100)
  config = _common.load_config("configs/digits.py", TINY)
  found = _kernel_steps.time_steps(config, {"lowrank_dense": 4}, own, BRIEF)
  assert dispatch.installed() is None
  row = found["lowrank_dense"]
  assert row["seeds"] == 4 and row["fallbacks"] == []
  assert set(row["ms"]) == {"bare", "reference", "kernel"}
  assert row["step_ratio"]["n"] == 5 and row["step_ratio"]["low"] > 0
  assert {len(s) for s in row["seconds"].values()} == {5}
  # The step was traced with kernels.
  taken = {registry.load(key)[0].spec.kernel for key in own.choices.values()}
  assert taken == set(names)
  assert "slots' ratio" in capsys.readouterr().out


def test_the_target_is_met_by_the_low_end_of_the_interval(home, capsys):
  seconds = {
    "bare": [1.0] * 5,
    "kernel": [2.0, 2.1, 2.0, 2.1, 2.0],
    "reference": [3.0] * 5,
  }
  row = _kernel_steps.compare("lowrank", 4, seconds, [])
  assert row["target"] == 1.3 and row["met"] is True
  assert 1.3 < row["slot_ratio"]["low"] < 2 < row["slot_ratio"]["high"] + 0.1
  slow = _kernel_steps.compare(
    "lowrank", 4, seconds | {"reference": [2.2] * 5}, []
  )
  assert slow["met"] is False
  noise = _kernel_steps.compare(
    "norm", 1, seconds | {"reference": [1.0] * 5}, []
  )
  assert noise["slot_ratio"] is None and "met" not in noise
  assert "cannot be told" in capsys.readouterr().out


def test_planted_seeds_are_blended_in(home):
  from esper_jax.kasmina.slot import all_seeds
  from esper_jax.tolaria import assembly

  config = _common.load_config("configs/digits.py", TINY)
  parts = assembly.assemble(config, assembly.load_data(config))
  state = _kernel_steps.plant_all(
    assembly.new_state(config, parts), parts, "lowrank_dense", 4
  )
  seeds = all_seeds(state.seeds).values()
  assert len(seeds) == 4 * len(parts.growth.slots)
  assert {seed.depth for seed in seeds} == {0}
  alphas = jnp.array([seed.alpha for seed in seeds])
  assert jnp.allclose(alphas, jnp.float32(0.3))
  assert not any(float(seed.isolation) for seed in seeds)
