"""What a kernel must know of the device that it is to run on."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jaxlib.version

_DRIVER = Path("/proc/driver/nvidia/version")


class Device(NamedTuple):
  """An NVIDIA GPU, as evidence about kernels names it.

  Attributes:
    kind: the model, e.g. "NVIDIA H100 80GB HBM3".
    target: its compute capability, e.g. 90 for 9.0.
    driver: version of the kernel module; empty where it is not told.
    jaxlib: version of jaxlib, which holds the compiler.
  """

  kind: str
  target: int
  driver: str
  jaxlib: str

  @classmethod
  def of(cls, device: Any) -> "Device | None":
    """The record of a `jax.Device`; None where it is no NVIDIA GPU."""
    capability = str(getattr(device, "compute_capability", ""))
    if device.platform not in ("gpu", "cuda"):
      return None
    if not re.fullmatch(r"\d+\.\d", capability):
      return None  # another maker's name for it
    return cls(
      device.device_kind,
      int(capability.replace(".", "")),
      driver_version(),
      jaxlib.version.__version__,
    )


def driver_version(file: Path = _DRIVER) -> str:
  """Version of the NVIDIA kernel module; empty where none is loaded."""
  try:
    text = file.read_text(errors="replace")
  except OSError:
    return ""
  found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
  return found.group(1) if found else ""
