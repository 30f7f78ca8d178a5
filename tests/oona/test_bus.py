"""The bus: stamps, order, and who may stop a run."""

import threading

import pytest

from esper_jax.oona.bus import Bus
from esper_jax.oona.events import EVENT_TYPES
from esper_jax.oona.health import Health, State
from esper_jax.oona.jsonl import JsonlWriter, read
from esper_jax.types import RunFailedError
from tests.oona.sample_events import publish


def make_bus(**options):
  return Bus(clock=lambda: 12.5, **options)


def test_publish_stamps_in_the_order_of_the_contract():
  seen = []
  bus = make_bus(next_id=7)
  bus.subscribe(seen.append)
  event = publish(bus, "stage_changed", epoch=2, step=40)
  assert list(event.items()) == [
    ("v", 1),
    ("id", 7),
    ("seq", 0),
    ("time", 12.5),
    ("epoch", 2),
    ("step", 40),
    ("type", "stage_changed"),
    ("slot", "slot1"),
    ("was", "TRAINING"),
    ("now", "BLENDING"),
  ]
  assert seen == [event]
  assert "slot" not in publish(bus, "run_finished")
  assert bus.next_id == 9


def test_process_events_take_no_number_of_the_run():
  bus = make_bus()
  ids = [
    publish(bus, kind)["id"]
    for kind in ("run_started", "compile", "resumed", "decision", "checkpoint")
  ]
  assert ids == [0, None, None, 1, None]
  bus.next_id = 1  # as a rollback does
  event = publish(bus, "culled")
  assert (event["id"], event["seq"]) == (1, 5)


def test_sinks_get_only_the_types_they_asked_for():
  seen = []
  bus = make_bus()
  unsubscribe = bus.subscribe(seen.append, types=("culled",))
  for kind in EVENT_TYPES:
    publish(bus, kind)
  assert [e["type"] for e in seen] == ["culled"]
  unsubscribe()
  unsubscribe()  # twice is fine
  publish(bus, "culled")
  assert len(seen) == 1


def test_unknown_types_and_taken_fields_are_refused():
  bus = make_bus()
  with pytest.raises(ValueError, match="unknown event type 'grown'; valid: ru"):
    bus.publish("grown", epoch=0, step=0)
  with pytest.raises(ValueError, match="unknown event type 'grown'"):
    bus.subscribe(print, types=("grown",))
  with pytest.raises(ValueError, match="the bus sets time"):
    publish(bus, "decision", time=3)
  assert publish(bus, "decision")["seq"] == 0


def test_a_best_effort_sink_never_stops_the_run():
  def broken(event):
    raise RunFailedError("no display")

  seen = []
  bus = make_bus()
  bus.subscribe(broken, name="tensorboard")
  bus.subscribe(seen.append)
  event = publish(bus, "culled")
  publish(bus, "culled")
  assert seen[0] == event and len(seen) == 2
  assert bus.failures == {"tensorboard": 2}
  assert "no display" in bus.last_failure["tensorboard"]


def test_a_sink_that_misses_events_makes_the_bus_degraded():
  def broken(event):
    raise RunFailedError("no display")

  bus = make_bus()
  assert bus.health() == Health()
  bus.subscribe(broken, name="tensorboard")
  for _ in range(2):
    publish(bus, "culled")
  error = "tensorboard: RunFailedError('no display')"
  assert bus.health() == Health(State.DEGRADED, dropped=2, error=error)


def test_a_sink_is_named_after_itself():
  class Sink:
    def __call__(self, event):
      raise KeyError("x")

  def plain_function(event):
    raise KeyError("y")

  bus = make_bus()
  bus.subscribe(Sink())
  bus.subscribe(plain_function)
  publish(bus, "culled")
  first, second = bus.failures
  assert first == "Sink" and second.endswith("plain_function")


def test_a_required_sink_stops_the_run_and_is_served_first():
  order = []

  def broken(event):
    order.append("required")
    raise OSError(5, "Input/output error")

  bus = make_bus()
  bus.subscribe(lambda event: order.append("shown"))
  bus.subscribe(broken, required=True, name="events.jsonl")
  with pytest.raises(RunFailedError, match="'events.jsonl'.*'culled'.*Input"):
    publish(bus, "culled")
  assert order == ["required"]


def test_a_required_sinks_own_words_are_kept():
  def broken(event):
    raise RunFailedError("cannot write events.jsonl")

  bus = make_bus()
  bus.subscribe(broken, required=True)
  with pytest.raises(RunFailedError, match="^cannot write events.jsonl$"):
    publish(bus, "culled")


def test_a_sink_may_publish():
  seen = []
  bus = make_bus()

  def echo(event):
    publish(bus, "fault", step=event.step)

  bus.subscribe(echo, types=("culled",))
  bus.subscribe(lambda event: seen.append((event["seq"], event["type"])))
  publish(bus, "culled")
  assert sorted(seen) == [(0, "culled"), (1, "fault")]


def test_threads_get_distinct_numbers(tmp_path):
  log = JsonlWriter(tmp_path / "events.jsonl", fsync=False)
  bus = Bus()
  bus.subscribe(log.append, required=True)

  def work():
    for step in range(50):
      publish(bus, "decision", step=step)

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  log.close()
  events = read(log.path)
  assert [e["id"] for e in events] == list(range(200))
  assert [e["seq"] for e in events] == list(range(200))
  assert all(e["time"] > 1e9 for e in events)
