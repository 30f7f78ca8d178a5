"""Runs in which something really goes wrong."""

import math
import signal

import pytest

BOOM = ("optimizer.name=sgd", "optimizer.schedule=constant")


def test_a_seed_that_gives_nan_costs_its_slot(lab, same):
  left = lab.run("bomb", "bomb")
  result = left.result
  assert result["status"] == "completed"
  assert result["rolled_back"] == 1
  assert result["quarantined"] == ["slot1"]
  assert (result["germinated"], result["culled"]) == (1, 1)
  assert result["slots"]["slot1"]["stage"] == "DORMANT"
  assert result["seeds"] == []
  assert result["redone_steps"] > 0
  assert result["params_final"] == result["params_initial"]

  (fault,) = left.events("fault")
  (back,) = left.events("rolled_back")
  (quarantined,) = left.events("quarantined")
  (culled,) = left.events("culled")
  assert fault["kind"] == "non_finite_loss"
  assert fault["step"] > back["step"]
  assert fault["reason"] in back["reason"]
  assert "slot 'slot1'" in back["reason"]
  assert back["attempt"] == 1
  assert quarantined["slot"] == culled["slot"] == "slot1"
  assert "quarantined" in culled["reason"]
  assert culled["step"] == back["step"]

  # The first steps after the checkpoint were made twice, with another order.
  lines = left.metrics()
  first = {x["step"]: x for x in lines if x["attempt"] == 0}
  second = {x["step"]: x for x in lines if x["attempt"] == 1}
  assert min(second) > back["step"]
  twice = [s for s in second if s in first and "train/loss" in first[s]]
  assert twice
  for step in twice:
    assert first[step]["train/loss"] != second[step]["train/loss"]
    assert first[step]["learning_rate"] == second[step]["learning_rate"]

  # A process that dies in the second attempt changes nothing.
  process = lab.start("killed", "bomb")
  path = process.left.path / "events.jsonl"
  assert process.wait_until(
    lambda: path.exists() and bool(process.left.events("rolled_back"))
  )
  process.send(signal.SIGKILL)
  process.end()
  same(lab.run("killed", "bomb"), left)


@pytest.mark.full
def test_a_rate_that_is_too_high_is_halved_until_it_is_not(lab):
  left = lab.run(
    "high",
    "static",
    *BOOM,
    "optimizer.learning_rate=1e30",
    "governor.max_rollbacks=200",
  )
  result = left.result
  assert result["status"] == "completed"
  assert result["rolled_back"] > 20
  assert result["quarantined"] == []
  back = left.events("rolled_back")
  assert [e["attempt"] for e in back] == [*range(1, result["rolled_back"] + 1)]
  assert {e["step"] for e in back[:20]} == {0}
  assert "the learning rate is halved (factor 0.5)" in back[0]["reason"]
  rates = [x["learning_rate"] for x in left.metrics() if "train/loss" in x]
  assert rates[-1] == pytest.approx(1e30 * 0.5 ** result["rolled_back"])
  assert math.isfinite(result["val_loss"])


@pytest.mark.full
def test_a_run_that_cannot_be_helped_fails(lab):
  process = lab.start("fail", "static", *BOOM, "optimizer.learning_rate=1e30")
  code, _, err = process.end()
  left = process.left
  assert code == 1
  (line,) = err.splitlines()
  assert line.startswith("failed: ")
  assert "given up after 3 rollbacks" in line
  assert left.result["status"] == "failed"
  assert left.result["reason"] in line
  assert left.result["test_accuracy"] is None
  assert left.result["rolled_back"] == 3
  assert len(left.events("rolled_back")) == 3
  assert left.events()[-1]["type"] == "run_finished"
  assert left.events()[-1]["status"] == "failed"
  # The same command tries again, and comes to the same end.
  assert (
    lab.start("fail", "static", *BOOM, "optimizer.learning_rate=1e30").end()[0]
    == 1
  )
  assert left.result["rolled_back"] == 3


def test_an_isolated_seed_full_of_nan_is_culled_without_a_rollback(lab):
  left = lab.run(
    "sick",
    "grow",
    "tamiyo.schedule=((1,'slot1','tiny_sick'),)",
    "train.epochs=8",
  )
  result = left.result
  assert (result["status"], result["rolled_back"]) == ("completed", 0)
  assert left.events("fault") == []
  (germinated,) = left.events("germinated")
  (culled,) = left.events("culled")
  decisions = [e for e in left.events("decision") if e["action"] == "cull"]
  assert culled["epoch"] == germinated["epoch"] + 1
  assert culled["was"] == "TRAINING"
  assert "not finite" in culled["reason"]
  assert "not finite" in decisions[0]["reason"]
  # The host's own figures are those of a run without it, bit for bit.
  never = lab.run("never", "grow", "tamiyo.policy=never", "train.epochs=8")
  keys = ("epoch", "step", "train/loss", "train/accuracy", "val/loss")
  pick = [
    [{k: x[k] for k in keys if k in x} for x in run.metrics()]
    for run in (left, never)
  ]
  assert pick[0] == pick[1]
