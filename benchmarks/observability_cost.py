"""What does it cost to be watched? Console, TensorBoard and report of one run.

A run of CIFAR shapes (noise), in which the heuristic decides, is shown as on a
terminal, in TensorBoard and in report.html. Two costs are added up: the seconds
for which the training thread is inside their calls, and the processor seconds
of the threads of their own, as if nothing of these ran beside training. The
share is of the run's wall time, what it waited for the compiler left out.

  .venv/bin/python -m benchmarks.observability_cost
"""

import argparse
import io
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import add_json, load_config, report
from benchmarks.loop_efficiency import write_random_cifar
from esper_jax import config as config_lib
from esper_jax.nissa.behind import Behind
from esper_jax.nissa.console import Console
from esper_jax.nissa.displays import Displays
from esper_jax.nissa.live_report import LiveReport
from esper_jax.nissa.tensorboard import FOLDER, TensorBoard, weights
from esper_jax.tolaria.display import Display, TrainingMetrics
from esper_jax.tolaria.trainer import Trainer

TARGET = 0.02  # of the wall time
_THREADS = ("_RefreshThread", "_EventLoggerThread")  # of rich, of tensorboardX
_TICKS = 100.0  # of Linux' processor time, per second


class Terminal(io.StringIO):
  """A stream that the console takes for a terminal."""

  def isatty(self) -> bool:
    return True


class Timed:
  """A display whose calls are timed.

  Attributes:
    seconds: of the thread that called, so far.
  """

  def __init__(self, display: Display):
    self.seconds = 0.0
    self._display = display

  def __getattr__(self, name: str) -> Any:
    call = getattr(self._display, name)

    def timed(*args: Any, **named: Any) -> None:
      start = time.perf_counter()
      call(*args, **named)
      self.seconds += time.perf_counter() - start

    return timed


class Cost:
  """A callback that adds up what watching a trainer costs.

  Attributes:
    threads: processor seconds of the threads that show the run.
    histograms: seconds for which training waited for the seeds' weights.
  """

  def __init__(self, board: TensorBoard, behind: Behind):
    self.threads = self.histograms = 0.0
    self._board, self._behind = board, behind

  def __call__(self, trainer: Trainer, metrics: TrainingMetrics) -> None:
    """At the end of each epoch."""
    start = time.perf_counter()
    seeds = weights(trainer.run.state.seeds)
    self._behind.tell(self._board.histograms, seeds, metrics.step)
    self.histograms += time.perf_counter() - start
    self.threads = sum(
      _processor_seconds(thread)
      for thread in threading.enumerate()
      if thread.name == "nissa" or type(thread).__name__ in _THREADS
    )


def _processor_seconds(thread: threading.Thread) -> float:
  text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
  fields = text.rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / _TICKS


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--config", default="configs/cifar10.py:cpu", help="(%(default)s)"
  )
  add_json(parser)
  options, overrides = parser.parse_known_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    own = ["--config.tamiyo.policy=heuristic"]  # as when first measured
    if "cifar10" in options.config:
      write_random_cifar(Path(folder))
      own += [f"--config.data.dir={folder}"]
    config = load_config(options.config, [*own, *overrides])
    figures = measure(config, Path(folder) / "run")
  for name in ("report", "tensorboard", "console"):
    print(f"{name}: {1000 * figures[name]:.1f} ms of the training thread")
  print(
    f"the weights of seeds: {1000 * figures['histograms']:.1f} ms; threads of"
    f" their own: {figures['threads']:.2f} s of processor time\n"
    f"together {100 * figures['share']:.2f} % of {figures['seconds']:.1f} s"
    f" ({figures['epochs']} epochs); target: {100 * TARGET:g} %,"
    f" {'met' if figures['met'] else 'missed'}"
  )
  report("observability_cost", figures, options.json)
  return figures


def measure(config: Any, workdir: Path) -> dict[str, Any]:
  """Trains once, shown in every way."""
  board = TensorBoard(workdir / FOLDER, config_lib.flatten(config))
  behind = Behind(board)
  shown = {
    "report": Timed(LiveReport(workdir)),
    "tensorboard": Timed(behind),
    "console": Timed(Console(stream=Terminal())),
  }
  told: Any = shown
  cost = Cost(board, behind)
  start = time.perf_counter()
  trainer = Trainer(config, workdir, display=Displays(told), callbacks=[cost])
  result = trainer.train()
  wall = time.perf_counter() - start
  seconds = wall - result["compilation"]["blocking_seconds"]
  calls = {name: timed.seconds for name, timed in shown.items()}
  total = sum(calls.values()) + cost.histograms + cost.threads
  return {
    **calls,
    "histograms": cost.histograms,
    "threads": cost.threads,
    "seconds": seconds,
    "epochs": result["epochs"],
    "share": total / seconds,
    "target": TARGET,
    "met": total / seconds < TARGET,
    "dropped": behind.dropped,
  }


if __name__ == "__main__":
  main(sys.argv[1:])
