"""What the assembler that comes with Triton says about PTX.

It is NVIDIA's ptxas of CUDA 12.9, the oldest that assembles our PTX on a
user's machine (jax[cuda12]), and it needs no GPU.
"""

import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

# Compute capability -> bytes of shared memory that a program may have at most.
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities
SHARED_MEMORY = {
  75: 64 * 1024,
  80: 163 * 1024,
  86: 99 * 1024,
  89: 99 * 1024,
  90: 227 * 1024,
  100: 227 * 1024,
}
TARGETS = tuple(SHARED_MEMORY)
_SPECIFIC = 90  # from here on, Triton's PTX is for one architecture alone
_PTXAS = "backends/nvidia/bin/ptxas"
_PTX, _CUBIN = "kernel.ptx", "kernel.cubin"
_TIMEOUT = 600.0  # seconds
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_VERSION = re.compile(rb"^\.version (\d+\.\d+)$", re.MULTILINE)


class AssemblerError(Exception):
  """The assembler refuses PTX; the text is the first line of its reasons."""


class Assembled(NamedTuple):
  """Machine code, and what it needs.

  Attributes:
    cubin: the code.
    registers: of a thread.
    spills: bytes of a thread's local memory accesses, stores and loads.
  """

  cubin: bytes
  registers: int
  spills: int


def assemble(ptx: bytes, target: int) -> Assembled:
  """Makes machine code.

  Args:
    ptx: of one kernel.
    target: compute capability, one of TARGETS.

  Raises:
    AssemblerError: see there.
  """
  cubin, log = _run(ptx, f"sm_{_architecture(ptx, target)}")
  registers = _REGISTERS.search(log)
  spilled = [int(n) for pair in _SPILLS.findall(log) for n in pair]
  if registers is None or not spilled:
    raise AssemblerError(f"ptxas does not say what the code needs: {log!r}")
  return Assembled(cubin, int(registers[1]), sum(spilled))


def accepts(ptx: bytes, target: int) -> bool:
  """Whether the assembler takes PTX for a target.

  It reads all of it and checks that the target has each instruction, but
  makes no code: a tenth of the time.
  """
  try:
    _run(ptx, f"compute_{_architecture(ptx, target)}")
  except AssemblerError:
    return False
  return True


def facts(
  assembled: Assembled, ptx: bytes, target: int, shared: int
) -> dict[str, Any]:
  """The figures of a `static` record.

  `assembled_for` has every target on which the code can be launched: the
  assembler takes it, and there is shared memory enough. `ok`: its own target
  is among them.

  Args:
    assembled: the PTX, for its own target.
    ptx: of one kernel.
    target: what it was compiled for.
    shared: bytes of shared memory of a program.
  """
  version = _VERSION.search(ptx)
  if version is None:
    raise AssemblerError("the PTX does not say its version")
  targets = [
    other
    for other in TARGETS
    if shared <= SHARED_MEMORY[other]
    and (other == target or (_may_fit(target, other) and accepts(ptx, other)))
  ]
  return {
    "registers": assembled.registers,
    "spills": assembled.spills,
    "shared": shared,
    "ptx_version": version[1].decode(),
    "assembled_for": targets,
    "ok": target in targets,
  }


def _may_fit(target: int, other: int) -> bool:
  """Whether it is worth asking: PTX is never for something older."""
  return target < other and target < _SPECIFIC


def _architecture(ptx: bytes, target: int) -> str:
  """ptxas's name: with an "a" where the PTX is for one architecture alone."""
  own = re.search(rb"^\.target sm_\d+a", ptx, re.MULTILINE)
  return f"{target}a" if own else str(target)


def _run(ptx: bytes, architecture: str) -> tuple[bytes, str]:
  """Code (empty where none is made), and what ptxas says about it."""
  command = [_ptxas(), "-v", f"--gpu-name={architecture}", _PTX, "-o", _CUBIN]
  with tempfile.TemporaryDirectory(prefix="esper-jax-ptxas-") as folder:
    Path(folder, _PTX).write_bytes(ptx)
    done = subprocess.run(
      command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT
    )
    if done.returncode:
      lines = (done.stderr or done.stdout).strip().splitlines()
      reason = lines[0].strip() if lines else f"exit code {done.returncode}"
      raise AssemblerError(reason)
    out = Path(folder, _CUBIN)
    code = out.read_bytes() if out.exists() else b""
  return code, done.stderr + done.stdout


def _ptxas() -> Path:
  spec = importlib.util.find_spec("triton")
  if spec is None or not spec.submodule_search_locations:
    raise AssemblerError("Triton, which brings ptxas, is not installed")
  return Path(spec.submodule_search_locations[0], _PTXAS)
