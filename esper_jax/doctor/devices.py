"""The devices that JAX sees: which there are, and whether they compute."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from esper_jax.doctor import combinations
from esper_jax.doctor.packages import Find, version_of
from esper_jax.doctor.report import Level, Line, reason
from esper_jax.doctor.settings import Settings
from esper_jax.urza import device as urza_device

_GPUS = ("gpu", "cuda", "rocm")
_INPUT = np.arange(16, dtype=np.float32).reshape(4, 4)
EXPECTED = 3920.0  # a sum of small integers: exact in every precision


def run_on(device: Any) -> float:
  """Runs a tiny program on a device; EXPECTED if all is well."""
  program = jax.jit(lambda x: (x @ x).sum())
  return float(program(jax.device_put(_INPUT, device)))


def driver() -> str:
  """Version of the NVIDIA driver; "" where none is here."""
  return urza_device.driver_version() or ask_driver("nvidia-smi")


def ask_driver(program: str) -> str:
  """The driver's version as nvidia-smi says it; "" where it says none."""
  if not shutil.which(program):
    return ""
  command = (program, "--query-gpu=driver_version", "--format=csv,noheader")
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=5)
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return done.stdout.partition("\n")[0].strip() if not done.returncode else ""


def check(
  settings: Settings,
  *,
  devices: Callable[[], Sequence[Any]] = jax.devices,
  run: Callable[[Any], float] = run_on,
  driver: Callable[[], str] = driver,
  environ: Mapping[str, str] = os.environ,
  find: Find = metadata.distribution,
) -> Iterator[Line]:
  """Yields a line on all devices, one for each, and one on the GPU.

  Args:
    settings: not looked at.
    devices: those that JAX sees.
    run: see `run_on`.
    driver: see `driver`.
    environ: the environment.
    find: finds what is installed.
  """
  del settings
  try:
    seen = devices()
  except Exception as error:  # JAX raises several kinds, one without words
    yield _none(error, environ)
    seen = ()
  if seen:
    kinds = Counter(f"{d.platform} ({d.device_kind})" for d in seen)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    more = "; a run uses the first" if len(seen) > 1 else ""
    yield Line("devices", Level.OK, found + more)
  for device in seen:
    yield _one(device, run)
  yield from _gpu(seen, driver(), environ, find)


def _none(error: Exception, environ: Mapping[str, str]) -> Line:
  found = f"JAX finds none: {reason(error)}"
  chosen = environ.get("JAX_PLATFORMS", "")
  remedy = "reinstall jax and jaxlib, or set JAX_PLATFORMS=cpu"
  if chosen:
    remedy = f"set JAX_PLATFORMS, which is {chosen}, to cpu, or unset it"
  return Line("devices", Level.FAIL, found, remedy)


def _one(device: Any, run: Callable[[Any], float]) -> Line:
  item = f"{device.platform}:{device.id}"
  found = f"{device.device_kind}, {_memory(device)}"
  remedy = (
    "see that no other program has its memory (nvidia-smi), that driver and"
    " jaxlib fit each other, or set JAX_PLATFORMS=cpu"
  )
  try:
    result = run(device)
  except Exception as error:  # whatever a broken device raises
    text = f"{found}: no program runs: {reason(error)}"
    return Line(item, Level.FAIL, text, remedy)
  if result != EXPECTED:
    text = f"{found}: a program gives {result}, not {EXPECTED}"
    return Line(item, Level.FAIL, text, remedy)
  return Line(item, Level.OK, f"{found}; a program runs and is right")


def _memory(device: Any) -> str:
  """What JAX may take of the device's memory; of a CPU's, all."""
  if device.platform == "cpu":
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  else:
    total = (device.memory_stats() or {}).get("bytes_limit", 0)
  return f"{total / 2**30:.1f} GiB" if total else "memory unknown"


def _gpu(
  seen: Sequence[Any], version: str, environ: Mapping[str, str], find: Find
) -> Iterator[Line]:
  if any(device.platform in _GPUS for device in seen):
    found = f"JAX uses it; NVIDIA driver {version or 'unknown'}"
    yield Line("gpu", Level.OK, found)
    return
  platforms = environ.get("JAX_PLATFORMS", "").split(",")
  hidden = environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
  if platforms != [""] and not {"cuda", "gpu"} & {*platforms}:
    hidden = True
  line = combinations.without_gpu(
    driver=bool(version),
    plugin=any(version_of(find, name) for name in combinations.PLUGINS),
    hidden=hidden,
  )
  if line:
    yield line
  elif seen:
    yield Line("gpu", Level.OK, "none here; runs use the CPU")
