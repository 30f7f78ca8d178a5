"""The compiler's cache: where it is, and whether a run can use it."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from esper_jax.doctor.report import Level, Line
from esper_jax.doctor.settings import Settings
from esper_jax.tezzeret import disk
from esper_jax.types import InputError

ITEM = "program cache"
LEAST = 2**30  # bytes that should be free
_ELSEWHERE = "set --config.tezzeret.cache_dir to another folder, or to off"


def free(folder: Path) -> int:
  """Bytes that are free where a folder is."""
  return shutil.disk_usage(folder).free


def check(
  settings: Settings, *, free: Callable[[Path], int] = free
) -> Iterator[Line]:
  """Yields one line. A probe is written, and removed.

  Args:
    settings: gives the folder.
    free: see `free`.
  """
  told = disk.told()
  folder = Path(told) if told else disk.place(settings.program_cache)
  if folder is None:
    yield Line(ITEM, Level.OK, "off")
    return
  if "://" in told:
    yield Line(ITEM, Level.OK, f"{told}, which is not on this disk")
    return
  folder = folder.absolute()
  try:
    yield _there(folder, free) if folder.exists() else _absent(folder)
  except InputError as error:
    # A run refuses its own; of what JAX was told it asks nothing.
    yield Line(ITEM, Level.WARN if told else Level.FAIL, str(error))


def _absent(folder: Path) -> Line:
  """A run makes it: can it?"""
  above = next(place for place in folder.parents if place.exists())
  if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
    if not above.stat().st_mode & stat.S_ISVTX:  # which guards what is ours
      disk.check_owner(above)
    return Line(ITEM, Level.OK, f"{folder}, which the first run makes")
  found = f"{folder} cannot be made in {above}"
  return Line(
    ITEM, Level.FAIL, found, f"make {above} writable, or {_ELSEWHERE}"
  )


def _there(folder: Path, free: Callable[[Path], int]) -> Line:
  disk.check_owner(folder)
  try:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as probe:
      probe.write(b"probe")
      probe.flush()
  except OSError as error:
    found = f"{folder} cannot be written: {error.strerror}"
    return Line(ITEM, Level.FAIL, found, f"make it writable, or {_ELSEWHERE}")
  room = free(folder)
  found = f"{folder}, {_mb(_size(folder))}, {_mb(room)} free"
  if room < LEAST:
    remedy = "free some: the cache may be deleted at any time"
    return Line(ITEM, Level.WARN, f"{found}, which is little", remedy)
  return Line(ITEM, Level.OK, found)


def _size(folder: Path) -> int:
  """Bytes of the files in a folder; a run beside this one may take some."""
  total = 0
  for place, _, names in os.walk(folder):
    for name in names:
      try:
        total += os.lstat(os.path.join(place, name)).st_size
      except OSError:
        continue
  return total


def _mb(size: int) -> str:
  return f"{size / 1e6:,.0f} MB"
