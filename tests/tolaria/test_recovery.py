"""Runs that are taken up again, and runs in which something goes wrong."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina import blueprints
from esper_jax.tolaria import checkpoints
from esper_jax.tolaria.display import Silent
from esper_jax.types import InputError, RunFailedError, Stage

STEPS = 7  # an epoch, see `watch`


def one_seed(epoch=1, slot="slot1", blueprint="dense"):
  return {
    "tamiyo.policy": "schedule",
    "tamiyo.schedule": ((epoch, slot, blueprint),),
  }


def equal(a, b):
  return a.keys() == b.keys() and all(
    a[k].tobytes() == b[k].tobytes() for k in a
  )


# --- beginning again ------------------------------------------------------


def test_a_config_that_does_not_fit_takes_no_directory(watch, tmp_path):
  with pytest.raises(InputError, match="slot 'slot9' does not exist"):
    watch(name="bad", **one_seed(slot="slot9"))
  assert not (tmp_path / "bad").exists()


def test_a_trainer_that_fails_to_begin_lets_the_directory_go(watch):
  run = watch(name="a").train()
  newest = checkpoints.available(run.path / "checkpoints")[-1]
  (run.path / "result.json").unlink()
  document = json.loads((newest.path / "checkpoint.json").read_text())
  document["meta"]["run"]["topology"] = [
    {
      "slot": "slot9",
      "key": "dense",
      "blueprint": "dense",
      "blend": "add",
      "depth": 0,
    }
  ]
  rewrite(newest.path, document)
  for _ in range(2):  # the second finds no lock
    with pytest.raises(InputError, match="seed in slot 'slot9', which this"):
      watch(name="a")


def rewrite(folder, document):
  """Changes a checkpoint's document as if it had been saved so."""
  (folder / "checkpoint.json").write_text(json.dumps(document))
  (folder / "SHA256SUMS").write_text(checkpoints._sums(folder))


def test_a_completed_run_without_checkpoints_runs_anew(watch):
  run = watch(name="a", **{"train.max_steps": 2}).train()
  for checkpoint in checkpoints.available(run.path / "checkpoints"):
    for path in sorted(checkpoint.path.rglob("*"), reverse=True):
      path.rmdir() if path.is_dir() else path.unlink()
    checkpoint.path.rmdir()
  again = watch(name="a", **{"train.max_steps": 2}).train()
  assert again.events  # it was not shown but made
  assert again.result["test_accuracy"] == run.result["test_accuracy"]
  assert (run.path / "events.discarded.jsonl").exists()


def test_sparse_checkpoints_lose_more_to_a_crash(watch):
  class Crash(Exception):
    pass

  def crash(trainer, metrics):
    if metrics.epoch == 3:
      raise Crash

  changes = {"checkpoint.every_epochs": 2, "train.log_every": 1}
  run = watch(name="a", callbacks=[crash], **changes)
  with pytest.raises(Crash):
    run.train()
  saved = [c.step for c in checkpoints.available(run.path / "checkpoints")]
  assert saved == [0, 2 * STEPS]

  # A second crash, before anything was saved, does not hide the first.
  again = watch(name="a", callbacks=[crash], **changes)
  assert again.trainer.run.epoch == 2
  with pytest.raises(Crash):
    again.train()
  third = watch(name="a", **changes).train()
  whole = watch(**changes).train()
  assert third.lines() == whole.lines()
  assert equal(third.arrays(), whole.arrays())
  r = third.result
  assert r["redone_steps"] == 2 * STEPS
  per_epoch = np.diff(whole.lines("flops/train"))[-1]
  assert r["redone_flops"] >= 2 * per_epoch
  assert r["total_flops"] == whole.result["total_flops"]


def test_logs_that_cannot_be_read_cost_the_bill_alone(watch):
  run = watch(
    name="a", callbacks=[lambda t, m: t.stop() if m.epoch == 2 else None]
  ).train()
  log = run.path / "events.jsonl"
  first, _, rest = log.read_bytes().partition(b"\n")
  log.write_bytes(b"x" * len(first) + b"\n" + rest)
  again = watch(name="a").train()
  assert again.result["status"] == "completed"
  assert again.result["redone_steps"] == 0


def test_a_run_on_other_data_is_refused(watch):
  run = watch(name="a", **{"train.max_steps": 2}).train()
  config = run.path / "config.json"
  config.write_text(
    config.read_text().replace(run.result["data_sha256"], 64 * "0")
  )
  with pytest.raises(InputError, match="on other data"):
    watch(name="a", **{"train.max_steps": 2})


# --- faults ---------------------------------------------------------------


def nan_after(steps):
  """A linear branch that gives NaN once it was trained so many steps."""

  def init(key, spec):
    shape = (spec.channels, spec.channels)
    kernel = jax.random.normal(key, shape, jnp.float32)
    return {"kernel": kernel}, {"steps": jnp.zeros((), jnp.float32)}

  def apply(params, state, x, *, train, key):
    factor = jnp.where(state["steps"] >= steps, jnp.nan, 1.0)
    y = x @ params["kernel"].astype(x.dtype) * factor.astype(x.dtype)
    return y, {"steps": state["steps"] + float(train)}

  return init, apply


@pytest.fixture
def bomb():
  """Explodes in its second epoch, three steps into being blended in."""
  blueprint = blueprints.Blueprint(
    "trainer_bomb", *nan_after(STEPS + 3), ("features",), ("kernel",)
  )
  blueprints.register(blueprint, check=False)
  yield {
    **one_seed(blueprint="trainer_bomb"),
    "kasmina.blueprints": ("trainer_bomb",),
    "kasmina.training_gain_sigmas": -1e6,
    "kasmina.blend_epochs": 2,
    "train.epochs": 7,
  }
  blueprints.unregister("trainer_bomb")


def test_a_rollback_restores_the_whole_state(watch, bomb):
  run = watch(**bomb)
  found = {}

  def look(event):
    """At the moment of going back, before anything is changed by growth."""
    if event["type"] == "rolled_back":
      found["run"] = run.arrays()
      found["facts"] = copy.deepcopy(run.trainer.run.facts())
      loaded, _ = checkpoints.latest_good(run.path / "checkpoints")
      found["loaded"] = loaded

  run.trainer.bus.subscribe(look)
  run.train()
  now, then = found["run"], found["loaded"].arrays
  changed = [k for k in then if then[k].tobytes() != now[k].tobytes()]
  assert now.keys() == then.keys()
  assert [k.partition("#")[0] for k in changed] == ["state/key"]
  assert any("optimizer/slot1/trainer_bomb" in k for k in now)
  facts, saved = found["facts"], found["loaded"].meta["run"]
  for name in saved:
    if name not in ("governor", "ledger", "rolled_back"):
      assert facts[name] == saved[name]
  assert facts["governor"]["attempt"] == 1
  assert facts["governor"]["lr_factor"] == 1.0  # a slot was held responsible
  assert facts["governor"]["quarantined"] == ["slot1"]
  assert found["loaded"].checkpoint.step == 3 * STEPS
  assert facts["next_batch"] == 3 * STEPS

  r = run.result
  assert (r["status"], r["rolled_back"]) == ("completed", 1)
  assert (r["germinated"], r["culled"], r["fossilized"]) == (1, 1, 0)
  assert 0 < r["redone_steps"] < STEPS
  assert r["redone_flops"] > 0
  assert r["steps"] == 7 * STEPS
  kinds = [e["type"] for e in run.events if e["type"] != "compile"]
  at = kinds.index("fault")
  assert kinds[at : at + 4] == [
    "fault",
    "rolled_back",
    "quarantined",
    "culled",
  ]
  ids = [e["id"] for e in run.events if e["id"] is not None]
  assert ids == [*range(ids[0], ids[0] + len(ids))]


def test_a_pending_seed_in_a_quarantined_slot_is_cancelled(watch, bomb):
  run = watch(**bomb | {"tezzeret.lead_epochs": 2})
  trainer = run.trainer
  for _ in range(2):
    trainer.train_epoch()
  assert trainer.run.slots.stage.tolist() == [Stage.GERMINATED, Stage.DORMANT]
  trainer._growth.quarantine(trainer.run, ["slot1"])
  assert run.times("growth_cancelled") == [("growth_cancelled", 2)]
  assert trainer.run.slots.quarantined.tolist() == [True, False]
  run.train()
  r = run.result
  assert (r["germinated"], r["culled"], r["rolled_back"]) == (0, 0, 0)


def test_a_fault_without_a_slot_halves_the_learning_rate(watch):
  run = watch(
    **{
      "optimizer.name": "sgd",
      "optimizer.schedule": "constant",
      "optimizer.learning_rate": 1e30,
      "governor.max_rollbacks": 2,
    }
  )
  with pytest.raises(RunFailedError, match="given up after 2 rollbacks"):
    run.train()
  assert run.lines("learning_rate")[-1] == pytest.approx(2.5e29)
  assert [x for x in run.lines("attempt") if x == 2]
  result = json.loads((run.path / "result.json").read_text())
  assert result["status"] == "failed"
  assert "given up" in result["reason"]
  assert result["rolled_back"] == 2
  finished = run.events[-1]
  assert (finished["type"], finished["status"]) == ("run_finished", "failed")


def test_a_loss_that_is_not_finite_is_found_at_the_boundary(watch):
  run = watch(
    **{
      "optimizer.name": "sgd",
      "optimizer.learning_rate": 1e30,
      "governor.max_rollbacks": 0,
      "train.log_every": 1000,  # so nothing is seen before
    }
  )
  with pytest.raises(RunFailedError, match="the validation loss is"):
    run.train()


def test_a_rollback_passes_over_what_is_damaged(watch, bomb):
  def damage(trainer, metrics):
    if metrics.epoch == 3:
      trainer._store.wait()
      newest = checkpoints.available(run.path / "checkpoints")[-1]
      (newest.path / "SHA256SUMS").unlink()

  run = watch(callbacks=[damage], **bomb)
  run.train()
  faults = [e for e in run.events if e["type"] == "fault"]
  assert [e["kind"] for e in faults][:2] == [
    "non_finite_loss",
    "damaged_checkpoint",
  ]
  assert run.times("rolled_back")[0] == ("rolled_back", 2)
  assert run.result["status"] == "completed"


def test_a_rollback_without_a_checkpoint_fails(watch, bomb):
  def damage(trainer, metrics):
    trainer._store.wait()
    for checkpoint in checkpoints.available(run.path / "checkpoints"):
      (checkpoint.path / "SHA256SUMS").unlink(missing_ok=True)

  run = watch(callbacks=[damage], **bomb)
  with pytest.raises(RunFailedError, match="no checkpoint to go back to"):
    run.train()


def test_a_full_disk_fails_the_run(watch, file_size_limit):
  run = watch(name="a")
  run.trainer._store.wait()  # so that the events are the first to fail
  log = run.path / "events.jsonl"
  with file_size_limit(log.stat().st_size + 10):
    with pytest.raises(RunFailedError, match="cannot write"):
      run.train()
  assert not (run.path / "result.json").exists()
  # With room again, the same command goes on.
  again = watch(name="a").train()
  assert again.result["status"] == "completed"
  assert again.lines() == watch().train().lines()


def test_a_display_that_fails_stops_nothing(watch):
  class Broken(Silent):
    def event(self, event):
      raise OSError("no terminal")

  run = watch(display=Broken()).train()
  assert run.result["status"] == "completed"
  assert run.trainer.bus.failures["display"] > 0
