"""Runs arms x seeds, each in a directory of its own, and takes up again.

ROOT/ARM/SEED is a run directory of the trainer with, beside its files,
row.json once it is finished or failure.json where it failed. Machines share
nothing but these files.
"""

import contextlib
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks._common import load_config
from benchmarks.evidence import arms as arms_lib
from benchmarks.evidence import claims, oracle, rows
from benchmarks.evidence.suites import ROOT, Suite
from esper_jax import config as config_lib
from esper_jax.oona import jsonl
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.tolaria.trainer import Trainer
from esper_jax.tolaria.workdir import read_json, write_json
from esper_jax.types import InputError, RunFailedError

FAILURE = "failure.json"
_LOG = "log.txt"
_LINES = 6  # of a traceback that are shown


class Item(NamedTuple):
  """One arm at one seed; as text ARM/SEED."""

  arm: str
  seed: int

  def __str__(self) -> str:
    return f"{self.arm}/{self.seed}"


class Job(NamedTuple):
  """What is to be run.

  Attributes:
    suite: see `Suite`.
    root: folder of all its runs.
    flags: of the form --config.section.key=value, for every arm.
    policy, policy_name: of arm P; see `arms.Given`.
    keep: whether checkpoints stay once a row is written.
  """

  suite: Suite
  root: Path
  flags: tuple[str, ...] = ()
  policy: str = ""
  policy_name: str = "learned"
  keep: bool = False

  def folder(self, item: Item) -> Path:
    """The run directory of an item."""
    return self.root / item.arm / str(item.seed)

  def row(self, item: Item) -> dict[str, Any] | None:
    """The row of an item; None where it is not finished."""
    return read_json(self.folder(item) / rows.ROW)

  def failure(self, item: Item) -> dict[str, Any] | None:
    """Why an item failed; None where it has not."""
    return read_json(self.folder(item) / FAILURE)


def parse_item(text: str) -> Item:
  """Reads ARM/SEED.

  Raises:
    InputError: it is not of that form.
  """
  arm, _, seed = text.partition("/")
  arm = {"A1'": "A1p"}.get(arm, arm)
  if arm not in arms_lib.ARMS or not seed.isdigit():
    raise InputError(
      f"--only={text}: give ARM/SEED, such as B4/0; arms are"
      f" {', '.join(arms_lib.ARMS)}"
    )
  return Item(arm, int(seed))


def items(names: Sequence[str], seeds: Sequence[int]) -> list[Item]:
  """All work, an item after those that it needs: by seed, then by arm."""
  ordered = arms_lib.in_order(tuple(names))
  return [Item(arm, seed) for seed in seeds for arm in ordered]


def needs(item: Item) -> list[Item]:
  """The items that must be finished before."""
  return [Item(arm, item.seed) for arm in arms_lib.ARMS[item.arm].needs]


def state(job: Job, item: Item) -> str:
  """ "done", "failed", "ready" or "waits for ..."."""
  if job.row(item) is not None:
    return "done"
  missing = [str(n) for n in needs(item) if job.row(n) is None]
  if missing:
    return f"waits for {', '.join(missing)}"
  return "failed" if job.failure(item) is not None else "ready"


def base_config(job: Job, seed: int, flags: Sequence[str]):
  """The suite's config with a seed and more flags."""
  source = str(ROOT / job.suite.source)
  return load_config(
    source, [*job.suite.flags, *flags, f"--config.seed={seed}"]
  )


def changed_flags(job: Job) -> dict[str, Any]:
  """What the flags of the command line change in the suite's config."""
  plain = config_lib.flatten(base_config(job, 0, ()))
  now = config_lib.flatten(base_config(job, 0, job.flags))
  return rows.portable({k: v for k, v in now.items() if v != plain[k]})


def check_root(job: Job, found: Sequence[Item]) -> None:
  """Refuses a folder whose rows were made with other flags or claims.

  Raises:
    InputError: names the row and what to do.
  """
  flags, sha256 = changed_flags(job), job.suite.sha256()
  for item in found:
    row = job.row(item)
    if row is None:
      continue
    same = row["flags"] == flags and row["suite_sha256"] == sha256
    if row["suite"] != job.suite.name or not same:
      raise InputError(
        f"{job.folder(item)} holds a row of another suite, another wording of"
        " it, or other flags; choose another --dir"
      )


def run_one(job: Job, item: Item) -> dict[str, Any]:
  """Runs one item in this process, or takes it up; returns its row.

  Raises:
    InputError, RunFailedError: it cannot be run; failure.json says why.
  """
  done = job.row(item)
  if done is not None:
    return done
  folder = job.folder(item)
  (folder / FAILURE).unlink(missing_ok=True)
  try:
    return _run(job, item, folder)
  except Exception as error:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FAILURE, _failure(error))
    raise


def _run(job: Job, item: Item, folder: Path) -> dict[str, Any]:
  given = _given(job, item)
  arm = arms_lib.ARMS[item.arm]
  config, extra = arms_lib.configure(arm, given), {}
  if item.arm == "B5":
    config, extra = _oracle(job, given, config, folder)
  notes = _ParityNotes(folder / rows.PARITY)
  result = Trainer(config, folder, callbacks=[notes]).train()
  if result["status"] == "interrupted":
    raise KeyboardInterrupt  # what the signal was; its checkpoint is whole
  if "train.epochs" in arm.changes(given):
    wanted = given.rows[arms_lib.GROWN]["result"]["total_flops"]
    extra["flops_matched"] = result["total_flops"] / wanted
  row = rows.make(
    folder,
    suite=job.suite,
    arm=item.arm,
    seed=item.seed,
    config=config,
    flags=changed_flags(job),
    extra=extra | _peak_memory(),
  )
  rows.write(folder / rows.ROW, row)
  if not job.keep:
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
  return row


def _given(job: Job, item: Item) -> arms_lib.Given:
  found: dict[str, Mapping[str, Any]] = {}
  folders: dict[str, Path] = {}
  for need in needs(item):
    row = job.row(need)
    if row is None:
      raise InputError(f"{item} needs {need}, which is not finished: run it")
    found[need.arm], folders[need.arm] = row, job.folder(need)
  return arms_lib.Given(
    suite=job.suite,
    seed=item.seed,
    config=base_config(job, item.seed, job.flags),
    rows=found,
    folders=folders,
    policy=job.policy,
    policy_name=job.policy_name,
  )


def _oracle(job: Job, given: arms_lib.Given, config: Any, folder: Path):
  if not job.suite.look_ahead:
    raise InputError(f"the suite {job.suite.name} has no look-ahead for B5")
  events = jsonl.read(given.folders[arms_lib.GROWN] / "events.jsonl")
  schedule, flops = oracle.look_ahead(
    config,
    oracle.growth_times(events),
    epochs=job.suite.look_ahead,
    folder=folder,
  )
  config = arms_lib.apply(config, oracle.schedule_of(schedule))
  return config, {"lookahead_flops": flops, "schedule": schedule}


def _peak_memory() -> dict[str, int | None]:
  """Of the device, where it tells, and of this process; bytes."""
  of_device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  scale = 1 if sys.platform == "darwin" else 1024
  return {"peak_device_bytes": of_device, "peak_process_bytes": scale * most}


class _ParityNotes:
  """A callback that notes every seed's gradient parity after each epoch."""

  def __init__(self, path: Path):
    self._path = path

  def __call__(self, trainer: Trainer, metrics: TrainingMetrics) -> None:
    run, growth = trainer.run, trainer.parts.growth
    lines = [
      {
        "epoch": metrics.epoch,
        "slot": growth.path(row),
        "parity": float(run.signals.parity[row]),
      }
      for row, key in enumerate(run.keys)
      if key is not None and bool(run.signals.parity_known[row])
    ]
    with open(self._path, "ab") as file:
      file.write(b"".join(map(jsonl.encode, lines)))


def _failure(error: Exception) -> dict[str, Any]:
  known = isinstance(error, InputError | RunFailedError)
  lines = traceback.format_exception(error)
  return {
    "kind": type(error).__name__,
    "reason": str(error),
    "traceback": None if known else "".join(lines[-_LINES:]),
  }


def run_all(
  job: Job,
  work: Sequence[Item],
  *,
  jobs: int,
  tell: Callable[[str], None],
) -> list[Item]:
  """Runs all items that are not done; returns those without a row then.

  Args:
    job: see `Job`.
    work: in an order in which needs come first.
    jobs: processes at a time; 0 runs one after the other in this process.
    tell: is told what happens, a line at a time.
  """
  waiting = [item for item in work if job.row(item) is None]
  tell(f"{len(work) - len(waiting)} of {len(work)} were done before")
  with contextlib.suppress(KeyboardInterrupt):
    if jobs:
      _run_children(job, waiting, jobs, tell)
    else:
      _run_here(job, waiting, tell)
  left = [item for item in work if job.row(item) is None]
  for item in left:
    if _missing(job, item):
      tell(f"{item}: not run, {state(job, item)}")
  return left


def _run_here(
  job: Job, work: Sequence[Item], tell: Callable[[str], None]
) -> None:
  for item in work:
    if not _missing(job, item):
      tell(f"{item}: starts")
      with contextlib.suppress(Exception):  # it is in failure.json
        run_one(job, item)
      tell(_told(job, item))


def _run_children(
  job: Job, work: Sequence[Item], jobs: int, tell: Callable[[str], None]
) -> None:
  waiting, running = list(work), dict[Future[None], Item]()
  with ThreadPoolExecutor(jobs) as pool:
    while waiting or running:
      for item in list(waiting):
        if len(running) < jobs and not _missing(job, item):
          waiting.remove(item)
          tell(f"{item}: starts")
          running[pool.submit(_in_child, job, item)] = item
      if not running:
        return  # what is left waits for what failed
      for future in wait(running, return_when=FIRST_COMPLETED).done:
        future.result()
        tell(_told(job, running.pop(future)))


def _missing(job: Job, item: Item) -> bool:
  return any(job.row(need) is None for need in needs(item))


def _told(job: Job, item: Item) -> str:
  row = job.row(item)
  if row is not None:
    result = row["result"]
    return (
      f"{item}: {100 * claims.accuracy(row):.2f} %,"
      f" {result['total_flops']:.3g} FLOPs, {result['wall_seconds']:.0f} s"
    )
  failure = job.failure(item)
  if failure is None:
    return f"{item}: interrupted; run again to go on"
  return f"{item}: FAILED: {failure['kind']}: {failure['reason']}"


def _in_child(job: Job, item: Item) -> None:
  """In a process of its own: its memory and its faults stay its own."""
  folder = job.folder(item)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / FAILURE).unlink(missing_ok=True)
  with open(folder / _LOG, "ab") as log:
    code = subprocess.run(
      [sys.executable, "-m", "benchmarks.evidence", *arguments(job, item)],
      stdout=log,
      stderr=subprocess.STDOUT,
      check=False,
    ).returncode
  if code and job.failure(item) is None and code not in (130, 143):
    reason = f"its process ended with code {code}; see {_LOG} beside this"
    write_json(folder / FAILURE, {"kind": "process", "reason": reason})


def arguments(job: Job, item: Item) -> list[str]:
  """The command line that runs one item, after `-m benchmarks.evidence`."""
  out = ["run", f"--suite={job.suite.name}", f"--dir={job.root}"]
  out.append(f"--only={item}")
  if job.policy:
    out += [f"--policy={job.policy}", f"--policy_name={job.policy_name}"]
  if job.keep:
    out.append("--keep_checkpoints")
  return [*out, *job.flags]
