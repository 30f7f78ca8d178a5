"""The event bus: what is published reaches every sink that asked for it."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from esper_jax.oona import events
from esper_jax.oona.events import EVENT_TYPES, RUN_EVENTS
from esper_jax.oona.health import Health, State
from esper_jax.oona.record import STAMP, Event
from esper_jax.types import RunFailedError

Sink = Callable[[Event], None]


class _Subscription(NamedTuple):
  sink: Sink
  name: str
  types: frozenset[str]
  required: bool


class Bus:
  """Stamps events and hands them to sinks.

  Attributes:
    next_id: number of the next event of the run; save it in the run's state
      and set it on resume and rollback.
    failures: name of a best-effort sink -> how many events it failed on.
    last_failure: name of such a sink -> its latest error, in one line.
  """

  def __init__(
    self, *, next_id: int = 0, clock: Callable[[], float] = time.time
  ):
    """Makes a bus without sinks.

    Args:
      next_id: see the attribute.
      clock: seconds since the epoch, for `time`.
    """
    self.next_id = next_id
    self.failures: Counter[str] = Counter()
    self.last_failure: dict[str, str] = {}
    self._clock = clock
    self._seq = 0
    self._subscriptions: list[_Subscription] = []
    # Compilers publish from their own threads; reentrant so that a sink may
    # publish too.
    self._lock = threading.RLock()

  def subscribe(
    self,
    sink: Sink,
    types: Collection[str] | None = None,
    *,
    required: bool = False,
    name: str = "",
  ) -> Callable[[], None]:
    """Adds a sink.

    Args:
      sink: called with each event, from the publisher's thread.
      types: the event types it wants; None means all.
      required: whether the run must stop when the sink fails. Required sinks
        are served first, so that a record exists before anyone shows it.
      name: for `failures`; the sink's own name when empty.

    Returns:
      A function that removes the sink.

    Raises:
      ValueError: an unknown type.
    """
    for kind in types or ():
      events.of_type(kind)
    own = name or getattr(sink, "__qualname__", type(sink).__name__)
    wanted = frozenset(EVENT_TYPES if types is None else types)
    subscription = _Subscription(sink, own, wanted, required)
    with self._lock:
      self._subscriptions.append(subscription)
      self._subscriptions.sort(key=lambda s: not s.required)  # stable

    def unsubscribe() -> None:
      with self._lock:
        if subscription in self._subscriptions:
          self._subscriptions.remove(subscription)

    return unsubscribe

  def publish(
    self,
    type: str,
    *,
    epoch: int,
    step: int,
    slot: str | None = None,
    **fields: Any,
  ) -> Event:
    """Stamps an event and hands it to every sink that wants its type.

    Args:
      type: one of EVENT_TYPES.
      epoch: epochs completed.
      step: steps completed.
      slot: the slot it is about, where the type has one.
      **fields: the other fields of the type.

    Returns:
      The event. `id` counts the run's events (None of what a process did),
      `seq` this process's.

    Raises:
      RunFailedError: a required sink failed.
      ValueError: an unknown type, a field that is unknown or missing, or one
        that the bus itself sets.
    """
    taken = [name for name in fields if name in STAMP]
    if taken:
      raise ValueError(f"event '{type}': the bus sets {', '.join(taken)}")
    if slot is not None:
      fields["slot"] = slot
    with self._lock:
      stamp = {
        "id": self.next_id if type in RUN_EVENTS else None,
        "seq": self._seq,
        "time": self._clock(),
        "epoch": epoch,
        "step": step,
      }
      event = events.make(type, stamp | fields)
      self._seq += 1
      self.next_id += type in RUN_EVENTS
      for subscription in tuple(self._subscriptions):
        if type in subscription.types:
          self._deliver(subscription, event)
    return event

  def health(self) -> Health:
    """Says how many events best-effort sinks missed, and the latest error."""
    drops = self.failures.total()
    if not drops:
      return Health()
    name, error = tuple(self.last_failure.items())[-1]
    return Health(State.DEGRADED, dropped=drops, error=f"{name}: {error}")

  def _deliver(self, subscription: _Subscription, event: Event) -> None:
    try:
      subscription.sink(event)
    except Exception as error:
      if not subscription.required:
        self.last_failure[subscription.name] = repr(error)
        self.failures[subscription.name] += 1
        return
      if isinstance(error, RunFailedError):
        raise
      raise RunFailedError(
        f"the run needs '{subscription.name}', which failed on event"
        f" '{event.type}': {error!r}"
      ) from error
