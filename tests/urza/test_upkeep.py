"""`verify` finds what is wrong; `gc` takes only what nobody needs."""

import os
import threading

import pytest

from esper_jax.types import InputError
from esper_jax.urza import upkeep
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.registry import Registry
from tests.urza import making


@pytest.fixture
def store(tmp_path):
  """A registry with two artefacts and a policy, all of it an hour old."""
  registry, keys = making.filled(tmp_path / "r", 2)
  registry.keep("policies", "p", {}, b"weights")
  age(tmp_path / "r")
  return registry, keys, tmp_path / "r"


def age(folder):
  for path in making.files_of(folder):
    os.utime(path, (1e9, 1e9))


def test_a_whole_registry_has_no_problems(store):
  assert upkeep.verify(store[0]) == ()


def test_each_damaged_file_is_a_problem(store):
  registry, _, folder = store
  for path in making.files_of(folder):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    problems = upkeep.verify(registry)
    assert problems and any(path.name in problem for problem in problems)
    path.write_bytes(whole)


def test_each_file_that_is_missing_or_strange_is_a_problem(store):
  registry, keys, folder = store
  artefact = registry.record(keys[0]).artefact
  blob = folder / "blobs" / artefact.files["ttir"].sha256
  data = blob.read_bytes()
  blob.unlink()
  (problem,) = upkeep.verify(registry)
  assert f"{keys[0]}.json: ttir" in problem and "missing" in problem
  blob.write_bytes(data)
  for name in (
    "artefacts/x.json",
    "blobs/x",
    f"evidence/{keys[0][:2]}/x.json",
    f"evidence/zz/{keys[0]}.json",
    "kept/policies/.json",
    "kept/policies/x.json",
    "kept/other/x.json",
  ):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}")
    if path.name.startswith("."):
      assert upkeep.verify(registry) == ()  # being written
    else:
      (problem,) = upkeep.verify(registry)
      assert str(path) in problem or name in problem
    path.unlink()
  (folder / "artefacts" / f"{keys[0]}.json").unlink()
  problems = upkeep.verify(registry)
  assert len(problems) == len(making.ALL)
  assert all("is about no artefact" in problem for problem in problems)


def test_evidence_about_other_bytes_is_a_problem(store, tmp_path):
  registry, _, folder = store
  new = making.registry(tmp_path / "new")
  new.put(*making.changed(b"other"))
  both = Registry([*new.folders, *registry.folders], None)
  problems = upkeep.verify(both)
  assert len(problems) == len(making.ALL)
  assert all("about other bytes" in problem for problem in problems)


def test_gc_takes_what_nothing_names(store):
  registry, _, folder = store
  before = making.files_of(folder)
  assert upkeep.gc(registry) == ((), 0)
  orphan = folder / "blobs" / registry.folders[0].write_blob(b"orphan")
  left = folder / "artefacts" / ".writing-1"
  left.write_bytes(b"torn")
  assert upkeep.gc(registry) == ((), 0)  # young: somebody may be writing it
  os.utime(orphan, (1e9, 1e9))
  os.utime(left, (1e9, 1e9))
  size = orphan.stat().st_size + len(b"torn")
  assert upkeep.gc(registry, dry_run=True) == ((left, orphan), size)
  assert orphan.exists() and left.exists()
  assert upkeep.gc(registry) == ((left, orphan), size)
  assert making.files_of(folder) == before
  assert upkeep.verify(registry) == ()


def test_gc_keeps_all_blobs_while_it_cannot_tell_what_is_named(store):
  registry, keys, folder = store
  orphan = folder / "blobs" / registry.folders[0].write_blob(b"orphan")
  os.utime(orphan, (1e9, 1e9))
  (folder / "artefacts" / f"{keys[0]}.json").write_bytes(b"{}")
  with pytest.raises(Damaged):
    upkeep.gc(registry)
  assert orphan.exists()
  with pytest.raises(InputError, match="no layer can be written"):
    upkeep.gc(Registry(registry.folders, None))


def test_a_put_beside_a_gc_loses_nothing(store):
  """The blobs are there, old and unnamed, as one of the two finds them."""
  registry, keys, folder = store
  done = threading.Event()

  def collect():
    while not done.is_set():
      upkeep.gc(registry)

  thread = threading.Thread(target=collect)
  thread.start()
  try:
    for _ in range(200 if making.FULL else 30):
      (folder / "artefacts" / f"{keys[0]}.json").unlink()
      for file in making.artefact()[0].files.values():
        if (folder / "blobs" / file.sha256).exists():
          os.utime(folder / "blobs" / file.sha256, (1e9, 1e9))
      registry.put(*making.artefact())
  finally:
    done.set()
    thread.join()
  assert registry.load(keys[0]) == making.artefact()
  assert upkeep.verify(registry) == ()
