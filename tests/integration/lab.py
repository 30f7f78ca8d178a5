"""Real runs of main.py in processes of their own, and what they left."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esper_jax.oona import jsonl
from esper_jax.oona.events import RUN_EVENTS
from esper_jax.tolaria import checkpoints, workdir

ROOT = Path(__file__).parents[2]
CONFIG = "tests/integration/tiny_config.py"
TIMEOUT = 300.0  # seconds


class Left:
  """What a run left in its directory."""

  def __init__(self, path: Path):
    self.path = path

  @property
  def result(self) -> dict[str, Any]:
    result = workdir.read_json(self.path / "result.json")
    assert result is not None
    return result

  def events(self, *types: str) -> list[dict[str, Any]]:
    """The events of these types, or all."""
    events = jsonl.read(self.path / "events.jsonl")
    return [e for e in events if not types or e["type"] in types]

  def metrics(self) -> list[dict[str, Any]]:
    """Everything in metrics.jsonl that must not depend on the clock."""
    return [
      {k: v for k, v in line.items() if not k.startswith("time")}
      for line in jsonl.read(self.path / "metrics.jsonl")
    ]

  def story(self) -> list[dict[str, Any]]:
    """The events of the run, without clock and process."""
    return [
      {k: v for k, v in event.items() if k not in ("seq", "time")}
      for event in self.events(*RUN_EVENTS)
    ]

  def checkpoint(self) -> checkpoints.Loaded:
    """The newest whole checkpoint."""
    loaded, _ = checkpoints.latest_good(self.path / "checkpoints")
    assert loaded is not None
    return loaded

  def state(self) -> dict[str, bytes]:
    """Every array of the run: parameters, optimizer, seeds, records."""
    return {
      name: array.tobytes() for name, array in self.checkpoint().arrays.items()
    }

  def size(self) -> int:
    """Bytes in both logs."""
    logs = (self.path / "events.jsonl", self.path / "metrics.jsonl")
    return sum(log.stat().st_size for log in logs if log.exists())

  def files(self) -> dict[str, bytes]:
    """Every file but the lock, which names the last process."""
    return {
      str(path.relative_to(self.path)): path.read_bytes()
      for path in sorted(self.path.rglob("*"))
      if path.is_file() and path.name != ".lock"
    }


@dataclasses.dataclass
class Process:
  """A run under way."""

  popen: subprocess.Popen[str]
  left: Left

  def wait_until(self, ready: Callable[[], bool]) -> bool:
    """Waits for a moment; False where the process ended before it."""
    deadline = time.monotonic() + TIMEOUT
    while not ready():
      if self.popen.poll() is not None:
        return False
      assert time.monotonic() < deadline
      time.sleep(0.002)
    return self.popen.poll() is None

  def begun(self) -> bool:
    """Whether the run directory is this process's: it listens to signals."""
    lock = self.left.path / ".lock"
    return lock.exists() and lock.read_text().strip() == str(self.popen.pid)

  def send(self, number: signal.Signals) -> None:
    self.popen.send_signal(number)

  def end(self) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    out, err = self.popen.communicate(timeout=TIMEOUT)
    return self.popen.returncode, out, err


class Lab:
  """Starts runs in fresh directories."""

  def __init__(self, folder: Path, env: dict[str, str]):
    self.folder = folder
    self.env = env

  def start(
    self,
    name: str,
    profile: str = "grow",
    *overrides: str,
    config: str = CONFIG,
    cached: bool = True,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
  ) -> Process:
    """Starts a run, or goes on with the one of this name.

    Args:
      name: of its directory.
      profile: of the config.
      overrides: such as "train.epochs=2".
      config: the config file.
      cached: whether compiled programs are shared with other runs.
      flags: more of them.
      env: more of the environment.
    """
    path = self.folder / name
    command = [
      sys.executable,
      "main.py",
      f"--config={config}:{profile}",
      f"--workdir={path}",
      *(f"--config.{override}" for override in overrides),
      *flags,
    ]
    env = {**self.env, **(env or {})}
    if not cached:
      del env["JAX_COMPILATION_CACHE_DIR"]
    popen = subprocess.Popen(
      command,
      cwd=ROOT,
      env=env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    return Process(popen, Left(path))

  def run(self, name: str, profile: str = "grow", *overrides: str) -> Left:
    """Runs to the end, which must be a good one."""
    process = self.start(name, profile, *overrides)
    code, _, err = process.end()
    assert code == 0, err
    return process.left


def environment() -> dict[str, str]:
  """What a run needs to find the blueprints of these tests."""
  return {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


def check_same(a: Left, b: Left) -> None:
  """Asserts that two runs came to the same end, bit for bit."""
  assert a.metrics() == b.metrics()
  assert a.story() == b.story()
  first, second = a.state(), b.state()
  assert [k for k in first if first[k] != second.get(k)] == []
  assert first.keys() == second.keys()
  varies = ("seconds", "redone_", "compilation")
  results = [
    {k: v for k, v in r.result.items() if not any(w in k for w in varies)}
    for r in (a, b)
  ]
  assert results[0] == results[1]
