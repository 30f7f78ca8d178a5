"""Every change from the seed network to the final one, as a chain of hashes.

Each entry of lineage.json has the SHA-256 of the one before it; the last one
has those of the exported files. Whoever changes a file or an entry has to
change all that follows, and the head with it: compare it with one that was kept
elsewhere to be sure that nobody rewrote the whole. Needs no JAX.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from esper_jax import commands
from esper_jax.oona import growth_log
from esper_jax.types import InputError, Stage

# What an export may have beside its lineage.
WEIGHTS, TOPOLOGY = "weights.safetensors", "topology.json"
MODULE, SEEDS, PROGRAM = "model.py", "seeds.py", "network.stablehlo"
REPORT = "export.json"
FILES = (WEIGHTS, TOPOLOGY, MODULE, SEEDS, PROGRAM, REPORT)
LINEAGE = "lineage.json"
SCHEMA = 1
_NOTHING = "0" * 64  # before the first entry
_CHANGES = (
  "germinated",
  "stage_changed",
  "fossilized",
  "culled",
  "growth_cancelled",
  "rolled_back",
  "quarantined",
)
_OF_PROCESS = ("v", "seq")  # entries of an event that say nothing of growth
_AGAIN = "export the run again"
_GIVE = (
  f"give a folder that `{commands.python()} -m esper_jax.export RUN --to=DIR`,"
  " or export() of what grow() returned, wrote"
)

Entry = dict[str, Any]
_Name = tuple[int, str, str]  # of a seed: generation, slot, key


class Verified(NamedTuple):
  """What was found to be whole.

  Attributes:
    files: names, those of the last entry and the lineage itself.
    changes: how many entries there are.
    head: SHA-256 of the last entry.
    others: names of what else is in the folder; nothing is known of it.
  """

  files: tuple[str, ...]
  changes: int
  head: str
  others: tuple[str, ...] = ()


def changes(events: str | os.PathLike, *, before: int) -> list[dict[str, Any]]:
  """Reads what happened to a network from the log of its run.

  Args:
    events: the events.jsonl; what a rollback undid is left out.
    before: number of the first event that came after the network.

  Raises:
    InputError: the log is not there, or not what it must be.
  """
  advice = "restore the file: a network without its log has no lineage"
  return [
    {k: v for k, v in event.items() if k not in _OF_PROCESS}
    for _, event in growth_log.standing(events, advice=advice)
    if event["type"] in _CHANGES and event["id"] < before
  ]


def chain(contents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Builds the content of lineage.json; the last content binds the files."""
  entries: list[Entry] = []
  previous = _NOTHING
  for content in contents:
    entries.append({"previous": previous, **content})
    previous = _hash(entries[-1])
  return {"schema": SCHEMA, "entries": entries, "head": previous}


def head_of(folder: str | os.PathLike) -> str:
  """The head of an export's lineage, which binds its files; see `verify`.

  Raises:
    InputError: there is no lineage, or it was changed.
  """
  document = read_object(Path(folder) / LINEAGE)
  _entries(document, Path(folder) / LINEAGE)
  return document["head"]


def story(folder: str | os.PathLike) -> list[Entry]:
  """The entries of an export's lineage, to go on from: see `chain`."""
  document = read_object(Path(folder) / LINEAGE)
  return [
    {k: v for k, v in entry.items() if k != "previous"}
    for entry in _entries(document, Path(folder) / LINEAGE)
  ]


def living(entries: Iterable[Mapping[str, Any]]) -> dict[_Name, Any]:
  """The seeds that changes have left.

  Returns:
    (generation, slot, key) -> {"blueprint": name, "stage": name}; generation 0
    grew in the first run, 1 in the run that went on with its network ...
  """
  seeds: dict[_Name, Any] = {}
  present: dict[tuple[str, int], _Name] = {}  # (slot, lane) -> seed
  generation = 0
  for entry in entries:
    if entry["type"] == "continued":
      generation += 1
      present = {}
    if "slot" not in entry:
      continue
    kind, place = entry["type"], (entry["slot"], entry.get("lane", 0))
    if kind == "germinated":
      present[place] = (generation, entry["slot"], entry["key"])
      seeds[present[place]] = {
        "blueprint": entry["blueprint"],
        "stage": Stage.TRAINING.name,
      }
    elif kind in ("culled", "growth_cancelled"):
      seeds.pop(present.pop(place, (generation, "", "")), None)
    elif kind == "stage_changed" and place in present:
      seeds[present[place]]["stage"] = entry["now"]
    elif kind == "fossilized" and place in present:
      seeds[present.pop(place)]["stage"] = Stage.FOSSILIZED.name
  return seeds


def check_seeds(
  entries: Iterable[Mapping[str, Any]], topology: Mapping[str, Any], source: str
) -> None:
  """Refuses a history that does not lead to the network.

  Args:
    entries: of the lineage.
    topology: what topology.json holds.
    source: what to call the history in an error.

  Raises:
    InputError: names a seed that only one of them has.
  """
  told = living(entries)
  has = {
    (seed.get("generation", 0), seed["slot"], seed["key"]): seed["blueprint"]
    for seed in (*topology["seeds"], *topology["merged"])
  }
  for name, blueprint in has.items():
    _, slot, key = name
    if told.get(name, {}).get("blueprint") != blueprint:
      raise InputError(
        f"{source} does not tell of '{key}' in slot '{slot}', which the network"
        f" has: lines are missing or changed; restore it, or {_AGAIN}"
      )
  permanent = (Stage.HOLDING.name, Stage.FOSSILIZED.name)
  for name, seed in told.items():
    _, slot, key = name
    if seed["stage"] in permanent and name not in has:
      raise InputError(
        f"{source} tells of '{key}' in slot '{slot}', which the network lacks:"
        f" lines are missing or changed; restore it, or {_AGAIN}"
      )


def hash_file(path: Path) -> str:
  """SHA-256 of a file, hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: str | os.PathLike, *, head: str = "") -> Verified:
  """Checks that an export is whole and that its history leads to it.

  Args:
    folder: of the export.
    head: that the lineage must have; "" is any.

  Raises:
    InputError: names the first file or entry that is not what it was.
  """
  root = Path(folder)
  document = read_object(root / LINEAGE)
  entries = _entries(document, root / LINEAGE)
  files = _bound(entries, root)
  if head and head != document["head"]:
    raise InputError(
      f"{root / LINEAGE} is not the lineage that was asked for: its head is"
      f" {document['head']}, not {head}"
    )
  for name, wanted in sorted(files.items()):
    _check_file(root / name, wanted)
  for name in FILES:
    if name not in files and (root / name).exists():
      raise InputError(
        f"{root / name} is not of this export ({LINEAGE} does not bind it);"
        " remove it"
      )
  topology = read_object(root / TOPOLOGY)
  check_seeds(entries, topology, str(root / LINEAGE))
  names = (*sorted(files), LINEAGE)
  others = {path.name for path in root.iterdir()} - {*names}
  return Verified(names, len(entries), document["head"], tuple(sorted(others)))


def check_files(folder: str | os.PathLike, names: Iterable[str]) -> None:
  """Checks some files of an export, as `verify` does all of them.

  Args:
    folder: of the export.
    names: of the files.

  Raises:
    InputError: names the first file, or the entry of the lineage, that is not
      what it was.
  """
  root = Path(folder)
  entries = _entries(read_object(root / LINEAGE), root / LINEAGE)
  files = _bound(entries, root)
  for name in names:
    _check_file(root / name, files.get(name))


def _check_file(path: Path, wanted: str | None) -> None:
  if not path.is_file():
    raise InputError(f"{path} is missing; restore it, or {_AGAIN}")
  if hash_file(path) != wanted:
    raise InputError(
      f"{path} was changed: its SHA-256 is not the one in {LINEAGE};"
      f" restore it, or {_AGAIN}"
    )


def _bound(entries: list[Entry], root: Path) -> dict[str, str]:
  """File name -> SHA-256, as the last entry has them."""
  files = entries[-1].get("files")
  if not isinstance(files, dict):
    raise InputError(
      f"{root / LINEAGE} was changed: its last entry binds no files; {_AGAIN}"
    )
  return files


def _entries(document: Mapping[str, Any], path: Path) -> list[Entry]:
  """The entries, if each follows from the one before."""
  if document.get("schema") != SCHEMA:
    raise InputError(
      f"{path} has schema {document.get('schema')!r}, this version reads"
      f" {SCHEMA}; {_AGAIN}"
    )
  entries = document.get("entries")
  whole = isinstance(entries, list) and entries
  if not whole or not all(isinstance(entry, dict) for entry in entries):
    raise InputError(f"{path} was changed: it has no entries; {_AGAIN}")
  assert isinstance(entries, list)
  previous = _NOTHING
  for number, entry in enumerate(entries, start=1):
    if entry.get("previous") != previous:
      what = "is not the one that the next follows from"
      if number == 1:
        what = "does not follow from nothing"
      what = f"entry {max(1, number - 1)} of {len(entries)} {what}"
      raise InputError(f"{path} was changed: {what}; restore it, or {_AGAIN}")
    previous = _hash(entry)
  if document.get("head") != previous:
    raise InputError(
      f"{path} was changed: its head is not the SHA-256 of entry"
      f" {len(entries)}, the last; restore it, or {_AGAIN}"
    )
  return entries


def _hash(entry: Mapping[str, Any]) -> str:
  text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def read_bytes(path: Path) -> bytes:
  """Reads a file of an export.

  Raises:
    InputError: it cannot be read; says what to give in its folder's place.
  """
  try:
    return path.read_bytes()
  except OSError as error:
    folder = path.parent
    if not folder.is_dir():
      raise InputError(f"{folder}: no such folder; {_GIVE}") from error
    if (folder / "events.jsonl").is_file():
      raise InputError(
        f"{folder} is a run directory, not an export; export it first, by"
        f" `{commands.python()} -m esper_jax.export {folder} --to=DIR` or by"
        " export() of what grow() returned, and give that folder"
      ) from error
    why = error.strerror
    raise InputError(f"cannot read {path}: {why}; {_GIVE}") from error


def read_object(path: Path) -> dict[str, Any]:
  """Reads a JSON object of an export.

  Raises:
    InputError: it cannot be read, or is something else.
  """
  data = read_bytes(path)
  try:
    document = json.loads(data)
  except ValueError as error:
    raise InputError(f"{path} is not JSON ({error}); {_AGAIN}") from error
  if not isinstance(document, dict):
    raise InputError(f"{path} is not a JSON object; {_AGAIN}")
  return document
