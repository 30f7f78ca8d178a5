"""The run directory: who owns it, which config it holds, and safe writes.

workdir/config.json     the full config of the run
        events.jsonl, metrics.jsonl, result.json
        status.json     see tolaria/status.py
        profile/        see tolaria/profile.py
        checkpoints/    see tolaria/checkpoints.py
        .lock           held while a process uses the directory
"""

import fcntl
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from esper_jax.oona import jsonl
from esper_jax.oona.jsonl import JsonlWriter, explain_write_errors
from esper_jax.types import InputError, RunFailedError

# Whatever bears it was being written when its process died.
TEMPORARY_PREFIX = ".incomplete-"
_NAMED = 4  # run directories that an error names
_PROBE_BYTES = 1 << 16  # a disk with less room is full before the run begins


class Workdir:
  """A run directory that this process holds; `acquire` makes one.

  Attributes:
    path: absolute.
    checkpoints: the folder of the checkpoints (may not exist yet).
    events, metrics, config, result: paths of the files.
  """

  def __init__(self, path: pathlib.Path, lock: int):
    self.path = path
    self.checkpoints = path / "checkpoints"
    self.events = path / "events.jsonl"
    self.metrics = path / "metrics.jsonl"
    self.config = path / "config.json"
    self.result = path / "result.json"
    self._lock = lock

  def __enter__(self) -> "Workdir":
    return self

  def __exit__(self, *_: object) -> None:
    self.release()

  def release(self) -> None:
    """Lets another process use the directory; a second call does nothing."""
    if self._lock >= 0:
      os.close(self._lock)  # which drops the lock; the file stays
      self._lock = -1

  def claim(
    self,
    document: Mapping[str, Any],
    *,
    check: Callable[[dict[str, Any], dict[str, Any]], object],
  ) -> dict[str, Any] | None:
    """Makes the directory this config's, or checks that it already is.

    Args:
      document: what config.json shall hold; its entry "config" (nested dicts)
        is what is compared.
      check: called with the old and the new config, both as JSON gives them
        (a tuple is a list); raises InputError where they may not share a run.

    Returns:
      What config.json held before; None in a new directory.

    Raises:
      InputError: `check` refused; config.json is not readable, is not a run's,
        or cannot be written.
    """
    new = json.loads(jsonl.encode(document))
    old = read_json(self.config)
    if old is not None:
      if not isinstance(old.get("config"), dict):
        raise InputError(
          f"{self.config} has no entry 'config', so it is not a run's; choose"
          " another --workdir"
        )
      check(old["config"], new["config"])
    if old != new:
      write_json(self.config, new, error=InputError)
    return old


def acquire(path: os.PathLike | str) -> Workdir:
  """Takes a run directory for this process, creating it where it is missing.

  What a dead process left half-written is removed. The lock goes with the
  process, however it ends.

  Args:
    path: the run directory.

  Returns:
    The directory; `release` it, or use it as a context manager.

  Raises:
    InputError: it is a file, is not writable, is full, or is in use by
      another live process.
  """
  root = pathlib.Path(path).absolute()
  if root.is_file():
    raise InputError(f"{root} is a file; choose another --workdir")
  with explain_write_errors(root, error=InputError):
    root.mkdir(parents=True, exist_ok=True)
    lock = _lock(root)
    try:
      for folder in (root, root / "checkpoints"):
        remove_incomplete(folder)
      _probe(root)
    except OSError:
      os.close(lock)
      raise
  return Workdir(root, lock)


def _lock(root: pathlib.Path) -> int:
  flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
  fd = os.open(root / ".lock", flags, 0o644)
  try:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
  except BlockingIOError as error:
    owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
    os.close(fd)
    raise InputError(
      f"{root} is in use by process {owner}; wait for it, stop it, or choose"
      " another --workdir"
    ) from error
  except OSError:
    os.close(fd)
    raise
  return fd


def _probe(root: pathlib.Path) -> None:
  probe = temporary_name(root / "probe")
  try:
    with open(probe, "wb") as file:
      file.write(bytes(_PROBE_BYTES))
    sync_path(probe)
  finally:
    probe.unlink(missing_ok=True)


def remove_incomplete(folder: pathlib.Path) -> None:
  """Removes what bears TEMPORARY_PREFIX; the caller holds the lock."""
  for item in sorted(folder.glob(f"{TEMPORARY_PREFIX}*")):
    if item.is_dir():
      shutil.rmtree(item)
    else:
      item.unlink()


def temporary_name(path: pathlib.Path) -> pathlib.Path:
  """A new name beside a path for its unfinished form."""
  return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")


def write_json(
  path: os.PathLike | str,
  document: Mapping[str, Any],
  *,
  fsync: bool = True,
  error: type[Exception] = RunFailedError,
) -> None:
  """Replaces a JSON file as a whole: readers see the old one or the new one.

  Args:
    path: the file.
    document: see `jsonl.plain` for what it may hold.
    fsync: whether it must survive the death of the machine.
    error: what an unwritable path raises.

  Raises:
    error: the file cannot be written; the old one is then as it was.
  """
  text = json.dumps(jsonl.plain(document), indent=2, allow_nan=False)
  with explain_write_errors(path, error=error):
    replace_text(path, text + "\n", fsync=fsync)


def replace_text(
  path: os.PathLike | str, text: str, *, fsync: bool = False
) -> None:
  """Replaces a text file as a whole: readers see the old one or the new one.

  Args:
    path: the file.
    text: written as UTF-8.
    fsync: whether it must survive the death of the machine.

  Raises:
    OSError: the file cannot be written; the old one is then as it was.
  """
  path = pathlib.Path(path)
  unfinished = temporary_name(path)
  try:
    with open(unfinished, "w", encoding="utf-8") as file:
      file.write(text)
    if fsync:
      sync_path(unfinished)
    os.replace(unfinished, path)
    if fsync:
      sync_path(path.parent)
  finally:
    unfinished.unlink(missing_ok=True)


def read_json(path: os.PathLike | str) -> dict[str, Any] | None:
  """Reads a JSON object; None where there is no such file.

  Raises:
    InputError: the file cannot be read or is not a JSON object.
  """
  try:
    document = json.loads(pathlib.Path(path).read_bytes())
  except FileNotFoundError:
    return None
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from error
  except ValueError as error:
    raise InputError(
      f"{path} is not JSON ({error}); restore it or choose another --workdir"
    ) from error
  if not isinstance(document, dict):
    raise InputError(
      f"{path} is not a JSON object; restore it or choose another --workdir"
    )
  return document


def beside(path: os.PathLike | str) -> str:
  """What to add to an error about a path that is no run directory.

  Args:
    path: what was given.

  Returns:
    "; there are ", and the run directories in it, else beside it, else in
    runs/, the newest first; "" where there are none.
  """
  path = pathlib.Path(path)
  for folder in (path, path.parent, pathlib.Path("runs")):
    found = sorted(folder.glob("*/config.json"), key=_age)
    if found:
      named = [str(config.parent) for config in found[:_NAMED]]
      more = len(found) - len(named)
      return f"; there are {', '.join(named)}" + (
        f" and {more} older ones" if more else ""
      )
  return ""


def _age(path: pathlib.Path) -> float:
  try:
    return -path.stat().st_mtime
  except OSError:  # it went away
    return 0.0


def open_log(
  path: os.PathLike | str, *, offset: int | None = 0, fsync: bool = True
) -> JsonlWriter:
  """Opens a log at the byte where the run goes on.

  A torn last line is removed, later lines go to `<stem>.discarded.jsonl`.

  Args:
    path: the log.
    offset: as the checkpoint holds it; 0 for a run without one. None keeps
      every line.
    fsync: see `JsonlWriter`.

  Raises:
    InputError: the log is not the one that the offset was taken from, or
      cannot be opened.
    RunFailedError: the later lines cannot be moved.
  """
  log = JsonlWriter(path, fsync=fsync)
  try:
    if offset is not None:
      log.truncate_to(offset)
  except BaseException:
    log.close()
    raise
  return log


def sync_path(path: os.PathLike | str) -> None:
  """Makes a file, or the names in a folder, survive the machine's death."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
