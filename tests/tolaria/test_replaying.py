"""Runs that enact what another run recorded."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax import config as config_lib
from esper_jax.kasmina.slot import all_seeds, seeds_at
from esper_jax.oona import growth_log, jsonl
from esper_jax.tolaria import arrays, replaying
from esper_jax.tolaria.trainer import Trainer
from esper_jax.types import HOST_GROUP, InputError, Stage

GROWTH = ("germinated", "stage_changed", "fossilized", "culled")
SCHEDULE = {
  "train.epochs": 9,
  "kasmina.max_training_epochs": 2,
  "kasmina.training_gain_sigmas": -1e6,
  "kasmina.embargo_epochs": 1,
  "tamiyo.policy": "schedule",
  "tamiyo.schedule": (
    (1, "slot1", "dense"),
    (2, "slot2", "dense"),
    (5, "slot1", "dense"),
  ),
}
# Nothing passes its last gate; what holds is culled, or at the last boundary.
STRICT = {**SCHEDULE, "kasmina.gain_sigmas": 1e6}
CULLS = {**STRICT, "kasmina.max_holding_epochs": 1}
KINDS = {
  "fossils": SCHEDULE,
  "culls": CULLS,
  "ends": {**STRICT, "kasmina.max_holding_epochs": 9},
  "lead 0": {**CULLS, "tezzeret.lead_epochs": 0},
  "lead 2": {**CULLS, "tezzeret.lead_epochs": 2, "tezzeret.threads": 0},
}


def replayed(path, **changes):
  return {
    "train.epochs": 9,
    "tamiyo.policy": "replay",
    "tamiyo.replay": str(path),
    **changes,
  }


def growth(run):
  """What happened to the slots."""
  return [
    (e["type"], e["epoch"], e["slot"], e.get("now"), e.get("key"))
    for e in run.events
    if e["type"] in GROWTH
  ]


def trained(run):
  """The training state at the end, bit for bit."""
  flat = arrays.flatten({"state": run.trainer.run.state})
  return {name: np.asarray(x).tobytes() for name, x in flat.items()}


def curves(run):
  keys = ("train/loss", "val/loss", "val/accuracy", "parameters")
  return [run.lines(key) for key in keys]


def write_log(path, *lives):
  """An event log of (slot, blueprint, initializer, *(epoch, stage))."""
  events = []
  for slot, blueprint, initializer, *moves in lives:
    for epoch, stage in moves:
      kind = {"TRAINING": "germinated", "FOSSILIZED": "fossilized"}
      kind |= {"CULLED": "culled"}
      fields = {"slot": slot, "type": kind.get(stage, "stage_changed")}
      fields |= {"now": stage}
      fields |= {"blueprint": blueprint, "initializer": initializer}
      events.append((epoch, stage == "TRAINING", fields))
  events.sort(key=lambda event: event[:2])
  epochs = events[-1][0]
  fields = {"type": "run_finished", "status": "completed"}
  lines = [
    jsonl.encode({"v": 1, "id": n, "epoch": epoch, **fields})
    for n, (epoch, _, fields) in enumerate([*events, (epochs, False, fields)])
  ]
  path.write_bytes(b"".join(lines))
  return path


WHOLE = ((1, "TRAINING"), (2, "BLENDING"), (3, "HOLDING"), (4, "FOSSILIZED"))


@pytest.mark.parametrize(
  "kind",
  [
    "fossils",
    "culls",
    *(pytest.param(k, marks=pytest.mark.full) for k in list(KINDS)[2:]),
  ],
)
def test_on_the_same_seed_it_is_the_same_run(watch, kind):
  rules = KINDS[kind]
  first = watch(**rules).train()
  second = watch(
    **rules | replayed(first.path / "events.jsonl", **{"tamiyo.schedule": ()})
  ).train()
  told = growth(first)
  ends = [event[:2] for event in told if event[0] in ("fossilized", "culled")]
  assert len(ends) >= 2
  assert ("culled", 9) in ends or kind != "ends"
  assert any(e[0] == "culled" and e[1] < 9 for e in ends) == (
    kind in ("culls", "lead 0", "lead 2")
  )
  assert ("fossilized" in dict(ends)) == (kind == "fossils")
  assert growth(second) == told
  assert trained(second) == trained(first)
  assert curves(second) == curves(first)
  assert second.result["policy_used"] == "replay"
  same = ("test_accuracy", "val_accuracy", "params_final", "train_flops")
  for key in (*same, "val_accuracy_before_growth", "germinated", "culled"):
    assert second.result[key] == first.result[key], key
  # What is known need not be measured.
  assert first.result["ablation_flops"] > 0
  assert second.result["ablation_flops"] == second.result["probe_flops"] == 0
  assert not second.times("decision", "gate_refused")
  for row in second.result["slots"].values():
    assert row["contribution"] is None


def test_a_replay_can_be_replayed_and_the_record_may_be_of_another_seed(watch):
  first = watch(**CULLS).train()
  other = watch(
    **replayed(first.path / "events.jsonl", seed=5, **{"host.norm": "batch"})
  ).train()
  assert growth(other) == growth(first)
  assert curves(other) != curves(first)
  again = watch(**replayed(other.path / "events.jsonl", seed=5)).train()
  assert trained(again) == trained(other)
  assert again.trainer._store.hash == other.trainer._store.hash


def test_what_is_replayed_is_in_the_hash_and_not_where_it_lies(tmp_path, watch):
  path = write_log(tmp_path / "a.jsonl", ("slot1", "dense", "zero_out", *WHOLE))
  name = "run"
  first = watch(name=name, **replayed(path)).train()
  elsewhere = shutil.copy(path, tmp_path / "b.jsonl")
  again = watch(name=name, **replayed(elsewhere)).train()  # shown again
  assert again.result == first.result
  other = tmp_path / "c.jsonl"
  write_log(other, ("slot2", "dense", "zero_out", *WHOLE))
  with pytest.raises(InputError, match="replays other growth than") as caught:
    watch(name=name, **replayed(other))
  assert str(tmp_path / name) in str(caught.value)
  hashes = {
    config_lib.config_hash(watch(**replayed(p)).trainer.config)
    for p in (path, elsewhere, other)
  }
  assert len(hashes) == 2


def test_recorded_births_are_as_recorded(tmp_path, watch):
  run = watch(
    **replayed(
      write_log(
        tmp_path / "log",
        ("slot1", "dense", "gradient", *WHOLE),
        ("slot2", "lowrank_dense", "random", *WHOLE),
      ),
      **{"kasmina.blueprints": ()},
    )
  ).train()
  births = [e for e in run.events if e["type"] == "germinated"]
  assert [e["initializer"] for e in births] == ["gradient", "random"]
  assert [e["blueprint"] for e in births] == ["dense", "lowrank_dense"]
  assert run.result["ablation_flops"] == 0
  assert run.result["probe_flops"] > 0  # the gradient is needed for the birth


def test_gates_and_caps_are_off(tmp_path, watch):
  """Straight through, in every slot, several times."""
  life = [(n, stage) for n, (_, stage) in enumerate(WHOLE, 1)]
  later = [(n + 4, stage) for n, stage in life]
  log = write_log(
    tmp_path / "log",
    *(("slot1", "dense", "zero_out", *moves) for moves in (life, later)),
    ("slot2", "dense", "zero_out", (1, "TRAINING"), (2, "CULLED")),
    ("slot2", "dense", "zero_out", (3, "TRAINING"), (4, "FOSSILIZED")),
  )
  run = watch(
    **replayed(
      log,
      **{
        "tamiyo.max_growths": 0,
        "tamiyo.warmup_epochs": 9,
        "kasmina.max_per_slot": 1,
        "kasmina.blend_epochs": 3,
        "kasmina.embargo_epochs": 9,
        "kasmina.training_gain_sigmas": 1e9,
      },
    )
  ).train()
  assert [e[:4] for e in growth(run)] == [
    ("germinated", 1, "slot1", None),
    ("germinated", 1, "slot2", None),
    ("stage_changed", 2, "slot1", "BLENDING"),
    ("culled", 2, "slot2", None),
    ("stage_changed", 3, "slot1", "HOLDING"),
    ("germinated", 3, "slot2", None),
    ("fossilized", 4, "slot1", None),
    ("fossilized", 4, "slot2", None),
    ("germinated", 5, "slot1", None),
    ("stage_changed", 6, "slot1", "BLENDING"),
    ("stage_changed", 7, "slot1", "HOLDING"),
    ("fossilized", 8, "slot1", None),
  ]
  assert run.lines("slots/slot1/alpha")[1:4] == pytest.approx([1 / 3, 1, 1])
  for seed in all_seeds(run.trainer.run.state.seeds).values():
    assert float(seed.alpha) == 1
  assert run.result["fossilized"] == 3


def test_a_seed_that_follows_another_at_one_boundary(tmp_path, watch):
  """A run without a lead plants it where the one before just became whole."""
  later = [(n + 3, stage) for n, stage in WHOLE]
  lives = [("slot1", "dense", "zero_out", *moves) for moves in (WHOLE, later)]
  log = write_log(tmp_path / "log", *lives)
  run = watch(**replayed(log, **{"tezzeret.lead_epochs": 0})).train()
  assert [e[:3] for e in growth(run) if e[1] == 4] == [
    ("fossilized", 4, "slot1"),
    ("germinated", 4, "slot1"),
  ]
  assert run.result["fossilized"] == 2
  seeds = seeds_at(run.trainer.run.state.seeds, "slot1").values()
  assert sorted(seed.depth for seed in seeds) == [0, 1]


def test_what_cannot_be_is_told(tmp_path, watch):
  """A slot that the governor has quarantined stays empty."""
  log = write_log(
    tmp_path / "log",
    ("slot1", "dense", "zero_out", *WHOLE),
    ("slot2", "dense", "zero_out", (2, "TRAINING"), (3, "CULLED")),
  )
  run = watch(**replayed(log))
  run.trainer._growth.quarantine(run.trainer.run, ["slot1"])
  run.train()
  assert [e[:3] for e in growth(run)] == [
    ("germinated", 2, "slot2"),
    ("culled", 3, "slot2"),
  ]
  refused = [e for e in run.events if e["type"] == "gate_refused"]
  assert [(e["epoch"], e["action"], e["reason"]) for e in refused] == [
    (0, "germinated", "the slot is quarantined until the run ends"),
    (2, "blending", "the stage does not allow this move"),
    (3, "holding", "the stage does not allow this move"),
    (4, "fossilized", "the stage does not allow this move"),
  ]


# --- From the start ----------------------------------------------------------

TWICE = (
  ("slot1", "dense", "gradient", *WHOLE),
  ("slot1", "dense", "zero_out", (5, "TRAINING"), (8, "FOSSILIZED")),
  ("slot2", "dense", "zero_out", (5, "TRAINING"), (8, "CULLED")),
)


@pytest.mark.parametrize("initializer", ["zero_out", "random"])
def test_the_final_network_from_the_start(tmp_path, watch, initializer):
  log = write_log(tmp_path / "log", *TWICE)
  born = {"kasmina.initializer": initializer, "train.epochs": 2}
  born |= {"tamiyo.replay_final": True, "optimizer.newborn_warmup_steps": 11}
  run = watch(**replayed(log, **born))
  states = []
  run.trainer.callbacks.append(
    lambda trainer, _: states.append(jax.device_get(trainer.run.state))
  )
  run.train()
  assert growth(run) == [
    ("germinated", 0, "slot1", None, "dense"),
    ("fossilized", 0, "slot1", None, None),
    ("germinated", 0, "slot1", None, "dense_2"),
    ("fossilized", 0, "slot1", None, None),
  ]
  births = [e for e in run.events if e["type"] == "germinated"]
  assert {e["initializer"] for e in births} == {initializer}
  assert run.lines("parameters")[0] == run.result["params_final"]
  assert run.lines("slots/slot1/alpha") == [1, 1]
  assert run.lines("slots/slot1/stage")[0] == "FOSSILIZED"
  assert run.result["val_accuracy_before_growth"] is None
  assert run.result["probe_flops"] == run.result["ablation_flops"] == 0
  first = seeds_at(states[0].seeds, "slot1")
  assert [seed.depth for seed in first.values()] == [0, 1]
  # No warm-up: what is there from the start is no newborn.
  assert {g: int(n) for g, n in states[0].age.items()} == {
    HOST_GROUP: 7,
    "slot1/dense": 11 + 7,
    "slot1/dense_2": 11 + 7,
  }
  weights = [
    np.asarray(jax.tree.leaves(seed.params["branch"])[-1])
    for seed in first.values()
  ]
  assert (weights[0] != weights[1]).any()  # drawn apart
  again = watch(**replayed(run.path / "events.jsonl", **born)).train()
  assert trained(again) == trained(run)
  # As recorded, it is the same network too.
  del born["tamiyo.replay_final"]
  again = watch(**replayed(run.path / "events.jsonl", **born)).train()
  assert trained(again) == trained(run)


def test_the_host_of_the_final_network_is_that_of_a_static_run(tmp_path, watch):
  log = write_log(tmp_path / "log", *TWICE)
  run = watch(**replayed(log, **{"tamiyo.replay_final": True}))
  static = watch(**{"train.epochs": 9})
  for n in (run, static):
    n.trainer._growth.begin(n.trainer.run)
  assert run.trainer.run.state.seeds
  assert not static.trainer.run.state.seeds
  a, b = (jax.device_get(n.trainer.run.state.params) for n in (run, static))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  # Once is enough.
  before = run.trainer.run.state
  run.trainer._growth.begin(run.trainer.run)
  assert run.trainer.run.state is before
  for n in (run, static):
    n.trainer.shutdown()


def test_a_fault_at_the_start_does_not_cost_the_final_network(tmp_path, watch):
  log = write_log(tmp_path / "log", *TWICE)
  changes = {"tamiyo.replay_final": True, "train.epochs": 2}
  run = watch(**replayed(log, **changes))
  planting = run.trainer._growth.planting
  train, made = planting.train, []

  def train_badly_at_first(own, rows):
    done = train(own, rows)
    if not made:
      spoiled = jax.tree.map(lambda x: x * jnp.nan, own.state.params)
      own.state = own.state.replace(params=spoiled)
    made.append(done)
    return done

  planting.train = train_badly_at_first
  run.train()
  assert run.result["rolled_back"] == 1
  assert run.result["quarantined"] == []
  planted = [e for e in run.events if e["type"] == "germinated"]
  assert [e["key"] for e in planted] == 2 * ["dense", "dense_2"]
  assert run.lines("slots/slot1/alpha") == [1, 1]
  # What it did can be replayed: the second attempt alone.
  (life, other) = growth_log.read_lives(run.path / "events.jsonl")
  assert (life.planted, other.planted) == (0, 0)


@pytest.mark.parametrize("final", [False, True])
def test_it_ends_the_same_however_often_it_is_stopped(tmp_path, watch, final):
  log = write_log(tmp_path / "log", *TWICE)
  changes = replayed(log, **{"tamiyo.replay_final": final})
  whole = watch(**changes).train()
  steps = 9 * 7

  def stop(trainer, step):
    """Stops after this step, as a signal does."""
    train = trainer._growth.planting.train

    def then_stop(run, rows):
      made = train(run, rows)
      if run.next_batch == step:
        trainer.stop()
      return made

    trainer._growth.planting.train = then_stop

  for step in (1, 10, 36):
    part = watch(name="parts", **changes)
    stop(part.trainer, step)
    assert part.train().result["status"] == "interrupted", step
  last = watch(name="parts", **changes).train()
  assert last.result["steps"] == steps
  assert trained(last) == trained(whole)
  assert curves(last) == curves(whole)
  assert last.result["train_flops"] == whole.result["train_flops"]


# --- Controls ----------------------------------------------------------------


@pytest.mark.parametrize(
  "permute", ["slots", pytest.param("times", marks=pytest.mark.full)]
)
def test_controls_at_random(tmp_path, watch, permute):
  log = write_log(
    tmp_path / "log",
    ("slot1", "dense", "zero_out", (2, "TRAINING"), (4, "CULLED")),
    ("slot1", "dense", "zero_out", (6, "TRAINING"), (9, "FOSSILIZED")),
  )
  stories = {}
  for seed in range(5):
    run = watch(
      **replayed(
        log,
        **{
          "tamiyo.replay_permute": permute,
          "tamiyo.replay_seed": seed,
          "train.epochs": 11,
        },
      )
    ).train()
    told = growth(run)
    places = [e[2] for e in told if e[0] == "germinated"]
    times = [e[1] for e in told]
    lengths = sorted(
      b - a for a, b in zip(times[::2], times[1::2], strict=True)
    )
    kinds = [e[0] for e in told]
    assert sorted(kinds) == sorted(
      ["germinated"] * 2 + ["culled", "fossilized"]
    )
    if permute == "slots":
      assert times == [2, 4, 6, 9]
    else:
      assert places == ["slot1", "slot1"]
      assert lengths == [2, 3]
    stories[seed] = told
  assert len(set(map(tuple, stories.values()))) > 1


LATE = ("slot1", "dense", "zero_out", (7, "TRAINING"), (9, "FOSSILIZED"))


def test_places_at_random_from_the_start(tmp_path, watch):
  log = write_log(tmp_path / "log", TWICE[0], LATE)
  found = set()
  for seed in range(8):
    run = watch(
      **replayed(
        log,
        **{
          "tamiyo.replay_final": True,
          "tamiyo.replay_permute": "slots",
          "tamiyo.replay_seed": seed,
        },
      )
    )
    run.trainer._growth.begin(run.trainer.run)
    found.add(tuple(path for path, _ in all_seeds(run.trainer.run.state.seeds)))
    run.trainer.shutdown()
  assert len(found) > 1


# --- What is refused and what is said ----------------------------------------


@pytest.mark.parametrize(
  ("life", "changes", "says"),
  [
    (("slot9", "dense"), {}, "'dense' in slot 'slot9' is recorded, but the ho"),
    (("slot1", "norm"), {}, "'norm' in slot 'slot1' is recorded, but that blu"),
    (
      ("slot1", "dense"),
      {"train.epochs": 3},
      "recorded up to epoch 4, but thi",
    ),
    (
      ("slot1", "dense"),
      {"kasmina.blueprints": ("lowrank_dense",)},
      "not among those of the run (lowrank_dense)",
    ),
  ],
)
def test_growth_that_does_not_fit_is_refused(
  tmp_path, watch, life, changes, says
):
  log = write_log(tmp_path / "log", (*life, "zero_out", *WHOLE))
  with pytest.raises(InputError) as caught:
    watch(**replayed(log, **changes))
  assert str(caught.value).startswith(f"--config.tamiyo.replay={log}: ")
  assert says in str(caught.value)


def test_a_final_network_may_be_of_a_longer_run(tmp_path, watch):
  log = write_log(tmp_path / "log", ("slot1", "dense", "zero_out", *WHOLE))
  changes = {"train.epochs": 3, "tamiyo.replay_final": True}
  watch(**replayed(log, **changes)).trainer.shutdown()


def test_a_run_says_what_it_replays(tmp_path, watch):
  log = write_log(tmp_path / "log", ("slot1", "dense", "zero_out", *WHOLE))
  said = []
  for changes in (
    {},
    {"tamiyo.replay_final": True},
    {"tamiyo.replay_permute": "slots", "tamiyo.replay_seed": 3},
    {"tamiyo.replay_permute": "times"},
  ):
    run = watch(**replayed(log, **changes))
    said.append(replaying.describe(run.trainer.config))
    run.trainer.shutdown()
  assert said == [
    f"policy replay, the growth of {log}",
    f"policy replay, the final network of {log}, there from the start",
    f"policy replay, the growth of {log}, places drawn at random (seed 3)",
    f"policy replay, the growth of {log}, times drawn at random (seed 0)",
  ]


def test_stages_are_those_of_the_record(tmp_path, watch):
  """The metrics show a seed as decided, a lead before it is planted."""
  log = write_log(
    tmp_path / "log",
    ("slot1", "dense", "zero_out", (3, "TRAINING"), *WHOLE[3:]),
  )
  run = watch(**replayed(log)).train()
  shown = run.lines("slots/slot1/stage")
  assert shown[:4] == ["DORMANT", "GERMINATED", "TRAINING", "FOSSILIZED"]
  assert Stage[shown[-1]] is Stage.FOSSILIZED
  assert json.loads((run.path / "config.json").read_text())["config"]["tamiyo"][
    "replay"
  ] == str(log)


def test_a_replay_needs_a_trainer_of_its_own_config(make_config, tmp_path):
  config = make_config(**replayed(tmp_path / "none.jsonl"))
  with pytest.raises(InputError, match="none.jsonl: No such file"):
    Trainer(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
