"""What the commands share: a parser that says one line, and exit codes."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from esper_jax.types import InputError, RunFailedError

OK, FAILED, BAD_INPUT = 0, 1, 2


def python() -> str:
  """How a command that is printed calls Python, to be pasted where one is.

  The Python that runs, from the current folder, where it lies below it:
  ".venv/bin/python" in the repository; else "python".
  """
  return _beside("") or "python"


def pip() -> str:
  """How a command that is printed calls the pip of the Python that runs."""
  if not (own := _beside("")):
    return "pip"
  return _beside("pip") or f"{own} -m pip"


def _beside(name: str) -> str:
  """A program beside Python (""; Python itself), from here; "" where not."""
  try:
    path = Path(sys.executable).relative_to(Path.cwd())
  except (OSError, ValueError):  # elsewhere, or this folder is gone
    return ""
  path = path.with_name(name) if name else path
  return str(path) if path.is_file() else ""


class Parser(argparse.ArgumentParser):
  """Raises InputError on what it cannot read; takes no shortened flags."""

  def __init__(self, *, hint: str = "", **options: Any) -> None:
    """Makes a parser.

    Args:
      hint: ends every error.
      **options: as `argparse.ArgumentParser` takes them.
    """
    super().__init__(**options, allow_abbrev=False)
    self._hint = hint

  def error(self, message: str) -> NoReturn:
    """Raises InputError."""
    raise InputError(f"{message}{self._hint}")


def run(
  main: Callable[[list[str]], int], argv: Sequence[str] | None = None
) -> int:
  """Runs one command.

  Args:
    main: takes the arguments and returns the exit code.
    argv: without the program's name; None: those of this process.

  Returns:
    What main returns; BAD_INPUT or FAILED where it raises InputError or
    RunFailedError, after one line; OK where nobody reads any more. Another
    error is a bug and passes through with its traceback.
  """
  try:
    return main(list(sys.argv[1:] if argv is None else argv))
  except BrokenPipeError:  # `list | head`: whoever read has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT
  except RunFailedError as error:
    print(f"failed: {error}", file=sys.stderr)
    return FAILED
