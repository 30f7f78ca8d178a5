"""What does a dormant slot cost? Nothing in the program; and in the system?

First the program: the training step of an MLP with 0, 1, 10 and 100 slots. Its
StableHLO text must be the same, or the benchmark fails. Blocks of steps take
turns in one process, in an order that changes from round to round. Equal
programs compiled twice differ in speed by some percent, so all are compiled
anew for each repeat; the interval is Student's t at 95 % over the repeats'
median ratios. `control` is the host without slots compiled once more.

Then the system: trainers of one config take turns, an epoch each, which lasts
until its checkpoint is on the disk. `none` is the host without slots and policy
`never`. `dormant` has its slots, the heuristic and tamiyo.max_growths=0; it is
never probed, as nothing may grow. `probed` plants nothing either, but has each
slot probed and scored after every epoch, as no policy does. Ratios are paired
by round: median and 90 % percentile bootstrap interval of the median.

  .venv/bin/python -m benchmarks.dormant_overhead
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._common import (
  add_json,
  await_checkpoint,
  changed,
  interleaved,
  interval,
  load_config,
  paired_ratio,
  report,
  step_arguments,
  step_block,
)
from benchmarks.loop_efficiency import write_random_cifar
from esper_jax.hosts.host import from_linen
from esper_jax.kasmina.slot import Slot
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo.rules import Rule, Settings, wish
from esper_jax.tolaria import assembly, steps
from esper_jax.tolaria.state import init_state
from esper_jax.tolaria.trainer import Trainer
from esper_jax.types import Action

STEP_TARGET = (0.98, 1.02)  # the interval at the most slots lies inside
SYSTEM_TARGET = 1.05  # upper bound of dormant / none
PARTS = ("program", "system")
WATCH = "watch"
ARMS: dict[str, dict[str, Any]] = {
  "none": {"host": {"slots": ()}, "tamiyo": {"policy": "never"}},
  "dormant": {"tamiyo": {"policy": "heuristic", "max_growths": 0}},
  "probed": {
    "tamiyo": {"policy": WATCH},
    # Only where modules are given may a policy be one that is not built in.
    "urza": {"modules": ("benchmarks.dormant_overhead",)},
  },
}
LAYERS, WIDTH, BATCH = 10, 256, 128  # a step of some milliseconds
STEPS = 5  # in a block
WARMUP = 3  # epochs
_SPARE_EPOCHS = 100  # so that it is never too late to grow


class Host(nn.Module):
  """An MLP whose slots are spread over its layers."""

  slots: int

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    x = x.reshape(x.shape[0], -1)
    for layer in range(LAYERS):
      x = nn.relu(nn.Dense(WIDTH, name=f"hidden{layer}")(x))
      for n in range(layer, self.slots, LAYERS):
        x = Slot(name=f"slot{n}")(x, train=train)
    return nn.Dense(10, name="head")(x)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="--config.SECTION.KEY=VALUE changes a key of the system's config.",
  )
  number = {"type": int, "help": "(%(default)s)"}
  parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
  parser.add_argument("--slots", nargs="+", type=int, default=[1, 10, 100])
  parser.add_argument("--repeats", default=12, **number)
  parser.add_argument("--rounds", default=40, **number)
  parser.add_argument(
    "--shape", choices=("digits", "cifar10"), default="cifar10"
  )
  parser.add_argument("--epochs", default=20, **number)
  add_json(parser)
  o, overrides = parser.parse_known_args(argv)
  figures: dict[str, Any] = {}
  if "program" in o.parts:
    figures["program"] = measure_program(o.slots, o.repeats, o.rounds)
  if "system" in o.parts:
    figures["system"] = measure_system(o.shape, o.epochs, overrides)
  report("dormant_overhead", figures, o.json)
  return figures


def measure_program(
  slots: Sequence[int], repeats: int, rounds: int
) -> dict[str, Any]:
  """Compares the training steps of hosts with dormant slots.

  Args:
    slots: numbers of slots besides none.
    repeats: of compiling and measuring.
    rounds: of one block per host and repeat.

  Raises:
    SystemExit: the programs are not the same.
  """
  config = load_config("configs/digits.py", ())
  parts = assembly.assemble(config, assembly.load_data(config))
  hosts = {"0": 0, "control": 0, **{str(n): n for n in slots}}
  seconds: dict[str, list[float]] = {name: [] for name in hosts}
  ratios: dict[str, list[float]] = {name: [] for name in hosts}
  for repeat in range(repeats):
    turn = dict(reversed(hosts.items())) if repeat % 2 else hosts
    blocks = compile_blocks(turn, parts)
    interleaved(blocks, 1)  # warm-up
    for name, own in (taken := interleaved(blocks, rounds)).items():
      seconds[name] += own
      ratios[name].append(paired_ratio(own, taken["0"]).median)
  print("one program for all numbers of slots")
  rows: dict[str, dict[str, Any]] = {}
  for name in hosts:
    ratio, ms = interval(ratios[name]), 1e3 * np.median(seconds[name]) / STEPS
    rows[name] = {"step_ms": float(ms), "ratio": ratio._asdict()}
    print(
      f"  {name:>7} slots  {ms:8.3f} ms a step  ratio {ratio.mean:.4f}"
      f" [{ratio.low:.4f}, {ratio.high:.4f}], n = {ratio.n}"
    )
  (low, high), last = STEP_TARGET, interval(ratios[str(max(slots))])
  met = low <= last.low and last.high <= high
  print(f"target: {low} to {high}, {'met' if met else 'missed'}")
  found = {"rows": rows, "target": STEP_TARGET, "met": met}
  return {**found, "ratios": ratios, "seconds": seconds}


def compile_blocks(
  hosts: Mapping[str, int], parts: assembly.Parts
) -> dict[str, Callable[[], float]]:
  """Compiles the step of a host for each number of slots, from scratch."""
  texts: dict[int, str] = {}
  blocks: dict[str, Callable[[], float]] = {}
  chain, example = parts.steps.optimizer, parts.example
  for name, slots in hosts.items():
    host = from_linen(Host(slots))
    state = init_state(host, chain, example, seed=0, average=False)
    args = step_arguments(parts, state, BATCH)
    step = steps.make_train_step(host, parts.steps)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*args)
    texts[slots] = lowered.as_text()
    blocks[name] = step_block(lowered.compile(), args, STEPS)
  require_equal(texts)
  return blocks


def require_equal(texts: Mapping[int, str]) -> None:
  """Ends the process with code 1 unless all programs are that of 0 slots."""
  for slots, text in texts.items():
    if text != texts[0]:
      raise SystemExit(
        f"FAILED: the training step with {slots} dormant slots is not the"
        " program of the host without slots"
      )


def measure_system(
  shape: str, epochs: int, overrides: Sequence[str]
) -> dict[str, Any]:
  """Lets trainers with and without dormant slots take turns.

  Args:
    shape: "digits" or "cifar10".
    epochs: of each, after WARMUP more that are not measured.
    overrides: flags of the form --config.section.key=value.
  """
  trainers: dict[str, Trainer] = {}
  blocks: dict[str, Callable[[], float]] = {}
  policies.register(WATCH, watch)
  with tempfile.TemporaryDirectory() as folder:
    own = ["--config.tezzeret.cache_dir=off"]
    if shape == "cifar10":
      write_random_cifar(Path(folder))
      own += [f"--config.data.dir={folder}", "--config.data.train_limit=4096"]
    config = changed(
      load_config(f"configs/{shape}.py:cpu", [*own, *overrides]),
      train={"epochs": epochs + _SPARE_EPOCHS},
    )
    try:
      for name, sections in ARMS.items():
        workdir = Path(folder) / name
        trainers[name] = Trainer(changed(config, **sections), workdir)
        blocks[name] = epoch_block(trainers[name], workdir)
      interleaved(blocks, WARMUP)
      compiled = {n: t.run.ledger.compiles for n, t in trainers.items()}
      seconds = interleaved(blocks, epochs)
    finally:
      policies.unregister(WATCH)
      for trainer in trainers.values():
        trainer.shutdown()
  rows = {}
  for name, trainer in trainers.items():
    ledger = trainer.run.ledger
    ratio = paired_ratio(seconds[name], seconds["none"])
    rows[name] = row = {
      "epoch_seconds": float(np.median(seconds[name])),
      "ratio": ratio._asdict(),
      "slots": len(trainer.parts.growth.slots),
      "germinated": trainer.run.germinated,
      "probe_share": ledger.probe / ledger.train,
      "late_compiles": ledger.compiles - compiled[name],
    }
    print(
      f"  {name:8} {row['slots']} slots  {row['epoch_seconds']:7.3f} s an epoch"
      f"  ratio {ratio.text()}  probes {100 * row['probe_share']:.1f} % of the"
      f" training FLOPs, {row['late_compiles']} compiled after the warm-up"
    )
  met = rows["dormant"]["ratio"]["high"] < SYSTEM_TARGET
  verdict = "met" if met else "missed"
  print(f"target: dormant / none below {SYSTEM_TARGET}, {verdict}")
  target = {"target": SYSTEM_TARGET, "met": met}
  return {"shape": shape, "rows": rows, **target, "seconds": seconds}


def watch(settings: Settings) -> Rule:
  """A rule that asks for scores at every boundary and never for a seed."""
  del settings
  return Rule(
    propose=lambda state, o, key: wish(o, jnp.zeros_like(o.scores), count=0),
    wants_scores=lambda state, o: o.legal[:, int(Action.GERMINATE)].any(),
  )


def epoch_block(trainer: Trainer, workdir: Path) -> Callable[[], float]:
  """Makes what trains one epoch and returns its seconds."""
  every = trainer.config.checkpoint.every_epochs

  def block() -> float:
    start = time.perf_counter()
    trainer.train_epoch()
    if trainer.run.epoch % every == 0:
      await_checkpoint(workdir / "checkpoints", trainer.run.next_batch)
    return time.perf_counter() - start

  return block


if __name__ == "__main__":
  main(sys.argv[1:])
