"""Does growth help in the demo? Paired runs with and without it.

Each seed trains a config twice, as it is and with
--config.tamiyo.policy=never; seed, data order, schedule, epochs and batch are
the same. The gain is the difference in final validation accuracy, in points.

  .venv/bin/python -m benchmarks.demo_gain
  .venv/bin/python -m benchmarks.demo_gain \\
      --config=configs/cifar10.py:cpu --seeds=5
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks._common import (
  changed,
  interval,
  load_config,
  make_parser,
  report,
  train,
)
from esper_jax.control import never_grown

TARGET = 0.9  # share of the seeds in which growth gains


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark.

  Args:
    argv: flags; None takes those of the process.

  Returns:
    The figures that --json writes.
  """
  parser = make_parser(__doc__, seeds=10)
  parser.add_argument(
    "--config", default="configs/digits.py", help="config (%(default)s)"
  )
  options, overrides = parser.parse_known_args(argv)
  config = load_config(options.config, overrides)
  pairs = []
  for seed in range(options.first, options.first + options.seeds):
    pair = compare(changed(config, seed=seed))
    pairs.append({"seed": seed, **pair})
    print(
      f"seed {seed}: validation {100 * pair['never']:.2f} % ->"
      f" {100 * pair['grown']:.2f} %, gain {pair['gain']:+.2f} points;"
      f" {pair['fossilized']} fossilized, {pair['culled']} culled;"
      f" {pair['params_initial']} -> {pair['params_final']} parameters;"
      f" {pair['seconds']:.0f} s",
      flush=True,
    )
  gains = [pair["gain"] for pair in pairs]
  estimate = interval(gains)
  positive = sum(gain > 0 for gain in gains)
  figures = {
    "config": options.config,
    "overrides": overrides,
    "gain": estimate._asdict(),
    "test_gain": interval([pair["test_gain"] for pair in pairs])._asdict(),
    "positive": positive,
    "fossilized": sum(pair["fossilized"] > 0 for pair in pairs),
    "target": TARGET,
    "met": positive >= TARGET * len(pairs),
    "pairs": pairs,
  }
  print(f"gain in validation accuracy: {estimate.text(' points')}")
  print(
    f"positive in {positive} of {len(pairs)} (target: {TARGET:.0%}); a seed"
    f" fossilized in {figures['fossilized']}"
  )
  report("demo_gain", figures, options.json)
  return figures


def compare(config) -> dict[str, Any]:
  """One seed with and without growth; gains are in points."""
  start = time.monotonic()
  never, grown = (train(c).result for c in (never_grown(config), config))
  both = [(grown[k], never[k]) for k in ("val_accuracy", "test_accuracy")]
  gain, test_gain = (100 * (g - n) for g, n in both)
  return {
    "never": never["val_accuracy"],
    "grown": grown["val_accuracy"],
    "gain": gain,
    "test_gain": test_gain,
    "fossilized": grown["fossilized"],
    "culled": grown["culled"],
    "params_initial": grown["params_initial"],
    "params_final": grown["params_final"],
    "never_flops": never["total_flops"],
    "grown_flops": grown["total_flops"],
    "seconds": time.monotonic() - start,
  }


if __name__ == "__main__":
  main(sys.argv[1:])
