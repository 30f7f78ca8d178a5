"""A file of a layer is whole or not there."""

import hashlib
import os
import stat
import subprocess
import sys

import pytest

from esper_jax.types import InputError
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.folder import Folder


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path / "layer")


def test_what_is_written_is_read(folder):
  assert folder.read("blobs", "a") is None
  assert folder.names("blobs") == []
  folder.write(b"one", "blobs", "a")
  folder.write(b"two", "blobs", "a")
  assert folder.read("blobs", "a") == b"two"
  assert folder.names("blobs") == ["a"]
  assert list(folder.temporaries()) == []


def test_a_blob_is_written_once(folder):
  sha256 = folder.write_blob(b"data")
  place = folder.path / "blobs" / sha256
  os.utime(place, (0, 0))
  inode = place.stat().st_ino
  assert folder.write_blob(b"data") == sha256
  assert place.stat().st_ino == inode
  assert place.stat().st_mtime > 1e9  # young again
  assert folder.blob(sha256) == b"data"


def test_a_damaged_blob_is_written_anew(folder):
  sha256 = folder.write_blob(b"data")
  (folder.path / "blobs" / sha256).write_bytes(b"dada")
  with pytest.raises(Damaged, match="not what was stored"):
    folder.blob(sha256)
  folder.write_blob(b"data")
  assert folder.blob(sha256) == b"data"


def test_a_write_that_fails_leaves_nothing(folder, monkeypatch):
  folder.write(b"one", "blobs", "a")

  def full(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(InputError, match="cannot write .*/a: No space left"):
    folder.write(b"two", "blobs", "a")
  assert folder.read("blobs", "a") == b"one"
  assert list(folder.temporaries()) == []


def test_a_writer_that_is_killed_leaves_no_torn_file(folder):
  script = """
import os, sys
from pathlib import Path
from esper_jax.urza.folder import Folder
os.fsync = lambda descriptor: os._exit(9)
Folder(Path(sys.argv[1])).write(b"new", "blobs", "a")
"""
  folder.write(b"old", "blobs", "a")
  command = [sys.executable, "-c", script, str(folder.path)]
  assert subprocess.run(command).returncode == 9
  assert folder.read("blobs", "a") == b"old"
  assert folder.names("blobs") == ["a"]
  assert len(list(folder.temporaries())) == 1


def test_what_is_no_file_is_damage(folder):
  folder.write(b"", "blobs", "a")
  os.mkfifo(folder.path / "blobs" / "pipe")  # opening it must not wait
  (folder.path / "blobs" / "folder").mkdir()
  with open(folder.path / "blobs" / "huge", "wb") as file:
    file.truncate(2**31)
  (folder.path / "blobs" / "loop").symlink_to("loop")
  for name in ("pipe", "folder", "huge", "loop"):
    with pytest.raises(Damaged):
      folder.read("blobs", name)
  with pytest.raises(Damaged):
    folder.names("blobs", "loop")
  assert folder.read("blobs", "a", "inside") is None
  assert folder.names("blobs", "a") == []


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot write .*: File exists"):
    Folder(tmp_path / "file").write(b"", "blobs", "a")
  with pytest.raises(InputError, match="cannot write .*: Not a directory"):
    Folder(tmp_path / "file" / "layer").make()


def test_folders_inside_have_the_mode_of_a_shared_layer(tmp_path):
  tmp_path.chmod(0o2775)
  Folder(tmp_path, guarded=False).write(b"", "evidence", "ab", "x")
  for place in ("evidence", "evidence/ab"):
    assert stat.S_IMODE((tmp_path / place).stat().st_mode) == 0o2775


def test_a_blob_that_somebody_packed_otherwise_is_damaged(folder):
  sha256 = folder.write_blob(b"data")
  stream = b"no zlib stream"
  packed = hashlib.sha256(stream).digest() + stream
  (folder.path / "blobs" / sha256).write_bytes(packed)
  with pytest.raises(Damaged, match="not what was stored"):
    folder.blob(sha256)
