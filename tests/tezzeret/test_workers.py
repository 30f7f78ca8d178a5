"""Jobs by priority; a process that ends while one runs."""

import gc
import subprocess
import sys
import threading
import time

import pytest

from esper_jax.tezzeret import workers
from esper_jax.tezzeret.workers import Workers


def until(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.001)


def test_the_lowest_number_goes_first_then_the_oldest():
  gate, ran = threading.Event(), []
  pool = Workers(1)
  pool.submit(0, lambda: gate.wait(30))
  until(workers.at_work)
  for priority, name in ((2, "c"), (1, "a"), (2, "d"), (1, "b")):
    pool.submit(priority, lambda name=name: ran.append(name))
  gate.set()
  until(lambda: len(ran) == 4)
  assert ran == ["a", "b", "c", "d"]
  until(lambda: not workers.at_work())


def test_as_many_at_a_time_as_there_are_threads():
  gate, at_once = threading.Event(), threading.Semaphore(0)

  def job():
    at_once.release()
    gate.wait(30)

  pool = Workers(2)
  for _ in range(3):
    pool.submit(0, job)
  assert at_once.acquire(timeout=30)
  assert at_once.acquire(timeout=30)
  assert not at_once.acquire(timeout=0.1)
  started = threading.Event()
  pool.start(started.set)  # does not wait for its turn
  assert started.wait(30)
  gate.set()
  assert at_once.acquire(timeout=30)


def test_what_waits_when_a_pool_is_closed_is_dropped():
  gate, ran = threading.Event(), []
  pool = Workers(1)
  pool.submit(0, lambda: gate.wait(30))
  until(workers.at_work)
  pool.submit(0, lambda: ran.append(1))
  pool.close()
  gate.set()
  until(lambda: not workers.at_work())
  time.sleep(0.05)
  assert ran == []


def test_the_threads_of_a_forgotten_pool_end():
  found = []
  pool = Workers(1)
  pool.submit(0, lambda: found.append(threading.current_thread()))
  until(lambda: found and not workers.at_work())
  assert found[0].is_alive()
  del pool
  gc.collect()
  found[0].join(30)
  assert not found[0].is_alive()


END = """
import sys, threading, time
from esper_jax.tezzeret import workers
pool = workers.Workers(1)
begun = threading.Event()
def job():
  begun.set()
  time.sleep({seconds})
  print("done", flush=True)
pool.submit(0, job)
begun.wait()
pool.submit(0, lambda: print("never"))
print("said", end="")
{end}
"""


@pytest.mark.parametrize(
  "seconds, end, code, said",
  [
    (60, "workers.leave(3)", 3, "said"),
    (0, "time.sleep(1); workers.leave(3)", 3, "saiddone\nnever\n"),
    (0.5, "sys.exit(4)", 4, "saiddone\n"),
  ],
)
def test_how_a_process_ends(seconds, end, code, said):
  start = time.monotonic()
  script = END.format(seconds=seconds, end=end)
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (code, "")
  if seconds:
    assert done.stdout == said
  assert time.monotonic() - start < 30
