"""The sections of a report that show figures: one function each."""

import statistics as plain_statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks._common import interval
from benchmarks.evidence import claims, figures, metrics, statistics
from benchmarks.evidence.arms import GROWN
from benchmarks.evidence.document import Block, Figure, Heading, Table, Words
from benchmarks.evidence.suites import Suite

Row = Mapping[str, Any]
ByArm = Mapping[str, Mapping[int, Row]]
_GRID = 80  # costs at which the curves are compared
_ABSENT = (
  "Not recorded by the runs, so not reported: the change of the loss on a"
  " fixed batch at each event (below: what a cull cost by the seed's last"
  " measured contribution, and the largest rise of the validation loss over"
  " the epoch after an event), and gradient parity by steps (below: over the"
  " first epoch after birth)."
)


def accuracy(arms: ByArm) -> list[Block]:
  """Final accuracy, parameters and FLOPs of every arm."""
  table = []
  for name, found in arms.items():
    each = list(found.values())
    table.append((
      name,
      str(len(each)),
      _spread([100 * claims.accuracy(row) for row in each]),
      _spread([100 * row["result"]["val_accuracy"] for row in each]),
      _mean([row["result"]["params_final"] for row in each]),
      _mean([row["result"]["train_flops"] for row in each]),
      _mean([claims.total(row) for row in each]),
      _ratio(arms, name),
    ))  # fmt: skip
  header = (
    "arm", "n", "test, %", "validation, %", "parameters", "training FLOPs",
    "total FLOPs", f"/ {GROWN}'s",
  )  # fmt: skip
  return [
    Heading(2, "Final accuracy"),
    Words("Mean and standard deviation over seeds; other columns: means."),
    Table(header, table),
  ]


def _ratio(arms: ByArm, name: str) -> str:
  """Total FLOPs of an arm over those of the grown run of the same seed."""
  grown = arms.get(GROWN, {})
  ratios = [
    claims.total(row) / claims.total(grown[seed])
    for seed, row in arms[name].items()
    if seed in grown
  ]
  return f"{sum(ratios) / len(ratios):.3f}" if ratios else "-"


def differences(arms: ByArm) -> list[Block]:
  """The grown arm less each other one: a table and a forest plot."""
  pairs = _against_grown(arms)
  if not pairs:
    return []
  found = {n: statistics.estimate(claims.points(p)) for n, p in pairs.items()}
  tested = [name for name, e in found.items() if not e.identical]
  fixed = statistics.holm([found[name].p for name in tested])
  corrected = dict(zip(tested, fixed, strict=True))
  table, effects = [], []
  for name, e in found.items():
    label = f"{GROWN} - {name}"
    effects.append(figures.Effect(label, e.mean, e.low, e.high))
    if e.identical:
      same = _same_states(pairs[name])
      table.append((label, str(e.n), "identical", "-", "-", "-", "-", same))
      continue
    spread = f"{e.sd:.2f}" if e.n > 1 else "-"
    p = f"{e.p:.3g}" if e.exact else f"{e.p:.3g} (Monte Carlo)"
    by_bootstrap = f"[{e.bca[0]:+.2f}, {e.bca[1]:+.2f}]" if e.bca else "-"
    table.append((
      label, str(e.n), claims.text(e).partition(", n =")[0], spread,
      p, f"{corrected[name]:.3g}", by_bootstrap, _same_states(pairs[name]),
    ))  # fmt: skip
  header = (
    "pair", "n", "difference, test", "sd", "p", "p by Holm", "BCa (n >= 20)",
    "same runs",
  )  # fmt: skip
  return [
    Heading(2, "Paired differences"),
    Words(
      "Same runs: pairs that ended in the same state, bit for bit; permuted"
      " growth, for one, may by chance be the growth that it permutes."
    ),
    Table(header, table),
    Figure(
      "forest",
      figures.forest(effects, across="points of test accuracy"),
      f"{GROWN} less each other arm, paired by seed, with 95 % intervals.",
    ),
  ]


def _same_states(pairs: Sequence[tuple[Row, Row]]) -> str:
  return str(sum(a["state_sha256"] == b["state_sha256"] for a, b in pairs))


def _against_grown(arms: ByArm) -> dict[str, list[tuple[Row, Row]]]:
  grown = arms.get(GROWN, {})
  pairs = {
    name: [
      (grown[seed], found[seed]) for seed in sorted(found) if seed in grown
    ]
    for name, found in arms.items()
    if name != GROWN
  }
  return {name: found for name, found in pairs.items() if found}


def curves(suite: Suite, arms: ByArm) -> list[Block]:
  """Validation accuracy against FLOPs and seconds, and costs to targets."""
  blocks: list[Block] = [Heading(2, "Accuracy against cost")]
  for against, unit in (("flops", "FLOPs, all"), ("seconds", "seconds")):
    lines = [
      figures.Curve(name, _band(list(found.values()), against))
      for name, found in arms.items()
    ]
    picture = figures.curves(lines, across=unit, up="validation accuracy, %")
    words = f"Validation accuracy against {unit}; bands: 95 % intervals."
    blocks.append(Figure(f"accuracy_{against}", picture, words))
  header = ["arm"]
  for against in ("FLOPs", "seconds"):
    header.append(f"average over {against}, %")
    header += [f"{against} to {100 * x:g} %" for x in suite.targets]
  table = []
  for name, found in arms.items():
    line = [name]
    for against in ("flops", "seconds"):
      up_to = min(_last(r, against) for g in arms.values() for r in g.values())
      line.append(
        _spread(
          [
            100
            * metrics.trajectory_average(
              r["curve"], against=against, up_to=up_to
            )
            for r in found.values()
          ]
        )  # fmt: skip
      )
      line += [_to_target(found, against, x) for x in suite.targets]
    table.append(line)
  blocks += [
    Words(
      "Averages run from 0 to the least that any run spent. Cost to a target:"
      " the median over seeds and how many reached it; a run that did not"
      " counts as more than it spent."
    ),
    Table(header, table),
  ]
  return blocks


def _band(
  found: Sequence[Row], against: str
) -> list[tuple[float, float, float, float]]:
  """(cost, mean, low, high) of validation accuracy, in %, on one grid."""
  start = max(row["curve"][0][against] for row in found)
  end = min(_last(row, against) for row in found)
  out = []
  for cost in np.linspace(start, max(start, end), _GRID):
    known = [100 * _accuracy_at(row["curve"], against, cost) for row in found]
    about = interval(known)
    out.append((float(cost), about.mean, about.low, about.high))
  return out


def _accuracy_at(
  curve: Sequence[Mapping[str, Any]], against: str, cost: float
) -> float:
  """The last validation accuracy known at a cost."""
  known = [p["val_accuracy"] for p in curve if p[against] <= cost]
  return known[-1] if known else curve[0]["val_accuracy"]


def _last(row: Row, against: str) -> float:
  return float(row["curve"][-1][against])


def _to_target(found: Mapping[int, Row], against: str, target: float) -> str:
  costs = [
    metrics.cost_to_target(row["curve"], against=against, target=target)
    for row in found.values()
  ]
  middle = metrics.median_with_censored(costs)
  reached = sum(cost is not None for cost in costs)
  what = "more" if middle is None else f"{middle:.3g}"
  return f"{what} ({reached} of {len(costs)})"


def accounts(arms: ByArm) -> list[Block]:
  """Where FLOPs, seconds and memory of every arm went."""
  accounts = ("evaluation", "ablation", "probe", "policy")
  table = []
  for name, found in arms.items():
    each = [row["result"] for row in found.values()]
    line = [name, *(_mean([r[f"{a}_flops"] for r in each]) for a in accounts)]
    line.append(_mean_of(found, lambda r: r["extra"].get("lookahead_flops")))
    line.append(_mean([r["redone_flops"] for r in each]))
    for key in ("wall_seconds", "compile_seconds", "stall_seconds"):
      line.append(f"{_average([r[key] for r in each]):.1f}")
    line.append(_mean_of(found, metrics.images_per_second))
    line.append(_memory(list(found.values())))
    table.append(line)
  header = (
    "arm", *(f"{a} FLOPs" for a in accounts), "look-ahead FLOPs",
    "redone FLOPs", "seconds", "compiling", "standing still",
    "images/s, median epoch", "peak memory, MB",
  )  # fmt: skip
  return [
    Heading(2, "What it costs"),
    Words(
      "Means over seeds. Total FLOPs hold training, evaluation, ablations,"
      " probes, culled seeds, the policy and look-ahead; redone work is beside"
      " them. Compilation depends on what the cache on disk held. Memory: of"
      " the device where it tells, else (process) of the whole process."
    ),
    Table(header, table),
  ]


def _memory(found: Sequence[Row]) -> str:
  of_device = [row["extra"].get("peak_device_bytes") for row in found]
  known = [value for value in of_device if value]
  if known:
    return f"{_average(known) / 1e6:.0f}"
  process = [row["extra"].get("peak_process_bytes") or 0 for row in found]
  return f"{_average(process) / 1e6:.0f} (process)"


def growth(arms: ByArm) -> list[Block]:
  """What the arms that grew planted, and what it did to cost and loss."""
  table = []
  for name, found in arms.items():
    # Those whose seeds are there from the start have not grown.
    grown = {s: r for s, r in found.items() if metrics.has_grown(r)}
    if not grown:
      continue
    each = list(grown.values())
    costs = [c for c in map(metrics.growth_cost, each) if c is not None]
    parities = [p for row in each for p in metrics.newborn_parity(row)]
    culls = [x for r in each for x in metrics.culling_shock(r["timeline"])]
    table.append((
      name,
      *(_count(each, key) for key in ("germinated", "fossilized", "culled")),
      *(f"{_average([c[n] for c in costs]):.2f}" for n in range(4)),
      _mean([metrics.wasted_flops(row) for row in each]),
      f"{_average([metrics.thrash(r['timeline']) for r in each]):.1f}",
      f"{plain_statistics.median(parities):.2f}" if parities else "-",
      f"{_average(culls):+.4f}" if culls else "-",
      _mean_of(grown, metrics.shock_after_events),
    ))  # fmt: skip
  if not table:
    return []
  header = (
    "arm", "planted", "fossilized", "culled", "r", "t", "ratio", "lowest",
    "wasted FLOPs", "thrash", "parity, median", "loss by a cull",
    "largest rise",
  )  # fmt: skip
  words = (
    "Of the runs that grew, means. r: step FLOPs at the end / at the start; t:"
    " share of the epochs before the first seed; ratio: training FLOPs / the"
    " final network's for as many epochs; lowest: the ratio reachable with this"
    " r, 1 - t (1 - 1/r) at the latest t that leaves a seed its whole life."
    " Wasted: training FLOPs of culled seeds, estimated. Thrash: seeds planted"
    " where one had been culled. "
  )
  shown = arms.get(GROWN) or arms[table[0][0]]
  runs = [(f"seed {seed}", row) for seed, row in sorted(shown.items())]
  return [
    Heading(2, "Growth"),
    Words(words + _ABSENT),
    Table(header, table),
    Figure(
      "slots",
      figures.slot_timeline(runs),
      f"What lived in each slot of {runs[0][1]['arm']}, by epoch.",
    ),
  ]


def _count(found: Sequence[Row], key: str) -> str:
  return f"{_average([row['result'][key] for row in found]):.1f}"


def _average(values: Sequence[float]) -> float:
  return sum(values) / len(values) if values else float("nan")


def _mean(values: Sequence[float]) -> str:
  mean = _average(values)
  return f"{mean:,.0f}" if mean < 1e6 else f"{mean:.4g}"


def _mean_of(
  found: Mapping[int, Row], of: Callable[[Row], float | None]
) -> str:
  values = [value for value in map(of, found.values()) if value is not None]
  return f"{_average(values):.4g}" if values else "-"


def _spread(values: Sequence[float]) -> str:
  if len(values) < 2:
    return f"{values[0]:.2f}"
  return f"{_average(values):.2f} +- {plain_statistics.stdev(values):.2f}"
