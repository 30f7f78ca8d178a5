"""Reading a registry's layers as one: everything is checked as it is read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from esper_jax.urza import evidence as rules
from esper_jax.urza.artefact import Artefact, Damaged, from_document
from esper_jax.urza.folder import (
  ARTEFACTS,
  BLOBS,
  EVIDENCE,
  MANIFEST,
  RECORD,
  Folder,
  shard_of,
)
from esper_jax.urza.index import Facts, Listings
from esper_jax.urza.kernel import canonical


class Layers:
  """Folders, in the order they are looked at."""

  def __init__(self, folders: Sequence[Folder]):
    self._folders = tuple(folders)

  def artefact(self, key: str) -> tuple[Artefact, Folder]:
    """An artefact, from the first layer where its manifest is whole.

    Raises:
      KeyError: there is none.
      Damaged: each manifest there is.
    """
    damage = None
    for folder in self._folders:
      try:
        artefact = manifest_in(folder, key)
      except Damaged as error:
        damage = damage or error
        continue
      if artefact is not None:
        return artefact, folder
    raise damage or KeyError(f"no artefact {key}")

  def blob(self, sha256: str) -> bytes:
    """A blob, from a layer where it is whole.

    Raises:
      Damaged: there is none.
    """
    damage = Damaged(f"{BLOBS}/{sha256} is missing")
    for folder in reversed(self._folders):
      try:
        data = folder.blob(sha256)
      except Damaged as error:
        damage = error
        continue
      if data is not None:
        return data
    raise damage

  def evidence(
    self, artefact: Artefact, listings: Listings | None = None
  ) -> tuple[Mapping[str, Any], ...]:
    """All evidence about an artefact's very bytes, oldest first.

    Args:
      artefact: of any layer.
      listings: names that were listed just now, so that the evidence of many
        artefacts is found without listing a folder for each; is added to.

    Raises:
      Damaged: a record is, be it about these bytes or not.
    """
    key, shard = artefact.key, shard_of(artefact.key)
    found: dict[str, Mapping[str, Any]] = {}
    listings = {} if listings is None else listings
    for number, folder in enumerate(self._folders):
      if (number, shard) not in listings:
        listings[number, shard] = folder.names(EVIDENCE, shard)
      for name in listings[number, shard]:
        if name.startswith(key) and name not in found:
          record, ptx = read_record(folder, name)
          if ptx == code_of(artefact):  # or it is about other bytes
            found[name] = record
    names = sorted(found)
    return tuple(rules.in_order(found[name] for name in names))

  def facts(self, key: str, listings: Listings) -> Facts | None:
    """What the index keeps of a key; None where it has no manifest.

    Args:
      key: of an artefact.
      listings: see `evidence`.
    """
    try:
      artefact = self.artefact(key)[0]
    except KeyError:
      return None
    except Damaged as damage:
      return Facts("", "", -1, (), str(damage), "", None, ())
    spec = artefact.spec
    known = spec.kernel, spec.handle, spec.target
    try:
      records = self.evidence(artefact, listings)
    except Damaged as damage:
      return Facts(*known, (), str(damage), "", None, ())
    kinds = tuple(
      (kind, str(rules.status(records, kind)), rules.latency(records, kind))
      for kind in rules.device_kinds(records)
    )
    elsewhere, newest = rules.status(records, ""), rules.latency(records)
    tags = rules.tags(artefact, records)
    return Facts(*known, tags, "", str(elsewhere), newest, kinds)


def read_record(folder: Folder, name: str) -> tuple[Mapping[str, Any], str]:
  """Reads one file of evidence; see `evidence.from_bytes`.

  Raises:
    Damaged: it is, or its name is not that of a record.
  """
  place = folder.path / EVIDENCE / name[:2] / name
  named = RECORD.fullmatch(name)
  if named is None:
    raise Damaged(f"{place} is not named as evidence is")
  data = folder.read(EVIDENCE, name[:2], name)
  if data is None:
    raise Damaged(f"{place} went while it was read")
  try:
    return rules.from_bytes(data, **named.groupdict())
  except Damaged as damage:
    raise Damaged(f"{place}: {damage}") from damage


def manifest_in(folder: Folder, key: str) -> Artefact | None:
  """The artefact of a key in one layer; None where it is not there.

  Raises:
    Damaged: its manifest is, or names another key.
  """
  name = f"{key}.json"
  if MANIFEST.fullmatch(name) is None:
    return None
  data = folder.read(ARTEFACTS, name)
  if data is None:
    return None
  try:
    artefact = read_manifest(data)
    if artefact.key != key:
      raise Damaged("it is named wrongly")
  except Damaged as damage:
    raise Damaged(f"{folder.path / ARTEFACTS / name}: {damage}") from damage
  return artefact


def read_manifest(data: bytes) -> Artefact:
  """Reads a manifest from its bytes.

  Raises:
    Damaged: they are not, to the bit, what was stored.
  """
  try:
    document = json.loads(data)
    as_stored = canonical(document) == data
  except (ValueError, RecursionError) as error:
    raise Damaged(f"it is not JSON ({error})") from error
  artefact = from_document(document)
  if not as_stored:
    raise Damaged("it is not written as a manifest is")
  return artefact


def code_of(artefact: Artefact) -> str:
  """SHA-256 of what runs: what evidence is about."""
  return artefact.files["ptx"].sha256
