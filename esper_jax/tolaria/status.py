"""status.json: a run's sign of life, and how its parts are.

A thread rewrites it every 10 seconds and once at the end, from numbers that are
there anyway: no step waits for it. Where it cannot write, the disk being full,
the run goes on.
"""

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esper_jax.oona.health import Health
from esper_jax.tolaria.roster import Roster
from esper_jax.tolaria.workdir import read_json, write_json
from esper_jax.types import InputError

VERSION = 1
NAME = "status.json"
EVERY = 10.0  # seconds between two heartbeats
STALE = 60.0  # seconds without one after which a run counts as dead
RUNNING = "running"
STOPPED = "stopped"  # its process let it go, with no word of how it ended
ENDED = ("completed", "interrupted", "failed", STOPPED)


class Heartbeat:
  """Rewrites status.json while a run lives."""

  def __init__(
    self,
    path: str | os.PathLike,
    look: Callable[[], Mapping[str, Any]],
    *,
    every: float,
    clock: Callable[[], float] = time.time,
  ):
    """Writes the file for the first time and starts the thread.

    Args:
      path: the file.
      look: returns what the file holds beside "version", "pid", "started" and
        "heartbeat": "state" and whatever else. Called in the thread.
      every: seconds between two heartbeats.
      clock: seconds since the epoch of Unix.
    """
    self._path = path
    self._look = look
    self._clock = clock
    self._started = clock()
    self._drops, self._error = 0, ""
    self._stopping = threading.Event()
    self.write()
    # The thread keeps no run alive to which nobody refers any more.
    self._thread = threading.Thread(
      target=_beat,
      args=(weakref.proxy(self), self._stopping, every),
      name="status",
      daemon=True,
    )
    self._thread.start()

  def stop(self) -> None:
    """Writes the file for the last time and ends the thread."""
    self._stopping.set()
    self._thread.join()
    self.write(last=True)

  def health(self) -> Health:
    """Says how many heartbeats could not be written, and why not."""
    return Health(dropped=self._drops, error=self._error)

  def write(self, *, last: bool = False) -> None:
    """Writes the file; what goes wrong is counted, and told by `health`.

    Args:
      last: whether this process writes it no more.
    """
    try:
      document = {
        "version": VERSION,
        "pid": os.getpid(),
        "started": self._started,
        "heartbeat": self._clock(),
        **self._look(),
      }
      if last and document["state"] == RUNNING:
        document["state"] = STOPPED
      write_json(self._path, document, fsync=False)
    except Exception as error:  # whatever it is, the run matters more
      self._drops += 1
      self._error = " ".join(str(error).split())


def keep(
  roster: Roster, run: Path, look: Callable[[], Mapping[str, Any]]
) -> None:
  """Keeps the status of a run as one more of its parts.

  Args:
    roster: of the run.
    run: its directory.
    look: see `Heartbeat`.
  """
  roster.start(
    "status",
    lambda: Heartbeat(run / NAME, look, every=EVERY),
    stop=Heartbeat.stop,
  )


def _beat(heartbeat: Any, stopping: threading.Event, every: float) -> None:
  with contextlib.suppress(ReferenceError):  # it is gone
    while not stopping.wait(every):
      heartbeat.write()


def device_memory() -> list[dict[str, Any]]:
  """What JAX holds of each device of this process, in bytes.

  Returns:
    "device" and, null where the backend does not tell (a CPU), "bytes_in_use",
    "peak_bytes_in_use" and "bytes_limit".
  """
  import jax  # here: whoever reads the file needs none

  names = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
  out = []
  for device in jax.local_devices():
    told = device.memory_stats() or {}
    name = f"{device.platform}:{device.id}"
    out.append({"device": name, **{key: told.get(key) for key in names}})
  return out


def read(run: str | os.PathLike) -> dict[str, Any] | None:
  """Reads the status of a run; None where there is none.

  Raises:
    InputError: it cannot be read, or is not what a run writes.
  """
  path = Path(run) / NAME
  document = read_json(path)
  if document is None:
    return None
  beat, state = document.get("heartbeat"), document.get("state")
  if not isinstance(beat, int | float) or state not in (RUNNING, *ENDED):
    raise InputError(
      f"{path}: 'heartbeat' is {beat!r} and 'state' {state!r}, so no run wrote"
      " it; remove it: a run that lives writes it anew"
    )
  return document
