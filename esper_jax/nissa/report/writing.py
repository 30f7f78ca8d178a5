"""Reports as files."""

from collections.abc import Sequence
from pathlib import Path

from esper_jax.nissa.report import comparison, record, single
from esper_jax.tolaria.workdir import replace_text
from esper_jax.types import InputError

NAME = "report.html"


def write_run(run: str | Path, to: str | Path | None = None) -> None:
  """Writes the report of a run; the old one is replaced as a whole.

  Args:
    run: its directory.
    to: the file; None: report.html in the run directory.

  Raises:
    InputError: it is no run directory, or a file in it is damaged.
    OSError: the file cannot be written.
  """
  replace_text(to or Path(run) / NAME, single.make(record.read(run)))


def write_comparison(runs: Sequence[str | Path], to: str | Path) -> None:
  """Writes the report of several runs.

  Args:
    runs: their directories.
    to: the file.

  Raises:
    InputError: as `write_run`; or a run is given twice.
    OSError: the file cannot be written.
  """
  found = [record.read(place) for place in runs]
  if len({run.path.resolve() for run in found}) < len(found):
    raise InputError("the same run is given twice; give each of them once")
  names = [run.name for run in found]
  if len(set(names)) < len(names):
    names = [str(place) for place in runs]
  named = dict(zip(names, found, strict=True))
  replace_text(to, comparison.make(named, folder=Path(to).parent))
