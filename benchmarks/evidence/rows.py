"""A finished run as one row: all that a report needs, without the run.

A row holds no path, so that it can be committed: the run's result, its
curve, its growth, what it ran on.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.evidence.suites import Suite
from esper_jax import config as config_lib
from esper_jax.oona import jsonl
from esper_jax.tolaria import checkpoints
from esper_jax.tolaria.workdir import read_json, write_json
from esper_jax.types import InputError

VERSION = 1
ROW = "row.json"
ROWS = "rows.jsonl"
PARITY = "parity.jsonl"
# Keys whose values are paths; what they name is in the row otherwise.
_PATHS = ("tamiyo.replay", "tamiyo.policy_path")
_ENVIRONMENT = ("python", "jax", "device", "cores")
_GROWTH = (
  "germinated",
  "stage_changed",
  "fossilized",
  "culled",
  "growth_cancelled",
)
_KEPT = (
  "epoch",
  "type",
  "slot",
  "lane",
  "blueprint",
  "initializer",
  "parameters",
  "was",
  "now",
  "contribution",
)
# All rows of one comparison agree on these: (key, what it is).
_COMMON = (
  ("suite", "suite"),
  ("suite_sha256", "wording of the suite"),
  ("flags", "flags of the command line"),
  ("data_sha256", "data"),
)


def make(
  folder: Path,
  *,
  suite: Suite,
  arm: str,
  seed: int,
  config: ConfigDict,
  flags: Mapping[str, Any],
  extra: Mapping[str, Any],
) -> dict[str, Any]:
  """Makes the row of a completed run.

  Args:
    folder: the run directory, its last checkpoint still there.
    suite, arm, seed: of the run.
    config: of the run.
    flags: key -> value that the command line changed in the suite's config.
    extra: figures of the arm that the run does not know, such as peak memory.

  Raises:
    InputError: another policy than the config's decided.
  """
  result = read_json(folder / "result.json") or {}
  require_own_policy(f"{arm}/{seed}", result, config.tamiyo.policy)
  result["data"] = re.sub(r" in \S*[/\\].*$", "", result["data"])  # a folder
  document = read_json(folder / "config.json") or {}
  events = jsonl.read(folder / "events.jsonl")
  metrics = jsonl.read(folder / "metrics.jsonl")
  parity = folder / PARITY
  return {
    "version": VERSION,
    "suite": suite.name,
    "suite_sha256": suite.sha256(),
    "arm": arm,
    "seed": seed,
    "flags": portable(flags),
    "config": portable(config_lib.flatten(config)),
    "batch_size": config.data.batch_size,
    "life_epochs": life_epochs(config),
    "data_sha256": result["data_sha256"],
    "environment": {name: document.get(name) for name in _ENVIRONMENT},
    "state_sha256": state_sha256(folder),
    "result": result,
    "curve": curve(metrics, events),
    "timeline": timeline(events),
    "parity": jsonl.read(parity) if parity.exists() else [],
    "extra": dict(extra),
  }


def require_own_policy(
  name: str, result: Mapping[str, Any], policy: str
) -> None:
  """Refuses a run in which the heuristic went on in place of a policy.

  Raises:
    InputError: names the run and who decided.
  """
  used = result["policy_used"]
  if used != policy:
    raise InputError(
      f"{name}: not the policy '{policy}' decided but '{used}'; no row is made"
      " of it: mend or replace the policy's file and run it again"
    )


def portable(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Without what says only where files lie, and as JSON gives it back."""
  kept = {
    key: value
    for key, value in flat.items()
    if key not in config_lib.FREE_KEYS and key not in _PATHS
  }
  return json.loads(json.dumps(jsonl.plain(kept)))


def life_epochs(config: ConfigDict) -> int:
  """The fewest epochs from a seed's planting to its fossilization."""
  k = config.kasmina
  return k.min_training_epochs + k.blend_epochs + k.min_holding_epochs


def state_sha256(folder: Path) -> str:
  """The hash of the last state: parameters, statistics, optimizer, seeds.

  The lifecycle's own arrays are left out: a host without slots has none.

  Raises:
    InputError: there is no whole checkpoint.
  """
  found, _ = checkpoints.latest_good(folder / "checkpoints")
  if found is None:
    raise InputError(f"{folder} has no whole checkpoint")
  digest = hashlib.sha256()
  for name in sorted(found.arrays):
    if name.startswith("state/"):
      array = np.ascontiguousarray(found.arrays[name])
      digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
      digest.update(array.tobytes())
  return digest.hexdigest()


def curve(
  metrics: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """One point an epoch; of an epoch that was repeated, the last.

  Seconds count from the start of the run, without the time between an
  interruption and its resumption.
  """
  clock = _clock(metrics, events)
  points: dict[int, dict[str, Any]] = {}
  for line in metrics:
    if "val/accuracy" not in line:
      continue
    points[line["epoch"]] = {
      "epoch": line["epoch"],
      "step": line["step"],
      "flops": line["flops/total"],
      "train_flops": line["flops/train"],
      "seconds": clock(line["time"]),
      "epoch_seconds": line["time/epoch"],
      "val_loss": line["val/loss"],
      "val_accuracy": line["val/accuracy"],
      "parameters": line["parameters"],
    }
  return [points[epoch] for epoch in sorted(points)]


def _clock(metrics, events):
  """A function from a line's time to the seconds that the run had taken."""
  resumed = sorted(e["time"] for e in events if e["type"] == "resumed")
  times = sorted(line["time"] for line in (*metrics, *events))
  breaks = []
  for moment in resumed:
    before = [time for time in times if time < moment]
    if before:
      breaks.append((moment, moment - before[-1]))
  start = times[0] if times else 0.0

  def seconds(time: float) -> float:
    return time - start - sum(gap for moment, gap in breaks if moment <= time)

  return seconds


def timeline(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The events of growth, in order, in short."""
  return [
    {key: event[key] for key in _KEPT if event.get(key) is not None}
    for event in events
    if event["type"] in _GROWTH
  ]


def write(path: Path, row: Mapping[str, Any]) -> None:
  """Writes a row; readers see all of it or nothing."""
  write_json(path, row)


def read_all(source: Path) -> list[dict[str, Any]]:
  """Reads rows from a folder of runs or from a file of rows.

  Args:
    source: ROOT with ROOT/ARM/SEED/row.json, or a file with a row a line.

  Raises:
    InputError: there are none, or they do not belong to one comparison.
  """
  if source.is_dir():
    paths = sorted(source.glob(f"*/*/{ROW}"))
    found = [row for row in map(read_json, paths) if row is not None]
    if not found and (source / ROWS).exists():
      return read_all(source / ROWS)
  elif source.exists():
    found = jsonl.read(source)
  else:
    raise InputError(f"{source}: no such file or folder")
  if not found:
    raise InputError(f"{source} holds no rows yet; see `run --list`")
  found.sort(key=lambda row: (row["arm"], row["seed"]))
  require_comparable(found)
  return found


def require_comparable(rows: Sequence[Mapping[str, Any]]) -> None:
  """Refuses rows that do not belong to one comparison.

  Raises:
    InputError: names two rows and what they differ in.
  """
  learned = {r["result"].get("policy_sha256") for r in rows if r["arm"] == "P"}
  if len(learned) > 1:
    raise InputError("rows of arm P are of different policies: compare one")
  for row in rows:
    name = f"{row['arm']}/{row['seed']}"
    require_own_policy(name, row["result"], row["config"]["tamiyo.policy"])
    for key, what in _COMMON:
      if row[key] != rows[0][key]:
        names = [f"{r['arm']}/{r['seed']}" for r in (rows[0], row)]
        raise InputError(
          f"rows {names[0]} and {names[1]} are of different {what} and are"
          f" not compared: {rows[0][key]} and {row[key]}"
        )


def write_all(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes a file of rows, a row a line."""
  path.write_bytes(b"".join(map(jsonl.encode, rows)))


def by_arm(
  rows: Iterable[Mapping[str, Any]],
) -> dict[str, dict[int, Mapping[str, Any]]]:
  """Rows by arm and seed."""
  out: dict[str, dict[int, Mapping[str, Any]]] = {}
  for row in rows:
    out.setdefault(row["arm"], {})[row["seed"]] = row
  return out
