"""The registry: compiled kernels, and what is known of them, in layers.

A layer is a folder; see `folder`. The search path is the package's own, which
is only read, the user's (`$XDG_DATA_HOME` or ~/.local/share, then
esper_jax/urza), and one that the user names; the last one is written to. What
all of them hold about a key counts.

SHA-256 shows damage, not who made a file, and PTX is code. So a layer that
others can write is refused, and one is only used where it is named as trusted.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esper_jax.types import InputError
from esper_jax.urza import evidence, kept
from esper_jax.urza.artefact import FILES, Artefact, Damaged, to_document
from esper_jax.urza.evidence import Status
from esper_jax.urza.folder import (
  ARTEFACTS,
  EVIDENCE,
  KEPT,
  Folder,
  shard_of,
)
from esper_jax.urza.index import Index
from esper_jax.urza.kept import Kept
from esper_jax.urza.kernel import canonical
from esper_jax.urza.layers import Layers, code_of, manifest_in, read_manifest

PACKAGE = Path(__file__).parent / "store"


class Record(NamedTuple):
  """An artefact and what is known of it.

  Attributes:
    artefact: from its manifest.
    evidence: about these very bytes, from all layers, oldest first.
    layer: where the manifest is.
  """

  artefact: Artefact
  evidence: tuple[Mapping[str, Any], ...]
  layer: Path


class Found(NamedTuple):
  """An answer of `Registry.query`.

  Attributes:
    key, kernel, handle, target: of the artefact.
    tags: see `evidence.tags`.
    latency_us: of the newest run; None where it never ran.
  """

  key: str
  kernel: str
  handle: str
  target: int
  tags: tuple[str, ...]
  latency_us: float | None


def user_folder() -> Path:
  """The user's own layer."""
  base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
  return Path(f"{base}/esper_jax/urza").expanduser().absolute()


def open_registry(
  dir: str = "",
  *,
  trusted: Sequence[str] = (),
  layers: Sequence[Path] | None = None,
  make: bool = True,
) -> "Registry":
  """Opens the layers, making those of the user that are not there yet.

  Args:
    dir: another layer, and the one to write to; "" writes to the user's.
    trusted: layers that may be used although others can write to them.
    layers: instead of the search path; the last one is written to.
    make: False makes nothing, and what is named must be there.

  Raises:
    InputError: a layer can be written by others and is not trusted, cannot be
      made, or is missing. A user's layer that cannot be made is left out.
  """
  if layers is None:
    named = [_absolute(dir)] if dir else []
    paths = [PACKAGE, user_folder(), *named]
    optional = {user_folder()} - {*named}
  else:
    paths, optional = [_absolute(path) for path in layers], set()
  accepted = _resolved(trusted)
  folders = []
  # A layer that is named twice stands where it was named last.
  for path in reversed(dict.fromkeys(reversed(paths))):
    # Who can write the package's folder can change the program as well.
    guarded = path != PACKAGE and path.resolve() not in accepted
    folder = Folder(path, guarded=guarded)
    if path != PACKAGE and make:
      try:
        folder.make()
      except InputError:
        if path in optional:
          continue
        raise
    elif path != PACKAGE and path not in optional:
      folder.require()
    if guarded:
      folder.check_owner()
    folders.append(folder)
  last = folders[-1] if folders else None
  return Registry(folders, last if last and last.path == paths[-1] else None)


def _absolute(path: str | Path) -> Path:
  return Path(path).expanduser().absolute()


def check_folder(dir: str, *, trusted: Sequence[str] = ()) -> None:
  """Checks a folder that the user names, without opening it.

  Raises:
    InputError: it is not there, or others can write to it and it is not among
      the trusted ones.
  """
  folder = Folder(_absolute(dir))
  folder.require()
  if folder.path.resolve() not in _resolved(trusted):
    folder.check_owner()


def _resolved(trusted: Sequence[str]) -> set[Path]:
  return {_absolute(path).resolve() for path in trusted}


class Registry:
  """Layers, read as one; see `open_registry`. Safe to use from threads.

  Attributes:
    folders: the layers, in the order they are looked at.
    writable: the one that is written to; None where there is none.
  """

  def __init__(self, folders: Sequence[Folder], writable: Folder | None):
    self.folders = tuple(folders)
    self.writable = writable
    self._layers = Layers(self.folders)
    self._index = Index(self.folders, self._layers.facts)

  # Kernels.

  def put(self, artefact: Artefact, files: Mapping[str, bytes]) -> str:
    """Stores an artefact; returns its key.

    Args:
      artefact: describes the files.
      files: one of each of `artefact.FILES`.

    Raises:
      InputError: it cannot be written, does not describe the files, or a layer
        has other files under this key.
    """
    folder, key = self._target(), artefact.key
    _check_files(artefact, files)
    self.check_put(artefact)
    for name in FILES:
      folder.write_blob(files[name])
    manifest = canonical(to_document(artefact))
    if folder.read(ARTEFACTS, f"{key}.json") != manifest:
      folder.write(manifest, ARTEFACTS, f"{key}.json")
    for name in FILES:  # what a `gc` took before the manifest was there
      folder.write_blob(files[name])
    return key

  def check_put(self, artefact: Artefact) -> None:
    """Raises InputError where a layer has other files under this key."""
    for folder in self.folders:
      with contextlib.suppress(Damaged):
        found = manifest_in(folder, artefact.key)
        if found is not None and found != artefact:
          raise InputError(
            f"{folder.path} has other files under {artefact.key}: one spec must"
            " always give the same bytes; remove the ones that are wrong"
          )

  def append(self, key: str, record: Mapping[str, Any]) -> None:
    """Adds evidence about an artefact.

    Raises:
      InputError: the record breaks a rule of `evidence`, there is no such
        artefact, it is damaged, or nothing can be written.
    """
    folder, document = self._target(), evidence.validated(record)
    try:
      artefact = self._layers.artefact(key)[0]
    except (KeyError, Damaged) as error:
      raise InputError(f"no evidence about {key}: {error.args[0]}") from error
    data = evidence.to_bytes(document, key=key, ptx=code_of(artefact))
    name = f"{key}.{hashlib.sha256(data).hexdigest()}.json"
    folder.write(data, EVIDENCE, shard_of(key), name)

  def find(self, handle: str) -> tuple[tuple[Artefact, ...], tuple[str, ...]]:
    """Artefacts of a handle: all targets, all tiles, in order of the keys.

    Returns:
      Those whose manifests are whole, and what is wrong with the others. Where
      none is whole, manifests whose handle cannot be read are told as well.
    """
    query = "SELECT key FROM facts WHERE handle = ? ORDER BY key"
    artefacts, damages = [], []
    for (key,) in self._index.rows(query, (handle,)):
      try:
        artefact = self._layers.artefact(key)[0]
      except KeyError:
        continue
      except Damaged as damage:
        damages.append(str(damage))
        continue
      if artefact.spec.handle == handle:
        artefacts.append(artefact)
    if not artefacts:
      query = "SELECT damage FROM facts WHERE handle = '' ORDER BY key"
      damages += [damage for (damage,) in self._index.rows(query)]
    return tuple(artefacts), tuple(damages)

  def record(self, key: str) -> Record:
    """An artefact and all evidence about it.

    Raises:
      KeyError: there is none.
      Damaged: its manifest or any record is.
    """
    artefact, folder = self._layers.artefact(key)
    return Record(artefact, self._layers.evidence(artefact), folder.path)

  def load(self, key: str) -> tuple[Artefact, dict[str, bytes]]:
    """An artefact and its files, every byte checked.

    Raises:
      KeyError: there is none.
      Damaged: its manifest or a file is, or a file is missing.
    """
    artefact = self._layers.artefact(key)[0]
    return artefact, {
      name: self._layers.blob(artefact.files[name].sha256) for name in FILES
    }

  def query(
    self,
    kernel: str | None = None,
    target: int | None = None,
    tags: Sequence[str] = (),
    max_latency_us: float | None = None,
    status: Status | str | None = None,
    device_kind: str | None = None,
  ) -> list[Found]:
    """Undamaged artefacts that fit, the quickest first.

    Args:
      kernel: name of the kernel.
      target: compute capability.
      tags: all of which it must have.
      max_latency_us: of its newest run; what never ran does not fit.
      status: what it must be on `device_kind`.
      device_kind: whose runs count; None takes the newest of any.

    Raises:
      InputError: a status without a device kind.
    """
    if status is not None and device_kind is None:
      raise InputError("a status holds for a kind of device: name one")
    source, status_there, latency = "facts", "status", "latency"
    values: list[Any] = []
    if device_kind is not None:
      source = (
        "facts LEFT JOIN (SELECT key AS ran, status AS there, latency AS us"
        " FROM kinds WHERE device_kind = ?) ON ran = key"
      )
      status_there, latency = "COALESCE(there, status)", "us"
      values.append(device_kind)
    where = ["damage = ''"]
    for clause, value in (
      ("kernel = ?", kernel),
      ("target = ?", target),
      (f"{latency} <= ?", max_latency_us),
      (f"{status_there} = ?", None if status is None else str(status)),
      *(("instr(tags, ?)", f" {tag} ") for tag in tags),
    ):
      if value is not None:
        where.append(clause)
        values.append(value)
    rows = self._index.rows(
      f"SELECT key, kernel, handle, target, tags, {latency} FROM {source}"
      f" WHERE {' AND '.join(where)}"
      f" ORDER BY {latency} IS NULL, {latency}, key",
      values,
    )
    words = {text: tuple(str(text).split()) for text in {r[4] for r in rows}}
    return [
      Found(key, name, handle, target, words[tags], us)
      for key, name, handle, target, tags, us in rows
    ]

  def keys(self) -> tuple[str, ...]:
    """Keys of all artefacts, damaged ones too, in order."""
    rows = self._index.rows("SELECT key FROM facts ORDER BY key")
    return tuple(key for (key,) in rows)

  # What is kept beside kernels.

  def keep(
    self,
    kind: str,
    name: str,
    document: Mapping[str, Any],
    blob: bytes | None = None,
  ) -> None:
    """Keeps a document under a name, in the place of an earlier one.

    Args:
      kind: one of `kept.KINDS`, which say what the document must have.
      name: letters, digits, '.', '_', '-'.
      document: what JSON can hold.
      blob: bytes that belong to it.

    Raises:
      InputError: it breaks a rule of `kept`, or cannot be written.
    """
    folder = self._target()
    sha256 = None if blob is None else hashlib.sha256(blob).hexdigest()
    data = kept.to_bytes(kind, name, document, sha256)
    if blob is not None:
      folder.write_blob(blob)
    folder.write(data, KEPT, kind, f"{name}.json")
    if blob is not None:  # as in `put`
      folder.write_blob(blob)

  def kept(self, kind: str, name: str) -> Kept:
    """A kept document; the user's goes before the package's.

    Raises:
      KeyError: there is none.
      Damaged: it is, or its blob.
      InputError: there can be none of that kind or name.
    """
    kept.check_name(kind, name)
    for folder in reversed(self.folders):
      data = folder.read(KEPT, kind, f"{name}.json")
      if data is not None:
        document, sha256 = kept.from_bytes(data, kind, name)
        return Kept(
          document, None if sha256 is None else self._layers.blob(sha256)
        )
    raise KeyError(f"no {name} is kept among {kind}")

  def names(self, kind: str) -> tuple[str, ...]:
    """Names of what is kept of a kind, in order."""
    found = set()
    for folder in self.folders:
      with contextlib.suppress(Damaged):
        found.update(folder.names(KEPT, kind))
    names = {n.removesuffix(".json") for n in found if n.endswith(".json")}
    return tuple(sorted(filter(kept.NAME.fullmatch, names)))

  def _target(self) -> Folder:
    if self.writable is None:
      raise InputError(
        "no layer can be written to; set --config.urza.dir to a folder of yours"
      )
    return self.writable


def _check_files(artefact: Artefact, files: Mapping[str, bytes]) -> None:
  """Raises InputError unless the files are those, and can be read back."""
  try:
    whole = read_manifest(canonical(to_document(artefact))) == artefact
  except (Damaged, TypeError, ValueError) as error:
    raise InputError(f"this artefact cannot be stored: {error}") from error
  sizes = {name: len(data) for name, data in files.items()}
  hashes = {n: hashlib.sha256(data).hexdigest() for n, data in files.items()}
  described = artefact.files.items()
  if (
    not whole
    or sizes != {name: file.size for name, file in described}
    or hashes != {name: file.sha256 for name, file in described}
  ):
    raise InputError("an artefact does not describe its files")
