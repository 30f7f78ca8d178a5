"""The index makes a registry quick, and is never needed."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from esper_jax.urza import index as index_lib
from esper_jax.urza.folder import Folder
from esper_jax.urza.index import Facts, Index
from tests.urza import making

COUNT = 12


class Counting:
  """An index with a file, however small, that counts what it reads."""

  def __init__(self, folder: Path):
    self.read: list[str] = []
    registry = making.registry(folder)

    def facts(key: str, listings) -> Facts | None:
      self.read.append(key)
      return registry._layers.facts(key, listings)

    self.index = Index([Folder(folder)], facts, small=0)

  def keys(self) -> set[str]:
    self.read.clear()
    return {key for (key,) in self.index.rows("SELECT key FROM facts")}


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, cache):
  making.filled(tmp_path / "r", COUNT)
  return tmp_path / "r"


def test_only_what_is_new_is_read(folder):
  one = Counting(folder)
  assert len(one.keys()) == len(one.read) == COUNT
  again = Counting(folder)  # as another process
  assert len(again.keys()) == COUNT
  assert again.read == []
  registry = making.registry(folder)
  key = registry.put(*making.artefact(COUNT))
  for index in (one, again):  # the second finds what the first has noted
    assert key in index.keys()
  assert one.read == [key]
  assert again.read == []
  old = registry.keys()[0]
  registry.append(old, making.gpu(device_kind="new"))
  assert len(one.keys()) == COUNT + 1
  assert one.read == [old]
  rows = one.index.rows("SELECT key FROM kinds WHERE device_kind = 'new'")
  assert rows == [(old,)]


def test_what_went_is_gone(folder):
  one = Counting(folder)
  key = min(one.keys())
  (folder / "artefacts" / f"{key}.json").unlink()
  assert key not in one.keys()
  shutil.rmtree(folder)
  assert one.keys() == set()


def test_a_change_is_seen_however_quickly_it_comes(folder):
  """Two changes of a folder may have the same time stamp."""
  one, registry = Counting(folder), making.registry(folder)
  for n in range(COUNT, COUNT + 10):
    key = registry.put(*making.artefact(n))
    place = folder / "artefacts"
    os.utime(place, ns=(0, time.time_ns() // 10**8 * 10**8))
    assert key in one.keys()


def test_a_settled_folder_is_not_even_listed(folder):
  for place in (folder / "artefacts", *(folder / "evidence").iterdir()):
    os.utime(place, (1e9, 1e9))
  one = Counting(folder)
  one.keys()
  rows = one.index.rows("SELECT DISTINCT stamp FROM places")
  assert rows == [(10**18,)]


def test_what_was_mended_is_read_again(folder):
  one = Counting(folder)
  key = min(one.keys())
  place = folder / "artefacts" / f"{key}.json"
  data = place.read_bytes()
  place.write_bytes(b"")
  making.registry(folder).put(*making.artefact(COUNT))
  place.write_bytes(b"")
  index = Counting(folder)
  Path(index.index.path).unlink()
  index.keys()
  query = "SELECT key FROM facts WHERE damage != ''"
  assert index.index.rows(query) == [(key,)]
  place.write_bytes(data)
  assert Counting(folder).index.rows(query) == []


def test_a_broken_file_is_made_anew(folder):
  one = Counting(folder)
  keys, path = one.keys(), one.index.path
  whole = path.read_bytes()
  rng = random.Random(0)
  for n in range(200 if making.FULL else 20):
    data = bytearray(whole)
    if n % 3 == 0:
      del data[rng.randrange(len(data)) :]
    for _ in range(n % 3 * 40):
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    Counting(folder).keys()  # whatever it says, it says without an error
  for broken in (b"", b"not a database" * 999, whole[:5000]):
    path.write_bytes(broken)
    assert Counting(folder).keys() == keys
  with sqlite3.connect(path) as database:
    database.execute("PRAGMA user_version=999")
    database.execute("DROP TABLE kinds")
  database.close()
  assert Counting(folder).keys() == keys


def test_without_a_cache_it_is_in_memory(folder, cache):
  shutil.rmtree(cache, ignore_errors=True)
  cache.write_text("")  # a file, where its folder should be
  one = Counting(folder)
  assert len(one.keys()) == COUNT
  assert one.keys() and one.read == []
  cache.unlink()
  cache.mkdir()
  cache.chmod(0o777)  # others could write what it says
  assert len(Counting(folder).keys()) == COUNT
  assert making.files_of(cache) == []


def test_a_locked_file_is_done_without(folder, monkeypatch):
  monkeypatch.setattr(index_lib, "_WAIT", 0.05)
  keys = Counting(folder).keys()
  other = sqlite3.connect(Counting(folder).index.path, isolation_level=None)
  other.execute("BEGIN EXCLUSIVE")
  try:
    one = Counting(folder)
    assert one.keys() == keys
  finally:
    other.close()
  assert len(Counting(folder).keys()) == COUNT  # and the file still works


def test_a_small_registry_has_no_file(folder, cache):
  registry = making.registry(folder)
  assert len(registry.query()) == COUNT
  assert making.files_of(cache) == []


def test_threads_share_an_index(folder):
  one, seen = Counting(folder), []
  threads = [
    threading.Thread(target=lambda: seen.append(one.keys())) for _ in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [len(keys) for keys in seen] == [COUNT] * 8


def test_a_forked_process_opens_its_own(folder):
  script = """
import os, sys
from pathlib import Path
from tests.urza import making
registry = making.registry(Path(sys.argv[1]))
before = registry.keys()
child = os.fork()
if child == 0:
  os._exit(0 if registry.keys() == before else 1)
assert os.waitpid(child, 0)[1] == 0
assert registry.keys() == before
"""
  command = [sys.executable, "-c", script, str(folder)]
  subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
