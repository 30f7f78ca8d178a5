"""Artefacts and evidence for tests of the registry; nothing runs them."""

import hashlib
import os
from pathlib import Path
from typing import Any

from esper_jax.urza.artefact import Artefact, File, Launch, Spec
from esper_jax.urza.registry import Registry, open_registry

DEVICE = "NVIDIA H100 80GB HBM3"
OTHER = "NVIDIA A10G"
FULL = os.environ.get("ESPER_TEST_FULL") == "1"
_ALWAYS = {
  "made": "2026-11-25T08:00:00Z",
  "by": {"python": "3.11.0", "jaxlib": "0.10.2", "triton": "3.9.0"},
}


def artefact(
  number: int = 0, *, kernel: str = "copy", target: int = 80, shared: int = 8192
) -> tuple[Artefact, dict[str, bytes]]:
  """An artefact of its own for each number, and its files."""
  files = {
    "ptx": b".version 8.7\n.target sm_80\n// %d %d\n" % (number, target) * 9,
    "ttir": b"module { %d }\n" % number * 9,
  }
  spec = Spec(
    kernel=kernel,
    source=hashlib.sha256(kernel.encode()).hexdigest(),
    signature=(("x", "*fp32"), ("y", "*fp32"), ("rows", "i32")),
    constants=(("C", number),),
    tiles=(("num_stages", 2), ("num_warps", 4)),
    options=(("enable_fp_fusion", True), ("ptx_version", 87)),
    target=target,
    triton="3.9.0",
  )
  described = {
    name: File(hashlib.sha256(data).hexdigest(), len(data))
    for name, data in files.items()
  }
  return Artefact(spec, Launch(kernel, 4, shared), described), files


def interpret(error: float = 1e-7, **fields: Any) -> dict[str, Any]:
  """Evidence of the interpreter; ok where the error is small enough."""
  case = {"dtype": "float32", "shapes": [[2, 5], []], "error": error}
  return {
    **_ALWAYS,
    "kind": "interpret",
    "cases": [case | {"tolerance": 1e-5}],
    "ok": error <= 1e-5,
    **fields,
  }


def static(**fields: Any) -> dict[str, Any]:
  """Evidence of the assembler."""
  return {
    **_ALWAYS,
    "kind": "static",
    "registers": 64,
    "spills": 0,
    "shared": 8192,
    "ptx_version": "8.7",
    "assembled_for": [80, 90],
    "ok": True,
    **fields,
  }


def xla_aot(**fields: Any) -> dict[str, Any]:
  """Evidence of a compilation for an absent device."""
  return {**_ALWAYS, "kind": "xla_aot", "target": DEVICE, "ok": True, **fields}


def probe(**fields: Any) -> dict[str, Any]:
  """A verdict of the probe."""
  return {
    **_ALWAYS,
    "kind": "probe",
    "device_kind": DEVICE,
    "driver": "570.1",
    "jaxlib": "0.10.2",
    "ok": True,
    "reason": "",
    **fields,
  }


def gpu(**fields: Any) -> dict[str, Any]:
  """A run on a GPU, right and fast."""
  return {
    **_ALWAYS,
    "kind": "gpu",
    "device_kind": DEVICE,
    "driver": "570.1",
    "jaxlib": "0.10.2",
    "max_error": 1e-6,
    "tolerance": 1e-5,
    "deterministic": True,
    "step_ratios": [1.5, 1.6, 1.55, 1.5, 1.52],
    "kernel_us": 20.0,
    "reference_us": 30.0,
    "peak_bytes": 10**6,
    "bytes": 10**6,
    **fields,
  }


ALL = (interpret, static, xla_aot, probe, gpu)


def registry(folder: Path) -> Registry:
  """A registry of one layer."""
  return open_registry(layers=[folder])


def filled(folder: Path, count: int = 1) -> tuple[Registry, list[str]]:
  """A registry with some artefacts, each with every kind of evidence."""
  made = registry(folder)
  keys = [made.put(*artefact(n)) for n in range(count)]
  for key in keys:
    for record in ALL:
      made.append(key, record())
  return made, keys


def files_of(folder: Path) -> list[Path]:
  """All files of a layer, in order."""
  return sorted(path for path in folder.rglob("*") if path.is_file())


def changed(ptx: bytes) -> tuple[Artefact, dict[str, bytes]]:
  """Artefact 0 as it must never be: the same spec with other code."""
  made, files = artefact()
  file = File(hashlib.sha256(ptx).hexdigest(), len(ptx))
  described = {**made.files, "ptx": file}
  return Artefact(made.spec, made.launch, described), {**files, "ptx": ptx}
