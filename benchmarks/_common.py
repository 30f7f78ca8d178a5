"""What the benchmarks share: the runs, the statistics and the output."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from esper_jax import command_line
from esper_jax.oona import jsonl
from esper_jax.oona.jsonl import plain
from esper_jax.tolaria.store import environment
from esper_jax.tolaria.trainer import Callback, Trainer
from esper_jax.types import RunFailedError

CONFIDENCE = 0.95


class Finished(NamedTuple):
  """A run that completed.

  Attributes:
    result: what result.json holds.
    events: what events.jsonl holds, in order.
  """

  result: dict[str, Any]
  events: list[dict[str, Any]]


def make_parser(doc: str | None, *, seeds: int) -> argparse.ArgumentParser:
  """Makes a parser with the options that the benchmarks of runs have.

  Args:
    doc: the benchmark's docstring.
    seeds: default of --seeds.
  """
  parser = argparse.ArgumentParser(
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="--config.SECTION.KEY=VALUE changes a key of configs/base.py.",
  )
  parser.add_argument(
    "--seeds", type=int, default=seeds, help="number of seeds (%(default)s)"
  )
  parser.add_argument(
    "--first", type=int, default=0, help="the first seed (%(default)s)"
  )
  add_json(parser)
  return parser


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds --json."""
  parser.add_argument("--json", help="file to write every figure to")


def load_config(source: str, overrides: Sequence[str]) -> ConfigDict:
  """Loads a config as `python main.py --config=SOURCE OVERRIDES` does.

  Args:
    source: a config file, with a profile after a colon.
    overrides: flags of the form --config.section.key=value.

  Raises:
    InputError: an unknown key or a value that is not valid.
  """
  options = command_line.parse(["benchmark", f"--config={source}", *overrides])
  if options is None:
    raise SystemExit(command_line.OK)
  return options.config


def changed(config: ConfigDict, **sections: Any) -> ConfigDict:
  """A copy with keys changed: changed(config, tamiyo={"policy": "never"}).

  A top-level key is given as it is: changed(config, seed=3).
  """
  copy = config.copy_and_resolve_references()
  with copy.unlocked(), copy.ignore_type():
    for name, value in sections.items():
      if isinstance(value, dict):
        for key, item in value.items():
          copy[name][key] = item
      else:
        copy[name] = value
  return copy.lock()


def train(
  config: ConfigDict, *, callbacks: Sequence[Callback] = ()
) -> Finished:
  """Trains in a temporary directory.

  Raises:
    RunFailedError: the run did not complete.
  """
  with tempfile.TemporaryDirectory() as folder:
    result = Trainer(config, folder, callbacks=callbacks).train()
    if result["status"] != "completed":
      raise RunFailedError(f"the run ended with status {result['status']}")
    return Finished(result, jsonl.read(Path(folder) / "events.jsonl"))


class Interval(NamedTuple):
  """A mean and its Student-t interval at CONFIDENCE.

  Attributes:
    mean: of the values.
    low, high: ends of the interval; NaN for fewer than two values.
    n: number of values.
  """

  mean: float
  low: float
  high: float
  n: int

  def text(self, unit: str = "", scale: float = 1.0) -> str:
    """For people: the mean and the interval, times scale."""
    mean, low, high = (scale * x for x in (self.mean, self.low, self.high))
    return f"{mean:+.2f}{unit} [{low:+.2f}, {high:+.2f}], n = {self.n}"


def interval(values: Sequence[float]) -> Interval:
  """Estimates a mean from independent values (of pairs: their differences)."""
  x = np.asarray(values, np.float64)
  n, mean = len(x), float(x.mean())
  if n < 2:
    return Interval(mean, float("nan"), float("nan"), n)
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
  half *= float(x.std(ddof=1)) / n**0.5
  return Interval(mean, mean - half, mean + half, n)


def report(name: str, figures: dict[str, Any], path: str | None) -> None:
  """Writes the figures, with what they were measured on, as JSON.

  Args:
    name: of the benchmark.
    figures: JSON values; records become objects.
    path: file to write; None writes nothing.
  """
  if path is None:
    return
  document = {
    "benchmark": name,
    **environment(),
    **figures,
  }
  text = json.dumps(document, indent=2, default=plain)
  Path(path).write_text(text + "\n")
