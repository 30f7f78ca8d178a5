"""Fetching a data set's archive once: resumable, checked, all or nothing."""

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from esper_jax.types import InputError

_CHUNK = 1 << 20
_ATTEMPTS = 5
_ELSEWHERE = "give the folder that holds the data with --config.data.dir"

Report = Callable[[str], None]


class Archive(NamedTuple):
  """A .tar.gz on the web and the part of it that we want.

  Attributes:
    url: where it is.
    sha256: of the whole file, hexadecimal.
    folder: the folder inside it, also the name of the result.
    members: file name inside that folder -> its size in bytes. Nothing else is
      extracted.
  """

  url: str
  sha256: str
  folder: str
  members: Mapping[str, int]

  @property
  def file_name(self) -> str:
    return self.url.rsplit("/", 1)[-1]


def obtain(
  archive: Archive,
  cache: Path,
  *,
  timeout: float = 30.0,
  report: Report | None = None,
) -> Path:
  """Return the archive's folder inside `cache`, downloading it if absent.

  The folder appears in one rename, after the archive's checksum and every
  member's size were right. An interrupted download is continued by the next
  call. Processes that ask for the same archive at once wait for one another.

  Args:
    archive: what to fetch.
    cache: folder for downloads; created if absent.
    timeout: seconds without a byte before the connection counts as lost.
    report: called with a line of text about every tenth of the download.

  Returns:
    The path of the extracted folder.

  Raises:
    InputError: without network, on a wrong checksum, or if the cache cannot
      be written.
  """
  folder = cache / archive.folder
  if folder.is_dir():
    return folder
  try:
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{archive.file_name}.lock"):
      if not folder.is_dir():  # nobody made it while we waited
        packed = cache / archive.file_name
        if not (packed.is_file() and _sha256(packed) == archive.sha256):
          _fetch(archive, packed, timeout=timeout, report=report)
        _extract(archive, packed, folder)
        packed.unlink()
  except OSError as error:
    raise InputError(
      f"the data cache '{cache}' cannot be written ({_reason(error)}): free"
      " space there, set --config.data.cache_dir to a folder that can be"
      f" written, or {_ELSEWHERE}"
    ) from None
  return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
  with path.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed
    yield


def _fetch(
  archive: Archive, target: Path, *, timeout: float, report: Report | None
) -> None:
  """Downloads to `target`; `target`.part holds what has come so far."""
  part = target.with_name(target.name + ".part")
  resumed = part.is_file()
  _transfer(archive, part, timeout=timeout, report=report)
  digest = _sha256(part)
  if digest != archive.sha256 and resumed:
    # The old beginning may be of another file: once more, all of it.
    part.unlink()
    _transfer(archive, part, timeout=timeout, report=report)
    digest = _sha256(part)
  if digest != archive.sha256:
    part.unlink()
    raise InputError(
      f"{archive.url} has SHA-256 {digest}, expected {archive.sha256}: the"
      f" download was damaged or the file replaced; run again, or {_ELSEWHERE}"
    )
  os.replace(part, target)


def _transfer(
  archive: Archive, part: Path, *, timeout: float, report: Report | None
) -> None:
  """Appends to `part` until it is whole, reconnecting when cut off."""
  reason = ""
  for _ in range(_ATTEMPTS):
    before = _size(part)
    try:
      if _append(archive.url, part, timeout=timeout, report=report):
        return
      reason = "the connection was cut off"
    except urllib.error.HTTPError as error:
      error.close()
      reason = f"HTTP status {error.code}"
    except urllib.error.URLError as error:
      reason = _reason(error.reason)
    except http.client.HTTPException as error:
      reason = _reason(error)
    if _size(part) <= before:  # a retry helps only where something came
      break
  raise InputError(
    f"{archive.url} cannot be downloaded ({reason}): {_ELSEWHERE}, or run again"
    " with network (what has come so far is kept)"
  )


def _append(
  url: str, part: Path, *, timeout: float, report: Report | None
) -> bool:
  """Makes one request; returns whether the file is now whole."""
  start = _size(part)
  headers = {"User-Agent": "esper_jax"}
  if start:
    headers["Range"] = f"bytes={start}-"
  request = urllib.request.Request(url, headers=headers)
  try:
    with _network():
      response = urllib.request.urlopen(request, timeout=timeout)
  except urllib.error.HTTPError as error:
    if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
      raise
    error.close()
    return True  # nothing after `start`; the checksum has the last word
  with response, part.open("ab") as file:
    if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:
      file.truncate(0)  # this server sends the whole file
      start = 0
    length = response.headers.get("Content-Length")
    total = None if length is None else start + int(length)
    done, told = start, start
    while chunk := _read(response):
      file.write(chunk)
      done += len(chunk)
      if report and total and done - told >= total / 10:
        report(f"{url}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
        told = done
    file.flush()
    os.fsync(file.fileno())
  return total is None or done == total


def _read(response: http.client.HTTPResponse) -> bytes:
  with _network():
    return response.read(_CHUNK)


@contextlib.contextmanager
def _network() -> Iterator[None]:
  """Makes every OSError a URLError: the rest are then errors of the disk."""
  try:
    yield
  except urllib.error.URLError:
    raise
  except OSError as error:
    raise urllib.error.URLError(error) from error


def _size(path: Path) -> int:
  return path.stat().st_size if path.is_file() else 0


def _extract(archive: Archive, packed: Path, folder: Path) -> None:
  """Writes the expected members to `folder`, which appears when complete.

  No path of the archive is used to write: a member is recognised by its exact
  name and must be a plain file of the exact size.
  """
  partial = folder.with_name(folder.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  names = {f"{archive.folder}/{name}": name for name in archive.members}
  found = set()
  try:
    with tarfile.open(packed, "r:gz") as tar:
      for member in tar:
        name = names.get(member.name.removeprefix("./"))
        source = tar.extractfile(member) if member.isreg() else None
        if name is None or source is None:
          continue
        if member.size != archive.members[name]:
          raise InputError(
            f"'{member.name}' in {archive.url} has {member.size} bytes,"
            f" expected {archive.members[name]}: {_ELSEWHERE}"
          )
        with source, (partial / name).open("wb") as file:
          shutil.copyfileobj(source, file, _CHUNK)
          file.flush()
          os.fsync(file.fileno())
        found.add(name)
  except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise InputError(
      f"'{packed}' is not a readable .tar.gz ({_reason(error)}): delete it and"
      f" run again, or {_ELSEWHERE}"
    ) from None
  missing = sorted(set(archive.members) - found)
  if missing:
    raise InputError(
      f"{archive.url} lacks {', '.join(missing)} in '{archive.folder}':"
      f" {_ELSEWHERE}"
    )
  os.replace(partial, folder)


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: object) -> str:
  """One line of text for an exception."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return " ".join(str(error).split()) or type(error).__name__
