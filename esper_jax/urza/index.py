"""What a registry's files say, kept so that 10,000 of them answer at once.

The index only makes things quick. It is made of the files and made anew
whenever it is missing, broken or of another version; code that is to run is
always read from, and checked against, the files themselves.

It is an SQLite file in the user's cache, not in the registry, which may be
shared. To see what changed, the names in a few folders are compared with those
it has seen: names are made of hashes, so a new name is a new entry, and
nothing else needs to be read. Small registries have it in memory only, and so
has a process that cannot write the file, or finds it locked.
"""

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esper_jax.types import InputError
from esper_jax.urza import trust
from esper_jax.urza.folder import ARTEFACTS, EVIDENCE, MANIFEST, RECORD, Folder

# Raise it when tables change, or when `evidence` derives something otherwise.
VERSION = 1
Listings = dict[tuple[int, str], list[str]]
"""(number of the layer, folder of evidence) -> names in it."""

SMALL = 200  # artefacts up to which no file is worth it
_WAIT = 2.0  # seconds for another process that writes the file
# A folder that changed so lately may change again without a newer time stamp.
_SETTLED = 3 * 10**9  # nanoseconds
_UNSETTLED = -1
# SQLite's messages may quote what it found, which need not be text.
_BROKEN = (sqlite3.Error, UnicodeDecodeError)
_TABLES = """
CREATE TABLE places(place TEXT PRIMARY KEY, stamp INTEGER, names TEXT);
CREATE TABLE facts(
  key TEXT PRIMARY KEY, kernel TEXT, handle TEXT, target INTEGER, tags TEXT,
  damage TEXT, status TEXT, latency REAL
);
CREATE INDEX by_handle ON facts(handle);
CREATE INDEX by_kernel ON facts(kernel, target);
CREATE INDEX by_damage ON facts(key) WHERE damage != '';
CREATE TABLE kinds(
  key TEXT, device_kind TEXT, status TEXT, latency REAL,
  PRIMARY KEY(key, device_kind)
) WITHOUT ROWID;
"""


class Facts(NamedTuple):
  """What is known of one key.

  Attributes:
    kernel, handle, target: of its artefact; "", "" and -1 if damaged.
    tags: see `evidence.tags`.
    damage: what is wrong with its files; "" for nothing.
    status: on kinds of devices that `kinds` does not have; "" if damaged.
    latency: microseconds of the newest run on any; None without one.
    kinds: (device kind, status, microseconds) of each it ran on.
  """

  kernel: str
  handle: str
  target: int
  tags: tuple[str, ...]
  damage: str
  status: str
  latency: float | None
  kinds: tuple[tuple[str, str, float | None], ...]


class Index:
  """The index of one search path; may be used from several threads."""

  def __init__(
    self,
    folders: Sequence[Folder],
    read: Callable[[str, Listings], Facts | None],
    *,
    small: int = SMALL,
  ):
    """Opens it, without looking at the registry's files yet.

    Args:
      folders: the layers.
      read: (key, names listed so far) -> what its files say; None where it
        has no manifest.
      small: artefacts up to which it stays in memory.
    """
    self._folders = tuple(folders)
    self._read = read
    self._small = small
    self._lock = threading.RLock()
    self._pid = 0
    self._database: sqlite3.Connection | None = None
    self._looked = False  # whether what was damaged has been read again

  @property
  def path(self) -> Path:
    """Its file."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    layers = "\0".join(str(folder.path) for folder in self._folders)
    name = hashlib.sha256(layers.encode()).hexdigest()[:32]
    folder = Path(f"{base}/esper_jax/urza").expanduser().absolute()
    return folder / f"{name}.sqlite"

  def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
    """Looks at the registry's files and answers a query of the tables."""
    with self._lock:
      try:
        return self._answer(query, values)
      except _BROKEN as error:
        if not _is_busy(error):  # a new file, if that works
          self._close()
          with contextlib.suppress(OSError, *_BROKEN):
            self.path.unlink(missing_ok=True)
            Path(f"{self.path}-journal").unlink(missing_ok=True)
            return self._answer(query, values)
        self._open(":memory:")
        return self._answer(query, values)

  def _answer(self, query: str, values: Sequence[Any]) -> list[Any]:
    database = self._connected()
    self._refresh(database)
    return database.execute(query, values).fetchall()

  # The file.

  def _connected(self) -> sqlite3.Connection:
    if self._database is None or self._pid != os.getpid():
      return self._open(self._location())
    return self._database

  def _location(self) -> str:
    path = self.path
    if not path.exists():
      found = (_names(folder, ARTEFACTS) for folder in self._folders)
      if sum(map(len, found)) <= self._small:
        return ":memory:"
    try:
      path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
      trust.check_owner(path.parent, contents="an index", remedy="do without")
    except (OSError, InputError):
      return ":memory:"
    return str(path)

  def _open(self, location: str) -> sqlite3.Connection:
    self._close()
    database = sqlite3.connect(
      location, timeout=_WAIT, isolation_level=None, check_same_thread=False
    )
    self._pid, self._database = os.getpid(), database
    self._finalizer = weakref.finalize(self, database.close)
    database.execute("PRAGMA synchronous=OFF")  # it can be made anew
    if _version(database) != VERSION:
      with _writing(database):
        if _version(database) != VERSION:  # another process may have been first
          _make_tables(database)
    return database

  def _close(self) -> None:
    if self._database is not None and self._pid == os.getpid():
      self._finalizer()
    self._database = None

  # What changed in the registry.

  def _refresh(self, database: sqlite3.Connection) -> None:
    now = time.time_ns()
    stamps = self._stamps()
    changed = bool(self._suspects(database, stamps))
    if not changed and (self._looked or not self._mended(database)):
      self._looked = True
      return
    with _writing(database):
      affected = self._mended(database)
      for place in self._suspects(database, stamps):
        affected |= self._note_names(database, place, stamps.get(place), now)
      listings: Listings = {}
      for key in affected:
        _note_facts(database, key, self._read(key, listings))
    self._looked = True

  def _stamps(self) -> dict[str, int]:
    """When each folder of names changed: "0/evidence/ab" -> nanoseconds."""
    stamps = {}
    for number, folder in enumerate(self._folders):
      with contextlib.suppress(OSError):
        place = folder.path / ARTEFACTS
        stamps[f"{number}/{ARTEFACTS}"] = place.stat().st_mtime_ns
      with (
        contextlib.suppress(OSError),
        os.scandir(folder.path / EVIDENCE) as shards,
      ):
        for shard in shards:
          with contextlib.suppress(OSError):
            place = f"{number}/{EVIDENCE}/{shard.name}"
            stamps[place] = shard.stat().st_mtime_ns
    return stamps

  def _suspects(
    self, database: sqlite3.Connection, stamps: dict[str, int]
  ) -> set[str]:
    known = dict(database.execute("SELECT place, stamp FROM places").fetchall())
    _check_texts(known)
    places = known.keys() | stamps.keys()
    return {p for p in places if known.get(p) != stamps.get(p, "gone")}

  def _mended(self, database: sqlite3.Connection) -> set[str]:
    """Damaged keys whose files, under the same names, now say otherwise."""
    rows = database.execute("SELECT key, damage FROM facts WHERE damage != ''")
    mended = set()
    for key, damage in rows.fetchall():
      _check_texts([key, damage])
      facts = self._read(key, {})
      if facts is None or facts.damage != damage:
        mended.add(key)
    return mended

  def _note_names(
    self,
    database: sqlite3.Connection,
    place: str,
    stamp: int | None,
    now: int,
  ) -> set[str]:
    """Notes the names in a folder; returns the keys whose files changed."""
    number, *parts = place.split("/")
    row = database.execute(
      "SELECT stamp, names FROM places WHERE place = ?", (place,)
    ).fetchone()
    _check_texts(row[1:] if row else ())
    before = set(row[1].split()) if row else set()
    if stamp is None:
      database.execute("DELETE FROM places WHERE place = ?", (place,))
      names = set()
    else:
      # Listed after it was stamped: what comes now changes the stamp.
      pattern = MANIFEST if parts == [ARTEFACTS] else RECORD
      found = set(_names(self._folders[int(number)], *parts))
      names = found & before
      names.update(filter(pattern.fullmatch, found - before))
      stamp = stamp if stamp < now - _SETTLED else _UNSETTLED
      if row is None or names != before or stamp != row[0]:
        database.execute(
          "INSERT OR REPLACE INTO places VALUES(?, ?, ?)",
          (place, stamp, " ".join(names)),
        )
    return {name[:64] for name in names ^ before}


def _names(folder: Folder, *parts: str) -> list[str]:
  with contextlib.suppress(OSError):
    return os.listdir("/".join((str(folder.path), *parts)))
  return []


def _is_busy(error: Exception) -> bool:
  code = getattr(error, "sqlite_errorcode", None)
  return code is not None and code & 0xFF in (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
  )


def _check_texts(values: Iterable[Any]) -> None:
  """Raises where a cell that SQLite can still read is not what was written."""
  if not all(isinstance(value, str) for value in values):
    raise sqlite3.DataError("the index is broken")


def _version(database: sqlite3.Connection) -> int:
  return database.execute("PRAGMA user_version").fetchone()[0]


def _make_tables(database: sqlite3.Connection) -> None:
  for name in ("places", "facts", "kinds"):
    database.execute(f"DROP TABLE IF EXISTS {name}")
  for statement in _TABLES.split(";"):
    database.execute(statement)
  database.execute(f"PRAGMA user_version={VERSION}")


@contextlib.contextmanager
def _writing(database: sqlite3.Connection) -> Iterator[None]:
  """A change that other processes see whole."""
  database.execute("BEGIN IMMEDIATE")
  try:
    yield
  except BaseException:
    with contextlib.suppress(sqlite3.Error):
      database.execute("ROLLBACK")
    raise
  database.execute("COMMIT")


def _note_facts(
  database: sqlite3.Connection, key: str, facts: Facts | None
) -> None:
  database.execute("DELETE FROM facts WHERE key = ?", (key,))
  database.execute("DELETE FROM kinds WHERE key = ?", (key,))
  if facts is None:
    return
  *known, tags, damage, status, latency, kinds = facts
  database.execute(
    "INSERT INTO facts VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
    (key, *known, f" {' '.join(tags)} ", damage, status, latency),
  )
  database.executemany(
    "INSERT INTO kinds VALUES(?, ?, ?, ?)", [(key, *kind) for kind in kinds]
  )
