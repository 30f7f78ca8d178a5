"""A run directory as the report sees it; one that is being written, too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from esper_jax.knobs import GIVEN
from esper_jax.nissa.report import growth
from esper_jax.nissa.report.growth import Growth, number
from esper_jax.oona import growth_log, jsonl
from esper_jax.tolaria.workdir import beside, read_json
from esper_jax.types import InputError

RUNNING = "running"
_ADVICE = "a report needs the logs of a run as it wrote them"
_ENDS = ("interrupted", "run_finished")
_NEEDED = (
  "data.name",
  "data.source",
  "host.name",
  "kasmina.measure_budget",
  "tamiyo.policy",
  "train.epochs",
  "train.max_steps",
)


class Run(NamedTuple):
  """What a run directory holds.

  Attributes:
    name: of the directory.
    path: of the directory.
    config: "section.key" -> value.
    environment: what else config.json says.
    lines: an epoch's line of metrics.jsonl each, in order, without those that
      a rollback undid.
    events: all, in order.
    growth: what grew.
    result: what result.json holds; None while the run goes on.
  """

  name: str
  path: Path
  config: dict[str, Any]
  environment: dict[str, Any]
  lines: list[dict[str, Any]]
  events: list[dict[str, Any]]
  growth: Growth
  result: dict[str, Any] | None

  @property
  def status(self) -> str:
    """RUNNING, or the status of the result."""
    return self.result["status"] if self.result else RUNNING

  @property
  def epochs(self) -> int:
    """Epochs done."""
    done = self.lines[-1]["epoch"] if self.lines else 0
    return (self.result or {}).get("epochs", done)

  @property
  def host(self) -> str:
    """What the host is."""
    source = self.config.get("host.from")
    if source:
      return f"the network of {source}"
    name = self.config["host.name"]
    return "a model of one's own" if name == GIVEN else name

  @property
  def planned(self) -> int:
    """Epochs that the run is to have; fewer where its steps are limited."""
    return self.config["train.epochs"]

  @property
  def slots(self) -> list[str]:
    """Names of the slots, lanes apart, in the order of the run."""
    last = self.lines[-1] if self.lines else {}
    ends = [key.split("/") for key in last if key.startswith("slots/")]
    names = ["/".join(parts[1:-1]) for parts in ends if parts[-1] == "stage"]
    return names or list((self.result or {}).get("slots", {}))

  @property
  def initial_parameters(self) -> int | None:
    """Of the host alone; None before the first epoch is over."""
    if self.result and "params_initial" in self.result:
      return self.result["params_initial"]
    if not self.lines:
      return None
    first = self.lines[0]
    born = (s for s in self.growth.seeds if s.planted <= first["epoch"])
    return first["parameters"] - sum(seed.parameters for seed in born)

  def series(self, key: str) -> list[float | None]:
    """One entry of each epoch's line; None where it is not finite."""
    return [number(line.get(key)) for line in self.lines]


def read(path: str | Path) -> Run:
  """Reads a run directory.

  A last line that is half-written is left out, and logs that are not there yet
  are empty.

  Raises:
    InputError: it is no run directory, or a file in it is damaged.
  """
  path = Path(path)
  document = (read_json(path / "config.json") if path.is_dir() else {}) or {}
  config = _flat(document.pop("config", {}))
  if not all(key in config for key in _NEEDED):
    raise InputError(
      f"{path} is not a run directory: it has no config.json of a run; give"
      f" the --workdir of a run{beside(path)}"
    )
  events = _log(path / "events.jsonl")
  lines = _standing(_log(path / "metrics.jsonl"))
  result = _finite(read_json(path / "result.json"))
  if result and not (_over(events) or result.get("status") == "completed"):
    result = None  # of an earlier process; the run was taken up again
  standing = []
  if events:
    log = growth_log.standing(path / "events.jsonl", advice=_ADVICE)
    standing = [event for _, event in log]
  return Run(
    path.resolve().name,
    path,
    config,
    document,
    lines,
    events,
    growth.read(standing, _measured(lines)),
    result,
  )


def figures(run: Run) -> dict[str, Any]:
  """What result.json holds or, as far as the logs tell, will hold."""
  last = run.lines[-1] if run.lines else {}
  seeds = run.growth.seeds
  first = min((seed.planted for seed in seeds), default=None)
  before = [x["val/accuracy"] for x in run.lines if x["epoch"] == first]
  times = [x["time"] for x in (*run.events, *run.lines)]
  waited = [e.get("waited", 0.0) for e in run.events if e["type"] == "compile"]
  told = {
    "reason": None,
    "steps": last.get("step", 0),
    "val_accuracy_before_growth": number(before[0] if before else None),
    "val_accuracy": number(last.get("val/accuracy")),
    "test_accuracy": None,
    "params_initial": run.initial_parameters,
    "params_final": last.get("parameters"),
    "train_flops": last.get("flops/train"),
    "total_flops": last.get("flops/total"),
    "measurement_share": None,
    "measure_budget": run.config["kasmina.measure_budget"],
    "wall_seconds": max(times) - min(times) if times else None,
    "compilation": {"blocking_seconds": sum(waited) if waited else None},
    "germinated": len(seeds),
    "fossilized": sum(seed.fate == growth.FOSSILIZED for seed in seeds),
    "culled": sum(seed.fate == growth.CULLED for seed in seeds),
    "slots": {name: _slot(last, name) for name in run.slots},
    "seeds": [
      {"slot": seed.slot, "key": seed.key}
      for seed in seeds
      if seed.fate in (growth.ALIVE, growth.FOSSILIZED)
    ],
  }
  return {**told, **(run.result or {})}


def _log(path: Path) -> list[dict[str, Any]]:
  return jsonl.read(path) if path.exists() else []


def _over(events: list[dict[str, Any]]) -> bool:
  """Whether the run ended and was not taken up again."""
  kinds = [event.get("type") for event in events]
  last = [k for k in kinds if k in (*_ENDS, "run_started", "resumed")]
  return bool(last) and last[-1] in _ENDS


def _standing(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The epochs' lines; a run that went back in time wrote some twice."""
  kept: list[dict[str, Any]] = []
  for line in logged:
    whole = "val/loss" in line
    while kept and kept[-1]["epoch"] >= line["epoch"] + (not whole):
      kept.pop()
    if whole:
      kept.append(line)
  return kept


def _measured(
  lines: list[dict[str, Any]],
) -> dict[tuple[int, str], tuple[float | None, float | None]]:
  found = {}
  for line in lines:
    for key, value in line.items():
      if key.startswith("slots/") and key.endswith("/contribution"):
        if value is not None:
          slot = key.removeprefix("slots/").removesuffix("/contribution")
          error = number(line.get(f"{key}_se"))
          found[line["epoch"], slot] = number(value), error
  return found


def _slot(line: Mapping[str, Any], name: str) -> dict[str, Any]:
  values = {k: line.get(f"slots/{name}/{k}") for k in ("stage", "culled")}
  return {
    **values,
    "contribution": number(line.get(f"slots/{name}/contribution")),
  }


def _finite(value: Any) -> Any:
  """JSON as it was read; None in place of what is not finite."""
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  return None if value in ("NaN", "Infinity", "-Infinity") else value


def _flat(config: Any) -> dict[str, Any]:
  """ "section.key" -> value; nothing of what is no config."""
  flat = {}
  for key, value in config.items() if isinstance(config, dict) else ():
    if isinstance(value, dict):
      flat |= {f"{key}.{name}": item for name, item in _flat(value).items()}
    else:
      flat[key] = value
  return flat
