"""Tables: results, one column per run, and what could grow where."""

from collections.abc import Mapping, Sequence
from typing import Any

_MISSING = "-"


def result_table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Builds the table at the end of a run.

  Args:
    results: heading -> what result.json holds.
  """
  rows = [("", *results), *result_rows(results)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(
      [row[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
    ).rstrip()
    for row in rows
  ]
  lines.insert(1, "-" * len(max(lines, key=len)))
  return "\n".join(lines)


def result_rows(
  results: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, ...]]:
  """The figures and slots of runs: (what it is, a cell for each run).

  Args:
    results: as for `result_table`; figures that are not known yet are None.
  """
  figures = [
    (label, *(cell(result) for result in results.values()))
    for label, cell in (*_ACCURACIES, *_FIGURES)
  ]
  first = len(_ACCURACIES)
  rows = figures[:first] + _metric_rows(results) + figures[first:]
  return rows + _slot_rows(results)


def format_slots(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the slot table as text.

  Args:
    rows: one per slot: name, shape (of one example), kind, and blueprints, a
      list of (name, parameters, FLOPs of a forward pass of one example).
  """
  if not rows:
    return "The host has no slots: it cannot grow."
  cells = [
    ("slot", "shape", "kind", "blueprint", "parameters", "FLOPs/example")
  ]
  for row in rows:
    head = (row["name"], "x".join(map(str, row["shape"])), row["kind"])
    for name, parameters, flops in row["blueprints"] or [("none fits", 0, 0)]:
      cells.append((*head, name, f"{parameters:,}", f"{flops:,.0f}"))
      head = ("", "", "")
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = []
  for row in cells:
    left = [c.ljust(w) for c, w in zip(row[:4], widths[:4], strict=True)]
    right = [c.rjust(w) for c, w in zip(row[4:], widths[4:], strict=True)]
    lines.append("  ".join(left + right))
  return "\n".join(lines)


def percent(value: float | None) -> str:
  """An accuracy of 0 to 1 in per cent."""
  return _MISSING if value is None else f"{100 * value:.2f} %"


def figure(value: Any) -> str:
  """A metric of one's own."""
  return _MISSING if value is None else f"{float(value):.4g}"


def engineering(value: float | None) -> str:
  """A large count with a unit: 12.3 M."""
  if value is None:
    return _MISSING
  for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
    if value >= factor:
      return f"{value / factor:.3g} {unit}"
  return f"{value:,.0f}"


def duration(seconds: float) -> str:
  """Seconds as people say them: 0.12 s, 42 s, 3 min 5 s, 2 h 10 min."""
  whole = round(seconds)
  if seconds < 10:
    return f"{seconds:.2g} s"
  if whole < 60:
    return f"{whole} s"
  minutes, rest = divmod(whole, 60)
  if minutes < 60:
    return f"{minutes} min {rest} s"
  return f"{minutes // 60} h {minutes % 60} min"


def _count(value: int | None) -> str:
  return _MISSING if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
  return _MISSING if value is None else f"{value:.1f}"


def _share(share: float | None, budget: float) -> str:
  if share is None:
    return _MISSING
  over = f" (over {100 * budget:g} %: a small run)" if share > budget else ""
  return f"{percent(share)}{over}"


def _metric_rows(
  results: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, ...]]:
  """The means of metrics of one's own, which are read when a run is over."""
  read = [result.get("metrics") or {} for result in results.values()]
  names = dict.fromkeys(
    (split, name) for one in read for split in one for name in one[split]
  )
  ends = {"test": "(read once)"}
  return [
    (
      f"{split} {name} {ends.get(split, 'at the end')}",
      *(figure(one.get(split, {}).get(name)) for one in read),
    )
    for split, name in names
  ]


def _slot_rows(
  results: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, ...]]:
  names = dict.fromkeys(n for r in results.values() for n in r["slots"])
  rows: list[tuple[str, ...]] = []
  for name in names:
    cells = [_slot_cell(result, name) for result in results.values()]
    rows.append((name, *cells))
  return rows


def _slot_cell(result: Mapping[str, Any], name: str) -> str:
  row = result["slots"].get(name)
  if row is None:
    return _MISSING
  grown = [s["key"] for s in result["seeds"] if s["slot"] == name]
  stage = row["stage"].lower()
  text = f"{', '.join(grown)} {stage}" if grown else stage
  if row["culled"]:
    text += f", {row['culled']} culled"
  before = result.get("grown_before", {}).get(name)
  if before:
    text += f", after {' and '.join(before)} of the run before"
  if row["contribution"] is not None:
    text += f" (last measured {row['contribution']:+.4f} nats)"
  return text


_ACCURACIES = (
  (
    "validation accuracy before growth",
    lambda r: percent(r["val_accuracy_before_growth"]),
  ),
  ("validation accuracy at the end", lambda r: percent(r["val_accuracy"])),
  ("test accuracy (read once)", lambda r: percent(r["test_accuracy"])),
)
_FIGURES = (
  ("parameters at the start", lambda r: _count(r["params_initial"])),
  ("parameters at the end", lambda r: _count(r["params_final"])),
  ("training FLOPs", lambda r: engineering(r["train_flops"])),
  ("all FLOPs", lambda r: engineering(r["total_flops"])),
  (
    "ablations and probes / training",
    lambda r: _share(r["measurement_share"], r["measure_budget"]),
  ),
  ("seconds", lambda r: _seconds(r["wall_seconds"])),
  (
    "  of them compiling",
    lambda r: _seconds(r["compilation"]["blocking_seconds"]),
  ),
  (
    "germinated / fossilized / culled",
    lambda r: f"{r['germinated']} / {r['fossilized']} / {r['culled']}",
  ),
)
