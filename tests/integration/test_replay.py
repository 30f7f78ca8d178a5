"""A run that is replayed on its own seed is the same, however it is stopped."""

import random
import signal

import pytest

GROWTH = ("germinated", "stage_changed", "fossilized", "culled")


@pytest.fixture
def replay(whole):
  """The overrides that replay the run without interruption."""
  return (
    "tamiyo.policy=replay",
    f"tamiyo.replay={whole.path / 'events.jsonl'}",
    "tamiyo.schedule=()",
  )


def network(left):
  """Parameters, seeds and optimizer, bit for bit."""
  return {k: v for k, v in left.state().items() if k.startswith("state/")}


def growth(left):
  keys = ("epoch", "type", "slot", "key", "was", "now")
  return [{k: e.get(k) for k in keys} for e in left.events(*GROWTH)]


def test_a_replay_on_the_same_seed_is_the_same_network(lab, whole, replay):
  left = lab.run("replay", "grow", *replay)
  assert network(left) == network(whole)
  assert len(network(left)) > 20
  assert growth(left) == growth(whole)
  assert {e["type"] for e in growth(whole)} == set(GROWTH)
  for key in ("train_flops", "test_accuracy", "val_accuracy", "params_final"):
    assert left.result[key] == whole.result[key]
  bill = ("ablation_flops", "probe_flops")
  assert [left.result[k] for k in bill] == [0, 0]
  assert whole.result["ablation_flops"] > 0


@pytest.mark.full
def test_a_replay_on_another_seed_grows_alike(lab, whole, replay):
  left = lab.run("other", "grow", *replay, "seed=1")
  assert growth(left) == growth(whole)
  assert left.result["params_final"] == whole.result["params_final"]
  assert network(left) != network(whole)


@pytest.mark.parametrize(
  "final", [False, pytest.param(True, marks=pytest.mark.full)]
)
def test_a_replay_that_was_killed_ends_the_same(
  lab, whole, replay, same, final
):
  arguments = (*replay, f"tamiyo.replay_final={final}")
  left = lab.run("left", "grow", *arguments)
  rng = random.Random(final)
  for moment in sorted(rng.uniform(0, left.size()) for _ in range(2)):
    process = lab.start("killed", "grow", *arguments)
    process.wait_until(lambda p=process, m=moment: p.left.size() >= m)
    process.send(signal.SIGKILL)
    process.end()
  killed = lab.run("killed", "grow", *arguments)
  same(killed, left)
