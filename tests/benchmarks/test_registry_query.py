"""The registry's benchmark asks what it says it asks."""

import json
import os

import numpy as np

from benchmarks import registry_query


def test_it_times_a_registry_of_each_size(tmp_path, capsys):
  before = os.environ.get("XDG_CACHE_HOME")
  file = tmp_path / "figures.json"
  figures = registry_query.main(
    ["--entries=60", "--repeats=1", f"--json={file}"]
  )
  assert os.environ.get("XDG_CACHE_HOME") == before
  assert figures["entries"] == 60
  # Numbers 9 to 11 and 39 to 41 are of kernel_3; 10 and 40 are for sm_80, and
  # each tenth one has a time.
  assert figures["found"] == 2
  for name in ("query", "query_all", "after_a_write", "find", "load"):
    assert len(figures[name]) == 1 and figures[name][0] > 0
  medians = [np.median(figures[n]) for n in ("query", "after_a_write")]
  assert figures["met"] == (max(medians) < registry_query.TARGET)
  written = json.loads(file.read_text())
  assert written["benchmark"] == "registry_query"
  assert written["query"] == figures["query"]
  assert "60 artefacts" in capsys.readouterr().out


def test_its_question_selects_by_time_as_well(tmp_path):
  registry = registry_query.open_it(str(tmp_path))
  registry_query.fill(registry, range(100, 101))  # kernel_3, sm_80, 10 us
  (found,) = registry_query.ask(registry)
  assert (found.kernel, found.target, found.latency_us) == ("kernel_3", 80, 10)
