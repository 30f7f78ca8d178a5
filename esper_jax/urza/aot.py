"""XLA's own compilation of a kernel for a GPU that is not here.

Needs jaxlib's CUDA plugin with its PJRT part, ptxas and libdevice (wheels
jax-cuda13-plugin, jax-cuda13-pjrt, nvidia-cuda-nvcc and nvidia-nvvm), and a
description of the GPU as XLA writes it (openxla/xla,
xla/backends/gpu/target_config/specs). Machine code is assembled and put into
an executable; nothing runs.
"""

from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from esper_jax.types import InputError
from esper_jax.urza import dispatch, launching, wire
from esper_jax.urza.device import Device
from esper_jax.urza.kernel import Kernel

# There is no device on which XLA could try its own programs.
_OPTIONS: dict[str, Any] = {"xla_gpu_autotune_level": 0}


class Unavailable(Exception):
  """Nothing can be compiled for an absent GPU here; the text says why."""


class CannotCompile(Exception):
  """XLA refuses the program; the text says why."""


def described_device(file: Path) -> Any:
  """The `jax.Device` that a description stands for; it cannot run anything.

  Raises:
    InputError: the file cannot be read, or is no description of a GPU.
    Unavailable: jaxlib's CUDA plugin is missing.
  """
  try:
    text = file.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"cannot read the target '{file}': {error}") from error
  try:
    topology = topologies.get_topology_desc(
      "", "cuda", target_config=text, topology="1x1x1"
    )
  except NotImplementedError as error:
    raise Unavailable("jaxlib's CUDA plugin is not installed") from error
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise InputError(f"'{file}' describes no GPU: {reason}") from error
  return topology.devices[0]


def compile_for(
  target: Any,
  kernel: Kernel,
  loaded: launching.Loaded,
  args: tuple[jax.ShapeDtypeStruct, ...],
) -> str:
  """Compiles a call of an artefact.

  Args:
    target: see `described_device`.
    kernel: the artefact's.
    loaded: the artefact.
    args: shapes of the arguments.

  Returns:
    The compiled program as XLA writes it.

  Raises:
    CannotCompile: XLA or its assembler refuses.
    NotLaunched: the artefact does not suit the target or the arguments.
  """
  device = Device.of(target)
  if device is None:
    raise CannotCompile(f"{target.device_kind} is no NVIDIA GPU")
  here = jax.sharding.SingleDeviceSharding(target)
  placed = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for a in args]
  own = launching.dispatcher([loaded], device)
  with dispatch.using(own):
    traced = jax.jit(lambda *a: dispatch.call(kernel, *a)).trace(*placed)
  launching.require_all(own)
  try:
    text = traced.lower().compile(compiler_options=_OPTIONS).as_text()
  except jax.errors.JaxRuntimeError as error:
    raise CannotCompile(str(error).splitlines()[0]) from error
  if text is None or wire.CALL_TARGET not in text:
    raise CannotCompile("the kernel is not in the compiled program")
  return text
