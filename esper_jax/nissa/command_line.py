"""The command line: `python -m esper_jax.nissa --help`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from esper_jax import commands
from esper_jax.knobs import nearest
from esper_jax.nissa.report import writing
from esper_jax.types import InputError

_PROGRAM = "python -m esper_jax.nissa"
_COMPARISON = "comparison.html"  # in the working directory


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code.

  0: done; 2: bad input, in one line.
  """
  return commands.run(_run, argv)


def _run(argv: list[str]) -> int:
  if not argv or argv[0] in ("-h", "--help"):
    print(_help())
    return commands.OK
  name, *rest = argv
  if name not in COMMANDS:
    raise InputError(
      f"{name}: no such command; the nearest is {nearest(name, COMMANDS)};"
      f" there are {', '.join(COMMANDS)}"
    )
  run, about = COMMANDS[name]
  run(rest, about)
  return commands.OK


def _help() -> str:
  listed = "\n".join(
    f"  {_PROGRAM} {name}\n      {about}"
    for name, (_, about) in COMMANDS.items()
  )
  return (
    f"Shows what happened in runs.\n\n{listed}\n\n"
    "COMMAND --help says more. Exit codes: 0 done, 2 bad input."
  )


def _report(argv: list[str], about: str) -> None:
  parser = commands.Parser(
    prog=f"{_PROGRAM} report",
    description=about,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    hint="; --help shows how",
  )
  parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
  parser.add_argument(
    "--to",
    default="",
    metavar="FILE",
    help=f"file to write (default: RUN/{writing.NAME}; of several runs"
    f" ./{_COMPARISON})",
  )
  flags = parser.parse_args(argv)
  several = len(flags.runs) > 1
  usual = _COMPARISON if several else Path(flags.runs[0]) / writing.NAME
  path = Path(flags.to or usual)
  try:
    if several:
      writing.write_comparison(flags.runs, path)
    else:
      writing.write_run(flags.runs[0], path)
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror}; give another file with --to=FILE"
    ) from error
  print(f"{path}: {path.stat().st_size / 1024:,.0f} KiB")


# Name -> (what runs it, what it does).
COMMANDS: dict[str, tuple[Callable[[list[str], str], None], str]] = {
  "report": (
    _report,
    "writes one HTML page about a run, or one that compares several",
  ),
}
