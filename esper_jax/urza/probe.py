"""A kernel's first use on a device: beside its reference, in a process apart.

Machine code that is wrong can end the process that runs it, or spoil its
memory. So a process of its own runs it first, on small arguments, and writes a
verdict; the process that asked waits for a while and takes whatever else
happens for a failure. What was found is recorded for this kind of device,
driver and jaxlib, unless the process ended before it launched anything: then
it says nothing about the kernel.

  .venv/bin/python -m esper_jax.urza probe KEY --dir DIR
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from esper_jax.types import InputError
from esper_jax.urza import launching, listing, numerics, witness
from esper_jax.urza.artefact import Artefact, Damaged
from esper_jax.urza.device import Device
from esper_jax.urza.registry import Registry, open_registry

TIMEOUT = 300.0  # seconds; most of it is for starting CUDA and compiling
PASSED, FAILED, NOT_RUN = 0, 1, 3  # exit codes
COMMAND = (sys.executable, "-m", "esper_jax.urza", "probe")
# These end a process from outside; a kernel does not send them.
_STOPS = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
LAUNCHING = "launching"  # the process's last line before the kernel runs
_ROOT = Path(__file__).parents[2]
_MAX_REASON = 300  # characters


class Verdict(NamedTuple):
  """What a probe found.

  Attributes:
    ok: whether the kernel may be used.
    reason: why not; empty where it may.
    ran: whether the kernel was judged; if not, nothing is known about it and
      nothing is recorded.
  """

  ok: bool
  reason: str
  ran: bool = True


Probe = Callable[[str, Device], Verdict]
"""Takes an artefact's key and the device that it is to run on."""


def make_probe(
  registry: Registry,
  *,
  timeout: float = TIMEOUT,
  command: Sequence[str] = COMMAND,
) -> Probe:
  """Makes what probes a registry's artefacts and records the verdicts.

  Args:
    registry: where the artefacts are.
    timeout: seconds that the process may take.
    command: begins the process; the key and its options are added.
  """

  def probe(key: str, device: Device) -> Verdict:
    try:
      artefact, files = registry.load(key)
    except (KeyError, Damaged) as error:
      return Verdict(False, f"it cannot be read: {error}", ran=False)
    verdict = run_apart(artefact, files, device, timeout, command)
    if verdict.ran:
      record = {
        "kind": "probe",
        "device_kind": device.kind,
        "driver": device.driver,
        "jaxlib": device.jaxlib,
        "ok": verdict.ok,
        "reason": verdict.reason,
      }
      try:
        witness.add(registry, key, record)
      except (InputError, OSError) as error:
        # The verdict holds for this process; the next one probes again.
        print(f"The probe cannot be recorded: {error}", file=sys.stderr)
    return verdict

  return probe


def run_apart(
  artefact: Artefact,
  files: Mapping[str, bytes],
  device: Device,
  timeout: float,
  command: Sequence[str] = COMMAND,
) -> Verdict:
  """Runs the probe of one artefact in a process of its own."""
  with tempfile.TemporaryDirectory(prefix="urza-probe-") as folder:
    # A registry with nothing else in it: what was verified is what runs.
    open_registry(layers=(Path(folder),)).put(artefact, files)
    options = ("--dir", folder, "--alone", "--device", device.kind)
    code, text = run_child((*command, artefact.key, *options), timeout)
  ran = LAUNCHING in text.splitlines()
  if code is None:
    return Verdict(False, f"no verdict within {timeout:g} seconds", ran)
  if -code in _STOPS:
    name = signal.Signals(-code).name
    return Verdict(False, f"the probe was stopped by {name}", ran=False)
  if code < 0:
    return Verdict(False, f"the process ended with {_signal(-code)}", ran)
  return read_verdict(text, artefact.key, code)


def read_verdict(text: str, key: str, code: int) -> Verdict:
  """Reads what the process wrote; anything unclear is a failure.

  Args:
    text: its standard output; the verdict is the last line.
    key: of the artefact, which must be named.
    code: its exit code, which must agree.
  """
  try:
    document = json.loads(text.rstrip().rpartition("\n")[2])
    verdict = Verdict(document["ok"], document["reason"], document["ran"])
    codes = {(True, True): PASSED, (True, False): FAILED}
    whole = (
      document["key"] == key
      and type(verdict.ok) is type(verdict.ran) is bool
      and isinstance(verdict.reason, str)
      and codes.get((verdict.ran, verdict.ok), NOT_RUN) == code
    )
  except (ValueError, KeyError, TypeError):
    whole, verdict = False, None
  if not whole or verdict is None:
    ran = LAUNCHING in text.splitlines()
    return Verdict(False, f"exit code {code} without a verdict", ran)
  return verdict


def run_child(command: Sequence[str], timeout: float) -> tuple[int | None, str]:
  """Runs a process that uses the GPU beside this one.

  It is in a session of its own: what interrupts this process does not look
  like a failure of the kernel, and what it started ends with it.

  Returns:
    (exit code, or None where it had to be ended; standard output).
  """
  env = dict(os.environ)
  # This process may hold most of the device's memory already.
  env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
  paths = [str(_ROOT), env.get("PYTHONPATH", "")]
  env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
  child = subprocess.Popen(
    command,
    env=env,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    errors="replace",
    start_new_session=True,
  )
  try:
    text, _ = child.communicate(timeout=timeout)
    return child.returncode, text
  except subprocess.TimeoutExpired:
    os.killpg(child.pid, signal.SIGKILL)
    return None, child.communicate()[0]
  finally:
    if child.poll() is None:
      os.killpg(child.pid, signal.SIGKILL)
      child.wait()


def judge(artefact: Artefact, launch: launching.Launch) -> Verdict:
  """Compares a launch of an artefact with the artefact's reference.

  Args:
    artefact: gives the kernel, the dtype and the constants.
    launch: what is judged.
  """
  try:
    kernel = launching.kernel_of(artefact)
  except KeyError as error:
    return Verdict(False, f"no such kernel here: {error}", ran=False)
  dtype = artefact.spec.dtype
  constants = dict(artefact.spec.constants)
  found = numerics.check(launch, kernel, dtype, constants)
  # Says nothing about the kernel: another program has the memory.
  ran = "RESOURCE_EXHAUSTED" not in found.reason
  return Verdict(found.ok, found.reason[:_MAX_REASON], ran)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `probe`."""
  parser.add_argument(
    "key", help="of the artefact, or how it begins, from 4 characters on"
  )
  parser.add_argument("--dir", default="", help="another layer")
  parser.add_argument(
    "--trusted",
    action="append",
    default=[],
    metavar="DIR",
    help="a layer that may be used although others can write to it",
  )
  parser.add_argument(
    "--alone", action="store_true", help="look in no other registry"
  )
  parser.add_argument(
    "--device", default="", help="kind of the device that must be there"
  )


def main(args: argparse.Namespace) -> int:
  """Probes an artefact on this machine's GPU.

  Writes the verdict as a line of JSON; returns PASSED, FAILED or NOT_RUN.

  Raises:
    InputError: there is no such artefact, or no such registry.
  """
  layers = (Path(args.dir),) if args.alone else None
  registry = open_registry(
    args.dir, trusted=args.trusted, layers=layers, make=False
  )
  key = listing.key_of(registry, args.key)
  verdict = _probe_here(registry, key, args.device)
  print(json.dumps({"key": key, **verdict._asdict()}), flush=True)
  if not verdict.ran:
    return NOT_RUN
  return PASSED if verdict.ok else FAILED


def _probe_here(registry: Registry, key: str, kind: str) -> Verdict:
  device = gpu()
  if device is None:
    return Verdict(False, "no GPU", ran=False)
  if kind and kind != device.kind:
    reason = f"the GPU here is a {device.kind}, not a {kind}"
    return Verdict(False, reason, ran=False)
  try:
    loaded = launching.Loaded(*registry.load(key))
    kernel = launching.kernel_of(loaded.artefact)
  except (KeyError, Damaged) as error:
    return Verdict(False, f"it cannot be read: {error}", ran=False)
  launch = launching.launcher(kernel, loaded, device)
  print(LAUNCHING, flush=True)
  return judge(loaded.artefact, launch)


def gpu() -> Device | None:
  """The first device of this process, if it is an NVIDIA GPU."""
  device: Any = jax.local_devices()[0]
  return Device.of(device)


def _signal(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f"signal {number}"
