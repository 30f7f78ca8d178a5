"""Logs of one JSON object a line that survive a crash.

A line is written in one call, so a crash can tear only the last one; opening
the log removes what was torn. A checkpoint stores the log's offset, and a
resumed run moves the lines beyond it aside.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from esper_jax.types import InputError, RunFailedError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_error_text(path: os.PathLike | str, error: BaseException) -> str:
  """Says in one line that a path cannot be written, why, and what to do."""
  words = str(error).strip() or repr(error)
  # Libraries that are not Python's report a full disk in words only.
  full = [os.strerror(n) for n in _FULL if os.strerror(n) in words]
  if full:
    words, advice = full[0], "; free some space"
  elif isinstance(error, OSError):
    words, advice = error.strerror or words, "; make it writable"
  else:
    words, advice = words.splitlines()[0], "; mend that"
  return (
    f"cannot write {path}: {words}{advice} (or choose another --workdir) and"
    " run the same command again"
  )


@contextlib.contextmanager
def explain_write_errors(
  path: os.PathLike | str, *, error: type[Exception] = RunFailedError
) -> Iterator[None]:
  """Turns an OSError inside the block into one line that names the path.

  Args:
    path: what is being written.
    error: InputError before the run has begun, RunFailedError afterwards.
  """
  try:
    yield
  except OSError as cause:
    raise error(write_error_text(path, cause)) from cause


def plain(value: Any) -> Any:
  """Converts to what strict JSON can hold.

  Arrays and NumPy scalars become lists and numbers, tuples lists, paths text.
  A float that is not finite becomes "NaN", "Infinity" or "-Infinity" (the
  convention of Protocol Buffers' JSON form; `float()` reads each of them).

  Raises:
    TypeError: the value has no JSON form.
  """
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, int):
    return int(value)  # an IntEnum becomes its number
  if isinstance(value, float):
    if math.isfinite(value):
      return float(value)
    if math.isnan(value):
      return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
    return plain(value.tolist())
  raise TypeError(
    f"{value!r} ({type(value).__name__}) has no JSON form; use numbers, text,"
    " arrays, lists or dicts"
  )


def encode(record: Mapping[str, Any]) -> bytes:
  """Encodes a record as one line, newline included."""
  text = json.dumps(plain(record), allow_nan=False, ensure_ascii=False)
  return text.encode() + b"\n"


def _is_record(line: bytes) -> bool:
  try:
    return isinstance(json.loads(line), dict)
  except ValueError:  # covers JSON and UTF-8
    return False


def repair(path: os.PathLike | str) -> int:
  """Cuts a last line that a crash left torn; returns the bytes removed.

  Torn means without its newline, or not a JSON object (a power cut may leave
  zeros). Earlier lines are not touched.
  """
  with open(path, "r+b") as file:
    size = file.seek(0, os.SEEK_END)
    good = size
    while good:
      line_start = _last_line_start(file, good)
      file.seek(line_start)
      line = file.read(good - line_start)
      if line.endswith(b"\n") and _is_record(line):
        break
      good = line_start
    if good < size:
      file.truncate(good)
      os.fsync(file.fileno())
  return size - good


def _last_line_start(file: Any, end: int) -> int:
  """Offset of the line that ends at `end` (its newline, if any, included)."""
  position = end - 1  # a newline at the very end belongs to the line
  while position > 0:
    start = max(0, position - 4096)
    file.seek(start)
    found = file.read(position - start).rfind(b"\n")
    if found >= 0:
      return start + found + 1
    position = start
  return 0


def read(path: os.PathLike | str) -> list[dict[str, Any]]:
  """Reads every whole line; a last line that is still being written is left.

  Raises:
    InputError: the file cannot be read, or a whole line is not a JSON object.
  """
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from error
  return parse(data, path)


def parse(
  data: bytes, path: os.PathLike | str, *, before: int = 0
) -> list[dict[str, Any]]:
  """Reads every whole line of a piece of a log.

  Args:
    data: from the start of a line.
    path: of the log, for errors.
    before: lines of the log before the piece.

  Raises:
    InputError: a whole line is not a JSON object.
  """
  records = []
  for number, line in enumerate(data.splitlines(keepends=True), before + 1):
    if not line.endswith(b"\n"):
      break
    if not _is_record(line):
      raise InputError(f"{path}, line {number}: not a JSON object")
    records.append(json.loads(line))
  return records


class JsonlWriter:
  """Appends records to a log, one line each.

  Attributes:
    path: the log.
    repaired: bytes of a torn last line that opening removed.
  """

  def __init__(self, path: os.PathLike | str, *, fsync: bool = True):
    """Opens the log, creating it where it is missing.

    Args:
      path: its folder must exist.
      fsync: whether a thread brings each line to the disk at once. Until it
        has, or until `sync`, a line survives the death of the process, not
        that of the machine.

    Raises:
      InputError: the path cannot be opened for writing.
    """
    self.path = pathlib.Path(path)
    self._syncer = _Syncer() if fsync else None
    with explain_write_errors(path, error=InputError):
      flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
      self._fd = os.open(path, flags, 0o644)
      try:
        self.repaired = repair(path)
      except OSError:
        os.close(self._fd)
        raise
    self._offset = os.fstat(self._fd).st_size

  @property
  def offset(self) -> int:
    """Bytes written so far: where the next line begins."""
    return self._offset

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes one line, or nothing.

    Raises:
      RunFailedError: the line cannot be written (a full disk); the log then
        ends where it did before.
    """
    line = encode(record)
    with explain_write_errors(self.path):
      try:
        _write_all(self._fd, line)
      except OSError:
        os.ftruncate(self._fd, self._offset)
        raise
      self._offset += len(line)
      if self._syncer:
        self._syncer.sync_soon(self._fd)

  def sync(self) -> None:
    """Waits until every line is on the disk; any thread may call it.

    Raises:
      RunFailedError: it cannot be brought there.
    """
    with explain_write_errors(self.path):
      os.fsync(self._fd)

  def truncate_to(self, offset: int) -> int:
    """Moves the lines beyond an offset to `<stem>.discarded.jsonl`.

    The discarded file is appended to. Killed half-way, the next call completes
    the move.

    Args:
      offset: bytes to keep; must be the end of a line.

    Returns:
      How many lines were moved.

    Raises:
      InputError: the log is shorter than the offset, or the offset is inside
        a line: it is not the log that the offset was taken from.
      RunFailedError: the lines cannot be moved.
    """
    size = self._offset
    if offset > size:
      raise InputError(
        f"{self.path} has {size} bytes but the checkpoint was taken at byte"
        f" {offset}: lines are missing; restore the file or start in a new"
        " --workdir"
      )
    if offset and os.pread(self._fd, 1, offset - 1) != b"\n":
      raise InputError(
        f"{self.path}: byte {offset}, where the checkpoint was taken, is not"
        " the end of a line: the file was changed; restore it or start in a"
        " new --workdir"
      )
    if offset == size:
      return 0
    tail = _read_all(self._fd, offset, size - offset)
    target = self.path.with_name(f"{self.path.stem}.discarded.jsonl")
    with explain_write_errors(target):
      _append_once(target, tail)
    with explain_write_errors(self.path):
      os.ftruncate(self._fd, offset)
      os.fsync(self._fd)
    self._offset = offset
    return tail.count(b"\n")

  def close(self) -> None:
    """Syncs and closes; a second call does nothing."""
    if self._fd >= 0:
      try:
        with explain_write_errors(self.path):
          if self._syncer:
            self._syncer.close()
          os.fsync(self._fd)
      finally:
        os.close(self._fd)
        self._fd = -1


class _Syncer:
  """Syncs a file in a thread; lines that arrive meanwhile share the next sync.

  A failure surfaces as OSError at a later call of either method.
  """

  def __init__(self):
    self._pool = ThreadPoolExecutor(1, "fsync")
    self._pending: list[Future[None]] = []

  def sync_soon(self, fd: int) -> None:
    last = self._pending[-1] if self._pending else None
    if last and not (last.running() or last.done()):
      return  # it has yet to begin, and will cover this line too
    pending, self._pending = self._pending, []
    for future in pending:
      if future.done():
        future.result()
      else:
        self._pending.append(future)
    self._pending.append(self._pool.submit(os.fsync, fd))

  def close(self) -> None:
    pending, self._pending = self._pending, []
    self._pool.shutdown()
    for future in pending:
      future.result()


def _write_all(fd: int, data: bytes) -> None:
  view = memoryview(data)
  while view:
    view = view[os.write(fd, view) :]  # short when the disk is almost full


def _read_all(fd: int, start: int, size: int) -> bytes:
  parts = []
  while size:
    part = os.pread(fd, size, start)
    parts.append(part)
    start, size = start + len(part), size - len(part)
  return b"".join(parts)


def _append_once(path: pathlib.Path, tail: bytes) -> None:
  """Appends whole lines durably, unless the file already ends with them."""
  fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
  try:
    repair(path)
    size = os.fstat(fd).st_size
    if size >= len(tail) and _read_all(fd, size - len(tail), len(tail)) == tail:
      return
    try:
      _write_all(fd, tail)
      os.fsync(fd)
    except OSError:
      os.ftruncate(fd, size)
      raise
  finally:
    os.close(fd)
