"""Events that are kept."""

from esper_jax.oona.bus import Bus
from esper_jax.oona.events import Culled, Decision, RunStarted
from esper_jax.oona.memory import Memory
from tests.oona.sample_events import publish


def test_events_are_kept_in_order_and_found_by_type():
  memory, bus = Memory(), Bus()
  bus.subscribe(memory)
  for kind in ("run_started", "decision", "culled", "decision"):
    publish(bus, kind)
  assert [event.seq for event in memory.events] == [0, 1, 2, 3]
  assert [event.seq for event in memory.of(Decision)] == [1, 3]
  assert [event.seq for event in memory.of(Culled, RunStarted)] == [0, 2]
