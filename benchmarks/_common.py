"""What the benchmarks share: the runs, the statistics and the output."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from esper_jax import command_line, commands
from esper_jax.oona import jsonl
from esper_jax.oona.jsonl import plain
from esper_jax.tolaria import checkpoints
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.state import TrainState
from esper_jax.tolaria.steps import empty_sums
from esper_jax.tolaria.store import environment
from esper_jax.tolaria.trainer import Callback, Trainer
from esper_jax.types import InputError, RunFailedError

CONFIDENCE = 0.95
RATIO_CONFIDENCE = 0.9  # two-sided; its upper end is a one-sided 95 % bound
_RESAMPLES = 10_000
_PATIENCE = 30.0  # seconds for a checkpoint to be written


@contextlib.contextmanager
def refusing(text: Callable[[InputError], str] = str) -> Iterator[None]:
  """Ends the process with one line and code 2 where the input is bad.

  Args:
    text: what the line says of an error.
  """
  try:
    yield
  except InputError as error:
    print(f"error: {text(error)}", file=sys.stderr)
    raise SystemExit(commands.BAD_INPUT) from error


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
    epilog="--config.SECTION.KEY=VALUE changes a key of esper_jax/defaults.py.",
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
  """Adds --json; one that cannot be written is refused before it measures."""
  parser.add_argument(
    "--json", type=_output, help="file to write every figure to"
  )


def _output(path: str) -> str:
  """The path of a file to write, once it seems that it can be written."""
  file = Path(path)
  place, reason = file.parent, ""
  if not place.is_dir():
    reason = f"{place} is no folder; make it, or give another file"
  elif file.is_dir():
    reason = "it is a folder; give a file in it"
  elif not os.access(file if file.exists() else place, os.W_OK):
    reason = "permission denied; give another file"
  with refusing():
    if reason:
      raise InputError(f"--json={path}: cannot be written: {reason}")
  return path


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
    raise SystemExit(commands.OK)
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


class Ratio(NamedTuple):
  """The median of paired ratios and its percentile bootstrap interval.

  Attributes:
    median: of the ratios.
    low, high: ends of the interval of the median at RATIO_CONFIDENCE.
    n: number of pairs.
  """

  median: float
  low: float
  high: float
  n: int

  def text(self) -> str:
    """For people."""
    return f"{self.median:.4f} [{self.low:.4f}, {self.high:.4f}], n = {self.n}"


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
  """Estimates a ratio from pairs; pairs are taken to be independent."""
  ratios = np.divide(above, below)
  rng = np.random.default_rng(0)
  drawn = rng.choice(ratios, (_RESAMPLES, len(ratios)))
  tail = (1 - RATIO_CONFIDENCE) / 2
  low, high = np.quantile(np.median(drawn, axis=1), (tail, 1 - tail))
  return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


def interleaved(
  blocks: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
  """Runs each block once a round, in another order from round to round.

  Args:
    blocks: name -> what runs it and returns its seconds.
    rounds: at least 1.

  Returns:
    name -> seconds of each round.
  """
  seconds: dict[str, list[float]] = {name: [] for name in blocks}
  for n in range(rounds):
    names, first = list(blocks), n // 2 % len(blocks)
    names = names[first:] + names[:first]
    for name in reversed(names) if n % 2 else names:
      seconds[name].append(blocks[name]())
  return seconds


def step_arguments(parts: Parts, state: TrainState, batch: int) -> Any:
  """What one training step takes: always the first examples of the data."""
  images, labels = parts.data.train_images, parts.data.train_labels
  return jax.device_put(
    (state, empty_sums(state), images, labels, np.arange(batch, dtype=np.int32))
  )


def step_block(
  step: Callable[..., Any], arguments: Any, steps: int
) -> Callable[[], float]:
  """Makes a block of training steps, each run of it from the same state.

  Args:
    step: compiled; may take the buffers of its state and sums.
    arguments: see `step_arguments`.
    steps: per run.

  Returns:
    What runs the block and returns its seconds.
  """

  def block() -> float:
    state, sums = jax.tree.map(jnp.copy, arguments[:2])
    jax.block_until_ready((state, sums))
    start = time.perf_counter()
    for _ in range(steps):
      state, sums = step(state, sums, *arguments[2:])
    jax.block_until_ready((state, sums))
    return time.perf_counter() - start

  return block


def await_checkpoint(folder: Path, step: int) -> None:
  """Waits until the checkpoint of a step is on the disk.

  Raises:
    RunFailedError: it does not come.
  """
  deadline = time.monotonic() + _PATIENCE
  while all(c.step != step for c in checkpoints.available(folder)):
    if time.monotonic() > deadline:
      raise RunFailedError(f"no checkpoint of step {step} in {folder}")
    time.sleep(0.001)


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
