"""Looking after a registry: is everything whole, and what can go?"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from esper_jax.types import InputError
from esper_jax.urza import kept
from esper_jax.urza.artefact import Artefact, Damaged
from esper_jax.urza.folder import (
  ARTEFACTS,
  BLOBS,
  EVIDENCE,
  KEPT,
  MANIFEST,
  SHA256,
  Folder,
)
from esper_jax.urza.layers import Layers, code_of, manifest_in, read_record
from esper_jax.urza.registry import Registry

YOUNG = (
  3600.0  # seconds for which a file may belong to somebody's unfinished put
)


class Gone(NamedTuple):
  """What `gc` deleted, or would.

  Attributes:
    paths: of the files.
    bytes: their sizes together.
  """

  paths: tuple[Path, ...]
  bytes: int


def verify(registry: Registry) -> tuple[str, ...]:
  """Reads everything, checks every hash and every rule; returns the problems.

  Also told: files that are not named as a registry's are, evidence about no
  artefact, and evidence about other bytes than the artefact has.
  """
  layers = Layers(registry.folders)
  problems: list[str] = []
  for folder in registry.folders:
    for check in (_artefacts, _blobs, _evidence, _kept):
      try:
        problems += check(folder, layers)
      except Damaged as damage:  # a folder that cannot be read
        problems.append(str(damage))
  return tuple(problems)


def _artefacts(folder: Folder, layers: Layers) -> Iterator[str]:
  for name in sorted(folder.names(ARTEFACTS)):
    place = folder.path / ARTEFACTS / name
    named = MANIFEST.fullmatch(name)
    if named is None:
      yield f"{place} is not named as a manifest is"
      continue
    with _told() as told:
      artefact = manifest_in(folder, named["key"])
      if artefact is not None:
        _check_files(artefact, layers, place)
    yield from told


def _check_files(artefact: Artefact, layers: Layers, place: Path) -> None:
  for name, file in artefact.files.items():
    try:
      size = len(layers.blob(file.sha256))
    except Damaged as damage:
      raise Damaged(f"{place}: {name}: {damage}") from damage
    if size != file.size:
      raise Damaged(f"{place}: {name} has {size} bytes, not {file.size}")


def _blobs(folder: Folder, layers: Layers) -> Iterator[str]:
  del layers
  for name in sorted(folder.names(BLOBS)):
    if not SHA256.fullmatch(name):
      yield f"{folder.path / BLOBS / name} is not named as a blob is"
      continue
    with _told() as told:
      folder.blob(name)
    yield from told


def _evidence(folder: Folder, layers: Layers) -> Iterator[str]:
  for shard in sorted(folder.names(EVIDENCE)):
    for name in sorted(folder.names(EVIDENCE, shard)):
      place = folder.path / EVIDENCE / shard / name
      if name[:2] != shard:
        yield f"{place} is not where it belongs"
        continue
      with _told() as told:
        ptx = read_record(folder, name)[1]
        try:
          if ptx != code_of(layers.artefact(name[:64])[0]):
            raise Damaged(f"{place} is about other bytes than are there")
        except KeyError:
          raise Damaged(f"{place} is about no artefact") from None
      yield from told


def _kept(folder: Folder, layers: Layers) -> Iterator[str]:
  for kind in sorted(folder.names(KEPT)):
    for name in sorted(folder.names(KEPT, kind)):
      place = folder.path / KEPT / kind / name
      with _told() as told:
        try:
          stem = name.removesuffix(".json")
          kept.check_name(kind, stem)
        except InputError as error:
          raise Damaged(f"{place}: {error}") from error
        data = folder.read(KEPT, kind, name)
        if data is not None:
          sha256 = kept.from_bytes(data, kind, stem)[1]
          if sha256 is not None:
            layers.blob(sha256)
      yield from told


@contextlib.contextmanager
def _told() -> Iterator[list[str]]:
  problems: list[str] = []
  try:
    yield problems
  except Damaged as damage:
    problems.append(str(damage))


def gc(
  registry: Registry, *, dry_run: bool = False, young: float = YOUNG
) -> Gone:
  """Deletes what no manifest names from the layer that is written to.

  Blobs, and files that a killed writer left. Blobs are written before the
  manifest that names them, so none that is young is touched.

  Args:
    registry: whose last layer is cleaned.
    dry_run: deletes nothing.
    young: seconds.

  Raises:
    Damaged: a manifest or a kept document is, so what it names is not known.
    InputError: there is no such layer, or a file cannot be deleted.
  """
  folder = registry.writable
  if folder is None:
    raise InputError("no layer can be written to; name one with --dir")
  before = time.time() - young
  left = [p for p in folder.temporaries() if _is_older(p, before)]
  named = _named(registry)
  blobs = [
    folder.path / BLOBS / name
    for name in sorted(folder.names(BLOBS))
    if SHA256.fullmatch(name) and name not in named
  ]
  blobs = [path for path in blobs if _is_older(path, before)]
  paths = (*sorted(left), *blobs)
  size = sum(path.stat().st_size for path in paths if path.exists())
  if not dry_run:
    try:
      _delete(registry, folder, left, blobs)
    except OSError as error:
      raise InputError(
        f"cannot delete from {folder.path}: {error.strerror}"
      ) from error
  return Gone(paths, size)


def _delete(
  registry: Registry, folder: Folder, left: list[Path], blobs: list[Path]
) -> None:
  for path in left:
    path.unlink(missing_ok=True)
  aside = []
  for path in blobs:
    with contextlib.suppress(FileNotFoundError):
      aside.append((path, folder.set_aside(path)))
  # One that a put has named since it was looked at is put back; a put that
  # names it from now on sees that it is missing, and writes it.
  named = _named(registry) if aside else set()
  for path, moved in aside:
    if path.name in named:
      moved.replace(path)
    else:
      moved.unlink(missing_ok=True)


def _named(registry: Registry) -> set[str]:
  """SHA-256s that any manifest or kept document names."""
  named: set[str] = set()
  for folder in registry.folders:
    for name in folder.names(ARTEFACTS):
      artefact = manifest_in(folder, name.removesuffix(".json"))
      if artefact is not None:
        named.update(file.sha256 for file in artefact.files.values())
    for kind in folder.names(KEPT):
      for name in folder.names(KEPT, kind):
        data = folder.read(KEPT, kind, name)
        if data is not None:
          stem = name.removesuffix(".json")
          named.add(kept.from_bytes(data, kind, stem)[1] or "")
  return named


def _is_older(path: Path, moment: float) -> bool:
  try:
    return path.stat().st_mtime < moment
  except FileNotFoundError:
    return False
