"""How long until the first step? With an empty and a filled program cache.

First `python main.py --help`, which imports no JAX. Then, for each shape, fresh
processes that do what `python main.py --config=...` does up to the end of its
first training step: one with an empty folder in --config.tezzeret.cache_dir
(cold), one with what the first has left there (warm). Told by phase: `python`
starts; `flags` and config are read; JAX and the trainer are imported
(`imports`); the `device` is opened; the `data` are loaded; the `parts` are
built, the host with its slots among them; the initial `state` is computed; the
run directory is begun (`workdir`); the first step waits for its programs
(`compile`); and the `step` is made. `from_disk` is the share of the programs
compiled by then that the folder had. ResNet-18 trains on noise in CIFAR-10's
shapes.

  .venv/bin/python -m benchmarks.startup --repeats=5
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import add_json, report
from benchmarks.loop_efficiency import write_random_cifar
from esper_jax.types import RunFailedError

ROOT = Path(__file__).parents[1]
HELP_TARGET = 1.0  # seconds
WARM_TARGET = 1 / 3  # of the cold start
SHAPES = {
  "digits": ("--config=configs/digits.py",),
  "resnet18": ("--config=configs/cifar10.py", "--config.host.name=resnet18"),
}
_NO_JAX = """
import sys
import main
assert main.main(["main.py", "--help"]) == 0
sys.exit("jax" in sys.modules)
"""
_CHILD = """
import sys, time
marks = [("python", time.time() - float(sys.argv[1]))]
start = time.perf_counter()

def mark(phase):
  global start
  now = time.perf_counter()
  marks.append((phase, now - start))
  start = now

import json
from esper_jax import command_line
options = command_line.parse(["main.py", *sys.argv[2:]])
mark("flags")
import jax
from esper_jax.tolaria import assembly
from esper_jax.tolaria.display import Silent
from esper_jax.tolaria.trainer import Trainer
mark("imports")
jax.devices()
mark("device")

def watched(phase, function):
  def call(*args):
    result = jax.block_until_ready(function(*args))
    mark(phase)
    return result
  return call

for name, phase in (
  ("load_data", "data"), ("assemble", "parts"), ("new_state", "state")
):
  setattr(assembly, name, watched(phase, getattr(assembly, name)))

compiled = []

class FirstStep(Silent):
  def event(self, event):
    if event["type"] == "compile":
      compiled.append(event.to_line())

  def steps(self, step, loss, images_per_second):
    if marks[-1][0] == "workdir":
      trainer.stop()
      mark("step")
      print(json.dumps({"marks": marks, "compiled": compiled}))

trainer = Trainer(options.config, options.workdir, display=FirstStep())
mark("workdir")
trainer.train()
"""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="--config.SECTION.KEY=VALUE changes a key of every shape's config.",
  )
  parser.add_argument(
    "--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)
  )
  parser.add_argument(
    "--repeats", type=int, default=3, help="of each start (%(default)s)"
  )
  add_json(parser)
  options, overrides = parser.parse_known_args(argv)
  figures: dict[str, Any] = {"help": measure_help(options.repeats)}
  for shape in options.shapes:
    figures[shape] = measure_shape(shape, options.repeats, overrides)
  report("startup", figures, options.json)
  return figures


def measure_help(repeats: int) -> dict[str, Any]:
  """Times --help, and checks that it imports no JAX."""
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    run(["main.py", "--help"])
    seconds.append(time.perf_counter() - start)
  run(["-c", _NO_JAX])
  median = float(np.median(seconds))
  met = median < HELP_TARGET
  print(
    f"--help: {spread(seconds)} s, no JAX; target below"
    f" {HELP_TARGET:.0f} s, {'met' if met else 'missed'}"
  )
  return {"seconds": seconds, "median": median, "met": met}


def measure_shape(
  shape: str, repeats: int, overrides: Sequence[str]
) -> dict[str, Any]:
  """Starts a shape cold and warm `repeats` times, with a cache for each pair.

  Args:
    shape: one of SHAPES.
    repeats: pairs of starts.
    overrides: flags of the form --config.section.key=value.
  """
  starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as folder:
    flags = [*SHAPES[shape], *overrides]
    if shape == "resnet18":
      write_random_cifar(Path(folder))
      flags.append(f"--config.data.dir={folder}")
    for repeat in range(repeats):
      for kind, rows in starts.items():
        where = f"{folder}/{repeat}"
        rows.append(first_step(flags, f"{where}-{kind}", f"{where}-programs"))
  print(f"{shape}: seconds, median [least, most] of {repeats}")
  for phase in starts["cold"][0]:
    cold, warm = ([row[phase] for row in rows] for rows in starts.values())
    print(f"  {phase:9}  cold {spread(cold):24}  warm {spread(warm)}")
  figures: dict[str, Any] = {"starts": starts, "target": WARM_TARGET}
  for phase in ("total", "compile"):
    cold, warm = ([row[phase] for row in rows] for rows in starts.values())
    ratios = np.divide(warm, cold)
    met = bool(np.median(ratios) <= WARM_TARGET)
    figures[phase] = {"ratio": float(np.median(ratios)), "met": met}
    print(
      f"  {phase}: warm / cold {spread(ratios)}, target"
      f" {WARM_TARGET:.2f}, {'met' if met else 'missed'}"
    )
  return figures


def first_step(
  flags: Sequence[str], workdir: str, cache: str
) -> dict[str, float]:
  """Starts a process and takes the seconds of its phases.

  Args:
    flags: of main.py.
    workdir: a new run directory.
    cache: folder of compiled programs.

  Returns:
    Phase -> seconds; their `total`; and `from_disk`, the share of the programs
    compiled by then that were in the folder.
  """
  told = run(
    [
      "-c",
      _CHILD,
      repr(time.time()),
      *flags,
      f"--workdir={workdir}",
      f"--config.tezzeret.cache_dir={cache}",
      "--config.train.log_every=1",
    ]
  )
  document = json.loads(told.splitlines()[-1])
  phases = dict(document["marks"])
  total = sum(phases.values())
  programs = document["compiled"]
  waited = sum(program["waited"] for program in programs)
  found = sum(program["on_disk"] for program in programs) / len(programs)
  step = phases.pop("step") - waited
  phases.update(compile=waited, step=step)
  return {**phases, "total": total, "from_disk": found}


def run(arguments: Sequence[str]) -> str:
  """Runs Python in the repository's root; returns what it printed.

  Raises:
    RunFailedError: it failed.
  """
  # JAX's own settings would win over --config.tezzeret.cache_dir.
  names = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")
  kept = {k: v for k, v in os.environ.items() if not k.startswith(names)}
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=kept,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RunFailedError(f"{arguments[0]}: {done.stderr or done.stdout}")
  return done.stdout


def spread(values: Any) -> str:
  """For people: the median, the least and the most."""
  return f"{np.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
  main(sys.argv[1:])
