"""Whether a run lives, and how its parts are: what its status.json says."""

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from esper_jax.doctor.report import Level, Line
from esper_jax.nissa.table import duration
from esper_jax.tolaria import status
from esper_jax.tolaria.workdir import beside
from esper_jax.types import InputError

_LEVELS = {"ready": Level.OK, "degraded": Level.WARN, "failed": Level.FAIL}
# Entry -> what it says of a run that lives, and of one that ended.
_COUNTS = (
  ("queued", "waiting", "left undone"),
  ("dropped", "dropped", "dropped"),
)
_AGAIN = "the command that started it resumes it"


def check(run: str | os.PathLike, *, now: float | None = None) -> list[Line]:
  """Returns a line on the run, one for each part, and one for each device.

  Args:
    run: the run directory.
    now: seconds since the epoch of Unix; None asks the clock.

  Raises:
    InputError: there is no such run, or its status.json is damaged.
  """
  if not pathlib.Path(run).is_dir():
    raise InputError(
      f"{run}: no such folder; give the run's --workdir{beside(run)}"
    )
  found = status.read(run)
  if found is None:
    raise InputError(
      f"{run} holds no {status.NAME}, so no run has begun there; give the"
      f" --workdir of one that has{beside(run)}"
    )
  try:
    return [
      _life(found, time.time() if now is None else now),
      *(
        _part(name, part, running=found["state"] == status.RUNNING)
        for name, part in found["parts"].items()
      ),
      *(_memory(device) for device in found["devices"] if _tells(device)),
    ]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{run}: {status.NAME} is not what a run writes ({error!r}); remove it:"
      " a run that lives writes it anew"
    ) from error


def _life(found: Mapping[str, Any], now: float) -> Line:
  state, age = found["state"], max(0.0, now - found["heartbeat"])
  running = state == status.RUNNING
  text = (
    f"{state}, epoch {found['epoch']}/{found['epochs']}, step {found['step']},"
    f" {'heartbeat' if running else 'ended'} {duration(age)} ago"
  )
  if running and age > status.STALE:
    dead = f"{text}: process {found['pid']} was killed, or stands still"
    return Line("run", Level.FAIL, dead, _AGAIN)
  if state == "failed":
    return Line("run", Level.FAIL, f"{text}: {found['reason']}")
  goes_on = state in ("interrupted", status.STOPPED)
  return Line("run", Level.OK, text, _AGAIN if goes_on else "")


def _part(name: str, part: Mapping[str, Any], *, running: bool) -> Line:
  """What a part says; what it still had in hand when a run ended is moot."""
  said = [f"{part['state']} after {part['seconds']:.1f} s"]
  moot = not running and part["state"] == "ready"
  said += [
    f"{part[key]} {what if running else left}"
    for key, what, left in _COUNTS
    if part[key] and not (moot and key == "queued")
  ]
  said += [part["error"]] if part["error"] else []
  return Line(name, _LEVELS[part["state"]], ", ".join(said))


def _tells(device: Mapping[str, Any]) -> bool:
  return device["bytes_in_use"] is not None


def _memory(device: Mapping[str, Any]) -> Line:
  used, peak, limit = (
    "unknown" if device[key] is None else f"{device[key] / 2**30:.1f} GiB"
    for key in ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
  )
  found = f"{used} of {limit} in use, {peak} at the peak"
  return Line(device["device"], Level.OK, found)
