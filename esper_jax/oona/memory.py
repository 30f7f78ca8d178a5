"""A sink that keeps events, for tests and notebooks."""

from esper_jax.oona.record import Event


class Memory:
  """Keeps every event it is given: `bus.subscribe(memory)`.

  Attributes:
    events: in the order in which they came.
  """

  def __init__(self) -> None:
    self.events: list[Event] = []

  def __call__(self, event: Event) -> None:
    """Keeps an event."""
    self.events.append(event)

  def of(self, *kinds: type[Event]) -> list[Event]:
    """The events of these types."""
    return [event for event in self.events if isinstance(event, kinds)]
