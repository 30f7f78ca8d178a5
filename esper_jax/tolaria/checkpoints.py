"""Checkpoints: whole, verified, or not there. All calls of Orbax are here.

    checkpoints/000007-step-420/
        checkpoint.json  step, kind, metric, the caller's meta, index of arrays
        arrays/          Orbax: one vector per dtype, all arrays end to end
        SHA256SUMS       of every file above; `sha256sum -c` reads it

The first number counts saves: it orders them even when a rollback repeats a
step. A checkpoint is written under a temporary name and renamed when it is on
the disk, so a process that dies leaves no half of one. Orbax takes about half
a millisecond per array (a few hundred small ones: 0.1 s), hence the vectors.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from esper_jax.oona.jsonl import plain, write_error_text
from esper_jax.tolaria import vectors
from esper_jax.tolaria.workdir import sync_path, temporary_name
from esper_jax.types import InputError, RunFailedError

SCHEMA = 1
SCHEDULED = "scheduled"  # at an epoch's end: the only targets of a rollback
_NAME = re.compile(r"(\d{6,})-step-(\d+)")
_DOCUMENT = "checkpoint.json"
_SUMS = "SHA256SUMS"
_ARRAYS = "arrays"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One checkpoint on the disk.

  Attributes:
    path: its folder.
    number: how many saves came before it.
    step: the run's step.
    kind: SCHEDULED, "interrupt" or another word of the caller; "" where the
      document is damaged.
    metric: what keep_best ranks, higher is better; None where unknown.
  """

  path: pathlib.Path
  number: int
  step: int
  kind: str
  metric: float | None


@dataclasses.dataclass(frozen=True)
class Loaded:
  """What a checkpoint held.

  Attributes:
    checkpoint: where it came from.
    arrays: name -> array, writable, bitwise as saved.
    meta: as saved, through JSON (a tuple comes back as a list).
  """

  checkpoint: Checkpoint
  arrays: dict[str, np.ndarray]
  meta: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Damage:
  """A checkpoint that was passed over, and why (one line)."""

  checkpoint: Checkpoint
  reason: str


class DamagedError(Exception):
  """A checkpoint is not what was saved; the text says what differs."""


def available(folder: os.PathLike | str) -> list[Checkpoint]:
  """Lists the checkpoints of a folder in the order they were saved.

  Nothing is verified; `load` does that.
  """
  folder = pathlib.Path(folder)
  found = []
  for path in folder.iterdir() if folder.is_dir() else ():
    match = _NAME.fullmatch(path.name)
    if not match:
      continue
    kind, metric = "", None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      document = json.loads((path / _DOCUMENT).read_bytes())
      kind, metric = str(document["kind"]), document["metric"]
      metric = None if metric is None else float(metric)
    number, step = int(match[1]), int(match[2])
    found.append(Checkpoint(path, number, step, kind, metric))
  return sorted(found, key=lambda c: c.number)


def save(
  folder: os.PathLike | str,
  step: int,
  arrays: Mapping[str, Any],
  meta: Mapping[str, Any],
  *,
  kind: str = SCHEDULED,
  metric: float | None = None,
  keep_last: int = 3,
  keep_best: int = 1,
) -> Checkpoint:
  """Writes a checkpoint, then removes those that need not be kept.

  Args:
    folder: created where it is missing; the caller holds the run's lock.
    step: the run's step.
    arrays: name -> array of any dtype and shape (see tolaria/arrays.py).
    meta: what JSON can hold.
    kind: see `Checkpoint`.
    metric: see `Checkpoint`; one that is not finite counts as None.
    keep_last: keep this many of the newest, and of the newest SCHEDULED ones.
    keep_best: keep this many of the best SCHEDULED ones besides.

  Raises:
    RunFailedError: it cannot be written; what was there before is whole.
  """
  payload = _pack(step, arrays, meta, kind=kind, metric=metric)
  return _write(folder, payload, keep_last, keep_best)


class Writer:
  """Saves in a thread of its own, one checkpoint at a time.

  A failure surfaces as RunFailedError at the next call of any method.
  """

  def __init__(
    self, folder: os.PathLike | str, *, keep_last: int = 3, keep_best: int = 1
  ):
    """Prepares a writer; see `save` for the arguments."""
    self.folder = pathlib.Path(folder)
    self._keep = (keep_last, keep_best)
    self._pool = ThreadPoolExecutor(1, "checkpoint")
    self._pending: Future[Checkpoint] | None = None

  def save(
    self,
    step: int,
    arrays: Mapping[str, Any],
    meta: Mapping[str, Any],
    *,
    kind: str = SCHEDULED,
    metric: float | None = None,
    before: Callable[[], object] = lambda: None,
  ) -> None:
    """Starts a save when the one before is done; see the function `save`.

    The arrays and meta are copied before this returns. `before` is called in
    the thread first: there, sync the logs whose offsets meta holds.
    """
    self.wait()
    payload = _pack(step, arrays, meta, kind=kind, metric=metric)

    def work() -> Checkpoint:
      before()
      return _write(self.folder, payload, *self._keep)

    self._pending = self._pool.submit(work)

  def wait(self) -> Checkpoint | None:
    """Waits until the disk holds the save under way; None where none is."""
    pending, self._pending = self._pending, None
    return pending.result() if pending else None

  def close(self) -> Checkpoint | None:
    """Waits as `wait` does and ends the thread."""
    try:
      return self.wait()
    finally:
      self._pool.shutdown()


def load(checkpoint: Checkpoint) -> Loaded:
  """Verifies every file of a checkpoint, then reads it.

  Raises:
    DamagedError: a file is missing, added or changed.
    InputError: its schema is not the one this version reads.
  """
  path = checkpoint.path
  try:
    _verify(path)
    document = json.loads((path / _DOCUMENT).read_bytes())
  except (OSError, ValueError) as error:
    raise DamagedError(f"cannot be read: {error}") from error
  if document["schema"] != SCHEMA:
    raise InputError(
      f"{path} has checkpoint schema {document['schema']}, this version reads"
      f" {SCHEMA}; use the version that wrote it or a new --workdir"
    )
  index = document["arrays"]
  held: dict[str, np.ndarray] = {}
  if any(math.prod(shape) for _, shape, _ in index.values()):
    try:
      held = vectors.load(path / _ARRAYS)
    except Exception as error:  # Orbax promises no class
      raise DamagedError(f"Orbax cannot read it: {error}") from error
  arrays = {}
  for name, (dtype, shape, start) in index.items():
    empty = np.zeros(0, dtype)
    flat = held.get(dtype, empty)[start : start + math.prod(shape)]
    arrays[name] = np.array(flat).reshape(shape)
  verified = {key: document[key] for key in ("kind", "metric")}
  return Loaded(
    dataclasses.replace(checkpoint, **verified), arrays, document["meta"]
  )


def latest_good(
  folder: os.PathLike | str, *, kinds: Collection[str] | None = None
) -> tuple[Loaded | None, list[Damage]]:
  """Loads the newest checkpoint that is undamaged.

  Args:
    folder: of the checkpoints.
    kinds: which kinds will do; None means any. For a rollback: (SCHEDULED,).

  Returns:
    (what it held or None where there is none, the damaged newer ones).

  Raises:
    InputError: see `load`.
  """
  damaged = []
  for checkpoint in reversed(available(folder)):
    try:
      loaded = load(checkpoint)
    except DamagedError as error:
      damaged.append(Damage(checkpoint, str(error)))
      continue
    if kinds is None or loaded.checkpoint.kind in kinds:
      return loaded, damaged
  return None, damaged


@dataclasses.dataclass(frozen=True)
class _Payload:
  step: int
  kind: str
  metric: float | None
  document: str  # checkpoint.json
  vectors: dict[str, np.ndarray]  # dtype -> all arrays of it, end to end


def _pack(
  step: int,
  arrays: Mapping[str, Any],
  meta: Mapping[str, Any],
  *,
  kind: str,
  metric: float | None,
) -> _Payload:
  parts: dict[str, list[np.ndarray]] = {}
  ends: dict[str, int] = {}
  index = {}
  for name, value in arrays.items():
    value = np.asarray(value)
    dtype = str(value.dtype)
    start = ends.get(dtype, 0)
    index[name] = (dtype, value.shape, start)
    ends[dtype] = start + value.size
    parts.setdefault(dtype, []).append(value.ravel())
  known = metric is not None and math.isfinite(metric)
  metric = float(metric) if known else None
  document = {
    "schema": SCHEMA,
    "step": step,
    "kind": kind,
    "metric": metric,
    "meta": meta,
    "arrays": index,
  }
  # Python's own JSON form keeps NaN and infinity, which `plain` would spell.
  text = json.dumps(document, default=plain)
  vectors = {k: np.concatenate(v) for k, v in parts.items() if ends[k]}
  return _Payload(step, kind, metric, text, vectors)


def _write(
  folder: os.PathLike | str, payload: _Payload, keep_last: int, keep_best: int
) -> Checkpoint:
  folder = pathlib.Path(folder).absolute()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    present = available(folder)
    number = present[-1].number + 1 if present else 0
    final = folder / f"{number:06d}-step-{payload.step}"
    unfinished = temporary_name(final)
    try:
      unfinished.mkdir()
      if payload.vectors:
        vectors.save(unfinished / _ARRAYS, payload.vectors)
      (unfinished / _DOCUMENT).write_text(payload.document)
      (unfinished / _SUMS).write_text(_sums(unfinished))
      for path in (*unfinished.rglob("*"), unfinished):
        sync_path(path)
      unfinished.rename(final)
      sync_path(folder)
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)
    new = Checkpoint(final, number, payload.step, payload.kind, payload.metric)
    for checkpoint in _superfluous([*present, new], keep_last, keep_best):
      # Renamed first: half of a checkpoint must not look like one.
      doomed = temporary_name(checkpoint.path)
      checkpoint.path.rename(doomed)
      shutil.rmtree(doomed)
  except Exception as error:  # Orbax reports a full disk as a ValueError
    raise RunFailedError(write_error_text(folder, error)) from error
  return new


def _superfluous(
  present: list[Checkpoint], keep_last: int, keep_best: int
) -> list[Checkpoint]:
  scheduled = [c for c in present if c.kind == SCHEDULED]
  ranked = sorted(
    ((c.metric, c.number) for c in scheduled if c.metric is not None),
    reverse=True,
  )
  keep = {number for _, number in ranked[:keep_best]}
  for newest in (present[::-1], scheduled[::-1]):
    keep |= {c.number for c in newest[:keep_last]}
  return [c for c in present if c.number not in keep]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in folder.rglob("*") if p.is_file())


def _sums(folder: pathlib.Path) -> str:
  lines = []
  for path in _files(folder):
    name = path.relative_to(folder).as_posix()
    if name != _SUMS:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      lines.append(f"{digest}  {name}\n")
  return "".join(lines)


def _verify(folder: pathlib.Path) -> None:
  # Compared as a whole text, so damage to the sums themselves shows too.
  stored = (folder / _SUMS).read_bytes().decode()
  actual = _sums(folder)
  if stored != actual:
    names = {
      line.partition("  ")[2]
      for line in {*stored.splitlines()} ^ {*actual.splitlines()}
    }
    what = ", ".join(sorted(names)[:3]) or _SUMS
    raise DamagedError(f"files differ from {_SUMS}: {what}")
