"""An archive brings all of a registry, or nothing."""

import hashlib
import io
import random
import tarfile

import pytest

from esper_jax.types import InputError
from esper_jax.urza import archive, upkeep
from esper_jax.urza.artefact import Damaged
from tests.urza import making


@pytest.fixture
def store(tmp_path):
  """A registry with two artefacts and a policy, and an archive of it."""
  registry, keys = making.filled(tmp_path / "r", 2)
  registry.keep("policies", "p", {"run": "a"}, b"weights")
  contents = archive.export(registry, tmp_path / "a.tar")
  return registry, keys, tmp_path / "a.tar", contents


def test_all_of_it_arrives(store, tmp_path):
  registry, keys, path, contents = store
  assert contents[1:] == (2, 2 * len(making.ALL), 1)
  target = making.registry(tmp_path / "new")
  got = archive.import_archive(target, path, sha256=contents.sha256)
  assert got == contents
  assert upkeep.verify(target) == ()
  for key in keys:
    assert target.load(key) == registry.load(key)
    assert target.record(key).evidence == registry.record(key).evidence
  assert target.kept("policies", "p") == ({"run": "a"}, b"weights")
  names = [
    [p.relative_to(tmp_path / n) for p in making.files_of(tmp_path / n)]
    for n in ("r", "new")
  ]
  assert names[0] == names[1]
  assert archive.import_archive(target, path) == contents  # again: no change


def test_it_is_the_same_to_the_byte(store, tmp_path):
  _, keys, path, contents = store
  target = making.registry(tmp_path / "new")
  archive.import_archive(target, path)
  again = archive.export(target, tmp_path / "b.tar")
  assert again == contents
  assert (tmp_path / "b.tar").read_bytes() == path.read_bytes()
  with tarfile.open(path) as tar:
    sums = tar.extractfile(archive.SUMS).read()
  assert hashlib.sha256(sums).hexdigest() == contents.sha256
  one = archive.export(target, tmp_path / "c.tar", keys[:1])
  assert one[1:] == (1, len(making.ALL), 0)


def test_another_archive_than_was_meant_is_refused(store, tmp_path):
  _, _, path, contents = store
  target = making.registry(tmp_path / "new")
  with pytest.raises(InputError, match=f"its SHA-256 is {contents.sha256}"):
    archive.import_archive(target, path, sha256="0" * 64)
  assert making.files_of(tmp_path / "new") == []


def test_a_damaged_archive_brings_nothing(store, tmp_path):
  _, _, path, _ = store
  whole, rng = path.read_bytes(), random.Random(0)
  target = making.registry(tmp_path / "new")
  for n in range(200 if making.FULL else 40):
    data = bytearray(whole)
    if n % 2:
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
      del data[rng.randrange(len(data)) :]
    path.write_bytes(data)
    with pytest.raises(InputError, match="is not imported"):
      archive.import_archive(target, path)
  assert making.files_of(tmp_path / "new") == []
  with pytest.raises(InputError, match="No such file"):
    archive.import_archive(target, tmp_path / "none.tar")


def repacked(path, change):
  """Writes an archive anew, with sums that fit, after a change of members."""
  with tarfile.open(path) as tar:
    members = {m.name: tar.extractfile(m).read() for m in tar}
  del members[archive.SUMS]
  change(members)
  path.write_bytes(archive._packed(members))


def test_what_has_no_place_in_a_registry_is_refused(store, tmp_path):
  """Even where whoever made the archive gave it the sums that fit."""
  _, keys, path, _ = store
  whole = path.read_bytes()
  target = making.registry(tmp_path / "new")

  def drop(part):
    def change(members):
      del members[next(n for n in sorted(members) if n.startswith(part))]

    return change

  def rename(members):
    members[f"artefacts/{'0' * 64}.json"] = members.pop(
      f"artefacts/{keys[0]}.json"
    )

  changes = [
    lambda members: members.update({"../outside": b""}),
    lambda members: members.update({"/outside": b""}),
    lambda members: members.update({"blobs/../../outside": b""}),
    lambda members: members.update({"artefacts/x.json": b"{}"}),
    lambda members: members.update({"evidence/ab/x.json": b"{}"}),
    lambda members: members.update({"kept/other/x.json": b"{}"}),
    lambda members: members.update({"kept/policies/../x.json": b"{}"}),
    lambda members: members.update({"kept/policies/x.json": b"{}"}),
    drop("blobs/"),
    drop("artefacts/"),
    rename,
  ]
  for change in changes:
    path.write_bytes(whole)
    repacked(path, change)
    with pytest.raises(InputError, match="is not imported"):
      archive.import_archive(target, path)
  assert making.files_of(tmp_path / "new") == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_only_files_are_taken(tmp_path, kind):
  with tarfile.open(tmp_path / "a.tar", "w") as tar:
    entry = tarfile.TarInfo("artefacts")
    entry.type, entry.linkname = kind, "/etc/passwd"
    tar.addfile(entry, io.BytesIO())
  with pytest.raises(InputError, match="'artefacts' has no place in it"):
    archive.import_archive(making.registry(tmp_path / "n"), tmp_path / "a.tar")


def test_what_the_registry_has_otherwise_is_not_overwritten(store, tmp_path):
  _, _, path, _ = store
  other, files = making.changed(b"other")
  target = making.registry(tmp_path / "new")
  target.put(other, files)
  with pytest.raises(InputError, match="has other files under"):
    archive.import_archive(target, path)
  assert len(making.files_of(tmp_path / "new")) == 3


def test_what_is_damaged_is_not_exported(store, tmp_path):
  registry, keys, _, _ = store
  sha256 = registry.record(keys[0]).artefact.files["ptx"].sha256
  (tmp_path / "r" / "blobs" / sha256).write_bytes(b"")
  with pytest.raises(Damaged):
    archive.export(registry, tmp_path / "b.tar")
  assert not (tmp_path / "b.tar").exists()
  with pytest.raises(InputError, match="cannot write .*No such file"):
    archive.export(registry, tmp_path / "none" / "b.tar", keys[1:])
