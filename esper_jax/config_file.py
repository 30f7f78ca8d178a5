"""A config file: what it says of itself, and the config that it gives."""

import ast
import contextlib
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from esper_jax.knobs import nearest
from esper_jax.types import InputError


def check_profile(profile: str, profiles: tuple[str, ...]) -> None:
  """Raises InputError where a config file has no such profile."""
  if profile not in profiles:
    raise InputError(
      f"no such profile: {profile}; the profiles are {', '.join(profiles)};"
      f" the nearest is {nearest(profile, profiles)}"
    )


def split_profile(argument: str) -> tuple[str, str]:
  """Splits "file.py:profile" -> ("file.py", "profile"), "" where none."""
  if os.path.exists(argument):  # a file name may hold a colon
    return argument, ""
  path, _, profile = argument.partition(".py:")
  return (f"{path}.py", profile) if profile else (argument, "")


def load(argument: str) -> ConfigDict:
  """Runs a config file and returns what its `get_config` returns.

  Args:
    argument: path of the file, ":profile" appended or not.

  Raises:
    InputError: the file is missing, cannot be read or run, has no
      `get_config`, no such profile, or returns no ConfigDict.
  """
  path, profile = split_profile(argument)
  names: dict[str, Any] = {"__name__": "config_file", "__file__": path}
  source = _read(path)
  with _explained(path):
    exec(compile(source, path, "exec"), names)
  if not callable(names.get("get_config")):
    raise InputError(
      f"--config={path}: defines no get_config(profile); see configs/digits.py"
    )
  with _explained(path):
    config = names["get_config"](*([profile] if profile else []))
  if not isinstance(config, ConfigDict):
    raise InputError(
      f"--config={path}: get_config() returned {type(config).__name__}, not"
      " an ml_collections.ConfigDict"
    )
  return config


def _read(path: str) -> bytes:
  try:
    return Path(path).read_bytes()
  except FileNotFoundError:
    there = [str(p) for p in Path(path).parent.glob("*.py") if p.stem != "base"]
    hint = f"; the nearest is {nearest(path, there)}" if there else ""
    raise InputError(f"--config={path}: no such file{hint}") from None
  except OSError as error:
    raise InputError(f"--config={path}: {error.strerror}") from error


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
  """Turns whatever a config file raises into one line that names the place."""
  try:
    yield
  except InputError as error:
    raise InputError(f"--config={path}: {error}") from error
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    if isinstance(error, SyntaxError):
      lines.append(error.lineno)
    where = f", line {lines[-1]}" if lines else ""
    message = " ".join(str(error).split())
    raise InputError(
      f"--config={path}{where}: {type(error).__name__}: {message}"
    ) from error


class Description(NamedTuple):
  """What a config file says of itself.

  Attributes:
    summary: the first line of its docstring.
    profiles: name -> one line.
  """

  summary: str
  profiles: dict[str, str]


def describe(path: Path) -> Description:
  """Reads the docstring of a config file without running it."""
  text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
  lines = re.findall(r"^  :(\w+) +(.+)$", text, flags=re.MULTILINE)
  return Description(text.partition("\n")[0], dict(lines))
