"""What does a Triton kernel gain over what XLA makes of its reference?

On a GPU: each kernel of the registry that runs on it is timed beside its
reference, alone, on the activations of a ResNet-18 at the batch size; its bytes
per second are compared with those of a copy, measured here. Then the training
step of that ResNet-18 (bfloat16), a seed or four in each slot: without kernels,
with them, and without seeds. What the slots take is the difference to the last;
ratios are paired by round, blocks of steps taking turns.

  .venv/bin/python -m benchmarks.kernels

Without a GPU nothing is timed. Told is what the compilers say (registers,
spills, shared memory, PTX version), what a call reads, writes and computes, and
how long it would last if memory alone ruled, at a bandwidth that is assumed
(--bandwidth): that is arithmetic, not a measurement. Every row says "compiled,
not run". To finish, on a GPU machine with '.[cuda12]' installed:

  .venv/bin/python -m esper_jax.urza validate && \\
    .venv/bin/python -m benchmarks.kernels --json=kernels.json
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks._common import add_json, refusing, report
from benchmarks._kernel_steps import ratio_of, resnet18, text_of, time_steps
from esper_jax.urza import (
  evidence,
  launching,
  measurement,
  orders,
  probe,
  timing,
  validation,
  workload,
)
from esper_jax.urza.artefact import Artefact
from esper_jax.urza.device import Device
from esper_jax.urza.dispatch import LAST_PORTABLE, Dispatcher, runs_on
from esper_jax.urza.judging import parts_of
from esper_jax.urza.kernel import TYPES
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.launching import Loaded
from esper_jax.urza.registry import Registry, open_registry
from esper_jax.urza.samples import samples

NOT_RUN = "compiled, not run"
RUN = "run"
BANDWIDTH = 3000.0  # GB/s, about what an H100 SXM copies at
COPY_TARGET = 0.8  # of the measured copy bandwidth
# Blueprint -> seeds in each slot.
SEEDS = {"lowrank": 4, "depthwise": 1, "norm": 1}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes.

  Raises:
    InputError: there is no such kernel, dtype, target or folder.
  """
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="--config.SECTION.KEY=VALUE changes a key of the ResNet's config.",
  )
  number = {"type": int, "help": "(%(default)s)"}
  parser.add_argument("--kernel", nargs="+", default=(), help="kernels (all)")
  parser.add_argument("--dtype", default="bfloat16", help="(%(default)s)")
  parser.add_argument("--dir", default="", help="the registry")
  parser.add_argument(
    "--trusted",
    action="append",
    default=[],
    metavar="DIR",
    help="a registry that may be used although others can write to it",
  )
  parser.add_argument("--batch", default=workload.BATCH, **number)
  parser.add_argument("--rounds", default=9, **number)
  parser.add_argument("--calls", default=20, **number)
  parser.add_argument(
    "--target",
    default="90",
    help="compute capability that is looked at without a GPU (%(default)s)",
  )
  parser.add_argument(
    "--bandwidth",
    type=float,
    default=BANDWIDTH,
    help="GB/s that are assumed without a GPU (%(default)s)",
  )
  add_json(parser)
  o, overrides = parser.parse_known_args(argv)
  strange = [word for word in overrides if not word.startswith("--config.")]
  if strange:
    parser.error(f"unrecognized arguments: {' '.join(strange)}")
  orders.chosen(o.kernel, KERNELS, "kernel")
  orders.chosen([o.dtype], TYPES, "dtype")
  (target,) = orders.targets_of([o.target])
  registry = open_registry(o.dir, trusted=o.trusted, make=False)
  artefacts = [
    artefact
    for artefact in validation.select(registry, o.kernel)
    if artefact.spec.dtype == o.dtype
  ]
  device = probe.gpu()
  if device is None:
    chosen = first_of_each(artefacts, target)
    figures = describe(registry, chosen, target, o.batch, o.bandwidth)
  else:
    effort = measurement.Effort(o.rounds, o.calls)
    chosen = first_of_each(artefacts, device.target)
    figures = time_kernels(registry, chosen, device, o.batch, effort)
    dispatcher = Dispatcher(
      registry, device, require="probed", probe=probe.make_probe(registry)
    )
    with resnet18(o.batch, overrides) as config:
      figures["steps"] = time_steps(config, SEEDS, dispatcher, effort)
  report("kernels", figures, o.json)
  return figures


def first_of_each(artefacts: Sequence[Artefact], target: int) -> list[Artefact]:
  """One artefact for each kernel and form: that of the best target.

  Args:
    artefacts: to choose from.
    target: compute capability that it must run on.
  """
  device = Device("", target, "", "")
  best: dict[str, Artefact] = {}
  for artefact in artefacts:
    spec = artefact.spec
    if not runs_on(spec.target, device):
      continue
    before = best.get(spec.handle)
    if before is None or _order(artefact) < _order(before):
      best[spec.handle] = artefact
  return sorted(best.values(), key=lambda a: (a.spec.kernel, a.spec.constants))


def _order(artefact: Artefact) -> tuple[int, int]:
  """The newest target first; of its tiles, the kernel's first."""
  kernel, dtype, constants = parts_of(artefact)
  form = kernel.form(*kernel.arguments(dtype, constants, 1, 1, 1))
  tiles = [tuple(sorted(t.items())) for t in kernel.tiles(form)]
  own = artefact.spec.tiles
  return -artefact.spec.target, tiles.index(own) if own in tiles else len(tiles)


def describe(
  registry: Registry,
  artefacts: Sequence[Artefact],
  target: int,
  batch: int,
  bandwidth: float,
) -> dict[str, Any]:
  """What is known of kernels without running them.

  Args:
    registry: holds the evidence.
    artefacts: to describe.
    target: compute capability that they were chosen for.
    batch: examples of a call.
    bandwidth: GB/s that are assumed.
  """
  print(
    f"{NOT_RUN}: no GPU here; to finish, on a GPU machine with '.[cuda12]'"
    f" installed: {orders.ON_A_GPU}"
  )
  print(
    f"sm_{target}: of each kernel, the stored code for the newest target that"
    f" runs there (for up to sm_{LAST_PORTABLE} it runs on later devices too,"
    " for a later one on its own alone)"
  )
  print(f"floor: computed from bytes at an assumed {bandwidth:g} GB/s")
  rows = []
  for artefact in artefacts:
    row = _row(artefact, batch)
    static: Mapping[str, Any] = {}
    for record in registry.record(artefact.key).evidence:
      static = record if record["kind"] == "static" else static
    for name in ("registers", "spills", "shared", "ptx_version"):
      row[name] = static.get(name)
    row["floor_us_computed"] = 1e-3 * row["bytes"] / bandwidth
    row["status"] = NOT_RUN
    rows.append(row)
    print(
      f"  {row['name']}: {row['registers']} registers, {row['spills']} B"
      f" spilled, {row['shared']} B shared, PTX {row['ptx_version']};"
      f" {1e-6 * row['bytes']:.1f} MB, {1e-9 * row['flops']:.2f} GFLOP,"
      f" {row['intensity']:.1f} FLOP/B; floor {row['floor_us_computed']:.1f} us"
      f" (computed); {NOT_RUN}"
    )
  return {"status": NOT_RUN, "assumed_bandwidth_gb_s": bandwidth, "rows": rows}


def _row(artefact: Artefact, batch: int) -> dict[str, Any]:
  kernel, dtype, constants = parts_of(artefact)
  sizes = workload.sizes_of(constants, batch=batch)
  shape = workload.shape_of_call(kernel, dtype, constants, sizes)
  cost = kernel.cost(*kernel.arguments(dtype, constants, *shape))
  return {
    "name": orders.name_of(artefact.spec),
    "kernel": kernel.name,
    "dtype": dtype,
    "constants": constants,
    "target": artefact.spec.target,
    "key": artefact.key,
    "shape": shape,
    "bytes": cost.bytes,
    "flops": cost.flops,
    "intensity": cost.flops / cost.bytes,
  }


def _refusal(
  registry: Registry, artefact: Artefact, device: Device, first_use: probe.Probe
) -> str:
  """Why an artefact cannot be used on a device; probes what nobody probed."""
  records = registry.record(artefact.key).evidence
  known_by = device.kind, device.driver, device.jaxlib
  if evidence.probed(records, *known_by):
    return ""
  verdict = first_use(artefact.key, device)
  return "" if verdict.ok else verdict.reason


def _compile(lowered: Mapping[str, Any]) -> dict[str, Any]:
  return {name: program.compile() for name, program in lowered.items()}


Launcher = Callable[[Any, Loaded, Device], launching.Launch]
"""As `launching.launcher`."""


def time_kernels(
  registry: Registry,
  artefacts: Sequence[Artefact],
  device: Device,
  batch: int,
  effort: measurement.Effort,
  *,
  first_use: probe.Probe | None = None,
  launcher: Launcher = launching.launcher,
  copy_bytes: int = 2**28,
) -> dict[str, Any]:
  """Times kernels alone, beside their references and a copy.

  Args:
    registry: holds them.
    artefacts: to time.
    device: that is here.
    batch: examples of a call.
    effort: how long is measured.
    first_use: probes each first; None takes `probe.make_probe`.
    launcher: makes what runs an artefact.
    copy_bytes: size of the array that is copied.
  """
  first_use = first_use or probe.make_probe(registry)
  bandwidth = 1e-9 * timing.copy_bandwidth(copy_bytes, calls=effort.calls)
  print(f"{device.kind}: copies at {bandwidth:.0f} GB/s")
  rows, ready = [], []
  for artefact in artefacts:
    row = _row(artefact, batch)
    rows.append(row)
    reason = _refusal(registry, artefact, device, first_use)
    if reason:
      row |= {"status": "probe failed", "reason": reason}
      print(f"  {row['name']}: probe failed: {reason}")
      continue
    kernel, dtype, constants = parts_of(artefact)
    args = kernel.arguments(dtype, constants, *row["shape"])
    launch = launcher(kernel, Loaded(*registry.load(artefact.key)), device)
    lowered = measurement.lower_alone(kernel, args, launch)
    ready.append((row, artefact, lowered))
  # All are compiled before any is timed.
  compiled = list(orders.each(lambda one: _compile(one[2]), ready))
  for (row, artefact, _), programs in zip(ready, compiled, strict=True):
    kernel, dtype, constants = parts_of(artefact)
    args = jax.device_put(samples(kernel, dtype, constants, *row["shape"]))
    seconds = measurement.time_programs(programs, args, effort)
    ratios = np.divide(seconds["reference"], seconds["kernel"]).tolist()
    kernel_s = float(np.median(seconds["kernel"]))
    speed = 1e-9 * row["bytes"] / kernel_s
    row |= {
      "status": RUN,
      "kernel_us": 1e6 * kernel_s,
      "reference_us": 1e6 * float(np.median(seconds["reference"])),
      "ratio": ratio_of(ratios),
      "gb_s": speed,
      "share_of_copy": speed / bandwidth,
      "seconds": seconds,
    }
    print(
      f"  {row['name']}: {row['kernel_us']:.1f} us, reference"
      f" {row['reference_us']:.1f} us, ratio {text_of(row['ratio'])};"
      f" {speed:.0f} GB/s, {100 * row['share_of_copy']:.0f} % of a copy"
    )
  shares = [row["share_of_copy"] for row in rows if row["status"] == RUN]
  met = bool(shares) and min(shares) >= COPY_TARGET
  print(
    f"target: at least {100 * COPY_TARGET:.0f} % of a copy,"
    f" {'met' if met else 'missed'}"
  )
  return {
    "status": RUN,
    "device_record": device._asdict(),
    "copy_gb_s": bandwidth,
    "rows": rows,
    "target": COPY_TARGET,
    "met": met,
  }


if __name__ == "__main__":
  with refusing(orders.in_options):
    main(sys.argv[1:])
