"""What the documents say of the shipped policy is what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks import simic_learning
from esper_jax.simic.evaluation import POLICIES
from esper_jax.tamiyo import policy_file
from esper_jax.tamiyo.policy_file import SHIPPED

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "results" / "simic_digits"
FIGURES, BEFORE = (
  json.loads((FOLDER / name).read_text())
  for name in ("evaluate.json", "evaluate_2000.json")
)
PAGE = (ROOT / "docs" / "simic.md").read_text()


def _interval(figures):
  mean, low, high = (100 * figures[k] for k in ("mean", "low", "high"))
  return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


@pytest.mark.parametrize("name", POLICIES)
def test_the_table_of_policies(name):
  (row,) = (x for x in PAGE.splitlines() if x.startswith(f"| `{name}` |"))
  cells = [cell.strip() for cell in row.strip("|").split("|")]
  figures = FIGURES["policies"][name]
  assert cells[1] == f"{100 * figures['earned']:+.2f}"
  assert cells[2] == f"{100 * figures['accuracy']:.2f} %"
  assert cells[3] == f"{figures['parameters']:,.0f}"
  less = figures.get("learned_less_this")
  if less:
    assert cells[-2:] == [
      _interval(less["earned"]),
      _interval(less["accuracy"]),
    ]


def test_the_shipped_policy_is_not_worse_than_the_heuristic():
  less = FIGURES["policies"]["heuristic"]["learned_less_this"]
  assert less["accuracy_at_least"] > -0.002
  assert FIGURES["policies"]["learned"]["fossilized_share"] >= 0.3
  said = f"In {FIGURES['environments']:,} environments"
  assert said in " ".join(PAGE.split())


@pytest.mark.parametrize("figures", [FIGURES, BEFORE])
def test_the_page_has_what_evaluate_gave_of_the_shipped_policy(figures):
  assert figures["policy_sha256"] == policy_file.load(SHIPPED).sha256
  assert f"--seed={figures['seed']}" in PAGE
  less = figures["policies"]["heuristic"]["learned_less_this"]
  assert _interval(less["earned"]) in " ".join(PAGE.split())


def test_the_figures_are_those_of_the_training_run():
  tests = simic_learning.read(FOLDER / "metrics.jsonl")
  assert simic_learning.learning(tests) == (FOLDER / "learning.svg").read_text()
  assert (
    simic_learning.decisions(tests) == (FOLDER / "decisions.svg").read_text()
  )
