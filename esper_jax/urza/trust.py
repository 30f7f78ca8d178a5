"""Who else could write a folder whose contents this process will run."""

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path

from esper_jax.types import InputError


def check_owner(path: Path, *, contents: str, remedy: str) -> None:
  """Refuses a folder that another user could put a program into.

  Its parents count too: who may write to one can replace what is inside,
  unless its sticky bit is set.

  Args:
    path: absolute; must exist.
    contents: what is in it, e.g. "compiled programs".
    remedy: what to do instead of chmod.

  Raises:
    InputError: a user other than this one or root can write to it.
  """
  real = path.resolve()
  for place in dict.fromkeys((path, *path.parents, real, *real.parents)):
    try:
      found = place.stat()
    except OSError as error:
      raise InputError(f"cannot look at {place}: {error.strerror}") from error
    inner = place in (path, real)
    sticky = not inner and found.st_mode & stat.S_ISVTX
    foreign = found.st_uid not in (os.getuid(), 0)
    if foreign or (others_may_write(found) and not sticky):
      raise InputError(
        f"{place} can be written by others, and {contents} in {path}"
        f" would be run: chmod go-w {place}, or {remedy}"
      )


def is_foreign(found: os.stat_result) -> bool:
  """Whether a user other than this one and root owns it or may write it."""
  return found.st_uid not in (os.getuid(), 0) or others_may_write(found)


def others_may_write(found: os.stat_result) -> bool:
  """Whether the mode lets others write, beside the owner and root."""
  if found.st_mode & stat.S_IWOTH:
    return True
  return bool(found.st_mode & stat.S_IWGRP) and not _mine_alone(found.st_gid)


def _mine_alone(group: int) -> bool:
  """Whether nobody else is in a group: many systems give each user one."""
  me = os.getuid()
  with contextlib.suppress(KeyError):
    name = pwd.getpwuid(me).pw_name
    primary = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group}
    return {*grp.getgrgid(group).gr_mem} <= {name} and primary <= {me, 0}
  return False
