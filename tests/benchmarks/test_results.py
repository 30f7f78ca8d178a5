"""What is committed as a result follows from the rows committed with it."""

from pathlib import Path

import pytest

from benchmarks.evidence import report

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOLDERS = sorted(
  path.parent for path in BENCHMARKS.glob("results/*/rows.jsonl")
)
CLAIMS = "## Claims made beforehand\n\n"


def test_there_are_results():
  assert FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_rows_give_the_report_again(folder, tmp_path):
  report.write(folder / "rows.jsonl", tmp_path)
  made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.*"))
  kept = sorted(p.relative_to(folder) for p in folder.rglob("*.*"))
  assert made == kept
  for name in made:
    assert (tmp_path / name).read_text() == (folder / name).read_text(), name


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_summary_quotes_every_verdict_of_the_report(folder):
  summary = (BENCHMARKS / "RESULTS.md").read_text()
  text = (folder / "report.md").read_text()
  verdicts = text.split(CLAIMS)[1].split("\n\n")[0].splitlines()
  assert verdicts
  for line in verdicts:
    assert line in summary
