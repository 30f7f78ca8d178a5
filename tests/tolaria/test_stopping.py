"""The first signal asks, the second ends the process at once."""

import os
import signal
import threading
import time

import pytest

from esper_jax.tolaria.stopping import Stopping


def wait_for(ready):
  deadline = time.monotonic() + 10
  while not ready():
    assert time.monotonic() < deadline
    time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_says_its_name(number):
  stopping = Stopping()
  assert (stopping.requested, stopping.name) == (False, "")
  with stopping.signals():
    os.kill(os.getpid(), number)
    wait_for(lambda: stopping.requested)
  assert stopping.name == number.name


def test_a_request_has_no_name():
  stopping = Stopping()
  stopping.request()
  assert (stopping.requested, stopping.name) == (True, "")


def test_a_second_signal_ends_the_process(monkeypatch):
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  stopping = Stopping()
  stopping.request()  # is no signal
  with stopping.signals():
    os.kill(os.getpid(), signal.SIGTERM)
    wait_for(lambda: stopping.name)
    assert codes == []
    os.kill(os.getpid(), signal.SIGINT)
    wait_for(lambda: codes)
  assert codes == [128 + signal.SIGINT]


def test_other_signals_are_not_ours():
  stopping, heard = Stopping(), []
  before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
  try:
    with stopping.signals():
      os.kill(os.getpid(), signal.SIGUSR1)
      wait_for(lambda: heard)
  finally:
    signal.signal(signal.SIGUSR1, before)
  assert not stopping.requested  # the listener has read all there was


def test_everything_is_as_before_afterwards():
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = [signal.getsignal(n) for n in numbers]
  threads = threading.active_count()
  stopping = Stopping()
  for _ in range(2):
    with stopping.signals():
      inside = [signal.getsignal(n) for n in numbers]
      with stopping.signals():
        assert [signal.getsignal(n) for n in numbers] == inside
      assert [signal.getsignal(n) for n in numbers] == inside != before
    assert [signal.getsignal(n) for n in numbers] == before
  wakeup = signal.set_wakeup_fd(-1)
  signal.set_wakeup_fd(wakeup)
  assert wakeup == -1
  assert threading.active_count() == threads
  # What a shell starts in the background ignores it otherwise.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(10)
  finally:
    signal.signal(signal.SIGINT, before[0])


def test_another_thread_cannot_listen():
  before, seen = signal.getsignal(signal.SIGINT), []

  def listen():
    with Stopping().signals():
      seen.append(signal.getsignal(signal.SIGINT))

  thread = threading.Thread(target=listen)
  thread.start()
  thread.join()
  assert seen == [before]
