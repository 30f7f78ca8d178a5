"""What a run keeps on the disk: its directory, logs and checkpoints.

A checkpoint knows how long both logs were when it was taken. On resume, what
was logged later is set aside, so that a run that was killed ends with the same
logs as one that was not.
"""

import functools
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from esper_jax import config as config_lib
from esper_jax.oona.bus import Bus
from esper_jax.tolaria import checkpoints, recovery, workdir
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.checkpoints import Damage, Loaded
from esper_jax.tolaria.run import Run


class Store:
  """The files of one run; the process that made it holds the directory.

  Attributes:
    path: the run directory.
    hash: of the config's keys that change results.
  """

  def __init__(self, path: str | Path, config: ConfigDict):
    """Takes the directory for this config.

    Raises:
      InputError: it holds another config, is in use, or cannot be written.
    """
    self.hash = config_lib.config_hash(config)
    self._work = workdir.acquire(path)
    self.path = self._work.path
    try:
      self._work.claim(
        {
          "config": config.to_dict(),
          "config_hash": self.hash,
          **environment(),
        },
        check=functools.partial(
          config_lib.check_same, workdir=self.path
        ),
      )
      self._found, self.damaged = checkpoints.latest_good(
        self._work.checkpoints
      )
      offsets = self._found.meta["offsets"] if self._found else {}
      self._events = workdir.open_log(
        self._work.events,
        offset=offsets.get("events", 0),
        fsync=config.oona.fsync,
      )
      self._metrics = workdir.open_log(
        self._work.metrics, offset=offsets.get("metrics", 0), fsync=False
      )
    except BaseException:
      self._work.release()
      raise
    self._writer = checkpoints.Writer(
      self._work.checkpoints,
      keep_last=config.checkpoint.keep_last,
      keep_best=config.checkpoint.keep_best,
    )

  def attach(self, bus: Bus) -> None:
    """Sends every event to events.jsonl; the run needs it."""
    bus.subscribe(self._events.append, required=True, name="events.jsonl")
    if self._found:
      bus.next_id = self._found.meta["next_event"]

  def resume(self, fresh: Run, parts: Parts) -> Run | None:
    """The run as the directory's newest good checkpoint has it, or None.

    Raises:
      InputError: the checkpoint does not fit this config's network.
    """
    found, self._found = self._found, None
    return recovery.from_checkpoint(found, fresh, parts) if found else None

  def last_scheduled(self) -> tuple[Loaded | None, list[Damage]]:
    """The checkpoint that a rollback goes back to, and damaged newer ones."""
    self._writer.wait()
    return checkpoints.latest_good(
      self._work.checkpoints, kinds=(checkpoints.SCHEDULED,)
    )

  def log(self, line: Mapping[str, Any]) -> None:
    """Appends a line to metrics.jsonl."""
    self._metrics.append(line)

  def save(
    self, run: Run, next_event: int, *, kind: str, metric: float | None = None
  ) -> None:
    """Starts writing a checkpoint; see `checkpoints.Writer`."""
    self._metrics.sync()
    meta = {
      "run": run.facts(),
      "next_event": next_event,
      "offsets": {
        "events": self._events.offset,
        "metrics": self._metrics.offset,
      },
      "config_hash": self.hash,
    }
    self._writer.save(
      run.next_batch, recovery.to_arrays(run), meta, kind=kind, metric=metric
    )

  def write_result(self, document: Mapping[str, Any]) -> None:
    """Writes result.json, after all else is on the disk."""
    self._writer.wait()
    self._metrics.sync()
    workdir.write_json(self._work.result, document)

  def result(self) -> dict[str, Any] | None:
    """What result.json holds; None where there is none."""
    return workdir.read_json(self._work.result)

  def close(self) -> None:
    """Finishes what is being written and lets the directory go; idempotent."""
    try:
      self._writer.close()
    finally:
      self._events.close()
      self._metrics.close()
      self._work.release()


def environment() -> dict[str, Any]:
  """Versions and device."""
  device = jax.devices()[0]
  return {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "device": f"{device.platform}:{device.device_kind}",
  }


