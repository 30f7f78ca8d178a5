"""The report of several runs, side by side."""

import os
from collections.abc import Mapping
from pathlib import Path

from esper_jax.nissa.report import (
  curves,
  markup,
  page,
  sections,
  story,
  timeline,
)
from esper_jax.nissa.report.curves import Curve
from esper_jax.nissa.report.growth import number
from esper_jax.nissa.report.markup import Cell, Markup, tag
from esper_jax.nissa.report.page import Section
from esper_jax.nissa.report.record import RUNNING, Run, figures
from esper_jax.nissa.report.single import written
from esper_jax.nissa.table import percent, result_rows

_OTHER_DATA = (
  "The runs are not on the same data (their SHA-256 differ): their accuracies"
  " and losses do not compare."
)


def make(runs: Mapping[str, Run], *, folder: Path) -> str:
  """Makes the document.

  Args:
    runs: by a name that no other has; at least two.
    folder: of the document, from which it links to the runs' own reports.
  """
  known = {name: figures(run) for name, run in runs.items()}
  differ = _differing(runs)
  hashes = {run.environment.get("data_sha256") for run in runs.values()}
  warnings = [tag("p", _OTHER_DATA, class_="warning")] * (len(hashes) > 1)
  names = list(runs)
  parts = [
    Section(
      "figures",
      "Figures",
      [
        markup.table(
          "What result.json holds, or so far will",
          ("", *(Cell(name, "number") for name in names)),
          (
            [label, *(Cell(c, "number") for c in cells)]
            for label, *cells in result_rows(known)
          ),
        )
      ],
    ),
    Section("curves", "Curves", [_curves(runs)]),
    Section(
      "slots", "Slots", [timeline.draw(r, name) for name, r in runs.items()]
    ),
    Section(
      "config",
      "Where the configs differ",
      [
        markup.table(
          "Keys of the config that are not equal",
          ("key", *names),
          ([key, *v] for key, v in differ),
        )
        if differ
        else tag("p", "Nowhere: all keys are equal.", class_="none")
      ],
    ),
    Section("runs", "Each run", [_each(runs, folder)]),
  ]
  running = any(run.status == RUNNING for run in runs.values())
  return page.make(
    f"Comparison of {len(runs)} runs",
    above="esper_jax",
    state=_states(runs),
    told=_tell(runs),
    parts=warnings,
    sections=parts,
    footer=written(),
    reload=running,
  )


def _differing(runs: Mapping[str, Run]) -> list[tuple[str, list[str]]]:
  """The keys of the config in which runs differ, and what each has."""
  found = []
  for key in sorted({key for run in runs.values() for key in run.config}):
    values = [sections.shown(run.config.get(key, "-")) for run in runs.values()]
    if len(set(values)) > 1:
      found.append((key, values))
  return found


def _states(runs: Mapping[str, Run]) -> str:
  states = [run.status for run in runs.values()]
  counts = {state: states.count(state) for state in dict.fromkeys(states)}
  return ", ".join(f"{count} {state}" for state, count in counts.items())


def _tell(runs: Mapping[str, Run]) -> str:
  """The run that ended best, and by how much."""
  ends = {
    name: value
    for name, run in runs.items()
    if (value := figures(run)["val_accuracy"]) is not None
  }
  if len(ends) < 2:
    return "There are no two runs with an accuracy yet."
  ranked = sorted(ends, key=lambda name: -ends[name])
  best, second = ranked[:2]
  points = 100 * (ends[best] - ends[second])
  return (
    f"{best} has the highest validation accuracy, {percent(ends[best])};"
    f" {second} follows with {percent(ends[second])}, {points:.2f} points"
    " behind. One run of each says little about another seed: a claim needs"
    " several, paired, with an interval"
    " (.venv/bin/python -m benchmarks.evidence)."
  )


def _curves(runs: Mapping[str, Run]) -> Markup:
  def over(x: str, y: str, *, steps: bool = False) -> list[Curve]:
    return [
      Curve(
        name,
        [(line[x], number(line.get(y))) for line in run.lines],
        steps,
      )
      for name, run in runs.items()
    ]

  return tag(
    "div",
    curves.chart(
      "Validation loss",
      over("epoch", "val/loss"),
      up="nats, logarithmic",
      logarithmic=True,
    ),
    curves.chart(
      "Validation accuracy",
      over("epoch", "val/accuracy"),
      up="share that was right",
      unit="%",
      clip=True,
    ),
    curves.chart(
      "Validation accuracy for its FLOPs",
      over("flops/total", "val/accuracy"),
      across="FLOPs since the start",
      up="share that was right",
      unit="%",
      clip=True,
      note="All FLOPs: training, evaluation, ablations and probes.",
    ),
    curves.chart(
      "Parameters",
      over("epoch", "parameters", steps=True),
      up="parameters, living seeds included",
      zero=True,
    ),
    class_="charts",
  )


def _each(runs: Mapping[str, Run], folder: Path) -> Markup:
  items = []
  for name, run in runs.items():
    report = run.path.resolve() / "report.html"
    where = Path(os.path.relpath(report, folder.resolve())).as_posix()
    title = tag("a", name, href=where) if report.exists() else tag("b", name)
    items.append(
      markup.join(
        (tag("dt", title, f" ({story.state(run)})"), tag("dd", story.tell(run)))
      )
    )
  return tag("dl", *items, class_="each")
