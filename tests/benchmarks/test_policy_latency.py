"""The benchmark of decisions, with three slots."""

import json

import numpy as np
import pytest

from benchmarks import policy_latency


@pytest.mark.full
def test_what_a_decision_takes(tmp_path, capsys):
  path = tmp_path / "figures.json"
  sizes = ["--slots=3", "--blueprints=2", "--repeats=4"]
  figures = policy_latency.main([*sizes, f"--json={path}"])
  assert len(figures["decision"]) == len(figures["process"]) == 4
  assert figures["met"] == (
    np.median(figures["decision"]) < policy_latency.TARGET
  )
  assert 20_000 < figures["parameters"] < 100_000
  assert "3 slots x 2 blueprints" in capsys.readouterr().out
  assert json.loads(path.read_text())["benchmark"] == "policy_latency"
