"""The command line: `python -m esper_jax.doctor --help`."""

import argparse
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from esper_jax import commands
from esper_jax.doctor.report import Level, Line, as_text, broken, guarded
from esper_jax.doctor.settings import Settings
from esper_jax.knobs import nearest
from esper_jax.types import InputError, RunFailedError

# Modules of this package, in order; what a check needs is imported with it.
CHECKS = (
  "environment",
  "packages",
  "combinations",
  "devices",
  "program_cache",
  "kernels",
  "data",
  "redis",
)
_FLAGS = ("config", "json", "help")
_ABOUT = """\
Looks for what can be wrong: versions, devices, the cache of compiled programs,
the registry of kernels, data. One line for each; "warn" and "fail" say what to
do. Nothing is changed or downloaded.

  .venv/bin/python -m esper_jax.doctor [--config=FILE[:PROFILE]] [--json]
  .venv/bin/python -m esper_jax.doctor RUN [--json]

With a run directory it looks at that run alone: whether it lives, how its parts
are, and what its devices hold.
"""
_CODES = """\
--config.SECTION.KEY=VALUE changes one key of the config.
Exit codes: 0 nothing failed, 1 something did, 2 bad input.
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command and returns its exit code.

  0: nothing failed; 1: something did; 2: bad input, in one line.
  """
  return commands.run(_run, argv)


def _run(argv: list[str]) -> int:
  parser = commands.Parser(
    prog=".venv/bin/python -m esper_jax.doctor",
    usage=argparse.SUPPRESS,
    description=_ABOUT,
    epilog=_CODES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    hint="; --help shows how",
  )
  parser.add_argument("run", nargs="?", metavar="RUN", help="run directory")
  parser.add_argument(
    "--config",
    metavar="FILE[:PROFILE]",
    help="check this config, its folders and its data too",
  )
  parser.add_argument("--json", action="store_true", help="as JSON")
  flags, rest = parser.parse_known_args(argv)
  _check_rest(flags.config, rest)
  if flags.run is not None and flags.config is not None:
    raise InputError(f"{flags.run}: give a run directory or --config, not both")
  try:
    if flags.run is None:
      lines = _lines(flags.config, rest)
    else:
      from esper_jax.doctor import run  # which the other checks do not need

      lines = run.check(flags.run)
    return _tell(lines, as_json=flags.json)
  except KeyboardInterrupt:
    raise RunFailedError("interrupted") from None


def _check_rest(config: str | None, rest: list[str]) -> None:
  """What is left must be of the config, which says what is wrong with it."""
  for text in rest:
    name = text.lstrip("-").partition("=")[0]
    if text.startswith("-") and not re.match(r"(no)?config\.", name):
      raise InputError(
        f"--{name}: no such flag; the nearest is --{nearest(name, _FLAGS)}"
      )
  if rest and not config:
    raise InputError(f"{rest[0]}: give --config=FILE[:PROFILE] with it")


def _lines(config: str | None, rest: list[str]) -> Iterator[Line]:
  settings = Settings()
  if config is not None:
    try:
      settings = _settings(config, rest)
      yield Line("config", Level.OK, f"{Path(config).name} is valid")
    except InputError:
      raise
    except Exception as error:  # a package that reads configs is broken
      yield broken("config", error)
  for name in CHECKS:
    item = name.replace("_", " ")
    yield from guarded(item, lambda name=name: _check(name, settings))


def _settings(source: str, rest: list[str]) -> Settings:
  # These need more than Python has.
  from esper_jax import command_line
  from esper_jax.tolaria.assembly import data_options

  options = command_line.parse(["doctor", f"--config={source}", *rest])
  assert options is not None  # only --help gives that
  config = options.config
  return Settings(
    program_cache=config.tezzeret.cache_dir,
    registry=config.urza.dir,
    trusted=config.urza.trusted,
    data=data_options(config),
    redis=(config.oona.redis_url, config.oona.redis_stream)
    if config.oona.redis_url
    else None,
  )


def _check(name: str, settings: Settings) -> Iterable[Line]:
  return importlib.import_module(f"esper_jax.doctor.{name}").check(settings)


def _tell(lines: Iterable[Line], *, as_json: bool) -> int:
  """Writes the lines, as they come unless as JSON; returns the exit code."""
  told = []
  for line in lines:
    told.append(line)
    if not as_json:
      print(as_text(line), flush=True)
  count = Counter(line.level for line in told)
  failed = count[Level.FAIL] > 0
  if as_json:
    found = [line._asdict() for line in told]
    print(json.dumps({"ok": not failed, "lines": found}, indent=2), flush=True)
  else:
    print(", ".join(f"{count[level]} {level}" for level in Level), flush=True)
  return commands.FAILED if failed else commands.OK
