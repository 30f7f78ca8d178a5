"""How fast is a training step on the CPU beside the same one in PyTorch?

Three networks on noise in CIFAR-10's shapes, float32: a small CNN with max
pooling, ResNet-8 and ResNet-18. Ours is the trainer's own call of its own
program, `dormant` (slots, all empty) and `growing` (one conv3x3 seed blending
in a middle slot). Beside it: the same network written plainly in PyTorch, the
seed included, in both memory layouts, and the host without slots in a bare JAX
loop, which shows how much of a difference is ours and how much is XLA's. All
make the same step: gather a batch of bytes, normalize, forward, backward, SGD
with momentum and decoupled weight decay. First all make the same few steps, and
the benchmark fails unless their losses agree.

Blocks of steps of all of them take turns in one process, in an order that
changes from round to round, with the same number of threads. A ratio is a speed
over another one, 1 = as fast, paired by round: the median and its 90 %
percentile bootstrap interval.

  .venv/bin/python -m benchmarks.peers_cpu

Needs PyTorch (pip install torch), best in an environment of its own: it brings
another Triton than the one that compiles our kernels. Without it: skipped.
"""

import argparse
import functools
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks import _peers_jax as ours
from benchmarks._common import (
  add_json,
  interleaved,
  paired_ratio,
  refusing,
  report,
)
from benchmarks._peers_jax import Block
from esper_jax import commands
from esper_jax.kasmina.surgery import group_params
from esper_jax.tolaria import assembly
from esper_jax.tolaria.state import count_parameters
from esper_jax.types import InputError

TARGET = 0.9  # ours / the faster layout of PyTorch, dormant
MISSING = f"PyTorch is not installed ({commands.pip()} install torch)"
SAME = 1e-3  # relative, of the mean loss of CHECKED steps
CHECKED = 3
# PyTorch 2.13 alone crashes in the backward pass of a ResNet of width 4 in the
# layout channels_last, on a CPU; widths 8 and 16 pass.
LEAST_WIDTH = 8
STATES = ("dormant", "growing")
BARE = "bare JAX"


class Size(NamedTuple):
  """How much of a network is run.

  Attributes:
    batch: examples of a step.
    steps: in a block.
  """

  batch: int
  steps: int


# So that all of it takes about 5 minutes on 2 slow cores.
NETWORKS = {
  ours.CNN: Size(128, 5),
  "resnet8": Size(128, 3),
  "resnet18": Size(32, 1),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--networks", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS)
  )
  for name, default, text in (
    ("rounds", 9, "blocks of each (%(default)s)"),
    ("batch", 0, "examples of a step; 0 = 128, for resnet18 32"),
    ("width", 0, "channels of the first stage; 0 = the network's own"),
    ("steps", 0, "steps of a block; 0 = 5, 3 and 1"),
    ("threads", 0, "of each side; 0 = the CPUs that this process may use"),
  ):
    parser.add_argument(f"--{name}", type=int, default=default, help=text)
  add_json(parser)
  options = parser.parse_args(argv)
  with refusing():
    check(options)
    if importlib.util.find_spec("torch") is None:
      print(f"skipped: {MISSING}")
      figures: dict[str, Any] = {"status": "skipped", "reason": MISSING}
    else:
      figures = measure_all(options)
  report("peers_cpu", figures, options.json)
  return figures


def check(options: argparse.Namespace) -> None:
  """Refuses numbers that make no sense.

  Raises:
    InputError: names the flag and what is valid.
  """
  usable = len(usable_cpus())
  for name, least, most in (
    ("rounds", 1, None),
    ("batch", 0, None),
    ("width", 0, None),
    ("steps", 0, None),
    ("threads", 0, usable),
  ):
    value = getattr(options, name)
    if value < least or (most is not None and value > most):
      valid = f"at least {least}" if most is None else f"{least} to {most}"
      raise InputError(f"--{name} is {value}; valid is {valid}")
  if 0 < options.width < LEAST_WIDTH:
    raise InputError(
      f"--width is {options.width}; valid is 0 or at least {LEAST_WIDTH}:"
      " PyTorch crashes on narrower channels_last networks"
    )


def usable_cpus() -> list[int]:
  """The CPUs that this process may use, where the system tells."""
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def use_threads(count: int) -> int:
  """Limits what starts threads from now on; call it before JAX's first use.

  XLA takes as many threads as there are CPUs that it may use.

  Args:
    count: of threads; 0 = all.

  Raises:
    InputError: the system cannot limit them.
  """
  usable = usable_cpus()
  if count in (0, len(usable)):
    return len(usable)
  if not hasattr(os, "sched_setaffinity"):
    raise InputError("--threads: this system cannot limit them; leave it out")
  os.sched_setaffinity(0, usable[:count])
  return count


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
  """Measures every network that was asked for."""
  threads = use_threads(options.threads)
  from benchmarks._peers_torch import torch

  torch.set_num_threads(threads)
  print(
    f"float32, {threads} thread{'s' if threads > 1 else ''} on each side,"
    f" PyTorch {torch.__version__}"
  )
  rows = {}
  for name in options.networks:
    own = NETWORKS[name]
    size = Size(options.batch or own.batch, options.steps or own.steps)
    rows[name] = measure(name, options.width, size, options.rounds)
    tell(name, rows[name])
  met = {name: row["met"] for name, row in rows.items()}
  told = ", ".join(f"{n} {'met' if m else 'missed'}" for n, m in met.items())
  print(f"target: dormant at least {TARGET} of the faster layout: {told}")
  return {
    "status": "run",
    "threads": threads,
    "torch": str(torch.__version__),
    "target": TARGET,
    "met": all(met.values()),
    "networks": rows,
  }


def measure(
  network: str, width: int, size: Size, rounds: int
) -> dict[str, Any]:
  """Times one network in all its forms.

  Args:
    network: one of NETWORKS.
    width: channels of the first stage; 0 = its own.
    size: of batches and blocks.
    rounds: of one block each.
  """
  blocks, parameters = make_blocks(network, width, size.batch)
  seconds = interleaved(
    {n: functools.partial(b.run, size.steps) for n, b in blocks.items()}, rounds
  )
  return {
    "batch": size.batch,
    "steps": size.steps,
    "parameters": parameters,
    **compare(seconds, images=size.batch * size.steps),
  }


def make_blocks(
  network: str, width: int, batch: int
) -> tuple[dict[str, Block], int]:
  """Makes the contestants, all warm; returns the host's parameters too.

  Raises:
    SystemExit: they do not compute the same.
  """
  from benchmarks import _peers_torch as theirs

  config = ours.make_config(network, width=width, batch=batch)
  data = ours.noise(2 * batch)
  parts = ours.make_parts(network, config, data)
  state = assembly.new_state(config, parts)
  states = dict.fromkeys(STATES, state)
  states["growing"], _ = ours.planted(state, parts)
  module = ours.plain_module(network, config, jnp.float32)
  blocks = {BARE: ours.bare_block(module, parts, state, batch)}
  losses = {f"dormant, {BARE}": blocks[BARE].loss(CHECKED)}
  for name, own in states.items():
    blocks[name] = ours.trainer_block(parts, own, batch)
    losses[f"{name}, ours"] = blocks[name].loss(CHECKED)
    groups = group_params(own.params, own.seeds)
    exact = theirs.make_model(network, groups, exact=True)
    for layout in theirs.LAYOUTS:
      model = theirs.make_model(network, groups, exact=False)
      label = f"{name}, PyTorch {layout}"
      blocks[label] = theirs.block(model, data, batch=batch, layout=layout)
      blocks[label].run(1)
    reference = theirs.block(exact, data, batch=batch, layout=theirs.NHWC)
    losses[f"{name}, PyTorch"] = reference.loss(CHECKED)
  require_same(network, losses)
  return blocks, count_parameters(state)


def require_same(network: str, losses: Mapping[str, float]) -> None:
  """Ends the process with code 1 unless all forms of a state lose alike."""
  for state in STATES:
    own = {n: v for n, v in losses.items() if n.startswith(state)}
    values = np.array(list(own.values()))
    if not np.ptp(values) <= SAME * abs(values[0]):  # a NaN fails too
      told = ", ".join(f"{n} {v:.6f}" for n, v in own.items())
      raise SystemExit(
        f"FAILED: {network}: not the same steps; mean losses: {told}"
      )


def compare(
  seconds: Mapping[str, Sequence[float]], *, images: int
) -> dict[str, Any]:
  """Ratios and verdict of one network.

  Args:
    seconds: of every block, by contestant, paired by round.
    images: of a block.
  """
  speeds = {n: images / float(np.median(own)) for n, own in seconds.items()}
  found: dict[str, Any] = {"images_per_second": speeds, "ratios": {}}
  for state in STATES:
    peers = [n for n in seconds if n.startswith(f"{state}, ")]
    found["ratios"][state] = {
      name: paired_ratio(seconds[name], seconds[state])._asdict()
      for name in (*peers, BARE)
    }
    fastest = max(peers, key=lambda name: speeds[name])
    found[f"{state}_to_faster"] = {
      "layout": fastest.rpartition(" ")[2],
      **found["ratios"][state][fastest],
    }
  found["met"] = found["dormant_to_faster"]["median"] >= TARGET
  return {**found, "seconds": dict(seconds)}


def tell(network: str, row: Mapping[str, Any]) -> None:
  """Prints the figures of one network."""
  print(
    f"{network}: {row['parameters']:,} parameters, batch {row['batch']}, blocks"
    f" of {row['steps']}"
  )
  for name, speed in row["images_per_second"].items():
    print(f"  {name:30} {speed:10.1f} images/s")
  for state, ratios in row["ratios"].items():
    for name, ratio in ratios.items():
      peer = name.removeprefix(f"{state}, ")
      print(
        "  {} is {:.3f} [{:.3f}, {:.3f}] as fast as {}, n = {}".format(
          state, ratio["median"], ratio["low"], ratio["high"], peer, ratio["n"]
        )
      )


if __name__ == "__main__":
  main(sys.argv[1:])
