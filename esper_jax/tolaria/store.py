"""What a run keeps on the disk: its directory, logs and checkpoints.

A checkpoint knows how long both logs were when it was taken. On resume, what
was logged later is set aside, so that a run that was killed ends with the same
logs as one that was not.
"""

import contextlib
import dataclasses
import os
import platform
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from esper_jax import config as config_lib
from esper_jax.oona import jsonl, redis_url
from esper_jax.oona.bus import Bus, Sink
from esper_jax.oona.redis_stream import RedisSink
from esper_jax.tolaria import checkpoints, processes, recovery, workdir
from esper_jax.tolaria.accounting import Ledger
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.checkpoints import Damage, Loaded
from esper_jax.tolaria.planting import Outcomes
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.workdir import Workdir
from esper_jax.types import InputError


class Store:
  """The files of one run; the process that made it holds the directory.

  Attributes:
    path: the run directory.
    run_id: what tells the run from others; stays when it is resumed.
    hash: of the config's keys that change results.
    redis: copies the events to a server; None where the config names none.
    finished: what result.json holds where the run has completed, else None.
      Nothing in the directory is then changed.
    damaged: checkpoints that were passed over.
    redone: entries of the ledger, work that a crash made necessary again.
    outcomes: of plantings beyond the checkpoint, see `planting.Outcomes`.
  """

  def __init__(self, path: str | Path, config: ConfigDict, parts: Parts):
    """Takes the directory for this config and this data.

    Args:
      path: the run directory.
      config: of the run.
      parts: of the run: its data and its first variables.

    Raises:
      InputError: it holds another config, a run on other data or from other
        variables, is in use, or cannot be written; or the Redis server is
        not one that events can go to.
    """
    self.hash = config_lib.config_hash(config)
    data_sha256 = parts.data.sha256
    start_sha256 = parts.start.sha256 if parts.start else ""

    def check(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
      config_lib.check_same(old, new, workdir=self.path)
      _check_data(self._work, data_sha256)
      _check_hash(self._work, self.hash)
      _check_start(self._work, start_sha256)

    with contextlib.ExitStack() as stack:
      self._work = workdir.acquire(path)
      stack.callback(self._work.release)
      self.path = self._work.path
      self.run_id = _run_id(self._work)
      self._work.claim(
        {
          "config": _without_password(config),
          "run": self.run_id,
          "config_hash": self.hash,
          "data_sha256": data_sha256,
          "start_sha256": start_sha256,
          **environment(),
        },
        check=check,
      )
      self._found, self.damaged = checkpoints.latest_good(
        self._work.checkpoints
      )
      meta = self._found.meta if self._found else _NOTHING
      self._next_event = meta["next_event"]
      self.finished = _finished(self._work)
      offsets = meta["offsets"]
      if self.finished:
        offsets = dict.fromkeys(offsets)  # None: every line stays
      events = _whole_lines(self._work.events)
      self.redone = _redone(self._work, events, meta["run"], offsets["metrics"])
      self.outcomes = _outcomes(events, meta["next_event"], meta["run"])
      self._events = workdir.open_log(
        self._work.events, offset=offsets["events"], fsync=config.oona.fsync
      )
      stack.callback(self._events.close)
      self._metrics = workdir.open_log(
        self._work.metrics, offset=offsets["metrics"], fsync=False
      )
      stack.callback(self._metrics.close)
      self._writer = checkpoints.Writer(
        self._work.checkpoints,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
      )
      stack.callback(self._writer.close)
      self.redis = _redis(self._work, config, self.run_id)
      self._flush_seconds = config.oona.redis_flush_seconds
      self._flushed = False
      if self.redis:
        stack.callback(self.redis.close, 0.0)
      self._closing = stack.pop_all()

  def shared(self) -> dict[str, Any]:
    """What the other processes need of it, before `resume`: see `Follower`."""
    names = (
      "path",
      "hash",
      "finished",
      "damaged",
      "redone",
      "outcomes",
      "_found",
      "_next_event",
    )
    return {name: getattr(self, name) for name in names}

  def attach(self, bus: Bus, sinks: Iterable[Sink] = ()) -> None:
    """Sends every event to events.jsonl, then to sinks; the run needs them."""
    bus.subscribe(self._events.append, required=True, name="events.jsonl")
    for sink in sinks:
      bus.subscribe(sink, required=True)
    if self.redis:
      bus.subscribe(self.redis, name="redis")
    bus.next_id = self._next_event

  def resume(self, fresh: Run, parts: Parts) -> tuple[Run, bool]:
    """Takes up the run where the newest good checkpoint left it.

    What the logs hold beyond it is booked as work to be done again.

    Args:
      fresh: a new run of the same config.
      parts: of the run.

    Returns:
      (the run, whether there was a checkpoint).

    Raises:
      InputError: the checkpoint does not fit this config's network.
    """
    found, self._found = self._found, None
    run = recovery.from_checkpoint(found, fresh, parts) if found else fresh
    ledger = dataclasses.replace(run.ledger, **self.redone)
    # A copy: what grows in this run is not in the fresh one.
    return dataclasses.replace(run, ledger=ledger), found is not None

  def last_scheduled(self) -> tuple[Loaded | None, list[Damage]]:
    """The checkpoint that a rollback goes back to, and damaged newer ones."""
    self._writer.wait()
    return processes.agree(
      checkpoints.latest_good(
        self._work.checkpoints, kinds=(checkpoints.SCHEDULED,)
      )
    )

  def log(self, line: Mapping[str, Any]) -> None:
    """Appends a line to metrics.jsonl."""
    self._metrics.append(line)

  def save(
    self, run: Run, next_event: int, *, kind: str, metric: float | None = None
  ) -> None:
    """Starts writing a checkpoint; see `checkpoints.Writer`."""
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
      run.next_batch,
      recovery.to_arrays(run),
      meta,
      kind=kind,
      metric=metric,
      before=self._sync_logs,
    )

  def wait(self) -> None:
    """Waits until the disk holds all checkpoints.

    Raises:
      RunFailedError: the last one could not be written.
    """
    self._writer.wait()

  def write_result(self, document: Mapping[str, Any]) -> None:
    """Writes result.json, after all else is on the disk."""
    self.wait()
    self._sync_logs()
    workdir.write_json(self._work.result, document)

  def flush(self, tell: Callable[[str, str], None]) -> None:
    """Waits a while, once, until the copies of the events are complete.

    Args:
      tell: called with "oona" and a line where they are not.
    """
    if self.redis is None or self._flushed:
      return
    self._flushed = True
    if missing := self.redis.close(self._flush_seconds):
      reason = self.redis.health().error or "it did not answer in time"
      tell(
        "oona",
        f"events that have not reached {self.redis.place}: {missing}"
        f" ({reason}); {self._work.events} has them, and the same command"
        " sends them",
      )

  def _sync_logs(self) -> None:
    self._events.sync()
    self._metrics.sync()

  def close(self) -> None:
    """Finishes what is being written and lets the directory go; idempotent."""
    self._closing.close()


# In place of a checkpoint's meta where there is none.
_NOTHING: Mapping[str, Any] = {
  "next_event": 0,
  "offsets": {"events": 0, "metrics": 0},
  "run": {"next_batch": 0, "ledger": Ledger().to_dict()},
}


def _run_id(work: Workdir) -> str:
  """The id that config.json has, or a new one."""
  document = workdir.read_json(work.config) or {}
  return document.get("run") or f"{work.path.name}-{uuid.uuid4().hex[:8]}"


def _without_password(config: ConfigDict) -> dict[str, Any]:
  """What config.json shows of a config."""
  shown = config.to_dict()
  url = redis_url.without_password(config.oona.redis_url)
  return shown | {"oona": shown["oona"] | {"redis_url": url}}


def _redis(work: Workdir, config: ConfigDict, run: str) -> RedisSink | None:
  if not config.oona.redis_url:
    return None
  return RedisSink(
    work.events,
    run=run,
    url=config.oona.redis_url,
    stream=config.oona.redis_stream,
  )


def _check_data(work: Workdir, data_sha256: str) -> None:
  """Refuses to go on with other data: the config says only where it lies."""
  document = workdir.read_json(work.config) or {}
  before = document.get("data_sha256", "unknown")
  if before != data_sha256:
    raise InputError(
      f"--workdir={work.path} holds a run on other data: its SHA-256 is"
      f" {before} there and {data_sha256} here. Give the data of that run"
      " (--config.data.dir, --config.data.source), or choose another --workdir"
    )


def _check_start(work: Workdir, start_sha256: str) -> None:
  """Refuses to go on where a run started from other variables."""
  document = workdir.read_json(work.config) or {}
  if document.get("start_sha256", "") != start_sha256:
    raise InputError(
      f"--workdir={work.path} holds a run that started from other variables;"
      " give those (none, where it had none), or choose another directory"
    )


def _check_hash(work: Workdir, config_hash: str) -> None:
  """Refuses other growth to replay, or another network to go on with.

  The config says only where they are.
  """
  document = workdir.read_json(work.config) or {}
  before = document.get("config_hash", "unknown")
  if before != config_hash:
    raise InputError(
      f"--workdir={work.path} replays other growth than"
      " --config.tamiyo.replay holds now, or goes on with another network than"
      " that of --config.host.from (the hash of the config is"
      f" {before[:8]} there and {config_hash[:8]} here); give those of that"
      " run, or choose another --workdir"
    )


def _finished(work: Workdir) -> dict[str, Any] | None:
  """The result of a completed run whose checkpoints are still there."""
  result = workdir.read_json(work.result)
  if result is None or result.get("status") != "completed":
    return None
  return result if checkpoints.available(work.checkpoints) else None


def _redone(
  work: Workdir,
  events: list[dict[str, Any]],
  facts: Mapping[str, Any],
  offset: int | None,
) -> dict[str, int]:
  """The ledger's redone_* after a crash, as far as the logs tell.

  Args:
    work: the directory, its logs still whole.
    events: of the run.
    facts: of the run, from the checkpoint.
    offset: of the checkpoint in metrics.jsonl; None where nothing was lost.
  """
  ledger = Ledger.from_dict(facts["ledger"])
  steps, flops = ledger.redone_steps, ledger.redone_flops
  # Booked by a process that died before it could save a checkpoint.
  for event in events:
    if event.get("type") == "resumed":
      steps = max(steps, event["redone_steps"])
      flops = max(flops, event["redone_flops"])
  logged = _whole_lines(work.metrics)
  if offset is not None and logged and work.metrics.stat().st_size > offset:
    steps += max(0, logged[-1]["step"] - facts["next_batch"])
    flops += max(0, logged[-1]["flops/total"] - ledger.total_flops)
  return {"redone_steps": steps, "redone_flops": flops}


def _outcomes(
  events: list[dict[str, Any]], first: int, facts: Mapping[str, Any]
) -> Outcomes:
  """What became of the plantings after the checkpoint, as the log tells.

  Args:
    events: of the run.
    first: number of the first event after the checkpoint.
    facts: of the run, from the checkpoint.
  """
  attempt = facts.get("governor", {}).get("attempt", 0)
  out: dict[tuple[int, int, str, int], str] = {}
  for event in events:
    if event["id"] is None or event["id"] < first:
      continue
    kind = event["type"]
    attempt = event["attempt"] if kind == "rolled_back" else attempt
    late = event.get("late", False)
    if late or kind == "germinated":
      at = attempt, event["epoch"], event["slot"], event.get("lane", 0)
      out[at] = event["reason"] if late else ""
  return out


def _whole_lines(log: Path) -> list[dict[str, Any]]:
  """The lines of a log that a crash may have torn; [] where none can be read.

  Only a bill depends on them, so they stop no run.
  """
  with contextlib.suppress(InputError):
    return jsonl.read(log)
  return []


def environment() -> dict[str, Any]:
  """Versions, device, and cores: XLA splits some sums among them on CPU."""
  device = jax.devices()[0]
  # What this process may use, where the system tells; `taskset` changes it.
  usable = getattr(os, "sched_getaffinity", None)
  return {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "device": f"{device.platform}:{device.device_kind}",
    "cores": len(usable(0)) if usable else os.cpu_count(),
  }
