"""One layer of a registry on disk: files that are whole or not there.

artefacts/<key>.json                      manifests
blobs/<sha256>                            code, and what it came from; packed
evidence/<key's first two>/<key>.<sha256>.json
kept/<kind>/<name>.json                   blueprints' costs, policies

A file is written beside its place, brought to the disk, and renamed: readers
see all of it or nothing, and writers on one machine or on a shared folder need
no locks. Evidence has 256 folders, so that what was added is found by looking
at few names.
"""

import contextlib
import hashlib
import os
import re
import stat
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from esper_jax import commands
from esper_jax.types import InputError
from esper_jax.urza import trust
from esper_jax.urza.artefact import Damaged

ARTEFACTS, BLOBS, EVIDENCE, KEPT = "artefacts", "blobs", "evidence", "kept"
PARTS = (ARTEFACTS, BLOBS, EVIDENCE, KEPT)
SHA256 = re.compile(r"[0-9a-f]{64}")
MANIFEST = re.compile(r"(?P<key>[0-9a-f]{64})\.json")
RECORD = re.compile(r"(?P<key>[0-9a-f]{64})\.(?P<sha256>[0-9a-f]{64})\.json")
_TEMPORARY = ".writing-"
_LARGEST = 2**30  # bytes; a file beyond it is none of ours
_ABSENT = (FileNotFoundError, NotADirectoryError)


class Folder:
  """A layer.

  Attributes:
    path: of the folder, absolute; it need not exist.
    guarded: whether files that others can write are taken as damaged.
  """

  def __init__(self, path: Path, *, guarded: bool = True):
    self.path = path
    self.guarded = guarded

  def names(self, *parts: str) -> list[str]:
    """Names in a folder below, in any order; none where it is not there.

    Raises:
      Damaged: it cannot be read, or others can write to it.
    """
    place = self.path.joinpath(*parts)
    with _damage(place):
      try:
        if self.guarded and trust.is_foreign(place.stat()):
          raise Damaged(f"{place} can be written by others")
        names = os.listdir(place)
      except _ABSENT:
        return []
    return [name for name in names if not name.startswith(".")]

  def read(self, *parts: str) -> bytes | None:
    """Contents of a file below; None where it is not there.

    Raises:
      Damaged: it cannot be read, is no file, or others can write it.
    """
    place = self.path.joinpath(*parts)
    with _damage(place):
      try:
        # Not to wait for a pipe that somebody put there.
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
      except _ABSENT:
        return None
      with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
          raise Damaged(f"{place} is not a file of a registry")
        if self.guarded and trust.is_foreign(found):
          raise Damaged(f"{place} can be written by others")
        return file.read()

  def blob(self, sha256: str) -> bytes | None:
    """A blob, whole and unpacked; None where it is not there.

    Raises:
      Damaged: it is not what its name says.
    """
    packed = self.read(BLOBS, sha256)
    if packed is None:
      return None
    data = _unpacked(packed)
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
      raise Damaged(f"{self.path / BLOBS / sha256}: not what was stored")
    return data

  def write(self, data: bytes, *parts: str) -> None:
    """Puts a file in its place, whole and durably, with its folders.

    Raises:
      InputError: it cannot be written.
    """
    place = self.path.joinpath(*parts)
    with _refusal(place):
      self._make(place.parent)
      temporary = place.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
      try:
        with open(temporary, "xb", opener=_opener) as file:
          file.write(data)
          file.flush()
          os.fsync(file.fileno())
        os.replace(temporary, place)
      except BaseException:
        with contextlib.suppress(OSError):
          temporary.unlink()
        raise
      _sync(place.parent)

  def write_blob(self, data: bytes) -> str:
    """Writes a blob unless it is there and whole; returns its SHA-256.

    One that is there becomes young again, so that `gc` leaves it to whoever
    is about to name it.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    place = self.path / BLOBS / sha256
    with contextlib.suppress(OSError, Damaged):
      os.utime(place)
      if self.blob(sha256) is not None:
        return sha256
    self.write(_packed(data), BLOBS, sha256)
    return sha256

  def make(self) -> None:
    """Makes the folder, for this user alone, unless it is there.

    Raises:
      InputError: it cannot be made.
    """
    with _refusal(self.path):
      self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

  def require(self) -> None:
    """Raises InputError unless the folder is there."""
    if not self.path.is_dir():
      found = "not a folder" if self.path.exists() else "no such folder"
      raise InputError(
        f"{found}: {self.path}; set --config.urza.dir to one that is there, or"
        f" make one with `{commands.python()} -m esper_jax.urza build"
        " --dir=FOLDER`"
      )

  def check_owner(self) -> None:
    """Raises InputError where others can write to it, or to a folder in it."""
    for place in (self.path, *(self.path / part for part in PARTS)):
      if place.is_dir():
        trust.check_owner(
          place,
          contents="kernels",
          remedy=f"name {self.path} in --config.urza.trusted",
        )

  def temporaries(self) -> Iterator[Path]:
    """Files that are being written, or that a killed writer left."""
    for part in PARTS:
      yield from (self.path / part).rglob(f"{_TEMPORARY}*")

  def set_aside(self, place: Path) -> Path:
    """Moves a file to a temporary name beside it; returns that.

    It becomes young, or others would take it for one that was left.
    """
    os.utime(place)
    aside = place.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    os.replace(place, aside)
    return aside

  def _make(self, folder: Path) -> None:
    """Makes a folder below, with the mode of the layer: it may be shared."""
    if folder.is_dir():
      return
    if folder == self.path:
      self.make()
      return
    self._make(folder.parent)
    with contextlib.suppress(FileExistsError):
      os.mkdir(folder)
      os.chmod(folder, stat.S_IMODE(self.path.stat().st_mode))


def places(folders: Iterable[Folder]) -> str:
  """Names those that are there, for people."""
  there = [str(folder.path) for folder in folders if folder.path.is_dir()]
  return ", ".join(there) or "no folder"


def _packed(data: bytes) -> bytes:
  """A zlib stream after its own SHA-256: some of its bits mean nothing."""
  stream = zlib.compress(data, 9)
  return hashlib.sha256(stream).digest() + stream


def _unpacked(packed: bytes) -> bytes | None:
  """What was packed; None where it is not what `_packed` made."""
  sha256, stream = packed[:32], packed[32:]
  if hashlib.sha256(stream).digest() != sha256:
    return None
  try:
    return zlib.decompressobj().decompress(stream, _LARGEST)
  except zlib.error:
    return None


def shard_of(key: str) -> str:
  """The folder of a key's evidence."""
  return key[:2]


def _opener(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_CLOEXEC, 0o644)


def _sync(folder: Path) -> None:
  """Brings a folder's names to the disk, where the file system can do so."""
  descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
  try:
    with contextlib.suppress(OSError):
      os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _damage(place: Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise Damaged(f"cannot read {place}: {error.strerror or error}") from error


@contextlib.contextmanager
def _refusal(place: Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    raise InputError(
      f"cannot write {place}: {reason}; make it writable, or set"
      " --config.urza.dir to a folder that is"
    ) from error
