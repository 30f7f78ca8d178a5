"""The arms are what they say, as plain data; nothing is trained here."""

import pytest

from benchmarks.evidence import arms, oracle, runner, suites
from benchmarks.evidence.suites import StaticHost
from esper_jax import config as config_lib
from esper_jax.types import InputError

GROWN = {"total_flops": 3000, "epochs": 30, "params_final": 6000}
ONCE = {"total_flops": 600, "epochs": 30}
FINAL = {"total_flops": 6000, "epochs": 30}


def make_given(tmp_path, suite="digits", flags=(), **options):
  job = runner.Job(suites.load(suite), tmp_path, tuple(flags))
  results = {"B4": GROWN, "A1": ONCE, "A2": FINAL}
  return arms.Given(
    suite=job.suite,
    seed=3,
    config=runner.base_config(job, 3, job.flags),
    rows={name: {"result": result} for name, result in results.items()},
    folders={name: tmp_path / name / "3" for name in results},
    **options,
  )


def changed_keys(given, name):
  before = config_lib.flatten(given.config)
  after = config_lib.flatten(arms.configure(arms.ARMS[name], given))
  keys = before.keys() | after.keys()
  return {k: after.get(k) for k in keys if before.get(k) != after.get(k)}


@pytest.mark.parametrize("name", suites.names())
def test_suites_are_whole(name, tmp_path):
  suite = suites.load(name)
  assert suite.name == name and suite.seeds >= 5
  assert set(suite.arms) <= set(arms.ARMS)
  claimed = {arm for c in suite.claims for arm in (c.arm, c.control)}
  assert claimed <= set(suite.arms)
  assert len({c.name for c in suite.claims}) == len(suite.claims)
  margins = {c.bound for c in suite.claims if c.kind == "matches"}
  small = name in ("digits", "cifar10-small")
  assert margins == ({1.0} if small else {0.2})
  given = make_given(tmp_path, name)
  for arm in ("A0", "A1", "B1", "B4"):
    config_lib.validate(arms.configure(arms.ARMS[arm], given))
  assert ("A4" in suite.arms) == (suite.static is not None)
  assert ("B5" in suite.arms) == (suite.look_ahead > 0)


def test_there_are_the_suites_asked_for():
  assert {"digits", "cifar10-small", "cifar10", "cifar100"} <= set(
    suites.names()
  )
  with pytest.raises(InputError, match="no such suite; valid are cifar10,"):
    suites.load("digit")


def test_the_wording_is_hashed_and_words_for_people_are_not():
  suite = suites.load("digits")
  claim = suite.claims[1]._replace(bound=2.0)
  other = suite._replace(claims=(claim,))
  assert suite.sha256() == suite._replace(says="x").sha256()
  assert suite.sha256() != other.sha256()
  assert suite.sha256() != suite._replace(look_ahead=1).sha256()


def test_the_controls_that_never_grow(tmp_path):
  given = make_given(tmp_path)
  assert changed_keys(given, "A0") == {"tamiyo.policy": "never"}
  assert changed_keys(given, "A1") == {
    "tamiyo.policy": "never",
    "host.slots": (),
  }


def test_the_final_network_from_scratch(tmp_path):
  given = make_given(tmp_path)
  events = str(tmp_path / "B4" / "3" / "events.jsonl")
  final = {
    "tamiyo.policy": "replay",
    "tamiyo.replay": events,
    "tamiyo.replay_final": True,
  }
  assert changed_keys(given, "A2") == {
    **final,
    "kasmina.initializer": "random",
  }
  # zero_out is the default.
  assert {**final} == {
    k: v
    for k, v in changed_keys(given, "A5").items()
    if k != "kasmina.initializer"
  }
  config = arms.configure(arms.ARMS["A5"], given)
  assert config.kasmina.initializer == "zero_out"


def test_matched_flops(tmp_path):
  flags = ["--config.optimizer.warmup_epochs=3"]
  given = make_given(tmp_path, flags=flags)
  small = changed_keys(given, "A1p")  # 20 an epoch: 3000 pays for 150
  assert small["train.epochs"] == 150
  assert small["optimizer.warmup_epochs"] == 15.0
  assert small["tamiyo.policy"] == "never" and small["host.slots"] == ()
  short = changed_keys(given, "A3")  # 200 an epoch: for 15
  assert short["train.epochs"] == 15
  assert short["optimizer.warmup_epochs"] == 1.5
  assert short["tamiyo.replay_final"]


def test_the_hand_designed_network_is_not_smaller(tmp_path):
  given = make_given(tmp_path)
  found = changed_keys(given, "A4")
  static = given.suite.static
  assert static is not None
  width = found["host.width"]
  sizes = [arms.parameters(static, n) for n in (width - 1, width)]
  assert sizes[0] < GROWN["params_final"] <= sizes[1]
  assert found["host.inner_widths"] == () and found["host.slots"] == ()
  tiny = StaticHost("resnet8", (1, 2), (8, 8, 1), 10)
  assert arms.parameters(tiny, 2) == 1384
  assert arms.matched_width(tiny, 10**9) == 2
  with pytest.raises(InputError, match="names no host for A4"):
    arms.configure(
      arms.ARMS["A4"], given._replace(suite=suites.load("cifar10-small"))
    )


def test_replays_permute_with_the_seed(tmp_path):
  given = make_given(tmp_path)
  for name, what in (("B2", "slots"), ("B3", "times")):
    found = changed_keys(given, name)
    assert found["tamiyo.replay_permute"] == what
    assert found["tamiyo.replay_seed"] == 3
    assert "train.epochs" not in found


def test_the_clock_and_the_learned_policy(tmp_path):
  given = make_given(tmp_path, policy="p.safetensors", policy_name="learned")
  assert changed_keys(given, "B1") == {
    "tamiyo.policy": "periodic",
    "tamiyo.period_epochs": 5,
  }
  assert changed_keys(given, "P") == {"tamiyo.policy_path": "p.safetensors"}
  assert arms.configure(arms.ARMS["P"], given).tamiyo.policy == "learned"
  with pytest.raises(InputError, match="--policy=FILE"):
    arms.configure(arms.ARMS["P"], make_given(tmp_path))


def test_the_optimizer_at_birth(tmp_path):
  given = make_given(tmp_path)
  keys = {
    name: (
      config.optimizer.newborn,
      config.optimizer.newborn_warmup_steps,
    )
    for name in ("C2z", "C2g", "C2gn", "C2r", "C2rn", "C2c", "C2cn")
    for config in [arms.configure(arms.ARMS[name], given)]
  }
  assert keys == {
    "C2z": ("zero", 0),
    "C2g": ("global_count", 50),
    "C2gn": ("global_count", 0),
    "C2r": ("reset", 50),
    "C2rn": ("reset", 0),
    "C2c": ("copy", 50),
    "C2cn": ("copy", 0),
  }


def test_arms_come_after_what_they_need():
  assert arms.in_order(("A3", "A0")) == ("B4", "A2", "A3", "A0")
  with pytest.raises(InputError, match="no such arm: A9"):
    arms.in_order(("A9",))
  for arm in arms.ARMS.values():
    assert set(arm.needs) <= set(arms.ARMS)


def test_look_ahead_takes_the_best_of_all_places(tmp_path):
  flags = ["--config.host.name=mlp", "--config.host.depth=3"]
  flags += ["--config.host.inner_widths=()", "--config.host.width=8"]
  flags += ["--config.kasmina.blueprints=dense,lowrank_dense"]
  given = make_given(tmp_path, flags=flags)
  seen = []

  def attempt(config, last, entry):
    seen.append((config.tamiyo.schedule, last))
    accuracy = {"slot2": 0.9, "slot3": 0.8, "slot1": None}[entry[1]]
    return oracle.Trial(accuracy, 10)

  def look(times):
    return oracle.look_ahead(
      given.config, times, epochs=6, folder=tmp_path, attempt=attempt
    )

  schedule, flops = look([5, 5, 28])
  assert schedule == [
    (5, "slot2", "dense"),
    (5, "slot3", "dense"),  # a slot germinates once a boundary
    (28, "slot2", "dense"),
  ]
  tried = len(seen)
  assert flops == 10 * tried and seen[-1][1] == 30  # the end of the run
  assert seen[0][0] == ((5, "slot1", "dense"),) and seen[0][1] == 11
  assert look([5, 5, 28]) == (schedule, flops) and len(seen) == tried
  assert look([]) == ([], 0)
  assert oracle.schedule_of([]) == {"tamiyo.policy": "never"}


def test_the_times_of_growth():
  events = [
    {"type": "decision", "action": "germinate", "epoch": 4},
    {"type": "decision", "action": "advance", "epoch": 5},
    {"type": "germinated", "epoch": 5},
    {"type": "decision", "action": "germinate", "epoch": 9},
  ]
  assert oracle.growth_times(events) == [4, 9]
