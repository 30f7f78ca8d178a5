"""What does the trainer cost? Its whole loop against a bare one.

The trainer runs a config as it is, but that the heuristic decides: logging,
events, checkpoints, decisions, measurements, bookkeeping. Before each of its
epochs, in the same process, a bare Python loop makes the same jitted steps from
a copy of the same state: an epoch of training, then the validation. The ratio
of an epoch is the bare loop's seconds over the trainer's, 1 = no overhead. The
bare loop is also charged for the ablations of that epoch, which are calls of
the same evaluation program; `strict` leaves them out, so that the trainer alone
pays for them. Compilation is left out on both sides; a checkpoint written in
the background counts where it slows the trainer down, and the bare loop waits
until it is written.

  .venv/bin/python -m benchmarks.loop_efficiency --repeats=3
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks._common import (
  add_json,
  await_checkpoint,
  changed,
  load_config,
  report,
)
from esper_jax.tolaria import assembly, measure, steps
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.tolaria.trainer import Trainer

TARGET = 0.95  # median ratio of the epochs
SHAPES = ("digits", "cifar10")
_RECORDS = 10_000  # per file of the CIFAR-10 archive
_RECORD = 1 + 32 * 32 * 3  # bytes: label, image


class Epoch(NamedTuple):
  """One epoch, timed twice; seconds without compilation.

  Attributes:
    trainer: of the trainer, from one callback to the next.
    bare: of the bare loop: training, validation, and the ablations.
    strict: of the bare loop without ablations.
  """

  trainer: float
  bare: float
  strict: float


class Stopwatch:
  """A callback that times each epoch of a trainer against a bare loop.

  Attributes:
    epochs: what was measured.
  """

  def __init__(self, trainer: Trainer, workdir: Path):
    """Makes the bare loop for a trainer that has not started."""
    self.epochs: list[Epoch] = []
    self._checkpoints = workdir / "checkpoints"
    self._loop = BareLoop(trainer.config, trainer.parts)
    self._begin(trainer)

  def __call__(self, trainer: Trainer, metrics: TrainingMetrics) -> None:
    """Ends the trainer's epoch, then times the next one of the bare loop."""
    ledger, before = trainer.run.ledger, self._ledger
    seconds = time.perf_counter() - self._started
    seconds -= ledger.blocking_seconds - before.blocking_seconds
    asked = ledger.ablation - before.ablation
    passes = asked / (ledger.evaluation - before.evaluation)
    training, validation = self._bare
    strict = training + validation
    self.epochs.append(Epoch(seconds, strict + passes * validation, strict))
    if metrics.epoch < trainer.parts.timetable.epochs:
      self._begin(trainer)

  def _begin(self, trainer: Trainer) -> None:
    run = trainer.run
    if run.epoch % trainer.config.checkpoint.every_epochs == 0:
      await_checkpoint(self._checkpoints, run.next_batch)
    self._bare = self._loop.epoch(run.state, run.epoch)
    self._ledger = run.ledger
    self._started = time.perf_counter()


class BareLoop:
  """The jitted steps of a run and nothing else."""

  def __init__(self, config: ConfigDict, parts: assembly.Parts):
    """Makes the programs; they are compiled when first called."""
    self._parts = parts
    self._step = jax.jit(
      steps.make_train_step(parts.host, parts.steps), donate_argnums=(0, 1)
    )
    self._evaluate = jax.jit(
      steps.make_evaluate(parts.host, parts.steps.preprocess)
    )
    self._images = jax.device_put(parts.data.train_images)
    self._labels = jax.device_put(parts.data.train_labels)
    self._order = assembly.make_order(config, parts, attempt=0)
    self._warm: set[Any] = set()

  def epoch(self, state: Any, number: int) -> tuple[float, float]:
    """Trains and validates from a copy of a state.

    Returns:
      Seconds of the training steps, and of one pass over validation.
    """
    timetable = self._parts.timetable
    first = number * timetable.steps_per_epoch
    rows = range(first, first + timetable.steps_in(number))
    topology = jax.tree.structure(state)
    if topology not in self._warm:
      self._warm.add(topology)
      self._validate(self._train(state, rows[:1]))
    start = time.perf_counter()
    state = self._train(state, rows)
    trained = time.perf_counter()
    self._validate(state)
    return trained - start, time.perf_counter() - trained

  def _train(self, state: Any, rows: Sequence[int]) -> Any:
    state = jax.tree.map(jax.numpy.copy, state)
    sums = steps.empty_sums(state)
    for row in rows:
      state, sums = self._step(
        state, sums, self._images, self._labels, self._order[row]
      )
    return jax.block_until_ready(state)

  def _validate(self, state: Any) -> None:
    measure.losses(
      lambda b: self._evaluate(
        state.params, state.collections, state.seeds, b.images, b.labels, b.mask
      ),
      self._parts.validation,
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
  parser.add_argument(
    "--repeats", type=int, default=1, help="runs of each (%(default)s)"
  )
  add_json(parser)
  options, overrides = parser.parse_known_args(argv)
  figures: dict[str, Any] = {"target": TARGET}
  for name in options.shapes:
    figures[name] = shape = measure_shape(name, options.repeats, overrides)
    low, high = shape["spread"]
    print(
      f"{name}: the trainer reaches {shape['median']:.3f} of the bare loop's"
      f" speed (median of {shape['n']} epochs; quartiles {low:.3f} to"
      f" {high:.3f}; all together {shape['total']:.3f}; paying for its own"
      f" ablations {shape['strict_median']:.3f}); {shape['epoch_seconds']:.2f}"
      " s an epoch"
    )
    print(
      f"  ablations and probes: {100 * shape['measurement_share']:.1f} % of the"
      f" training FLOPs, budget {100 * shape['measure_budget']:.0f} %;"
      f" {shape['germinated']} seeds, {shape['fossilized']} fossilized,"
      f" {shape['culled']} culled"
    )
  figures["met"] = all(figures[s]["median"] >= TARGET for s in options.shapes)
  print(f"target: {TARGET}, {'met' if figures['met'] else 'missed'}")
  report("loop_efficiency", figures, options.json)
  return figures


def measure_shape(
  name: str, repeats: int, overrides: Sequence[str]
) -> dict[str, Any]:
  """Runs one shape `repeats` times.

  Args:
    name: one of SHAPES.
    repeats: whole runs, with seeds 0, 1, ...
    overrides: flags of the form --config.section.key=value.
  """
  epochs: list[Epoch] = []
  result: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as folder:
    own = ["--config.tezzeret.threads=0"]  # nothing is compiled beside steps
    own += ["--config.tamiyo.policy=heuristic"]  # as when first measured
    if name == "cifar10":
      write_random_cifar(Path(folder))
      own += [f"--config.data.dir={folder}", "--config.data.train_limit=4096"]
    config = load_config(f"configs/{name}.py:cpu", [*own, *overrides])
    for seed in range(repeats):
      workdir = Path(folder) / f"run{seed}"
      trainer = Trainer(changed(config, seed=seed), workdir)
      watch = Stopwatch(trainer, workdir)
      trainer.callbacks.append(watch)
      result = trainer.train()
      epochs += watch.epochs
  trainer_, bare, strict = (np.array(x) for x in zip(*epochs, strict=True))
  ratios = bare / trainer_
  return {
    "median": float(np.median(ratios)),
    "spread": [float(q) for q in np.quantile(ratios, (0.25, 0.75))],
    "total": float(bare.sum() / trainer_.sum()),
    "strict_median": float(np.median(strict / trainer_)),
    "n": len(epochs),
    "epoch_seconds": float(np.median(trainer_)),
    "measure_budget": config.kasmina.measure_budget,
    **{
      key: result[key]
      for key in ("measurement_share", "germinated", "fossilized", "culled")
    },
    "epochs": [e._asdict() for e in epochs],
  }


def write_random_cifar(folder: Path) -> None:
  """Writes noise in the layout of CIFAR-10's binary archive."""
  rng = np.random.default_rng(0)
  names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
  for name in names:
    records = rng.integers(0, 256, (_RECORDS, _RECORD), np.uint8)
    records[:, 0] = np.arange(_RECORDS) % 10
    (folder / name).write_bytes(records.tobytes())


if __name__ == "__main__":
  main(sys.argv[1:])
