"""The parser that says one line, and the exit codes of the commands."""

import subprocess
import sys

import pytest

from esper_jax import commands
from esper_jax.types import InputError, RunFailedError


def raising(error):
  def main(argv):
    raise error

  return main


def test_a_parser_says_what_is_wrong_in_one_line():
  parser = commands.Parser(hint="; --help shows how")
  parser.add_argument("--to", required=True)
  with pytest.raises(InputError, match="required: --to; --help shows how$"):
    parser.parse_args([])


def test_a_command_of_a_parser_does_so_too():
  parser = commands.Parser()
  parser.add_subparsers().add_parser("go").add_argument("--times", type=int)
  with pytest.raises(InputError, match="invalid int value: 'few'$"):
    parser.parse_args(["go", "--times=few"])


def test_a_flag_is_not_shortened():
  parser = commands.Parser()
  parser.add_subparsers().add_parser("go").add_argument("--times")
  with pytest.raises(InputError, match="unrecognized arguments: --time=1"):
    parser.parse_args(["go", "--time=1"])


def test_help_is_no_error(capsys):
  with pytest.raises(SystemExit) as caught:
    commands.run(commands.Parser().parse_args, ["--help"])
  assert caught.value.code == 0
  assert capsys.readouterr().out.startswith("usage: ")


def test_the_code_is_that_of_the_command(monkeypatch):
  assert commands.run(len, ("a", "b", "c")) == 3
  assert commands.run(len, ()) == 0
  monkeypatch.setattr(sys, "argv", ["program", "a"])
  assert commands.run(len) == 1


@pytest.mark.parametrize(
  ("error", "code", "line"),
  [
    (InputError("no such file"), commands.BAD_INPUT, "error: no such file\n"),
    (RunFailedError("disk full"), commands.FAILED, "failed: disk full\n"),
  ],
)
def test_an_error_is_one_line_and_a_code(error, code, line, capsys):
  assert commands.run(raising(error), []) == code
  assert capsys.readouterr() == ("", line)


def test_a_bug_keeps_its_traceback():
  with pytest.raises(ValueError, match="a bug"):
    commands.run(raising(ValueError("a bug")), [])


def test_a_reader_that_has_seen_enough_is_no_error():
  script = """
import sys
from esper_jax import commands
sys.stdin.read()  # until the reader is gone
sys.exit(commands.run(lambda argv: print("x", flush=True)))
"""
  process = subprocess.Popen(
    [sys.executable, "-c", script],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  process.stdout.close()
  _, error = process.communicate(b"")
  assert (process.returncode, error) == (0, b"")


def test_what_is_printed_can_be_pasted(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert (commands.python(), commands.pip()) == ("python", "pip")
  own = tmp_path / ".venv" / "bin" / "python"
  own.parent.mkdir(parents=True)
  own.touch()
  monkeypatch.setattr(sys, "executable", str(own))
  assert commands.python() == ".venv/bin/python"
  assert commands.pip() == ".venv/bin/python -m pip"
  own.with_name("pip").touch()
  assert commands.pip() == ".venv/bin/pip"
  gone = tmp_path / "gone"
  gone.mkdir()
  monkeypatch.chdir(gone)
  gone.rmdir()
  assert commands.python() == "python"
