"""The table at the end of a run."""

import pytest

from esper_jax.nissa import table


def made(**changes):
  """What result.json holds, as far as the table reads it."""
  return {
    "val_accuracy_before_growth": 0.9,
    "val_accuracy": 0.95,
    "test_accuracy": 0.94,
    "params_initial": 1234,
    "params_final": 5678901,
    "train_flops": 2.5e12,
    "total_flops": 3e12,
    "measurement_share": 0.05,
    "measure_budget": 0.05,
    "wall_seconds": 61.23,
    "compilation": {"blocking_seconds": 4.0},
    "germinated": 3,
    "fossilized": 1,
    "culled": 2,
    "slots": {},
    "seeds": [],
    **changes,
  }


def slot(stage="DORMANT", contribution=None, culled=0):
  return {"stage": stage, "contribution": contribution, "culled": culled}


def test_figures_of_one_run():
  lines = table.result_table({"run": made()}).splitlines()
  assert lines[0].split() == ["run"]
  assert set(lines[1]) == {"-"}
  assert len(lines[1]) == max(map(len, lines))
  assert all(line == line.rstrip() for line in lines)
  text = [" ".join(line.split()) for line in lines[2:]]
  assert text == [
    "validation accuracy before growth 90.00 %",
    "validation accuracy at the end 95.00 %",
    "test accuracy (read once) 94.00 %",
    "parameters at the start 1,234",
    "parameters at the end 5,678,901",
    "training FLOPs 2.5 T",
    "all FLOPs 3 T",
    "ablations and probes / training 5.00 %",
    "seconds 61.2",
    "of them compiling 4.0",
    "germinated / fossilized / culled 3 / 1 / 2",
  ]


def test_metrics_of_ones_own_come_after_the_accuracies():
  own = {"validation": {"top2": 0.98765, "f1": 0.5}, "test": {"top2": 0.5}}
  rows = table.result_rows({"a": made(metrics=own), "b": made()})
  assert rows[2][0] == "test accuracy (read once)"
  assert rows[3:6] == [
    ("validation top2 at the end", "0.9877", "-"),
    ("validation f1 at the end", "0.5", "-"),
    ("test top2 (read once)", "0.5", "-"),
  ]


def test_what_grew_in_the_run_before_is_said():
  slots = {"slot1": slot(), "slot2": slot()}
  before = {"slot1": ["dense", "conv3x3"]}
  rows = table.result_rows({"run": made(slots=slots, grown_before=before)})
  assert rows[-2:] == [
    ("slot1", "dormant, after dense and conv3x3 of the run before"),
    ("slot2", "dormant"),
  ]


def test_columns_are_aligned_and_slots_follow_the_figures():
  grown = made(
    slots={
      "slot1": slot("FOSSILIZED", 0.01234),
      "slot2": slot("EMBARGOED", culled=2),
      "slot1#2": slot("DORMANT"),
    },
    seeds=[
      {"slot": "slot1", "key": "dense"},
      {"slot": "slot1", "key": "dense_2"},
    ],
  )
  control = made(slots={"slot3": slot()}, val_accuracy=None)
  text = table.result_table({"grown": grown, "never grown": control})
  lines = text.splitlines()
  ends = {len(line) for line in (lines[0], *lines[2:])}
  assert len(ends) == 1  # the last column is right-aligned
  found = {line.split()[0]: line.split()[1:] for line in lines[-4:]}
  assert list(found) == ["slot1", "slot2", "slot1#2", "slot3"]
  assert " ".join(found["slot1"]) == (
    "dense, dense_2 fossilized (last measured +0.0123 nats) -"
  )
  assert found["slot2"] == ["embargoed,", "2", "culled", "-"]
  assert found["slot1#2"] == ["dormant", "-"]
  assert found["slot3"] == ["-", "dormant"]
  end = next(line for line in lines if "at the end" in line)
  assert end.split()[-3:] == ["95.00", "%", "-"]


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (None, "-"),
    (0, "0"),
    (999_999, "999,999"),
    (1e6, "1 M"),
    (12_345_678, "12.3 M"),
    (1e9, "1 G"),
    (4.56e12, "4.56 T"),
    (7.8e15, "7.8 P"),
    (1e19, "1e+04 P"),
  ],
)
def test_large_counts_get_a_unit(value, text):
  assert table.engineering(value) == text


def test_accuracies_are_in_per_cent():
  assert table.percent(None) == "-"
  assert table.percent(1 / 3) == "33.33 %"


def test_a_run_says_where_it_measured_more_than_its_budget():
  text = table.result_table({"run": made(measurement_share=0.114)})
  assert "11.40 % (over 5 %: a small run)" in text
  assert "over" not in table.result_table({"run": made()})
