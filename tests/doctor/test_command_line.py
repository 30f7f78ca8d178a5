"""The command: its lines, its exit code, and what it leaves alone."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esper_jax.doctor import command_line
from esper_jax.doctor.report import Level, Line

ROOT = Path(__file__).parents[2]
DIGITS = f"--config={ROOT}/configs/digits.py:smoke"


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home of its own, with nothing in it."""
  for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  return tmp_path


def test_the_real_command(home):
  """As a user starts it; nothing is left behind."""
  programs = home / "programs"
  programs.mkdir(mode=0o700)
  env = dict(os.environ) | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(programs),
  }
  done = subprocess.run(
    [sys.executable, "-m", "esper_jax.doctor"],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  *lines, summary = done.stdout.splitlines()
  items = [line.partition(":")[0].split(maxsplit=1)[1] for line in lines]
  for item in ("python", "jax", "numpy", "combinations", "devices", "gpu"):
    assert item in items
  for item in ("program cache", "registry", "kernels", "cifar10", "cifar100"):
    assert item in items
  assert "ok    cpu:0: " in done.stdout and "is right" in done.stdout
  assert all(line.startswith(("ok  ", "warn")) for line in lines)
  assert summary.endswith(" 0 fail")
  assert [*home.rglob("*")] == [programs]


def test_a_config_as_json(home, capsys):
  (home / "r").mkdir(mode=0o700)
  code = command_line.main(
    [
      DIGITS,
      f"--config.tezzeret.cache_dir={home / 'programs'}",
      "--noconfig.data.download",
      f"--config.urza.dir={home / 'r'}",
      "--config.oona.redis_url=redis://127.0.0.1:1",
      "--json",
    ]
  )
  told = json.loads(capsys.readouterr().out)
  assert (code, told["ok"]) == (0, True)
  found = {line["item"]: line for line in told["lines"]}
  assert found["config"]["found"] == "digits.py:smoke is valid"
  assert found["data"]["found"].startswith("scikit-learn's handwritten digits")
  assert str(home / "r") in found["registry"]["found"]
  assert found["jax"]["level"] == "ok"
  assert found["redis"]["level"] == "warn"


def test_a_damaged_registry_fails(home, capsys):
  (home / "r" / "blobs").mkdir(parents=True, mode=0o700)
  (home / "r").chmod(0o700)
  (home / "r" / "blobs" / "x").write_text("")
  code = command_line.main([DIGITS, f"--config.urza.dir={home / 'r'}"])
  out = capsys.readouterr().out
  assert code == 1
  assert "\nfail  registry: 1 problem in " in out
  assert out.endswith(" 1 fail\n")


def test_a_missing_registry_fails_with_what_to_do(home, capsys):
  code = command_line.main(
    [DIGITS, f"--config.urza.dir={home / 'r'}", "--json"]
  )
  told = json.loads(capsys.readouterr().out)
  assert (code, told["ok"]) == (1, False)
  (failed,) = (line for line in told["lines"] if line["level"] == "fail")
  assert failed["item"] == "kernels"
  assert "no such folder" in failed["found"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--jsn"], "--jsn: no such flag; the nearest is --json"),
    (["--workdir=x"], "--workdir: no such flag; the nearest is --"),
    (
      ["--json=yes"],
      "argument --json: ignored explicit argument 'yes'; --help",
    ),
    (["--config"], "argument --config: expected one argument; --help"),
    (["--config="], "--config is missing"),
    (["--config=absent.py"], "--config=absent.py: no such file"),
    (["absent"], "absent: no such folder; give the run's --workdir"),
    (["."], ". holds no status.json, so no run has begun there"),
    (["a", "b"], "b: give --config=FILE[:PROFILE] with it"),
    (["a", "--config.seed=1"], "--config.seed=1: give --config=FILE"),
    (["--config.seed=1"], "--config.seed=1: give --config=FILE"),
    ([DIGITS, "a"], "a: give a run directory or --config, not both"),
    ([DIGITS, "a", "b"], "a: give a run directory or --config, not both"),
    ([DIGITS, "--config.seeed=1"], "--config.seeed: no such key; the nearest"),
    ([DIGITS, "--config.train.epochs=0"], "--config.train.epochs=0: must be"),
  ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
  assert command_line.main(arguments) == 2
  out, error = capsys.readouterr()
  assert out == "" and error.count("\n") == 1
  assert error.startswith(f"error: {message}")


@pytest.mark.parametrize(("age", "code"), [(59.0, 0), (61.0, 1)])
def test_a_run_is_looked_at_alone(tmp_path, capsys, age, code):
  document = {"state": "running", "heartbeat": time.time() - age, "pid": 7}
  document |= {"epoch": 1, "epochs": 3, "step": 10, "parts": {}, "devices": []}
  (tmp_path / "status.json").write_text(json.dumps(document))
  assert command_line.main([str(tmp_path)]) == code
  line, summary = capsys.readouterr().out.splitlines()
  assert "run: running, epoch 1/3, step 10, heartbeat " in line
  assert summary == f"{1 - code} ok, 0 warn, {code} fail"
  assert command_line.main([str(tmp_path), "--json"]) == code
  assert json.loads(capsys.readouterr().out)["ok"] == (code == 0)


def test_a_config_that_cannot_be_read_here_fails(monkeypatch, capsys):
  """ml_collections is not installed, say; the rest is checked."""
  monkeypatch.setattr(command_line, "CHECKS", ())
  monkeypatch.setitem(sys.modules, "esper_jax.command_line", None)
  monkeypatch.delattr("esper_jax.command_line", raising=False)
  assert command_line.main([DIGITS]) == 1
  out = capsys.readouterr().out
  assert out.startswith("fail  config: this check broke: ")
  assert out.endswith("\n0 ok, 0 warn, 1 fail\n")


def test_a_check_that_breaks_fails_and_the_next_goes_on(monkeypatch, capsys):
  monkeypatch.setattr(command_line, "CHECKS", ("absent", "combinations"))
  assert command_line.main([]) == 1
  first, second, _ = capsys.readouterr().out.splitlines()
  assert first.startswith("fail  absent: this check broke: ModuleNotFound")
  assert second.startswith("ok    combinations: ")


def test_a_warning_is_no_failure(monkeypatch, capsys):
  line = Line("x", Level.WARN, "slow", "do this")
  monkeypatch.setattr(command_line, "_check", lambda name, settings: [line])
  monkeypatch.setattr(command_line, "CHECKS", ("x",))
  assert command_line.main([]) == 0
  assert (
    capsys.readouterr().out == "warn  x: slow; do this\n0 ok, 1 warn, 0 fail\n"
  )


def test_an_interruption_is_one_line(monkeypatch, capsys):
  def check(name, settings):
    raise KeyboardInterrupt

  monkeypatch.setattr(command_line, "_check", check)
  assert command_line.main([]) == 1
  assert capsys.readouterr() == ("", "failed: interrupted\n")


def test_help_needs_nothing_that_is_slow():
  code = (
    "import sys, esper_jax.doctor.command_line;"
    "sys.exit(bool({'jax', 'numpy', 'packaging', 'absl'} & {*sys.modules}))"
  )
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_module_runs(monkeypatch, capsys):
  for name in ("JAX_ENABLE_COMPILATION_CACHE", "XLA_PYTHON_CLIENT_PREALLOCATE"):
    monkeypatch.setenv(name, os.environ.get(name, "true"))
  monkeypatch.setattr(sys, "argv", ["doctor", "--help"])
  with pytest.raises(SystemExit) as caught:
    runpy.run_module("esper_jax.doctor", run_name="__main__")
  assert caught.value.code == 0
  assert "--config FILE[:PROFILE]" in capsys.readouterr().out
  assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"
  assert "main" not in runpy.run_module("esper_jax.doctor.__main__")
