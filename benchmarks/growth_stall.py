"""What does growth make the training loop wait for? Three ways to compile.

The same run, growing at fixed periods, is made with programs compiled when
they are needed, compiled in the background from a decision on, and compiled in
the background with guesses before the decision. The order of the three turns
from repeat to repeat; no compiled program is taken from a disk. Told for each:

  stall      seconds that training, once under way, waited for a compilation
  still      seconds that steps stood still around the boundaries at which the
             network changed, measured from the end of the last step to the end
             of the next, less the median of the other boundaries
  overlapped training steps begun while a program was compiled beside them
  run        seconds of the whole run

and the hash of the final state, which must be the same in all.

  .venv/bin/python -m benchmarks.growth_stall --repeats=3
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks._common import add_json, changed, interval, load_config, report
from benchmarks.loop_efficiency import write_random_cifar
from esper_jax.oona import jsonl
from esper_jax.tolaria import arrays
from esper_jax.tolaria.trainer import Trainer

MODES = {
  "synchronous": {"threads": 0, "guesses": 0},
  "background": {"threads": 1, "guesses": 0},
  "speculative": {"threads": 1, "guesses": 2},
}
STALL_TARGET = 0.02  # of the synchronous run's stall
WALL_TARGET = 1.02  # upper bound of speculative / synchronous
SHAPES = ("digits", "cifar10")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--shape", choices=SHAPES, default="cifar10")
  parser.add_argument(
    "--repeats", type=int, default=1, help="of each way (%(default)s)"
  )
  parser.add_argument(
    "--skip", choices=("background", "speculative"), help="leave one way out"
  )
  add_json(parser)
  options, overrides = parser.parse_known_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    own = [
      "--config.tezzeret.cache_dir=off",
      "--config.tamiyo.policy=periodic",
      "--config.tamiyo.period_epochs=2",
    ]
    if options.shape == "cifar10":
      write_random_cifar(Path(folder))
      own += [f"--config.data.dir={folder}", "--config.data.train_limit=4096"]
    config = load_config(f"configs/{options.shape}.py:cpu", [*own, *overrides])
    names = [mode for mode in MODES if mode != options.skip]
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in names}
    for repeat in range(options.repeats):
      turn = repeat % len(names)
      for mode in names[turn:] + names[:turn]:
        workdir = Path(folder) / f"{mode}{repeat}"
        run = measure(changed(config, tezzeret=MODES[mode]), workdir)
        runs[mode].append(run)
        print(
          f"{mode:12} stall {run['stall']:6.2f} s, still {run['still']:6.2f} s"
          f" at {run['changes']} boundaries, run {run['seconds']:6.1f} s,"
          f" compiling {run['compiling']:5.1f} s, {run['overlapped']:4}"
          f" overlapped steps, epoch {run['epoch']:.1f} s, {run['hash'][:8]}",
          flush=True,
        )
  figures = summarize(runs)
  figures["shape"] = options.shape
  report("growth_stall", figures, options.json)
  return figures


def measure(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Makes one run and reads what its boundaries took."""
  jax.clear_caches()  # what an earlier run has compiled
  trainer = Trainer(config, workdir)
  changes: set[int] = set()  # epochs done at a boundary that changed the tree
  lead = config.tezzeret.lead_epochs
  for kind, later in (("germinated", 0), ("culled", lead)):
    trainer.bus.subscribe(
      lambda e, later=later: changes.add(e["epoch"] + later), [kind]
    )
  started = time.perf_counter()
  result = trainer.train()
  seconds = time.perf_counter() - started
  # An epoch's line holds the boundary before it.
  lines = jsonl.read(workdir / "metrics.jsonl")
  boundary = {
    x["epoch"] - 1: x["time/boundary"] for x in lines if "time/boundary" in x
  }
  others = [s for epoch, s in boundary.items() if epoch not in changes]
  usual = float(np.median(others))
  digest = hashlib.sha256()
  for name, value in sorted(arrays.flatten(trainer.run.arrays()).items()):
    digest.update(name.encode() + np.asarray(value).tobytes())
  compilation = result["compilation"]
  return {
    "stall": result["stall_seconds"],
    "still": sum(s - usual for e, s in boundary.items() if e in changes),
    "boundary": usual,
    "boundary_spread": float(np.subtract(*np.percentile(others, (75, 25)))),
    "changes": len(changes & set(boundary)),
    "seconds": seconds,
    "epoch": float(
      np.median([x["time/epoch"] for x in lines if "time/epoch" in x])
    ),
    "compiling": result["compile_seconds"],
    "overlapped": compilation["overlapped_steps"],
    "longest": max(compile_seconds(workdir), default=0.0),
    "guesses": compilation["guesses"],
    "guesses_used": compilation["guesses_used"],
    "germinated": result["germinated"],
    "hash": digest.hexdigest(),
  }


def compile_seconds(workdir: Path) -> list[float]:
  """Seconds of each training program that was compiled after the first."""
  events = jsonl.read(workdir / "events.jsonl")
  compiles = [e for e in events if e["type"] == "compile"]
  return [e["seconds"] for e in compiles if e["program"] == "train"][1:]


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
  """Medians per mode, and the ratios that the targets are about."""
  figures: dict[str, Any] = {"runs": runs}
  told = ("stall", "still", "seconds", "compiling", "epoch", "overlapped")
  for mode, rows in runs.items():
    figures[mode] = {
      key: float(np.median([row[key] for row in rows])) for key in told
    }
  base = runs["synchronous"]
  for mode in [mode for mode in runs if mode != "synchronous"]:
    own = figures[mode]
    pairs = list(zip(runs[mode], base, strict=True))
    for key in ("stall", "still"):
      shares = [a[key] / b[key] if b[key] else 0.0 for a, b in pairs]
      own[f"{key}_share"] = float(np.median(shares))
    ratio = interval([a["seconds"] / b["seconds"] for a, b in pairs])._asdict()
    own["wall_ratio"] = ratio
    print(
      f"{mode}: waits for the compiler for {100 * own['stall_share']:.2f} % of"
      f" the synchronous run's wait (target {100 * STALL_TARGET:.0f} %), stands"
      f" still around growth for {100 * own['still_share']:.1f} %; the run"
      f" takes {ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] of"
      f" its time (target: upper bound below {WALL_TARGET})"
    )
  hashes = {row["hash"] for rows in runs.values() for row in rows}
  figures["equal"] = len(hashes) == 1
  print(f"final states: {'equal' if figures['equal'] else 'NOT EQUAL'}")
  return figures


if __name__ == "__main__":
  main(sys.argv[1:])
