"""The compiler's cache on disk, which a second process starts from.

It holds executable code, so nobody else may be able to write it.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from esper_jax.types import InputError
from esper_jax.urza import trust

OFF = "off"
_HIT = "/jax/compilation_cache/cache_hits"
_SEEN = threading.local()


def enable(folder: str) -> Path | None:
  """Lets JAX keep compiled programs of every size; idempotent.

  What the user has set for JAX itself stays: with JAX_COMPILATION_CACHE_DIR,
  or a folder that this process set before, nothing is changed.

  Args:
    folder: "" means ~/.cache/esper_jax/programs (or below $XDG_CACHE_HOME),
      "off" none.

  Returns:
    The folder in use; None where there is none.

  Raises:
    InputError: it cannot be made, or others can write to it.
  """
  path = place(folder)
  if path is None or told():
    return path
  try:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"cannot make {path}: {error.strerror}; set --config.tezzeret.cache_dir"
      " to a folder of yours, or to off"
    ) from error
  check_owner(path)
  jax.config.update("jax_compilation_cache_dir", str(path))
  compilation_cache.reset_cache()  # or what was compiled before turns it off
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return path


def place(folder: str) -> Path | None:
  """The folder that `enable` takes, there or not; None where there is none."""
  if folder == OFF:
    return None
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  own = Path(folder or f"{base}/esper_jax/programs").expanduser().absolute()
  return Path(told() or own)


def told() -> str:
  """The folder that JAX was told of, by the user or by `enable`, or ""."""
  return getattr(jax.config, "jax_compilation_cache_dir", None) or ""


def check_owner(path: Path) -> None:
  """Raises InputError where others can write to a folder of programs."""
  trust.check_owner(
    path,
    contents="compiled programs",
    remedy="set --config.tezzeret.cache_dir to a folder of yours, or to off",
  )


class Seen:
  """Whether the cache on disk had the program."""

  hit = False


@contextlib.contextmanager
def watch() -> Iterator[Seen]:
  """Notes whether what this thread compiles inside the block was on disk."""
  _listen()
  _SEEN.now = seen = Seen()
  try:
    yield seen
  finally:
    _SEEN.now = None


def _note(event: str, **kwargs: object) -> None:
  del kwargs
  seen = getattr(_SEEN, "now", None)
  if event == _HIT and seen is not None:
    seen.hit = True


_LISTENING = threading.Event()


def _listen() -> None:
  if not _LISTENING.is_set():
    _LISTENING.set()
    jax.monitoring.register_event_listener(_note)
