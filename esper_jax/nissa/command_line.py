"""The command line: `python -m esper_jax.nissa --help`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from esper_jax import commands
from esper_jax.knobs import nearest
from esper_jax.nissa import loading
from esper_jax.nissa.console import describe
from esper_jax.nissa.following import follow
from esper_jax.nissa.report import writing
from esper_jax.oona import jsonl
from esper_jax.types import InputError

_PROGRAM = ".venv/bin/python -m esper_jax.nissa"
_INTERRUPTED = 130  # Ctrl-C
_COMPARISON = "comparison.html"  # in the working directory


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code.

  0: done; 1: the run that was followed failed or was killed; 2: bad input, in
  one line; 130: Ctrl-C.
  """
  try:
    return commands.run(_run, argv)
  except KeyboardInterrupt:
    return _INTERRUPTED


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
  return run(rest, about)


def _help() -> str:
  listed = "\n".join(
    f"  {_PROGRAM} {name}\n      {about}"
    for name, (_, about) in COMMANDS.items()
  )
  return (
    f"Shows what happened in runs.\n\n{listed}\n\n"
    "COMMAND --help says more. Exit codes: 0 done, 2 bad input."
  )


def _parser(name: str, about: str) -> commands.Parser:
  return commands.Parser(
    prog=f"{_PROGRAM} {name}", description=about, hint="; --help shows how"
  )


def _events(argv: list[str], about: str) -> int:
  parser = _parser("events", about)
  parser.add_argument("run", metavar="RUN", help="run directory")
  for name in ("type", "slot"):
    parser.add_argument(
      f"--{name}",
      metavar="NAME,...",
      type=lambda text: text.split(","),
      default=(),
      help=f"only events of this {name}, or these",
    )
  parser.add_argument("--json", action="store_true", help="as in events.jsonl")
  flags = parser.parse_args(argv)
  events = loading.select_events(flags.run, type=flags.type, slot=flags.slot)
  if not events:
    print(f"{flags.run}: no such events", file=sys.stderr)
  for event in events:
    if flags.json:
      print(jsonl.encode(event).decode(), end="")
    else:
      when = f"epoch {event['epoch']:>3}  step {event['step']:>6}"
      print(f"{when}  {describe(event)}")
  return commands.OK


def _tail(argv: list[str], about: str) -> int:
  parser = _parser("tail", about)
  parser.add_argument("run", metavar="RUN", help="run directory")
  flags = parser.parse_args(argv)
  ending = follow(flags.run, lambda text: print(text, end="", flush=True))
  well = ending in ("completed", "interrupted")
  return commands.OK if well else commands.FAILED


def _report(argv: list[str], about: str) -> int:
  parser = _parser("report", about)
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
  return commands.OK


# Name -> (what runs it, what it does).
COMMANDS: dict[str, tuple[Callable[[list[str], str], int], str]] = {
  "events": (
    _events,
    "lists the events of a run, without what a rollback undid",
  ),
  "report": (
    _report,
    "writes one HTML page about a run, or one that compares several",
  ),
  "tail": (
    _tail,
    "follows a run until it ends; exit code 1 where it failed or was killed",
  ),
}
