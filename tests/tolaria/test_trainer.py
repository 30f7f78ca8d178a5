"""Whole small runs in this process: every policy, option and boundary."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import base
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.slot import all_seeds
from esper_jax.oona import jsonl
from esper_jax.tolaria import arrays, checkpoints
from esper_jax.tolaria.display import Silent
from esper_jax.tolaria.logbook import PACE_STEPS
from esper_jax.tolaria.trainer import Trainer
from esper_jax.types import InputError, RunFailedError, Stage

STEPS = 7  # an epoch, with batches of 64


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(tmp_path_factory):
  """Lets the trainers of this file share their compiled programs."""
  settings = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}

  def apply(values):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  apply(settings)
  yield
  apply(before)


def make_config(**changes):
  """Digits, a narrow MLP with two slots, five epochs of seven steps."""
  config = base.get_config()
  values = {
    "data.name": "digits",
    "data.validation_fraction": 0.3,
    "data.batch_size": 64,
    "data.train_limit": 64 * STEPS,
    "host.name": "mlp",
    "host.width": 8,
    "optimizer.learning_rate": 5e-3,
    "oona.fsync": False,
    "train.epochs": 5,
    "train.log_every": 3,
    "kasmina.blueprints": ("dense",),
    "kasmina.min_training_epochs": 1,
    "kasmina.blend_epochs": 1,
    "kasmina.gain_sigmas": 0.0,
    "kasmina.measure_examples": 64,
    "tamiyo.policy": "never",
    "tamiyo.probe_examples": 32,
    "tamiyo.warmup_epochs": 1,
  }
  for name, value in (values | changes).items():
    section, key = name.split(".")
    config[section][key] = value
  return config


def one_seed(epoch=1, slot="slot1", blueprint="dense"):
  return {
    "tamiyo.policy": "schedule",
    "tamiyo.schedule": ((epoch, slot, blueprint),),
  }


class Watched:
  """A trainer, and what it told."""

  def __init__(self, path, callbacks=(), display=None, **changes):
    self.path = path
    self.events = []
    self.trainer = Trainer(
      make_config(**changes), path, display=display, callbacks=callbacks
    )
    self.trainer.bus.subscribe(self.events.append)

  def train(self):
    self.result = self.trainer.train()
    return self

  def times(self, *types):
    return [
      (e["type"], e["epoch"]) for e in self.events if e["type"] in types
    ]

  def lines(self, key="train/loss"):
    return [
      x[key] for x in jsonl.read(self.path / "metrics.jsonl") if key in x
    ]

  def arrays(self):
    return arrays.flatten(self.trainer.run.arrays())


@pytest.fixture
def watch(tmp_path):
  numbers = iter(range(100))

  def make(**options):
    name = options.pop("name", f"run{next(numbers)}")
    return Watched(tmp_path / name, **options)

  return make


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
  assert [(e["lane"], e["key"]) for e in births] == [(0, "dense"), (1, "dense_2")]
  assert [0, 0] in depths  # both read the slot's input
  assert list(run.result["slots"]) == ["slot1", "slot1#2", "slot2", "slot2#2"]


def test_a_slot_grows_on_what_is_permanent(watch):
  run = watch(
    **{
      "tamiyo.policy": "schedule",
      "tamiyo.schedule": ((1, "slot1", "dense"), (5, "slot1", "dense")),
      "kasmina.training_gain_sigmas": -1e6,
      "train.epochs": 9,
    }
  ).train()
  assert run.result["germinated"] == 2
  first = next(e for e in run.events if e["type"] == "fossilized")
  assert first["epoch"] == 5
  seeds = all_seeds(run.trainer.run.state.seeds)
  assert seeds[("slot1", "dense")].depth == 0
  if ("slot1", "dense_2") in seeds:
    assert seeds[("slot1", "dense_2")].depth == 1


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
  parameters = []
  before = jax.tree.map(np.array, run.trainer.run.state.params)
  run.train()
  after = run.trainer.run.state.params
  counts = [
    int(v) for k, v in run.arrays().items() if k.endswith("gradient_step")
  ]
  assert counts == [1]  # six steps, of which four made an update
  assert any(
    (np.asarray(a) != b).any()
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
  )
  del parameters


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
  run.trainer.stop()
  metrics = run.trainer.train_epoch()
  assert (metrics.epoch, metrics.step) == (0, 1)
  assert math.isnan(metrics.val_loss)
  assert math.isnan(metrics.val_accuracy)
  assert metrics.train_loss > 0
  run.trainer.shutdown()
  run.trainer.shutdown()


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
  ]
  assert "448 train, 431 validation" in parts["data"]
  assert "slot1, slot2" in parts["kasmina"]
  assert told[6] == ("begin", 0, 5, STEPS)
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
  assert kinds == ["part"] * 6 + ["begin", "finish", "close"]
  assert again.told[6] == ("begin", 5, 5, STEPS)
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
  stalls = [
    e["seconds"]
    for e in run.events
    if e.get("program") == "train" and e["epoch"] > 0
  ]
  assert r["stall_seconds"] == pytest.approx(sum(stalls))
  assert len(stalls) >= 1
  assert r["wall_seconds"] > r["compile_seconds"]


# --- beginning again ------------------------------------------------------


def test_a_config_that_does_not_fit_takes_no_directory(watch, tmp_path):
  with pytest.raises(InputError, match="no slot"):
    watch(name="bad", **one_seed(slot="slot9"))
  assert not (tmp_path / "bad").exists()


def test_a_trainer_that_fails_to_begin_lets_the_directory_go(watch, tmp_path):
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
  del tmp_path


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
  assert again.times("run_started") == [] or again.result["steps"] == 2
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
      found["facts"] = run.trainer.run.facts()
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
  kinds = [e["type"] for e in run.events]
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
  class Broken(Recorder):
    def event(self, event):
      raise OSError("no terminal")

  run = watch(display=Broken()).train()
  assert run.result["status"] == "completed"
  assert run.trainer.bus.failures["display"] > 0


def test_metrics_are_records(watch):
  metrics = watch().trainer.train_epoch()
  assert dataclasses.is_dataclass(metrics) or metrics._fields[0] == "epoch"
