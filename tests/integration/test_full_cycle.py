"""The whole cycle on digits, as a user sees it in events.jsonl.

A ResNet of three stages, one of them narrowed to a single inner channel; the
heuristic has to find a place, grow there, and close half of the gap.
"""

import sys
from typing import Any

import pytest

from benchmarks import bottleneck
from benchmarks._common import train
from esper_jax.control import never_grown
from esper_jax.kasmina import blueprints

pytestmark = pytest.mark.full

SEED = 7  # its stage 3 is narrow; the gap is above LEAST_GAP
LIFE = ["GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"]


@pytest.fixture(autouse=True, scope="module")
def _own_blueprint():
  """Other tests of this process must not meet the benchmark's blueprint."""
  yield
  module = sys.modules.pop("benchmarks._wide_block", None)
  if module:
    blueprints.unregister(module.NAME)


def stages_of(event: dict[str, Any]) -> list[str]:
  """The stages that an event says its slot has come to."""
  if event["type"] == "germinated":  # planted, and in training from now on
    return ["GERMINATED", event["stage"]]
  if event["type"] == "fossilized":
    return ["FOSSILIZED"]
  return [event["now"]] if event["type"] == "stage_changed" else []


@pytest.fixture(scope="module")
def runs():
  narrowed = bottleneck.narrowed_stage(SEED)
  config = bottleneck.make_config(SEED, narrowed=narrowed)
  whole = bottleneck.make_config(SEED, narrowed=None)
  return {
    "grown": train(config),
    "never": train(never_grown(config)),
    "unimpaired": train(never_grown(whole)),
  }


def test_a_decision_names_a_slot_and_quotes_its_signal(runs):
  events = runs["grown"].events
  decision = bottleneck.first_choice(events)
  assert decision["slot"] in bottleneck.SLOTS
  assert decision["slot"] in decision["reason"]
  assert "validation loss" in decision["reason"]
  assert "germination score" in decision["reason"]
  germinated = next(e for e in events if e["type"] == "germinated")
  assert germinated["slot"] == decision["slot"]
  assert decision["id"] < germinated["id"]
  assert decision["epoch"] < germinated["epoch"]


def test_the_seed_lives_its_whole_life_in_order(runs):
  events = runs["grown"].events
  decision = bottleneck.first_choice(events)
  own = [e for e in events if e.get("slot") == decision["slot"]]
  own = own[own.index(decision) :]
  stages = [stage for event in own for stage in stages_of(event)]
  assert stages[: len(LIFE)] == LIFE
  ids = [event["id"] for event in events if event["id"] is not None]
  assert ids == sorted(set(ids))
  fossil = next(e for e in own if e["type"] == "fossilized")
  assert fossil["contribution"] > 2 * fossil["contribution_se"] > 0
  assert runs["grown"].result["fossilized"] == 1


def test_half_of_the_gap_is_closed(runs):
  accuracy = {k: run.result["val_accuracy"] for k, run in runs.items()}
  gap = accuracy["unimpaired"] - accuracy["never"]
  assert 100 * gap >= bottleneck.LEAST_GAP
  assert accuracy["grown"] - accuracy["never"] >= gap / 2
