"""`python -m esper_jax.nissa`: its lines and exit codes."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from esper_jax.nissa import command_line
from tests.nissa.run_files import recorded, write

ROOT = Path(__file__).parents[2]


def refused(capsys, *arguments):
  assert command_line.main(arguments) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.startswith("error: ") and err.count("\n") == 1
  return err


def test_the_real_command_needs_no_jax(tmp_path):
  path = recorded(tmp_path)
  (tmp_path / "jax.py").write_text("raise ImportError('no JAX here')\n")
  env = dict(os.environ) | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
  done = subprocess.run(
    [sys.executable, "-m", "esper_jax.nissa", "report", "grown"],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "")
  size = (path / "report.html").stat().st_size
  assert done.stdout == f"grown/report.html: {size / 1024:,.0f} KiB\n"


def test_no_such_events(tmp_path, capsys):
  path = recorded(tmp_path, "control")
  assert command_line.main(["events", str(path), "--type=culled"]) == 0
  assert capsys.readouterr() == ("", f"{path}: no such events\n")


def test_one_run_to_a_file(tmp_path, capsys):
  path, to = recorded(tmp_path), tmp_path / "elsewhere.html"
  assert command_line.main(["report", str(path), f"--to={to}"]) == 0
  assert to.read_text().startswith("<!doctype html>")
  assert capsys.readouterr().out.startswith(f"{to}: ")
  assert not (path / "report.html").exists()


def test_several_runs(tmp_path, monkeypatch, capsys):
  paths = [str(recorded(tmp_path, name)) for name in ("grown", "control")]
  monkeypatch.chdir(tmp_path)
  assert command_line.main(["report", *paths]) == 0
  assert capsys.readouterr().out.startswith("comparison.html: ")
  assert "Comparison of 2 runs" in Path("comparison.html").read_text()
  assert command_line.main(["report", *paths, "--to=b.html"]) == 0
  assert Path("b.html").exists()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments, capsys):
  assert command_line.main(arguments) == 0
  out = capsys.readouterr().out
  assert "nissa report\n      writes one HTML page about a run" in out
  assert all(len(line) <= 80 for line in out.splitlines())


def test_help_of_a_command(capsys):
  with pytest.raises(SystemExit) as done:
    command_line.main(["report", "--help"])
  assert done.value.code == 0
  assert "RUN/report.html" in capsys.readouterr().out


def test_the_module(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["nissa", "--help"])
  with pytest.raises(SystemExit) as caught:
    runpy.run_module("esper_jax.nissa", run_name="__main__")
  assert caught.value.code == 0
  assert capsys.readouterr().out.startswith("Shows what happened in runs.")
  assert "main" not in runpy.run_module("esper_jax.nissa.__main__")


def test_bad_input(tmp_path, capsys):
  says = refused(capsys, "raport")
  assert "raport: no such command; the nearest is report" in says
  assert "required: RUN" in refused(capsys, "report")
  assert "--too" in refused(capsys, "report", "a", "--too=b")
  says = refused(capsys, "report", str(tmp_path / "nowhere"))
  assert "nowhere is not a run directory" in says
  says = refused(capsys, "report", str(tmp_path))
  assert "it has no config.json of a run; give the --workdir of a run" in says
  a = str(write(tmp_path / "a"))
  for command in ("report", "events"):  # those that are there are named
    says = refused(capsys, command, str(tmp_path / "nowhere"))
    assert says.endswith(f"; there are {a}\n")
  says = refused(capsys, "report", a, a)
  assert "the same run is given twice" in says
  (tmp_path / "a" / "metrics.jsonl").write_text("x\n")
  says = refused(capsys, "report", a)
  assert "metrics.jsonl, line 1: not a JSON object" in says


@pytest.mark.parametrize("to", ["no/such/folder.html", "a"])
def test_a_file_that_cannot_be_written(tmp_path, monkeypatch, capsys, to):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "a")
  says = refused(capsys, "report", "a", f"--to={to}")
  assert f"cannot write {to}: " in says
  assert says.endswith("; give another file with --to=FILE\n")
  assert sorted(os.listdir(tmp_path)) == ["a"]
