"""The training step of a whole network with seeds, with and without kernels."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks._common import (
  interleaved,
  load_config,
  step_arguments,
  step_block,
)
from benchmarks.loop_efficiency import write_random_cifar
from esper_jax.kasmina import surgery
from esper_jax.tolaria import assembly, steps
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.state import TrainState
from esper_jax.urza import dispatch, evidence, measurement, orders, timing
from esper_jax.urza.dispatch import Dispatcher, Fallback

SLOT_TARGET = 1.3  # reference / kernel, of the time that the slots take
# Blueprints that must reach SLOT_TARGET.
_TARGETED = ("lowrank", "depthwise")


@contextlib.contextmanager
def resnet18(batch: int, overrides: Sequence[str]) -> Iterator[ConfigDict]:
  """The config of a ResNet-18 in bfloat16 on noise in CIFAR-10's shapes."""
  with tempfile.TemporaryDirectory() as folder:
    write_random_cifar(Path(folder))
    own = [
      f"--config.data.dir={folder}",
      "--config.data.train_limit=4096",
      f"--config.data.batch_size={batch}",
      "--config.train.precision=bfloat16",
    ]
    yield load_config("configs/cifar10.py:gpu", [*own, *overrides])


def time_steps(
  config: ConfigDict,
  seeds: Mapping[str, int],
  dispatcher: Dispatcher,
  effort: measurement.Effort,
) -> dict[str, Any]:
  """Times the training step without seeds, with seeds, and with kernels.

  Args:
    config: of the host.
    seeds: blueprint -> seeds in each slot.
    dispatcher: chooses the kernels.
    effort: how long is measured.

  Returns:
    Figures of each blueprint.
  """
  parts = assembly.assemble(config, assembly.load_data(config))
  bare = assembly.new_state(config, parts)
  batch = config.data.batch_size

  def lower(state: TrainState, chosen: Dispatcher | None) -> tuple[Any, Any]:
    args = step_arguments(parts, state, batch)
    # A new function for each: what is traced depends on the dispatcher.
    step = steps.make_train_step(parts.host, parts.steps)
    with dispatch.using(chosen):
      return jax.jit(step, donate_argnums=(0, 1)).lower(*args), args

  arms: dict[Any, tuple[Any, Any]] = {"bare": lower(bare, None)}
  told = {}
  for blueprint, count in seeds.items():
    state = plant_all(bare, parts, blueprint, count)
    arms[blueprint, "reference"] = lower(state, None)
    arms[blueprint, "kernel"] = lower(state, dispatcher)
    told[blueprint] = dispatcher.fallbacks()
  programs = orders.each(lambda arm: arm[0].compile(), arms.values())
  blocks = {
    name: step_block(program, args, effort.calls)
    for (name, (_, args)), program in zip(arms.items(), programs, strict=True)
  }
  found = {}
  for blueprint, count in seeds.items():
    own = {name: blocks[blueprint, name] for name in ("reference", "kernel")}
    own["bare"] = blocks["bare"]
    interleaved(own, 1)  # warm-up
    seconds = {
      name: [s / effort.calls for s in taken]
      for name, taken in interleaved(own, effort.rounds).items()
    }
    found[blueprint] = compare(blueprint, count, seconds, told[blueprint])
  return found


def plant_all(
  state: TrainState, parts: Parts, blueprint: str, count: int
) -> TrainState:
  """Plants seeds of a blueprint in every slot and blends them in."""
  growth = parts.growth
  root = jax.random.key(growth.seed)
  for number, (slot, spec) in enumerate(growth.slots.items()):
    for turn in range(count):
      state, key = surgery.germinate(
        state,
        spec,
        blueprint,
        key=jax.random.fold_in(root, number * count + turn),
        optimizer=growth.optimizer,
        initializer=growth.initializer,
        permanent=(),
      )
      state = surgery.set_leaves(state, slot, key, alpha=0.3, isolation=0.0)
  return state


def compare(
  blueprint: str,
  count: int,
  seconds: Mapping[str, Sequence[float]],
  fallbacks: Sequence[Fallback],
) -> dict[str, Any]:
  """Compares the steps of one blueprint and prints the result.

  Args:
    blueprint: its name.
    count: seeds in each slot.
    seconds: of "bare", "reference" and "kernel", paired by round.
    fallbacks: references that took a kernel's place.
  """
  told = [f"{f.kernel}: {f.reason}" for f in fallbacks]
  ratios = np.divide(seconds["reference"], seconds["kernel"]).tolist()
  row: dict[str, Any] = {
    "seeds": count,
    "ms": {name: 1e3 * float(np.median(own)) for name, own in seconds.items()},
    "step_ratio": ratio_of(ratios),
    "slot_ratio": None,
    "fallbacks": told,
    "seconds": seconds,
  }
  text = "cannot be told"
  with contextlib.suppress(timing.Noise):
    shares = timing.share_ratios(
      seconds["reference"], seconds["kernel"], seconds["bare"]
    )
    row["slot_ratio"] = ratio_of(shares)
    text = text_of(row["slot_ratio"])
  if blueprint in _TARGETED:
    slot = row["slot_ratio"]
    row["target"] = SLOT_TARGET
    row["met"] = slot is not None and slot["low"] >= SLOT_TARGET
    text += f" (target {SLOT_TARGET}: {'met' if row['met'] else 'missed'})"
  print(
    f"  {blueprint} x {count} in each slot: {row['ms']['bare']:.2f} ms a step"
    f" without seeds, {row['ms']['reference']:.2f} with,"
    f" {row['ms']['kernel']:.2f} with kernels; step ratio"
    f" {text_of(row['step_ratio'])}, slots' ratio {text}"
  )
  for reason in told:
    print(f"    reference instead of {reason}")
  return row


def ratio_of(ratios: Sequence[float]) -> dict[str, float]:
  """Median and interval of paired ratios; see `evidence.interval`."""
  median, low, high = evidence.interval(ratios)
  return {"median": median, "low": low, "high": high, "n": len(ratios)}


def text_of(ratio: Mapping[str, float]) -> str:
  """For people."""
  return "{median:.3f} [{low:.3f}, {high:.3f}], n = {n}".format(**ratio)
