"""The folder of compiled programs is the user's own, and is used."""

import grp
import os
import pwd
import stat
import subprocess
import sys
import types

import jax
import pytest

from esper_jax.tezzeret import disk
from esper_jax.types import InputError

pytestmark = pytest.mark.usefixtures("no_program_cache")

GROUP = 4321


@pytest.fixture
def own(tmp_path):
  """A folder like one in a home directory."""
  path = tmp_path / "programs"
  path.mkdir(mode=0o700)
  return path


def test_off_changes_nothing():
  assert disk.enable("off") is None
  assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_is_made_for_the_user_alone(tmp_path):
  path = tmp_path / "a" / "b"
  assert disk.enable(str(path)) == path
  assert stat.S_IMODE(path.stat().st_mode) == 0o700
  assert jax.config.jax_compilation_cache_dir == str(path)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
  assert disk.enable("another") == path  # the first one stays


@pytest.mark.parametrize("xdg", [True, False])
def test_the_default_is_in_the_users_cache(tmp_path, monkeypatch, xdg):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  if xdg:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  base = tmp_path / ("xdg" if xdg else ".cache")
  assert disk.enable("") == base / "esper_jax" / "programs"


def test_what_jax_was_told_stays(tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  assert disk.enable("elsewhere") == tmp_path
  assert disk.enable("off") is None


def test_where_it_will_be_is_told_without_making_it(tmp_path):
  path = tmp_path / "programs"
  assert disk.place(str(path)) == path
  assert (disk.place("off"), disk.told()) == (None, "")
  assert not path.exists()
  disk.enable(str(path))
  assert disk.place("another") == path
  assert disk.told() == str(path)


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(
    InputError, match=r"cannot make .*: Not a dir.* or to off"
  ):
    disk.enable(str(tmp_path / "file" / "programs"))


@pytest.mark.parametrize("mode", [0o702, 0o777, 0o1777])
def test_a_folder_that_all_can_write_to_is_refused(own, mode):
  own.chmod(mode)
  with pytest.raises(InputError, match=f"{own} can be written by others.*go-w"):
    disk.enable(str(own))
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("mode, good", [(0o777, False), (0o1777, True)])
def test_a_parent_must_not_let_others_replace_it(own, mode, good):
  """Others may write to /tmp, but its sticky bit guards what is ours."""
  own.parent.chmod(mode)
  if good:
    assert disk.enable(str(own)) == own
  else:
    with pytest.raises(InputError, match=f"{own.parent} can be written by"):
      disk.enable(str(own))


def test_a_folder_of_somebody_else_is_refused(own, monkeypatch):
  owner = own.stat().st_uid
  monkeypatch.setattr(os, "getuid", lambda: owner + 1)
  if owner == 0:  # root may write anywhere, and is trusted
    os.chown(own, 4321, -1)
  with pytest.raises(InputError, match="can be written by others"):
    disk.enable(str(own))


@pytest.mark.parametrize(
  "members, primary, good",
  [
    ([], ["me"], True),  # a group of the user's own
    (["me"], ["me"], True),
    (["me", "you"], ["me"], False),
    ([], ["me", "you"], False),
    (None, [], False),  # a group without a name
  ],
)
def test_a_group_may_write_where_nobody_else_is_in_it(
  own, monkeypatch, members, primary, good
):
  uids = {"me": os.getuid(), "you": 4322}

  def group(gid):
    if members is None:
      raise KeyError(gid)
    return types.SimpleNamespace(gr_mem=members)

  users = [
    types.SimpleNamespace(pw_name=n, pw_uid=uids[n], pw_gid=GROUP)
    for n in primary
  ]
  monkeypatch.setattr(grp, "getgrgid", group)
  monkeypatch.setattr(pwd, "getpwall", lambda: users)
  me = types.SimpleNamespace(pw_name="me")
  monkeypatch.setattr(pwd, "getpwuid", lambda uid: me)
  real = type(own).stat

  def in_group(path, **kwargs):
    found = real(path, **kwargs)
    if path != own:
      return found
    fields = list(found)
    fields[stat.ST_GID] = GROUP
    fields[stat.ST_MODE] |= 0o020
    return os.stat_result(fields)

  monkeypatch.setattr(type(own), "stat", in_group)
  if good:
    assert disk.enable(str(own)) == own
  else:
    with pytest.raises(InputError, match="can be written by others"):
      disk.enable(str(own))


def test_a_watch_sees_what_its_own_thread_finds(tmp_path):
  """Also in a process that has compiled before a folder was named."""
  script = """
import sys, threading, jax, jax.numpy as jnp
jax.jit(lambda x: x * 2)(1.0)
from esper_jax.tezzeret import disk
disk.enable(sys.argv[1])
lowered = [jax.jit(lambda x: jnp.sin(x) + 2).lower(1.0) for _ in range(2)]
hits = []
for one in lowered:
  with disk.watch() as seen:
    one.compile()
  hits.append(seen.hit)
with disk.watch() as other:
  thread = threading.Thread(target=lowered[0].compile)
  thread.start()
  thread.join()
print(hits, other.hit)
"""
  env = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
  command = [sys.executable, "-c", script, str(tmp_path / "programs")]
  for expected in ("[False, True] False", "[True, True] False"):
    done = subprocess.run(
      command, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
