"""What is compiled when never changes a run; what cannot be compiled neither
stops nor hangs it."""

import os
import threading
import time

import jax
import numpy as np
import pytest

from esper_jax.tezzeret import forge as forge_lib
from esper_jax.tezzeret.forge import Forge
from esper_jax.tezzeret.lowering import compile_lowered
from esper_jax.types import RunFailedError, Stage

# Two seeds that live a whole short life, one that is culled, in 8 epochs.
GROW = {
  "train.epochs": 8,
  "tamiyo.policy": "schedule",
  "tamiyo.schedule": (
    (1, "slot1", "dense"),
    (2, "slot2", "dense"),
    (5, "slot2", "dense"),
  ),
  "kasmina.training_gain_sigmas": -1e6,
  "kasmina.max_per_slot": 4,
  "kasmina.embargo_epochs": 1,
}
REPEATS = 200 if os.environ.get("ESPER_TEST_FULL") else 8


def equal(a, b):
  first, second = a.arrays(), b.arrays()
  assert first.keys() == second.keys()
  return [k for k in first if first[k].tobytes() != second[k].tobytes()] == []


def story(run):
  apart = ("seq", "time")
  return [
    {k: v for k, v in e.items() if k not in apart}
    for e in run.events
    if e["type"] != "compile"
  ]


@pytest.fixture
def compiler(monkeypatch):
  """Puts another compiler in the place of XLA's."""

  def replace(compile):
    monkeypatch.setattr(forge_lib, "compile_lowered", compile)

  return replace


def name_of(lowered):
  return lowered.as_text().split("@jit_", 1)[1].split()[0]


class Compiler:
  """Treats the programs of training apart once it has seen the first one.

  Attributes:
    asked: training programs so far.
  """

  def __init__(self, treat):
    self.treat = treat
    self.asked = 0
    self._lock = threading.Lock()

  def __call__(self, lowered, options):
    if name_of(lowered) == "train":
      with self._lock:
        self.asked += 1
        number = self.asked
      if number > 1:
        self.treat(number)
    return compile_lowered(lowered, options)


def fail(number):
  raise jax.errors.JaxRuntimeError(f"INTERNAL: no luck\nwith {number}")


@pytest.mark.parametrize(
  "lead", [0, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 2))]
)
def test_when_programs_are_compiled_changes_nothing(watch, compiler, lead):
  changes = {**GROW, "tezzeret.lead_epochs": lead}
  runs = [watch(**changes, **{"tezzeret.threads": 0}).train()]
  runs.append(watch(**changes).train())
  runs.append(watch(**changes, **{"tezzeret.guesses": 0}).train())
  runs.append(watch(**changes, **{"tezzeret.max_programs": 1}).train())
  slow = Compiler(lambda number: time.sleep(0.3))
  compiler(slow)
  runs.append(watch(**changes).train())
  assert slow.asked > 2
  first = runs[0]
  assert first.result["germinated"] >= 2
  for other in runs[1:]:
    assert equal(first, other)
    assert story(first) == story(other)
    assert first.lines("val/loss") == other.lines("val/loss")
  late = runs[-1].result
  assert late["stall_seconds"] > 0.2  # an epoch is shorter than that
  assert late["compilation"]["overlapped_steps"] > 0 or lead == 0


@pytest.fixture
def guessing(monkeypatch):
  """Gives guesses all the time they need."""
  real = Forge.new_epoch

  def new_epoch(forge, seconds):
    end = time.monotonic() + 60
    while any(
      j.queued or (j.taken and not j.done.is_set())
      for j in forge._jobs.values()
    ):
      assert time.monotonic() < end
      time.sleep(0.01)
    real(forge, seconds)

  never = property(lambda forge: False, lambda forge, value: None)
  monkeypatch.setattr(Forge, "_waiting", never, raising=False)
  monkeypatch.setattr(Forge, "may_guess", property(lambda forge: True))
  monkeypatch.setattr(Forge, "_can_spare", lambda forge: True)
  monkeypatch.setattr(Forge, "new_epoch", new_epoch)


@pytest.mark.parametrize("policy", ["schedule", "heuristic"])
def test_guesses_change_nothing_and_come_true(watch, guessing, policy):
  changes = {**GROW, "tamiyo.policy": policy, "tamiyo.plateau_epochs": 3}
  changes["tamiyo.plateau_delta"] = 1.0  # as soon as it can be judged
  first = watch(**changes, **{"tezzeret.threads": 0}).train()
  other = watch(**changes).train()
  assert first.result["germinated"] >= 1
  assert equal(first, other)
  assert story(first) == story(other)
  compilation = other.result["compilation"]
  assert 1 <= compilation["guesses_used"] <= compilation["guesses"]


def test_a_topology_that_comes_back_is_at_hand(watch):
  changes = {**GROW, "kasmina.gain_sigmas": 1e6}  # nothing fossilizes
  changes["tamiyo.schedule"] = ((1, "slot1", "dense"), (7, "slot1", "dense"))
  changes |= {"kasmina.max_holding_epochs": 1, "kasmina.embargo_epochs": 0}
  run = watch(**(changes | {"train.epochs": 13})).train()
  assert run.result["germinated"] == run.result["culled"] == 2
  c = run.result["compilation"]
  assert c["memory_hits"] >= 2  # without the seed, then with it again
  programs = [e["program"] for e in run.events if e["type"] == "compile"]
  assert programs.count("train") == 2


@pytest.mark.parametrize("threads", [0, 1])
def test_a_growth_that_cannot_be_compiled_is_cancelled(
  watch, compiler, threads
):
  never = watch(**{"train.epochs": 8}).train()
  compiler(Compiler(fail))
  run = watch(**GROW, **{"tezzeret.threads": threads}).train()
  assert run.result["status"] == "completed"
  assert run.result["germinated"] == 0
  assert run.lines("val/loss") == never.lines("val/loss")
  cancelled = run.times("growth_cancelled")
  assert cancelled[:2] == [("growth_cancelled", 2), ("growth_cancelled", 3)]
  event = next(e for e in run.events if e["type"] == "growth_cancelled")
  assert event["slot"] == "slot1"
  assert event["reason"] == "'train' cannot be compiled: INTERNAL: no luck"
  assert "late" not in event
  assert run.times("embargo_ended")[0] == ("embargo_ended", 3)
  slots = run.arrays()
  assert not any("seeds" in name for name in slots)


def test_a_network_that_cannot_be_compiled_at_all_fails_the_run(
  watch, compiler
):
  def broken(lowered, options):
    raise jax.errors.JaxRuntimeError("INTERNAL: nothing works")

  compiler(broken)
  with pytest.raises(RunFailedError, match=r"'\w+' cannot be compiled: INT"):
    watch(**GROW).train()


def refuse_first_step(run, monkeypatch):
  """Lets the first step after each germination fail, as a full memory does."""
  programs, real = run.trainer._programs, run.trainer._programs.train
  due = []
  run.trainer.bus.subscribe(lambda e: due.append(e), ["germinated"])

  def train(record, rows):
    if due:
      due.clear()
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: full\nvery full")
    real(record, rows)

  monkeypatch.setattr(programs, "train", train)


def test_a_growth_whose_first_step_fails_is_undone(watch, monkeypatch):
  run = watch(**GROW)
  refuse_first_step(run, monkeypatch)
  run.train()
  never = watch(**{"train.epochs": 8}).train()
  assert run.result["status"] == "completed"
  assert run.result["germinated"] == 0
  assert run.result["val_accuracy_before_growth"] is None
  assert run.result["seeds"] == []
  assert run.lines("val/loss") == never.lines("val/loss")
  told = [e for e in run.events if e["type"] == "growth_cancelled"]
  reasons = [e["reason"] for e in told]
  assert reasons[0] == "its first step failed: RESOURCE_EXHAUSTED: full"
  state = run.arrays()
  other = never.arrays()
  names = [name for name in other if name.startswith("state")]
  assert all(np.array_equal(state[n], other[n]) for n in names)


def test_what_fails_in_an_ordinary_step_passes_through(watch, monkeypatch):
  run = watch()

  def train(record, rows):
    raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone")

  monkeypatch.setattr(run.trainer._programs, "train", train)
  with pytest.raises(jax.errors.JaxRuntimeError, match="the device is gone"):
    run.train()


def test_a_run_undone_and_interrupted_resumes_without_the_seed(
  watch, monkeypatch
):
  """The checkpoint of the boundary holds the seed whose step has failed."""
  run = watch(name="a", **GROW, **{"checkpoint.every_epochs": 1})
  refuse_first_step(run, monkeypatch)
  whole = watch(**GROW)
  refuse_first_step(whole, monkeypatch)
  whole.train()
  while run.trainer.run.epoch < 2:
    run.trainer.train_epoch()
  run.trainer.bus.subscribe(lambda e: run.trainer.stop(), ["growth_cancelled"])
  run.trainer.train_epoch()  # ends after the first step, the seed undone
  run.trainer.shutdown()  # as a crash would leave it: no last checkpoint
  again = watch(name="a", **GROW, **{"checkpoint.every_epochs": 1})
  refuse_first_step(again, monkeypatch)
  assert again.trainer.run.germinated == 0
  again.train()
  assert again.lines("val/loss") == whole.lines("val/loss")


class Hang:
  """A compiler that takes long for every other network."""

  def __init__(self):
    self.over = threading.Event()

  def __call__(self, number):
    if number % 2 == 0:
      assert self.over.wait(300)


@pytest.fixture
def hanging(compiler):
  hang = Hang()
  compiler(Compiler(hang))
  yield hang
  hang.over.set()


def test_a_growth_that_is_late_is_cancelled_and_so_is_its_replay(
  watch, hanging, compiler
):
  changes = {
    **GROW,
    "tezzeret.timeout_seconds": 0.2,
    "tezzeret.guesses": 0,
    "checkpoint.every_epochs": 8,
  }
  run = watch(name="a", **changes, callbacks=[stop_after(6)])
  with pytest.raises(Killed):
    run.train()
  assert run.times("growth_cancelled")[0] == ("growth_cancelled", 2)
  (late, *_) = [e for e in run.events if e["type"] == "growth_cancelled"]
  assert late["late"]
  assert (
    "was not compiled within tezzeret.timeout_seconds=0.2" in late["reason"]
  )
  hanging.over.set()
  compiler(compile_lowered)  # now nothing is late
  again = watch(name="a", **changes).train()
  kinds = ("germinated", "growth_cancelled")
  upto = [e for e in story(run) if e["type"] in kinds]
  assert upto == [e for e in story(again) if e["type"] in kinds][: len(upto)]
  assert again.result["timing_dependent"]
  assert run.lines("val/loss")[:6] == again.lines("val/loss")[:6]


def test_a_growth_that_was_in_time_is_not_late_in_its_replay(watch, compiler):
  changes = {
    **GROW,
    "tezzeret.timeout_seconds": 300.0,
    "checkpoint.every_epochs": 8,
  }
  run = watch(name="a", **changes, callbacks=[stop_after(6)])
  with pytest.raises(Killed):
    run.train()
  planted = run.times("germinated")
  assert planted and not run.times("growth_cancelled")
  compiler(Compiler(lambda number: time.sleep(0.5)))
  again = watch(name="a", **changes)
  planting = again.trainer._growth.planting
  planting.options = planting.options._replace(timeout=0.01)
  again.train()
  assert again.times("germinated")[: len(planted)] == planted
  assert run.lines("val/loss")[:6] == again.lines("val/loss")[:6]


class Killed(BaseException):
  """Ends a run as a crash would."""


def stop_after(epoch):
  def callback(trainer, metrics):
    if metrics.epoch == epoch:
      raise Killed

  return callback


def test_a_stop_ends_waiting_for_a_program(watch, hanging, monkeypatch):
  run = watch(name="a", **GROW, **{"checkpoint.every_epochs": 1})
  programs, real, begun = (
    run.trainer._programs,
    run.trainer._programs.obtain,
    [],
  )

  def obtain(*args):
    begun.append(time.monotonic())
    threading.Timer(0.3, run.trainer.stop).start()
    real(*args)

  monkeypatch.setattr(programs, "obtain", obtain)
  run.train()
  assert 0.2 < time.monotonic() - begun[0] < 30
  assert run.result["status"] == "interrupted"
  assert run.result["epochs"] == 2  # its boundary is passed again on resume
  hanging.over.set()
  again = watch(name="a", **GROW).train()
  assert again.result["status"] == "completed"
  assert equal(again, watch(**GROW).train())


@pytest.mark.parametrize("threads", [0, 1])
def test_a_seed_that_cannot_be_removed_stays_silent_and_is_tried_again(
  watch, compiler, threads
):
  """The fourth network is the one without the first seed."""

  def fourth(number):
    if number == 4:
      fail(number)

  changes = {
    **GROW,
    "tamiyo.schedule": ((1, "slot1", "dense"), (2, "slot2", "dense")),
    "kasmina.gain_sigmas": 1e6,
    "kasmina.max_holding_epochs": 1,
    "tezzeret.guesses": 0,
    "tezzeret.threads": threads,
    "train.epochs": 10,
  }
  compiler(Compiler(fourth))
  run = watch(**changes).train()
  assert run.result["status"] == "completed"
  assert run.times("culled") == [("culled", 5), ("culled", 6)]
  (fault,) = [e for e in run.events if e["type"] == "fault"]
  assert (fault["epoch"], fault["slot"]) == (6, "slot1")
  assert fault["reason"] == (
    "a culled seed stays in the tree: 'train' cannot be compiled: INTERNAL: no"
    " luck"
  )
  # Both leave one epoch later, when the host alone is what is left.
  assert run.times("embargo_ended") == [("embargo_ended", 8)] * 2


@pytest.mark.parametrize(
  "treat", [pytest.param("slow", marks=pytest.mark.full), "failing", "hanging"]
)
def test_growing_and_culling_never_locks_up(watch, compiler, treat):
  """Seeds come and go in both slots, and few programs are kept."""
  over = threading.Event()

  def slow(number):
    time.sleep(0.02)

  def failing(number):
    if number % 3 == 0:
      fail(number)

  def hanging(number):
    if number % 3 == 0:
      over.wait(0.3)  # longer than anybody waits for a newborn

  compiler(
    Compiler({"slow": slow, "failing": failing, "hanging": hanging}[treat])
  )
  run = watch(
    **{
      "train.epochs": 6 + 3 * REPEATS,
      "data.train_limit": 64,
      "tamiyo.policy": "random",
      "tamiyo.probability": 0.9,
      "tamiyo.max_growths": 10**6,
      "kasmina.gain_sigmas": 1e6,
      "kasmina.min_training_epochs": 1,
      "kasmina.max_training_epochs": 1,
      "kasmina.training_gain_sigmas": 1e6,
      "kasmina.embargo_epochs": 0,
      "kasmina.max_per_slot": 10**6,
      "tezzeret.max_programs": 2,
      "tezzeret.timeout_seconds": 0.1 if treat == "hanging" else 0.0,
      "checkpoint.every_epochs": 10**6,
    }
  )
  try:
    run.train()
  finally:
    over.set()
  assert run.result["status"] == "completed"
  ended = run.result["culled"] + len(run.times("growth_cancelled"))
  assert ended >= REPEATS
  if treat != "slow":
    assert run.times("growth_cancelled", "fault")


def test_a_pending_growth_is_resumed_at_the_same_boundary(watch):
  changes = {**GROW, "tezzeret.lead_epochs": 2, "checkpoint.every_epochs": 1}
  whole = watch(**changes).train()
  first = whole.times("germinated")[0]
  assert first == ("germinated", 3)  # decided after epoch 1
  run = watch(name="a", **changes, callbacks=[lambda t, m: t.stop()])
  run.train()
  assert run.result["epochs"] == 1
  assert run.trainer.run.slots.stage[0] == Stage.GERMINATED
  again = watch(name="a", **changes).train()
  assert again.times("germinated") == whole.times("germinated")
  assert equal(again, whole)
  # Its programs were asked for as soon as the run was taken up.
  ahead = [
    e for e in again.events if e["type"] == "compile" and e["background"]
  ]
  assert [e["program"] for e in ahead].count("train") >= 1
