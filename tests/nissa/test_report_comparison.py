"""The page that puts several runs side by side."""

import json

import pytest

from esper_jax.nissa.report import record, writing
from esper_jax.nissa.table import result_rows
from esper_jax.types import InputError
from tests.nissa.run_files import Page, event, line, recorded, write


def compared(folder, *runs):
  to = folder / "out" / "comparison.html"
  to.parent.mkdir(exist_ok=True)
  writing.write_comparison(runs, to)
  return Page(to.read_text())


def test_the_recorded_run_and_its_control(tmp_path):
  paths = [recorded(tmp_path, name) for name in ("grown", "control")]
  page = compared(tmp_path, *paths)
  results = {
    path.name: json.loads((path / "result.json").read_text()) for path in paths
  }
  rows = page.tables["What result.json holds, or so far will"]
  assert rows[0] == ["", "grown", "control"]
  assert rows[1:] == [list(row) for row in result_rows(results)]
  assert page.tables["Keys of the config that are not equal"] == [
    ["key", "grown", "control"],
    ["tamiyo.policy", "heuristic", "never"],
  ]
  assert page.texts["p"][1].startswith(
    "grown has the highest validation accuracy, 96.75 %; control follows with"
    " 96.06 %, 0.70 points behind."
  )
  assert page.texts["span"][0] == "2 completed"
  assert "not on the same data" not in "".join(page.texts["p"])


def test_curves_of_all_runs_share_a_chart(tmp_path):
  paths = [recorded(tmp_path, name) for name in ("grown", "control")]
  page = compared(tmp_path, *paths)
  told = [json.loads(text) for text in page.texts["script"][:-1]]
  assert len(told) == 4
  for name, path in zip(("grown", "control"), paths, strict=True):
    run = record.read(path)
    (curve,) = [c for c in told[2]["curves"] if c["name"] == name]
    expected = zip(
      run.series("flops/total"), run.series("val/accuracy"), strict=True
    )
    found = [tuple(point) for point in curve["points"]]
    assert found == [pytest.approx(point, rel=1e-5) for point in expected]


def test_it_links_to_reports_that_are_there(tmp_path):
  paths = [recorded(tmp_path, name) for name in ("grown", "control")]
  (paths[0] / "report.html").write_text("")
  page = compared(tmp_path, *paths)
  links = [link for link in page.links if not link.startswith("#")]
  assert links == ["../grown/report.html"]
  assert (tmp_path / "out" / links[0]).resolve().exists()
  assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)


def test_a_run_that_goes_on_is_compared_as_far_as_it_is_known(tmp_path):
  started = [event("run_started", 0)]
  paths = [
    recorded(tmp_path, "control"),
    write(tmp_path / "a", lines=[line(1), line(2)], events=started),
    write(tmp_path / "b"),
  ]
  page = compared(tmp_path, *paths)
  rows = page.tables["What result.json holds, or so far will"]
  cells = {row[0]: row[1:] for row in rows}
  assert cells["validation accuracy at the end"] == ["96.06 %", "75.00 %", "-"]
  assert cells["parameters at the start"] == ["880", "100", "-"]
  assert cells["seconds"] == ["2.8", "2.5", "-"]
  assert cells["ablations and probes / training"] == ["0.00 %", "-", "-"]
  assert cells["slot1_1"] == ["dormant", "-", "-"]
  assert page.elements[0][1]["data-reload"] == "yes"
  assert page.texts["span"][0] == "1 completed, 2 running"


def test_runs_with_one_config_and_no_accuracy_yet(tmp_path):
  paths = [write(tmp_path / name) for name in "ab"]
  page = compared(tmp_path, *paths)
  assert "Nowhere: all keys are equal." in page.texts["p"]
  assert "There are no two runs with an accuracy yet." in page.texts["p"]


def test_other_data_gets_a_warning(tmp_path):
  paths = [recorded(tmp_path, name) for name in ("grown", "control")]
  config = paths[1] / "config.json"
  document = json.loads(config.read_text())
  config.write_text(json.dumps({**document, "data_sha256": "00"}))
  page = compared(tmp_path, *paths)
  assert any("not on the same data" in text for text in page.texts["p"])


def test_runs_of_one_name_are_told_apart(tmp_path):
  paths = [write(tmp_path / parent / "run") for parent in "ab"]
  page = compared(tmp_path, *paths)
  rows = page.tables["What result.json holds, or so far will"]
  assert rows[0] == ["", *map(str, paths)]


def test_a_run_cannot_be_compared_with_itself(tmp_path):
  path = write(tmp_path / "a")
  with pytest.raises(InputError, match="the same run is given twice"):
    writing.write_comparison([path, tmp_path / "." / "a"], tmp_path / "x.html")
  assert not (tmp_path / "x.html").exists()
