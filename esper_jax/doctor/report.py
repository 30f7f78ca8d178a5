"""What a check found: a line for each item."""

import enum
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from esper_jax.types import InputError


class Level(enum.StrEnum):
  """How an item is."""

  OK = "ok"
  WARN = "warn"  # it works, but less well than it could
  FAIL = "fail"  # it is broken


class Line(NamedTuple):
  """One item.

  Attributes:
    item: what was looked at, in a word or two.
    level: how it is.
    found: what there is, or what is wrong.
    remedy: what to do; "" where all is well, or `found` says it.
  """

  item: str
  level: Level
  found: str
  remedy: str = ""


def guarded(item: str, check: Callable[[], Iterable[Line]]) -> Iterator[Line]:
  """Yields what a check finds; one that breaks ends with a line of its own."""
  try:
    yield from check()
  except (Exception, SystemExit) as error:  # of the import of a module, too
    yield broken(item, error)


def broken(item: str, error: BaseException) -> Line:
  """The line of a check that an exception ended."""
  if isinstance(error, InputError):  # it says what to do
    return Line(item, Level.FAIL, without_paths(str(error)))
  found = f"this check broke: {reason(error)}"
  return Line(item, Level.FAIL, found, "mend what is wrong above, or reinstall")


def reason(error: BaseException) -> str:
  """The kind of an exception and its first line; JAX has some without one."""
  first = str(error).partition("\n")[0]
  return without_paths(": ".join(filter(None, (type(error).__name__, first))))


def without_paths(text: str) -> str:
  """The text, of each absolute path only the last part: it may be shared."""
  text = re.sub(
    r"(['\"])/(?:(?!\1).)*/((?:(?!\1)[^/])*)\1", r"\1.../\2\1", text
  )
  return re.sub(r"(?<![\w.~/])/(?:[^/\s'\"]+/)+", ".../", text)


def as_text(line: Line) -> str:
  """One line of ASCII, for people; what was found has "~" for the home."""
  home = re.escape(os.path.expanduser("~"))
  found = re.sub(rf"(?<![\w.~/]){home}(?=/)", "~", line.found)
  parts = "; ".join(filter(None, (found, line.remedy)))
  text = f"{line.level:4}  {line.item}: {' '.join(parts.split())}"
  return text.encode("ascii", "backslashreplace").decode()
