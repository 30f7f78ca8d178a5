"""Does a policy learn while Simic trains it, and does it go on to act?

From the metrics.jsonl of a training run: what it earns and gains on the
held-out environments by iteration, and of each kind of move, the share of the
places where it is legal that the policy makes it. A policy that collapsed makes
none.

  .venv/bin/python -m benchmarks.simic_learning \\
      runs/simic_digits/metrics.jsonl --to=DIR

writes learning.svg and decisions.svg to DIR; without --to only the table is
printed.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import add_json
from benchmarks.evidence.figures import Curve, curves
from esper_jax import commands
from esper_jax.oona import jsonl
from esper_jax.simic.rollout import MOVES
from esper_jax.types import InputError

_WORTH = {"return": "held_out/return", "gain": "held_out/gain"}  # in accuracy
_SHARES = {
  move.name.lower(): f"held_out/{move.name.lower()}_share" for move in MOVES
}
_COUNTS = ("germinated", "fossilized", "culled")
_ROWS = 12  # of the table, at most


def read(path: Path) -> list[dict[str, Any]]:
  """Reads the lines of a training run that report a test.

  Raises:
    InputError: there are none.
  """
  if not path.exists():
    raise InputError(f"{path}: no such file; give the metrics.jsonl of a run")
  tests = [r for r in jsonl.read(path) if "held_out/return" in r]
  if not tests:
    raise InputError(f"{path} holds no test yet; train on")
  return tests


def learning(tests: Sequence[Mapping[str, Any]]) -> str:
  """Draws what is earned and gained by iteration, in points, as SVG."""
  lines = [_curve(name, key, tests, 100.0) for name, key in _WORTH.items()]
  return curves(lines, across="iteration", up="points, held out")


def decisions(tests: Sequence[Mapping[str, Any]]) -> str:
  """Draws the shares of legal moves that are made by iteration, as SVG."""
  lines = [_curve(name, key, tests, 1.0) for name, key in _SHARES.items()]
  return curves(lines, across="iteration", up="share of legal moves made")


def _curve(
  name: str, key: str, tests: Sequence[Mapping[str, Any]], scale: float
) -> Curve:
  none = float("nan")
  return Curve(
    name, [(t["iteration"], scale * t[key], none, none) for t in tests]
  )


def table(tests: Sequence[Mapping[str, Any]]) -> str:
  """Makes a Markdown table of some of the tests, the last one included."""
  step = -(-len(tests) // _ROWS)
  chosen = [*tests[:: step or 1], tests[-1]]
  chosen = list({test["iteration"]: test for test in chosen}.values())
  names = ("iteration", "phase", *_WORTH, *_COUNTS, *_SHARES)
  lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
  for test in chosen:
    cells = [str(test["iteration"]), test["phase"]]
    cells += [f"{100 * test[key]:+.2f}" for key in _WORTH.values()]
    cells += [f"{test[f'held_out/{name}']:.2f}" for name in _COUNTS]
    cells += [f"{100 * test[key]:.0f} %" for key in _SHARES.values()]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table and writes the figures; returns the exit code."""
  return commands.run(_run, argv)


def _run(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("metrics", type=Path, help="metrics.jsonl of a run")
  parser.add_argument("--to", type=Path, help="folder for the figures")
  add_json(parser)
  options = parser.parse_args(argv)
  tests = read(options.metrics)
  if options.to:
    options.to.mkdir(parents=True, exist_ok=True)
    (options.to / "learning.svg").write_text(learning(tests))
    (options.to / "decisions.svg").write_text(decisions(tests))
  if options.json:
    Path(options.json).write_text(json.dumps(tests, indent=2))
  print(table(tests))
  return commands.OK


if __name__ == "__main__":
  sys.exit(main())
