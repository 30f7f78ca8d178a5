"""Whole small runs in this process: every policy, option and hook."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina.slot import all_seeds
from esper_jax.oona import jsonl
from esper_jax.tolaria.display import Silent
from esper_jax.tolaria.logbook import PACE_STEPS

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


# --- policies and options -------------------------------------------------


@pytest.mark.parametrize(
  ("policy", "changes"),
  [
    ("periodic", {"tamiyo.period_epochs": 1}),
    ("random", {"tamiyo.probability": 0.9}),
    ("heuristic", {"tamiyo.plateau_delta": 0.99, "tamiyo.plateau_epochs": 1}),
    ("schedule", one_seed()),
  ],
)
def test_each_policy_grows(watch, policy, changes):
  changes = {"train.epochs": 6, **changes, "tamiyo.policy": policy}
  run = watch(**changes).train()
  assert run.result["policy_used"] == policy
  assert run.result["germinated"] >= 1
  decisions = [e for e in run.events if e["type"] == "decision"]
  assert decisions[0]["action"] == "germinate"
  assert decisions[0]["slot"] in ("slot1", "slot2")
  if policy == "heuristic":
    assert run.result["probe_flops"] > 0
    assert run.times("compile")
    assert any(e.get("program", "").startswith("score:") for e in run.events)
  done = [run.result[name] for name in ("germinated", "fossilized", "culled")]
  assert done[0] == done[1] + done[2]  # nothing is left half-way
  stages = {row["stage"] for row in run.result["slots"].values()}
  assert stages <= {"DORMANT", "FOSSILIZED", "EMBARGOED"}


def test_never_grows_never(watch):
  run = watch().train()
  assert run.result["germinated"] == 0
  assert run.result["params_final"] == run.result["params_initial"]
  assert run.times("decision", "germinated") == []
  assert run.result["val_accuracy_before_growth"] is None


def test_a_host_without_slots_trains(watch):
  plain = watch(**{"host.slots": (), "tamiyo.policy": "heuristic"}).train()
  dormant = watch().train()
  assert plain.result["slots"] == {}
  assert plain.result["status"] == "completed"
  assert plain.lines() == dormant.lines()  # dormant slots cost nothing
  flops = [run.result["train_flops"] for run in (plain, dormant)]
  assert flops[0] == flops[1]


@pytest.mark.parametrize("lead", [0, 1, 2])
def test_a_decision_is_enacted_lead_epochs_later(watch, lead):
  run = watch(
    **one_seed(), **{"tezzeret.lead_epochs": lead, "train.epochs": 7}
  ).train()
  assert run.times("decision")[0] == ("decision", 1)
  assert run.times("germinated") == [("germinated", 1 + lead)]
  moves = run.times("stage_changed", "fossilized")
  assert moves == [
    ("stage_changed", 2 + lead),
    ("stage_changed", 3 + lead),
    ("fossilized", 4 + lead),
  ]
  stages = {
    x["epoch"]: x["slots/slot1/stage"]
    for x in jsonl.read(run.path / "metrics.jsonl")
    if "slots/slot1/stage" in x
  }
  for epoch in range(1, 1 + lead):
    assert stages[epoch] == "GERMINATED"
  assert stages[1 + lead] == "TRAINING"


@pytest.mark.parametrize("lead", [0, 2])
def test_a_cull_leaves_the_tree_lead_epochs_later(watch, lead):
  run = watch(
    **one_seed(),
    **{
      "tezzeret.lead_epochs": lead,
      "train.epochs": 9,
      "kasmina.training_gain_sigmas": 1e6,  # no seed is that good
      "kasmina.max_training_epochs": 1,
      "kasmina.embargo_epochs": 1,
    },
  )
  sizes = {}
  run.trainer.callbacks.append(
    lambda t, m: sizes.update({m.epoch: len(all_seeds(t.run.state.seeds))})
  )
  run.train()
  culled = 2 + lead  # silent at once
  assert run.times("culled") == [("culled", culled)]
  assert run.times("gate_refused") == [("gate_refused", culled)]
  gone = culled + lead
  planted = 1 + lead
  assert sizes == {e: int(planted <= e < gone) for e in range(1, 10)}
  assert run.times("embargo_ended") == [("embargo_ended", gone + 1)]
  assert run.result["seeds"] == []


@pytest.mark.parametrize("blend", ["add", "multiply", "gate"])
def test_each_blend_mode_lives_a_life(watch, blend):
  run = watch(
    **one_seed(),
    **{
      "kasmina.blend": blend,
      "kasmina.training_gain_sigmas": -1e6,
    },
  ).train()
  assert run.result["germinated"] == 1
  (change,) = [e for e in run.events if e.get("now") == "BLENDING"]
  assert change["epoch"] == 3
  assert all(math.isfinite(loss) for loss in run.lines())
  assert run.result["fossilized"] + run.result["culled"] == 1


def test_the_gradient_initializer_looks_before_it_plants(watch):
  run = watch(**one_seed(), **{"kasmina.initializer": "gradient"}).train()
  (birth,) = [e for e in run.events if e["type"] == "germinated"]
  assert birth["initializer"] == "gradient"
  assert run.result["probe_flops"] > 0
  plain = watch(**one_seed()).train()
  assert plain.result["probe_flops"] == 0
  # It costs no training step, and the host's steps are the same until then.
  assert run.result["train_flops"] == plain.result["train_flops"]


def test_two_seeds_live_side_by_side(watch):
  run = watch(
    **{
      "tamiyo.policy": "schedule",
      "tamiyo.schedule": ((1, "slot1", "dense"), (2, "slot1", "dense")),
      "kasmina.seeds_per_slot": 2,
      "kasmina.training_gain_sigmas": -1e6,
      "train.epochs": 7,
    }
  )
  depths = []
  run.trainer.callbacks.append(
    lambda t, m: depths.append(
      [s.depth for s in all_seeds(t.run.state.seeds).values()]
    )
  )
  run.train()
  births = [e for e in run.events if e["type"] == "germinated"]
  assert [(e["lane"], e["key"]) for e in births] == [
    (0, "dense"),
    (1, "dense_2"),
  ]
  assert [0, 0] in depths  # both read the slot's input
  assert list(run.result["slots"]) == ["slot1", "slot1#2", "slot2", "slot2#2"]


def test_a_slot_grows_on_what_is_permanent(watch):
  run = watch(
    **{
      "tamiyo.policy": "schedule",
      "tamiyo.schedule": ((1, "slot1", "dense"), (6, "slot1", "dense")),
      "kasmina.training_gain_sigmas": -1e6,
      "train.epochs": 10,
    }
  )
  seen = []
  run.trainer.callbacks.append(
    lambda t, m: seen.append(all_seeds(t.run.state.seeds))
  )
  run.train()
  seen = [seeds for seeds in seen if seeds]
  assert run.result["germinated"] == 2
  first = next(e for e in run.events if e["type"] == "fossilized")
  assert first["epoch"] == 5
  depths = [max(s.depth for s in seeds.values()) for seeds in seen]
  assert depths[0] == 0
  assert 1 in depths  # the second reads the output of the first


@pytest.mark.parametrize("grows", [False, True])
def test_chunks_change_neither_results_nor_flops(watch, grows):
  changes = {**(one_seed() if grows else {}), "train.log_every": 7}
  single, chunked = (
    watch(**changes, **{"train.chunk_steps": n}).train() for n in (1, 4)
  )
  programs = [{e.get("program") for e in r.events} for r in (single, chunked)]
  assert "chunk" not in programs[0]
  assert "chunk" in programs[1]
  np.testing.assert_allclose(single.lines(), chunked.lines(), rtol=1e-4)
  for name in ("train_flops", "total_flops", "steps", "germinated"):
    assert single.result[name] == chunked.result[name]


def test_accumulation_makes_fewer_updates(watch):
  run = watch(**{"train.accumulate_steps": 4, "train.max_steps": 6})
  before = jax.tree.map(np.array, run.trainer.run.state.params)
  run.train()
  after = run.trainer.run.state.params
  counts = [
    int(v) for k, v in run.arrays().items() if k.endswith("gradient_step")
  ]
  assert counts == [1]  # six steps, of which four made an update
  assert any(
    (np.asarray(a) != b).any()
    for a, b in zip(
      jax.tree.leaves(after), jax.tree.leaves(before), strict=True
    )
  )


def test_an_average_is_what_is_evaluated(watch):
  # So slow an average that its accuracy stays that of the first parameters.
  slow = watch(**one_seed(), **{"train.ema_decay": 0.99999}).train()
  plain = watch(**one_seed()).train()
  assert slow.lines() == plain.lines()  # training is the same
  assert slow.lines("val/loss")[-1] > plain.lines("val/loss")[-1] + 0.2
  average = slow.trainer.run.state.average
  assert "slot1/dense" in average or slow.result["culled"]


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(watch):
  run = watch(**one_seed(), **{"train.precision": "bfloat16"}).train()
  assert run.result["status"] == "completed"
  assert run.result["germinated"] == 1
  leaves = jax.tree.leaves(run.trainer.run.state.params)
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
  plain = watch(**one_seed()).train()
  assert run.lines() != plain.lines()
  np.testing.assert_allclose(run.lines(), plain.lines(), rtol=0.1)
  (spec, _) = run.trainer.parts.growth.slots.values()
  assert spec.dtype == "bfloat16"


def test_automatic_precision_is_float32_on_a_cpu(watch):
  auto = watch(**{"train.precision": "auto", "train.max_steps": 3}).train()
  plain = watch(**{"train.max_steps": 3}).train()
  assert auto.lines() == plain.lines()


def test_augmentation_changes_what_is_trained_on(watch):
  changes = {"train.max_steps": 3, "data.crop_padding": 2}
  run = watch(**changes, **{"data.augment": ("crop", "flip")}).train()
  assert run.lines() != watch(**changes).train().lines()


def test_a_capped_run_ends_in_the_middle_of_an_epoch(watch):
  run = watch(**{"train.max_steps": STEPS + 2, "train.epochs": 50}).train()
  assert (run.result["epochs"], run.result["steps"]) == (2, STEPS + 2)


# --- hooks, displays, what is told ----------------------------------------


def test_callbacks_come_last_and_in_order(watch):
  told = []

  def first(trainer, metrics):
    # The epoch's own hooks are done: it is recorded and being saved.
    lines = jsonl.read(run.path / "metrics.jsonl")
    assert lines[-1]["epoch"] == metrics.epoch
    assert lines[-1]["val/loss"] == metrics.val_loss
    assert run.events[-1]["type"] == "checkpoint"
    assert float(trainer.run.sums.examples) == 0
    told.append(("first", metrics.epoch))

  run = watch(
    callbacks=[first, lambda t, m: told.append(("second", m.epoch))],
    **{"train.epochs": 2},
  )
  run.train()
  assert told == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]


def test_tuning_leaves_the_test_set_unread(watch):
  run = watch(**{"eval.test": False}).train()
  assert run.result["status"] == "completed"
  assert run.result["test_accuracy"] is None
  whole = watch().train()
  assert whole.result["test_accuracy"] is not None
  assert run.result["val_accuracy"] == whole.result["val_accuracy"]
  assert run.result["total_flops"] < whole.result["total_flops"]


def test_a_callback_may_stop_the_run(watch):
  run = watch(
    name="a", callbacks=[lambda t, m: t.stop() if m.epoch == 2 else None]
  )
  assert run.train().result["status"] == "interrupted"
  assert run.result["epochs"] == 2
  assert run.result["test_accuracy"] is None
  assert run.result["val_accuracy"] == run.lines("val/accuracy")[-1]
  again = watch(name="a").train()
  assert again.result["status"] == "completed"
  whole = watch().train()
  assert equal(again.arrays(), whole.arrays())
  assert again.lines() == whole.lines()


def test_a_request_at_the_last_boundary_comes_too_late(watch):
  run = watch(callbacks=[lambda t, m: t.stop() if m.epoch == 5 else None])
  assert run.train().result["status"] == "completed"


def test_a_run_may_be_driven_epoch_by_epoch(watch):
  run = watch()
  for epoch in range(1, 6):
    metrics = run.trainer.train_epoch()
    assert (metrics.epoch, metrics.step) == (epoch, STEPS * epoch)
    assert metrics.seconds > 0
    assert 0 <= metrics.val_accuracy <= 1
  with pytest.raises(RuntimeError, match="the run has ended"):
    run.trainer.train_epoch()
  assert run.train().result["status"] == "completed"
  assert run.lines() == watch().train().lines()


def test_a_stop_within_an_epoch_ends_after_the_step(watch):
  run = watch()
  run.trainer.train_epoch()
  run.trainer.stop()
  metrics = run.trainer.train_epoch()
  assert (metrics.epoch, metrics.step) == (1, STEPS + 1)
  assert math.isnan(metrics.val_loss)
  assert math.isnan(metrics.val_accuracy)
  assert metrics.train_loss > 0
  run.trainer.shutdown()
  run.trainer.shutdown()


def test_a_stop_before_the_first_program_is_there_makes_no_step(watch):
  run = watch()
  run.trainer.stop()
  metrics = run.trainer.train_epoch()
  assert (metrics.epoch, metrics.step) == (0, 0)
  assert math.isnan(metrics.train_loss)
  assert math.isnan(metrics.val_loss)
  assert run.train().result["status"] == "interrupted"
  assert watch(name=run.path.name).train().result["status"] == "completed"


class Recorder(Silent):
  """Notes everything it is told."""

  def __init__(self):
    self.told = []

  def part(self, name, text):
    self.told.append(("part", name, text))

  def begin(self, *, epoch, epochs, steps_per_epoch):
    self.told.append(("begin", epoch, epochs, steps_per_epoch))

  def pace(self, step, seconds_per_step):
    self.told.append(("pace", step, seconds_per_step))

  def steps(self, step, loss, images_per_second):
    self.told.append(("steps", step, loss, images_per_second))

  def epoch(self, metrics, slots):
    self.told.append(("epoch", metrics, slots))

  def event(self, event):
    self.told.append(("event", event["type"]))

  def finish(self, result, workdir):
    self.told.append(("finish", result["status"], workdir))

  def close(self):
    self.told.append(("close",))


def test_what_a_display_is_told(watch):
  display = Recorder()
  run = watch(name="a", display=display).train()
  told = display.told
  parts = {t[1]: t[2] for t in told if t[0] == "part"}
  assert list(parts) == [
    "data",
    "oona",
    "tamiyo",
    "kasmina",
    "tolaria",
    "device",
    "urza",
  ]
  assert "448 train, 431 validation" in parts["data"]
  assert "slot1, slot2" in parts["kasmina"]
  assert told[7] == ("begin", 0, 5, STEPS)
  assert [t[1] for t in told if t[0] == "steps"] == [*range(3, 5 * STEPS, 3)]
  assert [t[1].epoch for t in told if t[0] == "epoch"] == [1, 2, 3, 4, 5]
  (pace,) = [t for t in told if t[0] == "pace"]
  assert pace[1] == 1 + PACE_STEPS  # the first step waits for its compilation
  assert 0 < pace[2] < 5
  assert told[-2:] == [("finish", "completed", run.path), ("close",)]
  assert ("event", "run_started") in told

  again = Recorder()
  before = (run.path / "events.jsonl").read_bytes()
  second = watch(name="a", display=again).train()
  assert second.result == run.result
  assert second.events == []
  kinds = [t[0] for t in again.told]
  assert kinds == ["part"] * 7 + ["begin", "part", "finish", "close"]
  assert again.told[8][2] == "this run was completed before"
  assert again.told[7] == ("begin", 5, 5, STEPS)
  assert (run.path / "events.jsonl").read_bytes() == before
  assert equal(second.arrays(), run.arrays())  # the network is there


def test_a_resumed_display_begins_where_the_run_stands(watch):
  run = watch(name="a", callbacks=[lambda t, m: t.stop()]).train()
  assert run.result["epochs"] == 1
  display = Recorder()
  watch(name="a", display=display).train()
  assert ("begin", 1, 5, STEPS) in display.told
  assert ("event", "resumed") in display.told


def test_a_run_is_charged_for_what_it_did(watch):
  run = watch(**one_seed(), **{"train.epochs": 6}).train()
  r = run.result
  parts = ("evaluation", "ablation", "probe", "policy")
  total = r["train_flops"] + sum(r[f"{name}_flops"] for name in parts)
  assert r["total_flops"] == total
  assert r["ablation_flops"] > 0
  assert run.lines("flops/total")[-1] < r["total_flops"]  # then comes the test
  compiled = sum(e["seconds"] for e in run.events if e["type"] == "compile")
  assert r["compile_seconds"] == pytest.approx(compiled)
  compiles = [e for e in run.events if e["type"] == "compile"]
  c = r["compilation"]
  waits = [e["waited"] for e in compiles]
  assert c["compiles"] == len(compiles)
  assert c["blocking_seconds"] == pytest.approx(sum(waits))
  stalls = [e["waited"] for e in compiles if e["step"] > 0]
  assert r["stall_seconds"] == pytest.approx(sum(stalls))
  beside = sum(e["seconds"] for e in compiles if e["background"])
  assert c["background_seconds"] == pytest.approx(beside)
  assert r["wall_seconds"] > c["blocking_seconds"]


def test_without_threads_every_compilation_is_waited_for(watch):
  changes = {**one_seed(), "train.epochs": 6, "tezzeret.threads": 0}
  r = watch(**changes).train().result
  c = r["compilation"]
  assert c["background_seconds"] == c["overlapped_steps"] == c["guesses"] == 0
  assert c["blocking_seconds"] == pytest.approx(r["compile_seconds"], rel=0.01)
  assert 0 < r["stall_seconds"] < c["blocking_seconds"]
