"""The notebooks run, each in a kernel of its own, as a reader runs them."""

import resource
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.nissa.run_files import recorded

ROOT = Path(__file__).parents[2]
LIMIT = 180.0  # seconds of CPU


@pytest.fixture(autouse=True)
def _this_checkout(monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))


def load(name: str) -> dict:
  """A notebook as it stands in the repository."""
  return nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)


def execute(notebook: dict, folder: Path) -> tuple[dict[str, str], int]:
  """Runs all cells; the first that raises is the test's error.

  Returns:
    Cell id -> what it printed; and how many figures there are.
  """
  before = _cpu_seconds()
  # pytest's own limit ends a cell that does not.
  client = NotebookClient(notebook, timeout=None, kernel_name="python3")
  client.execute(cwd=str(folder))
  assert _cpu_seconds() - before < LIMIT
  printed, figures = {}, 0
  for cell in notebook["cells"]:
    for output in cell.get("outputs", ()):
      if output["output_type"] == "stream":
        assert output["name"] == "stdout", output["text"]
        printed[cell["id"]] = printed.get(cell["id"], "") + output["text"]
      else:
        figures += "image/png" in output["data"]
  return printed, figures


def _cpu_seconds() -> float:
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


@pytest.mark.full
def test_quickstart(tmp_path):
  printed, figures = execute(load("quickstart"), tmp_path)
  assert "early  germinated" in printed["events"]
  assert "never grown     754 parameters" in printed["control"]
  assert printed["predict"].startswith("predicted [0 1 2 3")
  assert figures == 2
  (report,) = tmp_path.glob(f"{printed['report'].strip()}/report.html")
  assert report.stat().st_size > 0


@pytest.mark.full
def test_own_model(tmp_path):
  printed, figures = execute(load("own_model"), tmp_path)
  *seeds, difference = printed["inside"].splitlines()
  assert seeds[0].startswith("middle wide {")
  assert float(difference) < 1e-5
  assert figures == 2


@pytest.mark.full
def test_read_a_run(tmp_path):
  printed, figures = execute(load("read_a_run"), tmp_path)
  assert "germinate\n" in printed["when"]
  assert "fate fossilized" in printed["table"]
  assert "test accuracy" in printed["result"]
  assert figures == 3


def test_read_a_run_takes_a_run_of_yours(tmp_path):
  before = {p: p.read_bytes() for p in recorded(tmp_path).iterdir()}
  notebook = load("read_a_run")
  (cell,) = (c for c in notebook["cells"] if c["id"] == "choose")
  cell["source"] = 'RUN = "grown"'
  printed, figures = execute(notebook, tmp_path)
  assert printed["run"] == "grown\n"
  assert "slot3_1: fossilize" in printed["when"]
  assert printed["table"].count("fate culled") == 3
  assert printed["result"].count("% of the FLOPs") == 4
  assert figures == 3
  assert "report.html" in printed["report"]
  assert {p: p.read_bytes() for p in (tmp_path / "grown").iterdir()} == before
