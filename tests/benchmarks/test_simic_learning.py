"""What a training run's metrics say about learning and collapse."""

import json

from benchmarks import simic_learning
from esper_jax.oona import jsonl


def line(iteration, **held_out):
  plain = {"iteration": iteration, "phase": "ppo", "return": 0.0}
  return plain | {f"held_out/{k}": v for k, v in held_out.items()}


def write(path, tests):
  path.write_bytes(b"".join(map(jsonl.encode, tests)))


def test_the_table_and_the_figures(tmp_path, capsys):
  every = dict.fromkeys(("germinated", "fossilized", "culled"), 1.5)
  for move in ("germinate", "advance", "cull", "fossilize"):
    every[f"{move}_share"] = 0.25
  lines = [line(0)]
  lines += [
    line(n, **{"return": n / 1000, "gain": n / 500} | every)
    for n in range(1, 31)
  ]
  path = tmp_path / "metrics.jsonl"
  write(path, lines)
  assert simic_learning.main([str(path), f"--to={tmp_path / 'out'}"]) == 0
  head, _, *rows = capsys.readouterr().out.splitlines()
  assert head.startswith("| iteration | phase | return | gain | germinated |")
  assert len(rows) <= 13
  assert rows[-1] == (
    "| 30 | ppo | +3.00 | +6.00 | 1.50 | 1.50 | 1.50 | 25 % | 25 % | 25 % |"
    " 25 % |"
  )
  for name, words in (("learning", "gain"), ("decisions", "fossilize")):
    text = (tmp_path / "out" / f"{name}.svg").read_text()
    assert text.startswith("<svg") and words in text and "nan" not in text
  out = tmp_path / "tests.json"
  assert simic_learning.main([str(path), f"--json={out}"]) == 0
  tests = json.loads(out.read_text())
  assert [test["iteration"] for test in tests] == list(range(1, 31))


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys):
  path = tmp_path / "metrics.jsonl"
  assert simic_learning.main([str(path)]) == 2
  assert capsys.readouterr().err.startswith(f"error: {path}: no such file")
  write(path, [line(1)])
  assert simic_learning.main([str(path)]) == 2
  assert "holds no test yet" in capsys.readouterr().err
