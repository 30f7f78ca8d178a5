"""Whether this Python is the one that has what the project needs."""

import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator

from esper_jax.doctor.report import Level, Line
from esper_jax.doctor.settings import Settings

NEEDED = ("absl", "flax", "grain", "jax", "numpy", "optax", "packaging", "rich")
_OWN = pathlib.Path(__file__).parents[2] / ".venv"  # of `make install`


def check(
  settings: Settings,
  *,
  find: Callable[[str], object] = importlib.util.find_spec,
  prefix: str = sys.prefix,
) -> Iterator[Line]:
  """Yields a line where packages are missing that `make install` brings.

  Args:
    settings: not looked at.
    find: finds a module; None where there is none.
    prefix: where this Python lives.
  """
  del settings
  missing = [name for name in NEEDED if find(name) is None]
  if missing and pathlib.Path(prefix) != _OWN:
    yield Line(
      "environment",
      Level.FAIL,
      f"not the project's: this Python lacks {', '.join(missing)}",
      "use .venv/bin/python, which `make install` makes",
    )
