"""The commands of Simic: bad input, and the shortest whole run.

ESPER_TEST_FULL=1 trains and compares a policy.
"""

import json
import os
from pathlib import Path

import pytest

from esper_jax import commands
from esper_jax.simic import command_line
from esper_jax.simic.publishing import POLICY
from esper_jax.tamiyo import policy_file

FULL = os.environ.get("ESPER_TEST_FULL") == "1"
CONFIG = str(Path(__file__).parents[2] / "configs" / "simic_digits.py")


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    ((), "required: COMMAND"),
    (("learn",), "invalid choice: 'learn'"),
    (("train",), "required: --config"),
    (("train", "--config=none.py"), "none.py: no such file"),
    (("train", f"--config={CONFIG}", "--fast"), "--fast: no such flag"),
    (("train", f"--config={CONFIG}:tiny"), "no such profile: tiny"),
    (
      ("train", f"--config={CONFIG}", "--config.ppo.clop=1"),
      "the nearest is --config.ppo.clip",
    ),
    (
      ("train", f"--config={CONFIG}", "--publish=a b"),
      "'a b' cannot be a name",
    ),
    (("evaluate", "--policy=x", "--envs=1"), "--envs=1: must be 2 or more"),
    (("evaluate", "--policy=x", "--envs=few"), "invalid int value: 'few'"),
    (("evaluate", "--policy=no/such"), "no/such: no such policy file"),
    (("evaluate", "--policy=nobody"), "Urza keeps no policy so named"),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(
  argv, says, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))  # of the user's registry
  assert command_line.main(argv) == commands.BAD_INPUT
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert says in error
  assert error.count("\n") == 1
  assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not FULL, reason="compiles for minutes")
def test_a_policy_is_trained_published_and_compared(capsys, tmp_path):
  run, store = tmp_path / "run", tmp_path / "store"
  train = (
    "train",
    f"--config={CONFIG}:smoke",
    f"--workdir={run}",
    f"--dir={store}",
    "--publish=small",
  )
  assert command_line.main(train) == commands.OK
  said = capsys.readouterr().out
  assert "held out: return" in said
  result = json.loads((run / "result.json").read_text())
  assert result["status"] == "completed"
  assert result["iterations"] == 4
  assert (run / POLICY).stat().st_size < 1 << 20
  compare = (
    "evaluate",
    "--policy=small",
    f"--dir={store}",
    "--envs=4",
    "--json",
  )
  assert command_line.main(compare) == commands.OK
  figures = json.loads(capsys.readouterr().out)
  assert (figures["environments"], figures["seed"]) == (4, 1000)
  assert figures["policy_sha256"] == policy_file.load(run / POLICY).sha256
  assert set(figures["policies"]) == {
    "learned",
    "never",
    "periodic",
    "random",
    "heuristic",
  }
  assert figures["policies"]["never"]["earned"] == 0.0
