"""A display that is slow or fails holds up nobody."""

import threading

import pytest

from esper_jax.nissa.behind import Behind
from esper_jax.tolaria.display import Silent, TrainingMetrics

METRICS = TrainingMetrics(1, 31, 2.0, 0.3, 1.9, 0.4, 1.0)


class Noted(Silent):
  """Notes what it is told."""

  def __init__(self):
    self.calls = []
    self.threads = set()

  def __getattribute__(self, name):
    note = object.__getattribute__(self, name)
    if name in ("calls", "threads", "note") or name.startswith("_"):
      return note
    return lambda *args, **how: self.note(name, args, how)

  def note(self, name, args, how):
    self.calls.append((name, args, how))
    self.threads.add(threading.get_ident())


class Stuck(Silent):
  """Waits in every step until it may go on."""

  def __init__(self):
    self.inside = threading.Event()
    self.go_on = threading.Event()

  def steps(self, step, loss, images_per_second):
    self.inside.set()
    self.go_on.wait()


class Failing(Silent):
  def epoch(self, metrics, slots):
    raise ValueError("no\nroom")


def test_everything_is_told_in_order_from_another_thread(tmp_path):
  display = Noted()
  behind = Behind(display)
  behind.part("data", "digits")
  behind.begin(epoch=0, epochs=2, steps_per_epoch=31)
  behind.pace(20, 0.1)
  behind.steps(25, 2.1, 300.0)
  behind.epoch(METRICS, {"slot1": {}})
  behind.event({"type": "culled"})
  behind.finish({"status": "completed"}, tmp_path)
  behind.close()
  behind.close()
  assert display.calls == [
    ("part", ("data", "digits"), {}),
    ("begin", (), {"epoch": 0, "epochs": 2, "steps_per_epoch": 31}),
    ("pace", (20, 0.1), {}),
    ("steps", (25, 2.1, 300.0), {}),
    ("epoch", (METRICS, {"slot1": {}}), {}),
    ("event", ({"type": "culled"},), {}),
    ("finish", ({"status": "completed"}, tmp_path), {}),
    ("close", (), {}),
  ]
  assert len(display.threads) == 1
  assert threading.get_ident() not in display.threads
  assert (behind.dropped, behind.last_error) == (0, "")


def test_what_finds_no_room_is_dropped_and_counted():
  display = Stuck()
  behind = Behind(display, capacity=2, patience=0.05)
  behind.steps(1, 0.0, 0.0)
  assert display.inside.wait(10)
  for step in range(2, 7):  # two wait, three are dropped
    behind.steps(step, 0.0, 0.0)
  assert behind.dropped == 3
  behind.close()  # gives up on the two that wait, and could not be told of it
  assert behind.dropped == 6
  display.go_on.set()


def test_a_display_that_still_works_at_the_end_is_left():
  display = Stuck()
  behind = Behind(display, patience=0.05)
  behind.steps(1, 0.0, 0.0)
  assert display.inside.wait(10)
  behind.close()
  assert behind.dropped == 2  # its end, and that nothing comes after it
  display.go_on.set()


@pytest.mark.parametrize("times", [1, 3])
def test_what_it_fails_on_is_counted(times):
  behind = Behind(Failing())
  for _ in range(times):
    behind.epoch(METRICS, {})
  behind.close()
  assert behind.dropped == times
  assert behind.last_error == "ValueError('no\\nroom')"
