"""What does a live seed cost? The training step with 0, 1, 2, 4 and 8 of them.

The host is a ResNet-20 of width 8 with 9 slots, on noise in CIFAR-10's shapes;
seeds of one blueprint are planted in the first block of each stage, then in the
second, and so on. One program serves a seed's whole life, so its step costs the
same whether the seed is isolated, blended or permanent. Blocks of steps of all
programs take turns in one process, in an order that changes from round to
round. Ratios are to the program without seeds, paired by round: the median and
its 90 % percentile bootstrap interval. FLOPs are the compiler's count.

Told too: how often the step was traced. That must be once per topology, and not
again where a topology comes back after seeds were culled, nor where they are
planted anew; otherwise the benchmark fails.

  .venv/bin/python -m benchmarks.program_cost
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks._common import (
  add_json,
  interleaved,
  load_config,
  paired_ratio,
  report,
  step_arguments,
  step_block,
)
from benchmarks.loop_efficiency import write_random_cifar
from esper_jax.kasmina import surgery
from esper_jax.tezzeret.forge import Forge, Limits
from esper_jax.tolaria import accounting, assembly, steps
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.state import TrainState, count_parameters

SHAPES = ("digits", "cifar10")
TRAIN = "train"


class Grown(NamedTuple):
  """A host with seeds.

  Attributes:
    state: of the training.
    seeds: (slot, key) of each, the oldest first.
  """

  state: TrainState
  seeds: tuple[tuple[str, str], ...] = ()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="--config.SECTION.KEY=VALUE changes a key of the config.",
  )
  number = {"type": int, "help": "(%(default)s)"}
  parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 4, 8])
  parser.add_argument("--rounds", default=30, **number)
  parser.add_argument("--steps", default=5, **number)
  parser.add_argument("--shape", choices=SHAPES, default="cifar10")
  add_json(parser)
  options, overrides = parser.parse_known_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    own = ["--config.host.name=resnet20"]
    if options.shape == "cifar10":
      write_random_cifar(Path(folder))
      own += [f"--config.data.dir={folder}", "--config.data.train_limit=4096"]
    config = load_config(f"configs/{options.shape}.py:cpu", [*own, *overrides])
    figures = measure(config, options.seeds, options.rounds, options.steps)
  report("program_cost", {"shape": options.shape, **figures}, options.json)
  return figures


def measure(
  config: ConfigDict, seeds: Sequence[int], rounds: int, count: int
) -> dict[str, Any]:
  """Times the training steps and counts their traces.

  Args:
    config: of the host.
    seeds: numbers of seeds besides none.
    rounds: of one block per number.
    count: steps in a block.
  """
  parts = assembly.assemble(config, assembly.load_data(config))
  batch = config.data.batch_size
  forge = Forge(
    cost=accounting.flops,
    options=parts.compiler_options,
    limits=Limits(max_programs=len(seeds) + 1),
  )
  step = steps.make_train_step(parts.host, parts.steps)
  forge.add(TRAIN, step, donate=(0, 1))
  grown = Grown(assembly.new_state(config, parts))
  rows: dict[str, dict[str, Any]] = {}
  blocks: dict[str, Callable[[], float]] = {}
  sizes = sorted({0, *seeds})
  for size in sizes:
    grown = resize(grown, size, parts)
    args = step_arguments(parts, grown.state, batch)
    program = forge.program(TRAIN, *args)
    blocks[str(size)] = step_block(program.call, args, count)
    rows[str(size)] = {
      "flops": int(program.flops),
      "parameters": count_parameters(grown.state),
    }
  traces = forge.traces[TRAIN]
  for size in (*reversed(sizes), *sizes):  # culled, and planted again
    grown = resize(grown, size, parts)
    args = step_arguments(parts, grown.state, batch)
    step_block(forge.program(TRAIN, *args).call, args, 1)()
  again = forge.traces[TRAIN] - traces
  forge.close()
  if traces != len(sizes) or again:
    raise SystemExit(
      f"FAILED: {traces} traces for {len(sizes)} topologies and {again} more"
      " after culls; one for each and none were due"
    )
  interleaved(blocks, 1)  # warm-up
  seconds = interleaved(blocks, rounds)
  for name, row in rows.items():
    ratio = paired_ratio(seconds[name], seconds["0"])
    row["step_ms"] = 1e3 * float(np.median(seconds[name])) / count
    row["ratio"] = ratio._asdict()
    row["flops_ratio"] = row["flops"] / rows["0"]["flops"]
    print(
      f"{name:>3} seeds  {row['parameters']:>9,} parameters"
      f"  {row['step_ms']:9.3f} ms a step, ratio {ratio.text()}"
      f"  {1e-9 * row['flops']:8.4f} GFLOP, ratio {row['flops_ratio']:.4f}"
    )
  print(
    f"{traces} traces for {len(sizes)} topologies, {again} more after culls"
  )
  return {
    "host": config.host.name,
    "blueprint": parts.growth.blueprints[0],
    "rows": rows,
    "traces": traces,
    "traces_after_culls": again,
    "seconds": seconds,
  }


def resize(grown: Grown, size: int, parts: Parts) -> Grown:
  """Plants seeds, or culls the youngest, until there are `size`."""
  state, seeds = grown
  growth = parts.growth
  for slot, key in reversed(seeds[size:]):
    state = surgery.cull(state, slot, key)
  seeds = seeds[:size]
  # The blocks of a stage come after each other: slot1_1, slot1_2, slot2_1.
  slots = sorted(growth.slots, key=lambda name: name.rpartition("_")[2])
  for slot in itertools.islice(itertools.cycle(slots), len(seeds), size):
    state, key = surgery.germinate(
      state,
      growth.slots[slot],
      growth.blueprints[0],
      key=jax.random.fold_in(jax.random.key(growth.seed), len(seeds)),
      optimizer=growth.optimizer,
      initializer=growth.initializer,
      blend=growth.blend,
      proximal=growth.proximal,
      newborn=growth.newborn,
    )
    seeds += ((slot, key),)
  return Grown(state, seeds)


if __name__ == "__main__":
  main(sys.argv[1:])
