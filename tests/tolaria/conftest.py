"""Disks that are full, without filling one."""

import contextlib
import resource
import subprocess

import pytest


@pytest.fixture
def file_size_limit():
  """A context manager: files cannot grow beyond so many bytes."""

  @contextlib.contextmanager
  def limit(num_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
      yield
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  return limit


@pytest.fixture
def tiny_disk(tmp_path):
  """A file system of 128 KiB, where the user may mount one."""
  path = tmp_path / "disk"
  path.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(path)]
  mounted = subprocess.run(command, capture_output=True, check=False)
  if mounted.returncode:
    pytest.skip("mounting a tmpfs needs root: sudo make test")
  yield path
  subprocess.run(["umount", str(path)], check=True)
