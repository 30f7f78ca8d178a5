"""Writes the report of a suite from its rows: words, tables, figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import (
  claims,
  document,
  rows,
  sections,
  statistics,
  suites,
)
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.document import (
  Block,
  Bullets,
  Figure,
  Heading,
  Table,
  Words,
)
from benchmarks.evidence.runner import FAILURE
from benchmarks.evidence.suites import Suite
from esper_jax.tolaria.workdir import read_json

Row = Mapping[str, Any]
ByArm = Mapping[str, Mapping[int, Row]]


def write(source: Path, out: str | Path | None = None) -> Path:
  """Writes report.md, report.html, figures/*.svg and, of a folder, its rows.

  Args:
    source: folder of the runs, or a file of rows.
    out: folder to write to; None: the source's.

  Returns:
    The folder written to.

  Raises:
    InputError: no rows, or rows that are not of one comparison.
  """
  found = rows.read_all(source)
  folder = Path(out) if out else source if source.is_dir() else source.parent
  blocks = make(found, failures=read_failures(source))
  (folder / "figures").mkdir(parents=True, exist_ok=True)
  for block in blocks:
    if isinstance(block, Figure):
      path = folder / "figures" / f"{block.name}.svg"
      path.write_text(block.svg + "\n")
  rows.write_all(folder / rows.ROWS, found)
  (folder / "report.md").write_text(document.to_markdown(blocks))
  title = f"Evidence: {found[0]['suite']}"
  (folder / "report.html").write_text(document.to_html(blocks, title=title))
  return folder


def read_failures(source: Path) -> dict[str, str]:
  """ARM/SEED -> why it failed, of a folder of runs."""
  out = {}
  for path in sorted(source.glob(f"*/*/{FAILURE}")):
    if not (path.parent / rows.ROW).exists():
      failure = read_json(path) or {}
      name = f"{path.parents[1].name}/{path.parent.name}"
      out[name] = f"{failure.get('kind')}: {failure.get('reason')}"
  return out


def make(
  found: Sequence[Row], *, failures: Mapping[str, str] | None = None
) -> list[Block]:
  """Makes the report's blocks.

  Args:
    found: rows of one comparison.
    failures: ARM/SEED -> why it failed.
  """
  suite = suites.load(found[0]["suite"])
  grouped = rows.by_arm(found)
  arms: dict[str, Mapping[int, Row]] = {
    name: grouped[name] for name in ARMS if name in grouped
  }
  return [
    Heading(1, f"Evidence: {suite.name}"),
    Words(f"{suite.says[0].upper()}{suite.says[1:]}."),
    *_provenance(suite, found),
    *_verdicts(suite, arms),
    *_missing(suite, arms, failures or {}),
    *sections.accuracy(arms),
    *sections.differences(arms),
    *sections.curves(suite, arms),
    *sections.accounts(arms),
    *sections.growth(arms),
    Heading(2, "Arms"),
    Table(("arm", "what"), [(n, ARMS[n].says) for n in arms]),
  ]


def _provenance(suite: Suite, found: Sequence[Row]) -> list[Block]:
  first = found[0]
  places = sorted({_environment(row) for row in found})
  lines = [
    f"data: {first['result']['data']}, SHA-256 `{first['data_sha256']}`; rows"
    " on other data are not compared with these",
    f"ran on: {'; '.join(places)}",
    f"flags: {_flags(first['flags'])}",
    "differences are paired by seed; intervals are Student's t at 95 %; p is"
    " two-sided, by sign flips; validation decides, test is read once",
  ]
  if any(row["result"]["test_accuracy"] is None for row in found):
    lines.append(
      "**the test set was not read: what is called test accuracy below is"
      " validation accuracy**"
    )
  if len(places) > 1:
    lines.append(
      "**the rows come from different machines or versions: bits, and so the"
      " runs of single seeds, depend on them**"
    )
  if first["suite_sha256"] != suite.sha256():
    lines.append(
      "**the suite's wording has changed since these rows were made: its"
      " claims were not made beforehand for them**"
    )
  return [Bullets(lines)]


def _environment(row: Row) -> str:
  e = row["environment"]
  return (
    f"{e['device']}, {e['cores']} cores, jax {e['jax']}, Python {e['python']}"
  )


def _flags(flags: Mapping[str, Any]) -> str:
  listed = ", ".join(f"`{k}={v}`" for k, v in sorted(flags.items()))
  return listed or "none beyond the suite's"


def _verdicts(suite: Suite, arms: ByArm) -> list[Block]:
  verdicts = [claims.judge(claim, arms) for claim in suite.claims]
  tested = [n for n, v in enumerate(verdicts) if v.p is not None]
  p_values = [verdicts[n].p or 0.0 for n in tested]
  corrected = dict(zip(tested, statistics.holm(p_values), strict=True))
  lines = []
  for n, v in enumerate(verdicts):
    p = f"; p = {v.p:.3g}, {corrected[n]:.3g} by Holm" if n in corrected else ""
    if v.outcome == "supported" and corrected.get(n, 0.0) > 0.05:
      p += " (above 0.05: the interval alone supports it)"
    lines.append(
      f"**{v.claim.name}** ({v.claim.says}; {v.claim.arm} against"
      f" {v.claim.control}): **{v.outcome}**: {v.because}{p}"
    )
  return [Heading(2, "Claims made beforehand"), Bullets(lines)]


def _missing(
  suite: Suite, arms: ByArm, failures: Mapping[str, str]
) -> list[Block]:
  every = sorted({seed for found in arms.values() for seed in found})
  lines = [f"{name} failed: {reason}" for name, reason in failures.items()]
  for name in suite.arms:
    lacking = [s for s in every if s not in arms.get(name, {})]
    if name not in arms:
      lines.append(
        f"{name}: not run; `.venv/bin/python -m benchmarks.evidence run"
        f" --suite={suite.name} --arms={name}`"
      )
    elif lacking:
      lines.append(f"{name}: no row of seed {', '.join(map(str, lacking))}")
  if len(every) < suite.seeds:
    lines.append(
      f"{len(every)} of the {suite.seeds} seeds that the claims are made for"
    )
  return [Heading(2, "Missing"), Bullets(lines)] if lines else []
