"""The benchmarks of compiling and of idle slots run in their smallest form."""

import json
import math

import pytest

from benchmarks import _common, dormant_overhead, program_cost, startup
from esper_jax.tamiyo import policy as policies
from esper_jax.types import RunFailedError

TINY = (
  "--config.data.train_limit=128",
  "--config.host.name=mlp",
  "--config.host.width=4",
  "--config.host.inner_widths=()",
  "--config.kasmina.blueprints=dense",
)


def read(path):
  document = json.loads(path.read_text())
  assert document["jax"] and document["device"] and document["cores"] >= 1
  return document


def check_ratio(ratio, n):
  assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
  assert ratio["n"] == n


def test_dormant_overhead_of_the_program(tmp_path, capsys):
  path = tmp_path / "out.json"
  flags = ["--parts", "program", "--slots=2", "--rounds=2"]
  dormant_overhead.main([*flags, "--repeats=2", f"--json={path}"])
  document = read(path)
  assert document["benchmark"] == "dormant_overhead"
  program = document["program"]
  assert list(program["rows"]) == ["0", "control", "2"]
  for name, row in program["rows"].items():
    assert row["step_ms"] > 0 and len(program["seconds"][name]) == 4
    assert row["ratio"]["mean"] == pytest.approx(
      sum(program["ratios"][name]) / 2
    )
    assert row["ratio"]["n"] == 2
  assert program["rows"]["0"]["ratio"]["high"] == 1
  assert isinstance(program["met"], bool)
  assert "one program for all numbers of slots" in capsys.readouterr().out


def test_a_program_that_differs_fails():
  dormant_overhead.require_equal({0: "module", 1: "module"})
  with pytest.raises(SystemExit, match="FAILED: .* with 3 dormant slots"):
    dormant_overhead.require_equal({0: "module", 1: "module", 3: "other"})


# JAX writes an entry of its cache on disk in place: whoever compiles the same
# program at that moment may find half of it, says so, and compiles.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_dormant_overhead_of_the_system(tmp_path, capsys):
  path = tmp_path / "out.json"
  flags = ["--parts", "system", "--shape=digits", "--epochs=2"]
  dormant_overhead.main([*flags, f"--json={path}", *TINY])
  rows = read(path)["system"]["rows"]
  assert [row["slots"] for row in rows.values()] == [0, 2, 2]
  for row in rows.values():
    assert row["epoch_seconds"] > 0 and row["germinated"] == 0
    check_ratio(row["ratio"], 2)
  assert rows["none"]["probe_share"] == rows["dormant"]["probe_share"] == 0
  assert rows["probed"]["probe_share"] > 0
  assert dormant_overhead.WATCH not in policies.names()
  assert "dormant / none" in capsys.readouterr().out


@pytest.mark.full
def test_startup(tmp_path, capsys):
  path = tmp_path / "out.json"
  flags = ["--shapes", "digits", "--repeats=1", f"--json={path}", *TINY]
  startup.main(flags)
  document = read(path)
  assert 0 < document["help"]["median"] < 30
  starts = document["digits"]["starts"]
  (cold,), (warm,) = starts["cold"], starts["warm"]
  assert cold["from_disk"] == 0 < warm["from_disk"] <= 1
  for row in (cold, warm):
    phases = [v for k, v in row.items() if k not in ("total", "from_disk")]
    assert len(phases) == 10 and min(phases) >= 0
    assert sum(phases) == pytest.approx(row["total"])
  for phase in ("total", "compile"):
    ratio = warm[phase] / cold[phase]
    assert document["digits"][phase]["ratio"] == pytest.approx(ratio)
  out = capsys.readouterr().out
  assert "no JAX" in out and "total: warm / cold" in out


def test_a_start_that_fails_is_told():
  with pytest.raises(RunFailedError, match="no such word"):
    startup.run(["-c", "raise SystemExit('no such word')"])


def test_program_cost(tmp_path, capsys):
  path = tmp_path / "out.json"
  flags = ["--shape=digits", "--seeds", "1", "4", "--rounds=2", "--steps=1"]
  program_cost.main([*flags, f"--json={path}", *TINY])
  document = read(path)
  assert document["traces"] == 3 and document["traces_after_culls"] == 0
  rows = list(document["rows"].values())
  assert list(document["rows"]) == ["0", "1", "4"]
  for less, more in zip(rows, rows[1:], strict=False):
    assert less["flops"] < more["flops"]
    assert less["parameters"] < more["parameters"]
  for row in rows:
    assert row["flops_ratio"] == row["flops"] / rows[0]["flops"]
    check_ratio(row["ratio"], 2)
  assert "3 traces for 3 topologies" in capsys.readouterr().out


def test_the_ratio_is_that_of_the_pairs():
  below = [1.0, 2.0, 4.0, 8.0, 16.0]
  same = _common.paired_ratio([1.5 * b for b in below], below)
  assert same == (1.5, 1.5, 1.5, 5)
  spread = _common.paired_ratio([1.0, 2.2, 3.6, 8.8, 8.0], below)
  assert spread.median == 1.0
  assert 0.5 <= spread.low < 1.0 < spread.high <= 1.1


def test_blocks_take_turns():
  order = []

  def block(name):
    def run():
      order.append(name)
      return float(len(order))

    return run

  seconds = _common.interleaved({n: block(n) for n in "abc"}, 6)
  rounds = ["".join(order[n : n + 3]) for n in range(0, 18, 3)]
  assert rounds == ["abc", "cba", "bca", "acb", "cab", "bac"]
  assert math.fsum(sum(seconds.values(), [])) == 18 * 19 / 2
  assert {len(values) for values in seconds.values()} == {6}
