"""On a CPU a run is a function of its config and seed."""

import pytest


def test_the_run_does_what_these_tests_need(whole):
  r = whole.result
  assert (r["status"], r["epochs"], r["steps"]) == ("completed", 12, 180)
  assert (r["germinated"], r["fossilized"], r["culled"]) == (3, 2, 1)
  names = [e["type"] for e in whole.events()]
  for name in ("germinated", "stage_changed", "culled", "fossilized"):
    assert name in names
  groups = {k.split("/")[2] for k in whole.state() if "/optimizer/" in k}
  assert len(whole.state()) > 40
  assert groups == {"host", "slot1", "slot2"}


def test_two_runs_are_equal_bit_for_bit(lab, whole, same):
  # The first compiled its programs, the second read them from a cache.
  same(lab.run("again"), whole)


@pytest.mark.full
def test_another_seed_is_another_run(lab, whole):
  other = lab.run("other", "grow", "seed=1", "train.max_steps=8")
  lines = other.metrics()
  assert len(lines) >= 2
  for line, same in zip(lines[:2], whole.metrics()[:2], strict=True):
    assert line["step"] == same["step"]
    assert line["train/loss"] != same["train/loss"]
