"""The report of one run."""

import datetime

from esper_jax.knobs import GIVEN
from esper_jax.nissa.report import (
  curves,
  network,
  page,
  sections,
  story,
  timeline,
  waterfall,
)
from esper_jax.nissa.report.curves import Curve
from esper_jax.nissa.report.markup import Markup, tag
from esper_jax.nissa.report.page import Section
from esper_jax.nissa.report.record import RUNNING, Run

_HONEST = (
  "What growth was worth only a control can tell: {}, and compare the two with"
  " .venv/bin/python -m esper_jax.nissa report RUN CONTROL."
)
_CONTROL = "train the same config with --control, or with tamiyo.policy=never"
_CONTROL_OF_GROW = "call grow as before with policy='never' and another workdir"
_WHEN = (
  "Validation is read when an epoch's steps are over, before seeds enter or"
  " leave; parameters are counted after that."
)
_MANY = 60  # rows of a table that is shown unfolded
_ANEW = " A run that goes on writes it anew now and then."


def make(run: Run) -> str:
  """Makes the document."""
  seeds, entries = run.growth.seeds, len(run.growth.entries)
  problems = sections.trouble(run)
  parts = [
    Section("curves", "Curves", [_curves(run)]),
    Section("slots", "Slots", [timeline.draw(run)]),
    Section(
      "seeds",
      "Seeds",
      [
        waterfall.draw(seeds),
        _long(f"All {len(seeds)} seeds", len(seeds), sections.seeds(run)),
      ],
    ),
    Section("network", "Network", [network.draw(run)]),
    Section(
      "decisions",
      "Decisions",
      [_long(f"All {entries} entries", entries, sections.decisions(run))],
    ),
    Section(
      "trouble",
      "Trouble",
      [
        problems
        or tag(
          "p",
          "None: nothing was resumed, rolled back or replaced.",
          class_="none",
        )
      ],
    ),
    Section(
      "epochs",
      "Epochs",
      [
        tag("p", _WHEN, class_="note"),
        _folded("The figures of every epoch", sections.epochs(run)),
      ],
    ),
    Section(
      "config",
      "Config and environment",
      [
        sections.environment(run),
        _folded("All keys of the config", sections.config(run)),
      ],
    ),
  ]
  return page.make(
    run.name,
    above="esper_jax run",
    state=story.state(run),
    told=story.tell(run),
    parts=[sections.tiles(run), tag("p", _honest(run), class_="note")],
    sections=parts,
    footer=written() + (_ANEW if run.status == RUNNING else ""),
    reload=run.status == RUNNING,
  )


def _honest(run: Run) -> str:
  of_grow = run.config["host.name"] == GIVEN
  return _HONEST.format(_CONTROL_OF_GROW if of_grow else _CONTROL)


def written() -> str:
  """The footer: when the page was written."""
  now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
  return f"Written by esper_jax at {now}."


def _long(summary: str, rows: int, table: Markup) -> Markup:
  """A table, folded where it has many rows."""
  return table if rows <= _MANY else _folded(summary, table)


def _folded(summary: str, content: str) -> Markup:
  return tag("details", tag("summary", summary), content)


def _curves(run: Run) -> Markup:
  marks = sections.marks(run)
  return tag(
    "div",
    curves.chart(
      "Loss",
      [
        _curve(run, "train", "train/epoch_loss"),
        _curve(run, "validation", "val/loss"),
      ],
      up="nats, logarithmic",
      marks=marks,
      logarithmic=True,
    ),
    curves.chart(
      "Accuracy",
      [
        _curve(run, "train", "train/epoch_accuracy"),
        _curve(run, "validation", "val/accuracy"),
      ],
      up="share that was right",
      unit="%",
      marks=marks,
      clip=True,
    ),
    curves.chart(
      "Parameters",
      [_curve(run, "parameters", "parameters", steps=True)],
      up="parameters, living seeds included",
      marks=marks,
      zero=True,
    ),
    curves.chart(
      "FLOPs",
      [
        _curve(run, "all", "flops/total"),
        _curve(run, "training", "flops/train"),
      ],
      up="FLOPs since the start",
      marks=marks,
      zero=True,
      note="All of them: training, evaluation, ablations and probes.",
    ),
    class_="charts",
  )


def _curve(run: Run, name: str, key: str, *, steps: bool = False) -> Curve:
  at = [line["epoch"] for line in run.lines]
  return Curve(name, list(zip(at, run.series(key), strict=True)), steps)
