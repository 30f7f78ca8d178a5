"""The commands `events` and `tail`: what they print, and their exit codes."""

import json
import runpy
import signal
import subprocess
import sys

import pytest

from esper_jax.nissa import command_line
from esper_jax.oona import jsonl


@pytest.fixture
def run(written):
  written.event("run_started", 0, policy="never")
  written.event("germinated", 1, slot="slot2", blueprint="dense")
  written.event("culled", 12, slot="slot2", reason="no gain")
  written.event("germinated", 13, slot="block_1/slot", blueprint="norm")
  written.epoch(1)
  return written.path


def told(capsys, *argv):
  assert command_line.main([str(text) for text in argv]) == 0
  out, err = capsys.readouterr()
  assert err == ""
  return out.splitlines()


def test_events_are_a_line_each(run, capsys):
  assert told(capsys, "events", run) == [
    "epoch   0  step      0  run started (policy never)",
    "epoch   1  step     10  slot2: germinated (blueprint dense)",
    "epoch  12  step    120  slot2: culled -- no gain",
    "epoch  13  step    130  block_1/slot: germinated (blueprint norm)",
  ]


def test_events_by_type_and_slot(run, capsys):
  lines = told(capsys, "events", run, "--type=culled,run_started")
  assert [line.split("  ")[-1] for line in lines] == [
    "run started (policy never)",
    "slot2: culled -- no gain",
  ]
  lines = told(capsys, "events", run, "--type=germinated", "--slot=slot2")
  assert len(lines) == 1
  assert len(told(capsys, "events", run, "--slot=slot2,block_1/slot")) == 3


def test_events_as_json_are_the_lines_of_the_log(run, capsys):
  lines = told(capsys, "events", run, "--json", "--slot=slot2")
  log = jsonl.read(run / "events.jsonl")
  assert [json.loads(line) for line in lines] == log[1:3]


@pytest.mark.parametrize(
  ("state", "code"),
  [("completed", 0), ("interrupted", 0), ("failed", 1), ("stopped", 1)],
)
def test_tail_ends_as_the_run_did(run, capsys, state, code):
  document = {"state": state, "heartbeat": 1e12, "epochs": 3}
  (run / "status.json").write_text(json.dumps(document))
  assert command_line.main(["tail", str(run)]) == code
  out = capsys.readouterr().out
  assert "slot2: germinated (blueprint dense)\n" in out
  assert "epoch   1/3" in out


def test_tail_of_a_run_that_was_killed_fails(run, capsys):
  assert command_line.main(["tail", str(run)]) == 1
  assert "no sign of life since" in capsys.readouterr().out


def test_ctrl_c_ends_a_tail_quietly(tmp_path):
  # A shell's background job ignores Ctrl-C, and so does what it starts.
  code = (
    "import signal, sys;"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from esper_jax.nissa import command_line;"
    "sys.exit(command_line.main(sys.argv[1:]))"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code, "tail", str(tmp_path)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  with process:
    try:
      waiting = process.stdout.readline()
      assert waiting == f"waiting for the first events in {tmp_path}\n"
      process.send_signal(signal.SIGINT)
      assert process.communicate(timeout=60) == ("", "")
      assert process.returncode == 130
    finally:
      process.kill()


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["tails"], "tails: no such command; the nearest is tail; there are "),
    (["events"], "the following arguments are required: RUN; --help shows how"),
    (["events", "absent"], "absent: no such folder; give the run's --workdir"),
    (["events", "RUN", "--type=bloom"], "'bloom' is no type of events; valid"),
    (["events", "RUN", "--type="], "'' is no type of events; valid: run_st"),
    (["events", "RUN", "--slot=slot3"], "'slot3' is no slot of "),
    (["tail", "RUN", "--json"], "unrecognized arguments: --json"),
  ],
)
def test_bad_input_is_one_line(run, capsys, argv, says):
  argv = [str(run) if text == "RUN" else text for text in argv]
  assert command_line.main(argv) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1
  assert err.startswith("error: ") and says in err


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_lists_the_commands(argv, capsys):
  assert command_line.main(argv) == 0
  out = capsys.readouterr().out
  assert "esper_jax.nissa events\n      lists the events" in out
  assert "esper_jax.nissa tail\n      follows a run until it ends" in out


def test_nothing_that_is_slow_is_needed():
  code = (
    "import sys, esper_jax.nissa.command_line;"
    "sys.exit(bool({'jax', 'numpy', 'ml_collections'} & {*sys.modules}))"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_module_runs(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["nissa", "tail", "--help"])
  with pytest.raises(SystemExit) as caught:
    runpy.run_module("esper_jax.nissa", run_name="__main__")
  assert caught.value.code == 0
  assert "follows a run until it ends" in capsys.readouterr().out
  assert "main" not in runpy.run_module("esper_jax.nissa.__main__")
