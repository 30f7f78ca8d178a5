"""Carrying kernels, their evidence and kept documents to another machine.

An archive is a plain tar file, the same to the byte for the same contents. Its
first member, SHA256SUMS, names the SHA-256 of every other; the SHA-256 of that
member stands for the whole archive: whoever gets it by a way that they trust
can tell that the archive is the one that was meant.
"""

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from esper_jax.types import InputError
from esper_jax.urza import evidence, kept
from esper_jax.urza.artefact import FILES, Artefact, Damaged, to_document
from esper_jax.urza.folder import (
  ARTEFACTS,
  BLOBS,
  EVIDENCE,
  KEPT,
  MANIFEST,
  RECORD,
  SHA256,
  shard_of,
)
from esper_jax.urza.kernel import canonical
from esper_jax.urza.layers import code_of, read_manifest
from esper_jax.urza.registry import Registry

SUMS = "SHA256SUMS"
_LARGEST = 2**30  # bytes of a member


class Contents(NamedTuple):
  """What an archive holds.

  Attributes:
    sha256: of its SHA256SUMS.
    artefacts, records, kept: how many.
  """

  sha256: str
  artefacts: int
  records: int
  kept: int


def export(
  registry: Registry, path: Path, keys: Sequence[str] | None = None
) -> Contents:
  """Writes an archive, after every hash in it has been checked.

  Args:
    registry: all of its layers.
    path: of the archive; a file that is there is replaced.
    keys: of the artefacts; None takes all, and all that is kept.

  Raises:
    KeyError: there is no such artefact.
    Damaged: something that would be in it is.
    InputError: it cannot be written.
  """
  members: dict[str, bytes] = {}
  for key in registry.keys() if keys is None else sorted(set(keys)):
    artefact, files = registry.load(key)
    members[f"{ARTEFACTS}/{key}.json"] = canonical(to_document(artefact))
    for name in FILES:
      members[f"{BLOBS}/{artefact.files[name].sha256}"] = files[name]
    for record in registry.record(key).evidence:
      data = evidence.to_bytes(record, key=key, ptx=code_of(artefact))
      name = f"{key}.{_hash(data)}.json"
      members[f"{EVIDENCE}/{shard_of(key)}/{name}"] = data
  for kind in kept.KINDS if keys is None else ():
    for name in registry.names(kind):
      document, blob = registry.kept(kind, name)
      sha256 = None if blob is None else _hash(blob)
      if blob is not None:
        members[f"{BLOBS}/{sha256}"] = blob
      data = kept.to_bytes(kind, name, document, sha256)
      members[f"{KEPT}/{kind}/{name}.json"] = data
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    temporary.write_bytes(_packed(members))
    temporary.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise InputError(f"cannot write {path}: {error.strerror}") from error
  return _counted(members)


def import_archive(
  registry: Registry, path: Path, *, sha256: str | None = None
) -> Contents:
  """Puts everything in an archive into the layer that is written to.

  All of it is checked before anything is written.

  Args:
    registry: to put it into.
    path: of the archive.
    sha256: that its SHA256SUMS must have.

  Raises:
    InputError: it cannot be read, is damaged, is not the one that was meant,
      or cannot be written.
  """
  try:
    data = _read(path)
    members = _members(data)
    sums = members.pop(SUMS, b"")
    if sha256 is not None and _hash(sums) != sha256.strip().lower():
      raise Damaged(f"its SHA-256 is {_hash(sums)}")
    if sums != _sums(members):
      raise Damaged(f"its members are not those of {SUMS}")
    if data != _packed(members):
      raise Damaged("it is not written as an archive is")
    artefacts = dict(_artefacts(members))
    records = list(_records(members, artefacts))
    documents = list(_documents(members))
    _check_names(members, artefacts, records, documents)
  except Damaged as damage:
    raise InputError(f"{path} is not imported: {damage}") from damage
  for artefact in artefacts.values():
    registry.check_put(artefact)
  for artefact in artefacts.values():
    files = artefact.files
    blobs = {n: members[f"{BLOBS}/{files[n].sha256}"] for n in FILES}
    registry.put(artefact, blobs)
  for key, record in records:
    registry.append(key, record)
  for kind, name, document, blob in documents:
    registry.keep(kind, name, document, blob)
  return _counted(members)


def _read(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise Damaged(error.strerror or str(error)) from error


def _packed(members: Mapping[str, bytes]) -> bytes:
  """The tar file; the same on every machine."""
  file = io.BytesIO()
  # GNU's form: the names of evidence are too long for the one before it.
  with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
    for name, data in ((SUMS, _sums(members)), *sorted(members.items())):
      entry = tarfile.TarInfo(name)  # no time, owner or mode of this machine
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  return file.getvalue()


def _members(data: bytes) -> dict[str, bytes]:
  """The members of a tar file; nothing is extracted."""
  members: dict[str, bytes] = {}
  try:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
      for entry in tar:
        file = tar.extractfile(entry) if entry.isreg() else None
        if file is None or entry.size > _LARGEST or entry.name in members:
          raise Damaged(f"'{entry.name}' has no place in it")
        members[entry.name] = file.read()
  except (tarfile.TarError, EOFError, ValueError, OSError) as error:
    raise Damaged(f"it is not a whole tar file ({error})") from error
  return members


def _artefacts(members: Mapping[str, bytes]) -> Iterator[tuple[str, Artefact]]:
  for name, data in _below(ARTEFACTS, members):
    named = MANIFEST.fullmatch(name)
    artefact = read_manifest(data)
    if named is None or artefact.key != named["key"]:
      raise Damaged(f"{ARTEFACTS}/{name} is named wrongly")
    for file in artefact.files.values():
      blob = members.get(f"{BLOBS}/{file.sha256}")
      if blob is None or len(blob) != file.size or _hash(blob) != file.sha256:
        raise Damaged(f"{BLOBS}/{file.sha256} is missing, or not whole")
    yield artefact.key, artefact


def _records(
  members: Mapping[str, bytes], artefacts: Mapping[str, Artefact]
) -> Iterator[tuple[str, evidence.Record]]:
  for name, data in _below(EVIDENCE, members):
    named = RECORD.fullmatch(name[3:])
    if named is None or name[:3] != f"{shard_of(name[3:])}/":
      raise Damaged(f"{EVIDENCE}/{name} is named wrongly")
    record, ptx = evidence.from_bytes(data, **named.groupdict())
    artefact = artefacts.get(named["key"])
    if artefact is None or ptx != code_of(artefact):
      raise Damaged(f"{EVIDENCE}/{name} is about nothing in it")
    yield named["key"], record


def _documents(
  members: Mapping[str, bytes],
) -> Iterator[tuple[str, str, dict, bytes | None]]:
  for place, data in _below(KEPT, members):
    kind, _, name = place.removesuffix(".json").partition("/")
    try:
      kept.check_name(kind, name)
    except InputError as error:
      raise Damaged(str(error)) from error
    document, sha256 = kept.from_bytes(data, kind, name)
    blob = None if sha256 is None else members.get(f"{BLOBS}/{sha256}")
    if sha256 is not None and (blob is None or _hash(blob) != sha256):
      raise Damaged(f"{BLOBS}/{sha256} is missing, or not whole")
    yield kind, name, document, blob


def _check_names(
  members: Mapping[str, bytes],
  artefacts: Mapping[str, Artefact],
  records: Sequence[tuple[str, evidence.Record]],
  documents: Sequence[tuple[str, str, dict, bytes | None]],
) -> None:
  """Nothing may be in an archive but what was looked at."""
  blobs = [name for name, _ in _below(BLOBS, members)]
  for name in blobs:
    if not SHA256.fullmatch(name):
      raise Damaged(f"{BLOBS}/{name} is named wrongly")
  parts = (blobs, artefacts, records, documents)
  if len(members) != sum(map(len, parts)):
    raise Damaged("it has members that no registry has")


def _below(part: str, members: Mapping[str, bytes]) -> Iterable:
  return [
    (name.removeprefix(f"{part}/"), data)
    for name, data in sorted(members.items())
    if name.startswith(f"{part}/")
  ]


def _sums(members: Mapping[str, bytes]) -> bytes:
  lines = (f"{_hash(data)}  {name}\n" for name, data in sorted(members.items()))
  return "".join(lines).encode()


def _counted(members: Mapping[str, bytes]) -> Contents:
  parts = [name.partition("/")[0] for name in members]
  counts = (parts.count(part) for part in (ARTEFACTS, EVIDENCE, KEPT))
  return Contents(_hash(_sums(members)), *counts)


def _hash(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
