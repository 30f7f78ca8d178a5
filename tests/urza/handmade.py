"""Artefacts and evidence written by hand: whole, but never compiled or run."""

import hashlib
from collections.abc import Mapping
from typing import Any

from esper_jax.urza.artefact import Artefact, File, Launch, Spec
from esper_jax.urza.device import Device
from esper_jax.urza.kernel import Kernel

H100 = Device("NVIDIA H100 80GB HBM3", 90, "570.1", "0.11.2")
MADE = "2026-11-25T08:00:{:02}Z"


def artefact(
  kernel: Kernel,
  *args: Any,
  target: int = 90,
  tiles: Mapping[str, int] | None = None,
  shared: int = 0,
) -> tuple[Artefact, dict[str, bytes]]:
  """An artefact for these arguments, and its files."""
  form = kernel.form(*args)
  chosen = tuple(sorted((tiles or kernel.tiles(form)[0]).items()))
  name = f"{kernel.name} sm_{target} {chosen} {form}"
  files = {"ptx": f"// {name}\n".encode() * 5, "ttir": f"# {name}".encode()}
  spec = Spec(
    kernel=kernel.name,
    source=kernel.source.digest,
    signature=form.signature,
    constants=form.constants,
    tiles=chosen,
    options=(("ptx_version", 87),),
    target=target,
    triton="3.9.0",
  )
  described = {
    name: File(hashlib.sha256(data).hexdigest(), len(data))
    for name, data in files.items()
  }
  entry = kernel.source.name
  return Artefact(spec, Launch(entry, 4, shared), described), files


def gpu(
  device: Device = H100, *, ratio: float = 1.5, second: int = 0, **changes: Any
) -> dict[str, Any]:
  """What a run on a GPU leaves behind."""
  record = {
    "kind": "gpu",
    "made": MADE.format(second),
    "by": {"jaxlib": device.jaxlib},
    "device_kind": device.kind,
    "driver": device.driver,
    "jaxlib": device.jaxlib,
    "max_error": 0.0,
    "tolerance": 1e-5,
    "deterministic": True,
    "step_ratios": [ratio, ratio * 1.01, ratio * 1.02, ratio, ratio * 1.01],
    "kernel_us": 10.0,
    "reference_us": 15.0,
    "peak_bytes": 100,
    "bytes": 50,
  }
  return record | changes


def probe(
  device: Device = H100, *, ok: bool, second: int = 0
) -> dict[str, Any]:
  """What a probe leaves behind."""
  return {
    "kind": "probe",
    "made": MADE.format(second),
    "by": {"jaxlib": device.jaxlib},
    "device_kind": device.kind,
    "driver": device.driver,
    "jaxlib": device.jaxlib,
    "ok": ok,
    "reason": "" if ok else "off by 2",
  }
