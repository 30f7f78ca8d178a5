"""Parts start in order, say how they are, and stop in reverse."""

import pytest

from esper_jax.oona.health import Health, State
from esper_jax.tolaria.roster import Roster


class Part:
  """Notes when it is stopped, and says what it was told to say."""

  def __init__(self, name, told):
    self.name = name
    self.told = told
    self.told.append(f"{name} made")
    self.said = Health()

  def stop(self):
    self.told.append(f"{self.name} stopped")

  def health(self):
    return self.said


def failing(*_):
  raise OSError(28, "No space left\non device")


@pytest.fixture
def told():
  return []


@pytest.fixture
def start(told):
  roster = Roster()

  def start(name, make=None, stop=Part.stop, **options):
    make = make or (lambda: Part(name, told))
    return roster.start(name, make, stop=stop, **options)

  start.roster = roster
  return start


def test_parts_stop_once_and_in_reverse(start, told):
  for name in "abc":
    assert start(name).name == name
  start.roster.stop()
  start.roster.stop()
  assert told == [f"{name} made" for name in "abc"] + [
    f"{name} stopped" for name in "cba"
  ]


def test_a_part_that_does_not_start_stops_those_before_it(start, told):
  start("a")
  start("b")
  with pytest.raises(OSError, match="No space"):
    start("c", failing)
  assert told == ["a made", "b made", "b stopped", "a stopped"]
  health = start.roster.health()
  assert [health[name]["state"] for name in "abc"] == [
    "ready",
    "ready",
    "failed",
  ]
  assert health["c"]["error"] == "OSError: [Errno 28] No space left on device"


def test_what_stopped_a_start_is_told_though_stopping_fails_too(start, told):
  start("a")
  start("b", stop=lambda part: 1 / 0)
  with pytest.raises(OSError, match="No space"):
    start("c", failing)
  assert told[-1] == "a stopped"


def test_a_part_that_cannot_be_stopped_holds_up_no_other(start, told):
  start("a")
  start("b", stop=failing)
  with pytest.raises(OSError, match="No space"):
    start.roster.stop()
  assert told[-1] == "a stopped"
  start.roster.stop()
  assert told.count("a stopped") == 1


def test_each_part_says_how_it_is(start):
  one = start("one")
  start("two", health=lambda part: Health(queued=len(part.name)))
  start("three", object, None)
  one.said = Health(State.DEGRADED, 3, 2, "gone")
  health = start.roster.health()
  assert [*health] == ["one", "two", "three"]
  seconds = [row.pop("seconds") for row in health.values()]
  assert all(0 <= s < 60 for s in seconds)
  well = {"state": "ready", "queued": 0, "dropped": 0, "error": ""}
  assert health["one"] == {
    "state": "degraded",
    "queued": 3,
    "dropped": 2,
    "error": "gone",
  }
  assert health["two"] == well | {"queued": 3}
  assert health["three"] == well


def test_seconds_are_those_of_the_start(start, monkeypatch):
  times = iter((5.0, 7.5))
  monkeypatch.setattr("time.monotonic", lambda: next(times))
  start("a")
  monkeypatch.undo()
  assert start.roster.health()["a"]["seconds"] == 2.5


def test_a_part_whose_health_is_a_mistake_hides_no_other(start):
  start("a", health=lambda part: 1 / 0)
  start("b", health=lambda part: [][0])
  start("c")
  health = start.roster.health()
  assert [row["state"] for row in health.values()] == [
    "failed",
    "failed",
    "ready",
  ]
  assert health["a"]["error"] == "ZeroDivisionError: division by zero"


def test_an_error_without_words_is_its_name(start):
  def stopped():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    start("a", stopped)
  assert start.roster.health()["a"]["error"] == "KeyboardInterrupt"
