"""How fast is ResNet-18 training on a GPU beside PyTorch and a bare JAX loop?

CIFAR shapes (noise), bfloat16, batch 512, the whole step: gather a batch of
bytes, normalize, crop and flip each image at random, forward, backward, SGD
with momentum and decoupled weight decay. `trainer` is the trainer's own call of
its own program, all slots empty, as many steps a call as on a GPU by default;
`bare JAX` is a loop over a jitted step of the host without slots; `PyTorch` is
the same network with torch.compile, channels_last, autocast to bfloat16 and the
fused optimizer. Blocks of steps take turns on one GPU, in an order that changes
from round to round; ratios of speeds are paired by round: the median and its
90 % percentile bootstrap interval.

  .venv/bin/python -m benchmarks.peers_gpu

Without a GPU: not run. `--smoke` runs every path once at a size that any CPU
takes, PyTorch eagerly; its figures are no measurement.
"""

import argparse
import functools
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
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
from esper_jax.types import InputError

NO_GPU = (
  "JAX finds no GPU (it takes an NVIDIA GPU and"
  f" {commands.pip()} install -e '.[cuda12]')"
)
NO_TORCH = f"PyTorch is not installed ({commands.pip()} install torch)"
NO_CUDA = "this PyTorch finds no GPU"
SMOKE = "smoke: not a measurement"
TRAINER, BARE, TORCH = "trainer", "bare JAX", "PyTorch"
PRECISION = "bfloat16"


class Size(NamedTuple):
  """What is run.

  Attributes:
    network: name of the host.
    width: channels of its first stage; 0 = its own.
    batch: examples of a step.
    steps: of a block.
    rounds: blocks of each.
    warmup: steps before the first block.
    chunk: steps of one call of the trainer; 0 = its default.
    examples: in the data set.
  """

  network: str
  width: int
  batch: int
  steps: int
  rounds: int
  warmup: int
  chunk: int
  examples: int


FULL = Size("resnet18", 0, 512, 64, 9, 64, 0, 49_152)
SMALL = Size("resnet8", 8, 4, 2, 2, 2, 2, 16)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, text in (
    ("batch", "examples of a step (512)"),
    ("steps", "of a block (64)"),
    ("rounds", "blocks of each (9)"),
  ):
    parser.add_argument(f"--{name}", type=int, help=text)
  parser.add_argument(
    "--torch_mode", default="default", help="of torch.compile (%(default)s)"
  )
  parser.add_argument("--smoke", action="store_true", help=SMOKE)
  add_json(parser)
  options = parser.parse_args(argv)
  with refusing():
    size = size_of(options)
  # Both frameworks need room on the one GPU.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  on_gpu = jax.default_backend() == "gpu"
  if not on_gpu and not options.smoke:
    print(f"not run: {NO_GPU}")
    figures: dict[str, Any] = {"status": "not run", "reason": NO_GPU}
  else:
    figures = measure(size, options, on_gpu)
  report("peers_gpu", figures, options.json)
  return figures


def size_of(options: argparse.Namespace) -> Size:
  """The size that was asked for.

  Raises:
    InputError: names the flag and what is valid.
  """
  size = SMALL if options.smoke else FULL
  for name in ("batch", "steps", "rounds"):
    value = getattr(options, name)
    if value is None:
      continue
    if value < 1:
      raise InputError(f"--{name} is {value}; valid is at least 1")
    size = size._replace(**{name: value})
  return size._replace(examples=max(size.examples, size.batch))


def measure(
  size: Size, options: argparse.Namespace, on_gpu: bool
) -> dict[str, Any]:
  """Times all that is there.

  Args:
    size: of the networks, batches and blocks.
    options: smoke and torch_mode are read.
    on_gpu: whether JAX has one.
  """
  blocks, absent, facts = make_blocks(size, options.torch_mode, on_gpu)
  for block in blocks.values():
    block.run(size.warmup)
  seconds = interleaved(
    {n: functools.partial(b.run, size.steps) for n, b in blocks.items()},
    size.rounds,
  )
  status = SMOKE if options.smoke else "run"
  rows = compare(seconds, absent, images=size.batch * size.steps)
  tell(rows, size, f" ({SMOKE})" if options.smoke else "")
  return {
    "status": status,
    "size": size._asdict(),
    "precision": PRECISION,
    **facts,
    "rows": rows,
    "seconds": seconds,
  }


def make_blocks(
  size: Size, mode: str, on_gpu: bool
) -> tuple[dict[str, Block], dict[str, str], dict[str, Any]]:
  """Makes the contestants.

  Returns:
    Them by name; why others are absent; what the figures shall say besides.
  """
  config = ours.make_config(
    size.network,
    width=size.width,
    batch=size.batch,
    precision=PRECISION,
    augment=("crop", "flip"),
    chunk=size.chunk,
  )
  data = ours.noise(size.examples)
  parts = ours.make_parts(size.network, config, data)
  state = assembly.new_state(config, parts)
  module = ours.plain_module(size.network, config, jnp.bfloat16)
  blocks = {
    TRAINER: ours.trainer_block(parts, state, size.batch),
    BARE: ours.bare_block(module, parts, state, size.batch),
  }
  facts: dict[str, Any] = {"chunk": parts.chunk, "torch": None}
  if importlib.util.find_spec("torch") is None:
    return blocks, {TORCH: NO_TORCH}, facts
  from benchmarks import _peers_torch as theirs

  facts["torch"] = str(theirs.torch.__version__)
  if on_gpu and not theirs.torch.cuda.is_available():
    return blocks, {TORCH: NO_CUDA}, facts
  theirs.torch.backends.cudnn.benchmark = True
  groups = group_params(state.params, state.seeds)
  blocks[TORCH] = theirs.block(
    theirs.make_model(size.network, groups, exact=False),
    data,
    batch=size.batch,
    layout=theirs.NHWC,
    device="cuda" if on_gpu else "cpu",
    precision=PRECISION,
    augmented=True,
    compiled=mode if on_gpu else "",
  )
  return blocks, {}, {**facts, "torch_mode": mode if on_gpu else "eager"}


def compare(
  seconds: Mapping[str, Sequence[float]],
  absent: Mapping[str, str],
  *,
  images: int,
) -> dict[str, Any]:
  """A row for each contestant.

  Args:
    seconds: of every block, by contestant, paired by round.
    absent: name -> why it was not run.
    images: of a block.
  """
  rows: dict[str, Any] = {
    name: {
      "images_per_second": images / float(np.median(own)),
      "trainer_ratio": paired_ratio(own, seconds[TRAINER])._asdict(),
    }
    for name, own in seconds.items()
  }
  return rows | {n: {"not_run": reason} for n, reason in absent.items()}


def tell(rows: Mapping[str, Any], size: Size, mark: str) -> None:
  """Prints the rows, each with the mark at its end."""
  print(f"{size.network}, {PRECISION}, batch {size.batch}{mark}")
  for name, row in rows.items():
    if "not_run" in row:
      print(f"  {name}: not run: {row['not_run']}{mark}")
      continue
    text = f"  {name}: {row['images_per_second']:.1f} images/s"
    if name != TRAINER:
      ratio = "{median:.3f} [{low:.3f}, {high:.3f}], n = {n}"
      text += ", the trainer's speed is "
      text += ratio.format(**row["trainer_ratio"]) + " of it"
    print(text + mark)


if __name__ == "__main__":
  main(sys.argv[1:])
