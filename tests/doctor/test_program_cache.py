"""The cache of compiled programs: told, tried, and left as it was."""

from pathlib import Path

import jax
import pytest

from esper_jax.doctor import program_cache
from esper_jax.doctor.report import Level
from esper_jax.doctor.settings import Settings

pytestmark = pytest.mark.usefixtures("no_program_cache")

PLENTY = 10**11


@pytest.fixture
def own(tmp_path):
  path = tmp_path / "programs"
  path.mkdir(mode=0o700)
  return path


def check(path, free=PLENTY):
  settings = Settings(program_cache=str(path))
  (line,) = program_cache.check(settings, free=lambda folder: free)
  return line


def test_size_and_room_are_told_and_nothing_is_left(own):
  (own / "in").mkdir()
  (own / "in" / "program").write_bytes(bytes(2_000_000))
  line = check(own)
  assert line.level is Level.OK
  assert line.found == f"{own}, 2 MB, 100,000 MB free"
  assert [p.name for p in own.rglob("*")] == ["in", "program"]
  assert program_cache.free(own) > 0


def test_a_file_that_goes_meanwhile_is_not_counted(own, monkeypatch):
  (own / "program").write_bytes(b"x")
  real = program_cache.os.walk
  monkeypatch.setattr(
    program_cache.os,
    "walk",
    lambda top: [(place, d, [*f, "gone"]) for place, d, f in real(top)],
  )
  assert check(own).level is Level.OK


def test_little_room_is_a_warning(own):
  line = check(own, free=10**6)
  assert line.level is Level.WARN and "1 MB free, which is little" in line.found
  assert line.remedy.startswith("free some")


def test_one_that_is_not_there_is_not_made(tmp_path):
  path = tmp_path / "a" / "b"
  line = check(path)
  assert (line.level, line.found) == (
    Level.OK,
    f"{path}, which the first run makes",
  )
  assert not path.parent.exists()
  tmp_path.chmod(0o1777)  # as /tmp
  assert check(path).level is Level.OK


def test_one_that_cannot_be_made_fails(tmp_path):
  (tmp_path / "file").write_text("")
  line = check(tmp_path / "file" / "programs")
  assert line.level is Level.FAIL
  assert line.found.endswith(f"cannot be made in {tmp_path / 'file'}")
  assert "cache_dir" in line.remedy


def test_one_that_cannot_be_written_fails():
  line = check("/proc")  # not even by root
  assert line.level is Level.FAIL
  assert line.found.startswith("/proc cannot be written: ")
  assert "--config.tezzeret.cache_dir" in line.remedy


@pytest.mark.parametrize("inside", [False, True])
def test_one_that_others_can_write_fails(own, inside):
  own.chmod(0o777)
  line = check(own / "programs" if inside else own)
  assert line.level is Level.FAIL
  assert "can be written by others" in line.found and "go-w" in line.found


def test_what_jax_was_told_goes_first(own, tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(own))
  assert check("off").found.startswith(f"{own}, 0 MB")
  own.chmod(0o777)
  assert check(tmp_path).level is Level.WARN  # no run refuses it
  jax.config.update("jax_compilation_cache_dir", "gs://bucket/programs")
  assert check("").found == "gs://bucket/programs, which is not on this disk"
  jax.config.update("jax_compilation_cache_dir", "not_there")
  assert check("").found.startswith(f"{Path.cwd() / 'not_there'}, which the")


def test_none():
  assert check("off")[1:3] == (Level.OK, "off")
