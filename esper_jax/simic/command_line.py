"""The command line of Simic: `python -m esper_jax.simic --help`."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper_jax import commands, config_file
from esper_jax import config as config_lib
from esper_jax.oona.jsonl import plain
from esper_jax.types import InputError

_OVERRIDE = "--config."


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code.

  0: done, or interrupted and can be resumed; 1: it failed; 2: bad input, in
  one line.
  """
  return commands.run(_run, argv)


def _run(argv: list[str]) -> int:
  options, rest = _parser().parse_known_args(argv)
  overrides = []
  for text in rest:
    if not text.startswith(_OVERRIDE):
      raise InputError(f"{text}: no such flag; --help shows all of them")
    overrides.append(text.removeprefix(_OVERRIDE))
  return options.run(options, overrides)


def _parser() -> commands.Parser:
  parser = commands.Parser(
    prog=".venv/bin/python -m esper_jax.simic",
    description="Teaches Tamiyo: trains policies, and compares them.",
    epilog="--config.SECTION.KEY=VALUE changes one setting; the sections and"
    " their keys are in esper_jax/simic/assembly.py:DEFAULTS.",
  )
  subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

  def add(name: str, run: Any, what: str) -> argparse.ArgumentParser:
    sub = subparsers.add_parser(name, help=what, description=f"{what}.")
    sub.set_defaults(run=run)
    sub.add_argument("--dir", default="", help="layer of the registry to use")
    return sub

  sub = add("train", _train, "train a policy, or go on with it")
  sub.add_argument(
    "--config",
    required=True,
    help="e.g. %(metavar)s",
    metavar="configs/simic_digits.py",
  )
  sub.add_argument("--workdir", help="run directory (default: runs/NAME)")
  sub.add_argument("--publish", metavar="NAME", help="keep it in Urza as NAME")
  sub.add_argument("--quiet", action="store_true", help="no lines of progress")
  sub = add("evaluate", _evaluate, "compare a policy with the others")
  sub.add_argument("--policy", required=True, help="a path, or a name in Urza")
  sub.add_argument("--config", help="environments (default: the policy's own)")
  sub.add_argument("--envs", type=int, default=256, help="how many, 2 or more")
  sub.add_argument("--seed", type=int, default=1000, help="which environments")
  sub.add_argument("--json", action="store_true", help="figures as JSON")
  return parser


def _settings(source: str, overrides: Sequence[str]) -> dict[str, Any]:
  from esper_jax.simic import assembly, options  # imports JAX: seconds

  config = config_file.load(source).to_dict()
  return options.read(config, overrides, assembly.DEFAULTS)


def _train(flags: argparse.Namespace, overrides: Sequence[str]) -> int:
  settings = _settings(flags.config, overrides)
  from esper_jax.simic import publishing

  path, profile = config_file.split_profile(flags.config)
  name = "-".join(filter(None, (Path(path).stem, profile)))
  result = publishing.train(
    settings,
    flags.workdir or os.path.join("runs", name),
    publish=flags.publish,
    registry=flags.dir,
    check_same=config_lib.check_same,
    say=(lambda line: None) if flags.quiet else _say,
  )
  if not flags.quiet:
    for key, value in result.items():
      print(f"{key:14} {value}")
  return commands.OK


def _evaluate(flags: argparse.Namespace, overrides: Sequence[str]) -> int:
  if flags.envs < 2:
    raise InputError(f"--envs={flags.envs}: must be 2 or more")
  from esper_jax.simic import evaluation, publishing

  settings = _settings(flags.config, overrides) if flags.config else None
  found = publishing.find(flags.policy, registry=flags.dir)
  played = publishing.evaluate(
    found, settings, overrides, count=flags.envs, seed=flags.seed
  )
  if flags.json:
    which = {"policy_sha256": found.sha256, "seed": flags.seed}
    figures = which | evaluation.document(played)
    print(json.dumps(plain(figures), indent=2))
  else:
    print(evaluation.table(played))
  return commands.OK


def _say(line: str) -> None:
  print(line, flush=True)
