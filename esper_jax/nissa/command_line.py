"""The command line: `python -m esper_jax.nissa --help`."""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from esper_jax import commands
from esper_jax.nissa import loading
from esper_jax.nissa.console import describe
from esper_jax.nissa.following import follow
from esper_jax.oona import jsonl

INTERRUPTED = 130  # Ctrl-C
_HINT = "; --help shows how"


class Command(NamedTuple):
  """A command of Nissa.

  Attributes:
    about: what it does.
    arguments: adds what it takes to its parser.
    run: takes them and returns the exit code.
  """

  about: str
  arguments: Callable[[argparse.ArgumentParser], object]
  run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code.

  0: done; 1: the run that was followed failed or was killed; 2: bad input, in
  one line; 130: Ctrl-C.
  """
  return commands.run(_run, argv)


def _run(argv: list[str]) -> int:
  parser = commands.Parser(
    prog="python -m esper_jax.nissa",
    description="Shows runs, while they go on or afterwards.",
    hint=_HINT,
  )
  subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
  for name, command in COMMANDS.items():
    sub = subparsers.add_parser(
      name, help=command.about, description=command.about, hint=_HINT
    )
    command.arguments(sub)
    sub.set_defaults(command=command)
  flags = parser.parse_args(argv)
  try:
    return flags.command.run(flags)
  except KeyboardInterrupt:
    return INTERRUPTED


# --- events -------------------------------------------------------------------


def _events_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("run", metavar="RUN", help="run directory")
  for name, metavar in (("--type", "TYPE,..."), ("--slot", "SLOT,...")):
    parser.add_argument(
      name, metavar=metavar, type=_names, default=(), help="only these"
    )
  parser.add_argument("--json", action="store_true", help="as JSON, one a line")


def _events(flags: argparse.Namespace) -> int:
  for event in loading.select_events(
    flags.run, type=flags.type, slot=flags.slot
  ):
    if flags.json:
      print(jsonl.encode(event).decode(), end="")
    else:
      when = f"epoch {event['epoch']:>3}  step {event['step']:>6}"
      print(f"{when}  {describe(event)}")
  return commands.OK


def _names(text: str) -> tuple[str, ...]:
  return tuple(text.split(","))


# --- tail ---------------------------------------------------------------------


def _tail_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("run", metavar="RUN", help="run directory")


def _tail(flags: argparse.Namespace) -> int:
  ending = follow(flags.run, lambda text: print(text, end="", flush=True))
  well = ending in ("completed", "interrupted")
  return commands.OK if well else commands.FAILED


COMMANDS = {
  "events": Command("list what happened", _events_arguments, _events),
  "tail": Command("follow a run until it ends", _tail_arguments, _tail),
}
