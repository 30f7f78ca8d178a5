"""Nobody else may put a kernel where this process will run it."""

import os
import pathlib

import pytest

from esper_jax.types import InputError
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.registry import open_registry
from tests.urza import making


def test_a_folder_that_others_can_write_is_refused_in_one_line(tmp_path):
  folder = tmp_path / "registry"
  folder.mkdir()
  folder.chmod(0o777)
  with pytest.raises(
    InputError,
    match=f"{folder} can be written by others, and kernels in .* would be run:"
    f" chmod go-w {folder}, or name {folder} in --config.urza.trusted",
  ) as caught:
    open_registry(str(folder))
  assert "\n" not in str(caught.value)
  with pytest.raises(InputError):
    open_registry(str(folder), trusted=[str(tmp_path)])
  registry = open_registry(str(folder), trusted=[str(folder)])
  key = registry.put(*making.artefact())
  assert registry.load(key)


def test_a_parent_that_others_can_write_is_refused(tmp_path):
  tmp_path.chmod(0o777)
  with pytest.raises(InputError, match=f"{tmp_path} can be written by others"):
    open_registry(str(tmp_path / "registry"))


def test_so_is_where_a_link_leads(tmp_path):
  public = tmp_path / "public"
  public.mkdir()
  public.chmod(0o777)
  (public / "registry").mkdir(mode=0o700)
  (tmp_path / "link").symlink_to(public / "registry")
  with pytest.raises(InputError, match=f"{public} can be written by others"):
    open_registry(str(tmp_path / "link"))


@pytest.mark.parametrize("part", ["artefacts", "blobs", "evidence", "kept"])
def test_so_is_a_folder_inside(tmp_path, part):
  making.filled(tmp_path / "r")
  (tmp_path / "r" / part).mkdir(exist_ok=True)
  (tmp_path / "r" / part).chmod(0o777)
  with pytest.raises(InputError, match=f"{part} can be written by others"):
    making.registry(tmp_path / "r")
  assert open_registry(layers=[tmp_path / "r"], trusted=[str(tmp_path / "r")])


def test_a_file_that_others_can_write_is_taken_as_damaged(tmp_path):
  registry, (key,) = making.filled(tmp_path)
  for path in making.files_of(tmp_path):
    path.chmod(0o666)
    with pytest.raises(Damaged, match=f"{path} can be written by others"):
      registry.load(key)
      registry.record(key)
    path.chmod(0o644)
  shard = tmp_path / "evidence" / key[:2]
  shard.chmod(0o777)
  with pytest.raises(Damaged, match=f"{shard} can be written by others"):
    registry.record(key)


def test_somebody_elses_folder_is_refused(tmp_path, monkeypatch):
  making.filled(tmp_path)
  owner = tmp_path.stat().st_uid
  if owner == 0:  # root may write anywhere, and is trusted
    os.chown(tmp_path, 4321, -1)
  monkeypatch.setattr(os, "getuid", lambda: owner + 1)
  with pytest.raises(InputError, match="can be written by others"):
    making.registry(tmp_path)


def test_a_folder_that_cannot_be_looked_at_is_said_in_one_line(
  tmp_path, monkeypatch
):
  real = pathlib.Path.stat

  def stat(path, **kwargs):
    if path == tmp_path.parent:
      raise PermissionError(13, "Permission denied")
    return real(path, **kwargs)

  monkeypatch.setattr(pathlib.Path, "stat", stat)
  with pytest.raises(InputError, match="cannot look at .*: Permission denied"):
    making.registry(tmp_path)


def test_what_is_written_is_not_for_others_to_change(tmp_path):
  before = os.umask(0)
  try:
    registry, _ = making.filled(tmp_path / "registry")
    registry.keep("policies", "p", {}, b"weights")
  finally:
    os.umask(before)
  for path in (tmp_path / "registry").rglob("*"):
    assert not path.stat().st_mode & 0o022, path
