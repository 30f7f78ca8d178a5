"""A few background threads that work through jobs by priority.

The threads are daemons: a job that hangs holds up neither its owner nor, with
`leave`, the end of the process.
"""

import atexit
import heapq
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import NoReturn

_AT_WORK: set[threading.Thread] = set()  # threads inside a job, of all pools
_ENDING = threading.Event()  # the interpreter shuts down: begin nothing more
_GRACE = 20.0  # seconds that a job gets then; longer than most compilations


class _Queue:
  """What a pool and its threads share: no thread keeps its pool alive."""

  def __init__(self) -> None:
    self.changed = threading.Condition()
    self.jobs: list[tuple[int, int, Callable[[], None]]] = []
    self.idle = 0
    self.closed = False

  def close(self) -> None:
    with self.changed:
      self.closed = True
      self.jobs.clear()
      self.changed.notify_all()

  def work(self) -> None:
    while True:
      with self.changed:
        self.idle += 1
        while not self.jobs and not self.closed:
          self.changed.wait()
        self.idle -= 1
        if self.closed or _ENDING.is_set():
          return
        _, _, job = heapq.heappop(self.jobs)
      _run(job)
      del job  # or its program lives until the next one


class Workers:
  """Runs jobs in the order of their priority, then of their arrival.

  A pool that nobody refers to any more ends as one that was closed.
  """

  def __init__(self, threads: int):
    """Makes a pool; a thread starts with the first job that needs it.

    Args:
      threads: at most so many jobs run at a time; at least 1.
    """
    self._size = threads
    self._threads: list[threading.Thread] = []
    self._order = itertools.count()
    self._queue = _Queue()
    weakref.finalize(self, self._queue.close)

  def submit(self, priority: int, job: Callable[[], None]) -> None:
    """Queues a job; the lowest number goes first. A job must not raise."""
    queue = self._queue
    with queue.changed:
      heapq.heappush(queue.jobs, (priority, next(self._order), job))
      if queue.idle < len(queue.jobs) and len(self._threads) < self._size:
        thread = threading.Thread(
          target=queue.work, name="tezzeret", daemon=True
        )
        self._threads.append(thread)
        thread.start()
      queue.changed.notify()

  def start(self, job: Callable[[], None]) -> None:
    """Runs a job at once, in a thread of its own. It must not raise."""
    threading.Thread(
      target=_run, args=(job,), name="tezzeret now", daemon=True
    ).start()

  def close(self) -> None:
    """Drops what waits; does not wait for what runs."""
    self._queue.close()


def _run(job: Callable[[], None]) -> None:
  me = threading.current_thread()
  _AT_WORK.add(me)
  try:
    job()
  finally:
    _AT_WORK.discard(me)


def at_work() -> bool:
  """Whether any job of any pool runs now."""
  return any(thread.is_alive() for thread in tuple(_AT_WORK))


def leave(code: int) -> NoReturn:
  """Ends the process at once, also where a job still runs.

  A thread inside the compiler cannot be ended, and an interpreter that shuts
  down under it aborts; then the process ends without that, all output flushed.
  """
  if at_work():
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
    os._exit(code)
  sys.exit(code)


@atexit.register
def _let_finish() -> None:
  """Gives what runs some time before the interpreter ends under it."""
  _ENDING.set()
  end = time.monotonic() + _GRACE
  while at_work() and time.monotonic() < end:
    time.sleep(0.01)
