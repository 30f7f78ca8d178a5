"""The tables of a report, and the lists of marks below its curves."""

from collections.abc import Iterable, Mapping
from typing import Any

from esper_jax.nissa.console import describe
from esper_jax.nissa.report import growth, markup, story
from esper_jax.nissa.report.curves import Mark
from esper_jax.nissa.report.growth import Entry, Seed
from esper_jax.nissa.report.markup import Cell, Markup, tag
from esper_jax.nissa.report.record import Run, figures
from esper_jax.nissa.table import engineering, figure, percent

_SAYS = {
  growth.ALIVE: "alive",
  growth.FOSSILIZED: "permanent",
  growth.CULLED: "culled",
  growth.CANCELLED: "given up",
}
_TROUBLE = (
  "resumed",
  "fault",
  "rolled_back",
  "quarantined",
  "policy_fallback",
  "kernel_fallback",
  "growth_cancelled",
  "interrupted",
)


def marks(run: Run) -> list[Mark]:
  """What grew and what went wrong, to be marked below a curve."""
  found = []
  for seed in run.growth.seeds:
    words = f"{seed.key} in {seed.slot}"
    found.append(Mark(seed.planted, "planted", f"{words} planted"))
    if seed.ended is not None:
      fate = seed.fate if seed.fate == growth.FOSSILIZED else growth.CULLED
      found.append(Mark(seed.ended, fate, f"{words} {_SAYS[seed.fate]}"))
  for event in run.events:
    if event.get("type") == "rolled_back":
      found.append(Mark(event["epoch"], "trouble", "rolled back to here"))
  return found


def tiles(run: Run) -> Markup:
  """The figures that matter most, large."""
  known = figures(run)
  before = known["val_accuracy_before_growth"]
  first, last = run.initial_parameters, known["params_final"]
  ratio = (
    f"{last / first:.3g} times the {first:,} of the start"
    if (first and last)
    else ""
  )
  share = known["measurement_share"]
  seconds = known["wall_seconds"]
  blocked = known["compilation"]["blocking_seconds"]
  told = (
    (
      "validation accuracy",
      percent(known["val_accuracy"]),
      f"{percent(before)} before growth" if before is not None else "",
    ),
    ("test accuracy", percent(known["test_accuracy"]), "read once, at the end"),
    *_metrics(known.get("metrics") or {}),
    ("parameters", _number(last), ratio),
    (
      "all FLOPs",
      engineering(known["total_flops"]),
      f"{engineering(known['train_flops'])} in training"
      + (f", {percent(share)} of that to measure" if share else ""),
    ),
    (
      "seconds",
      "-" if seconds is None else f"{seconds:,.1f}",
      "" if blocked is None else f"{blocked:,.1f} waiting for the compiler",
    ),
    (
      "seeds",
      f"{known['germinated']}",
      f"{known['fossilized']} permanent, {known['culled']} culled",
    ),
  )
  return tag(
    "dl",
    *(
      tag(
        "div", tag("dt", name), tag("dd", value), tag("dd", note, class_="note")
      )
      for name, value, note in told
    ),
    class_="tiles",
  )


def _metrics(read: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
  """A tile for each metric of one's own: its name, validation, test."""
  test = read.get("test", {})
  return [
    (name, figure(value), f"{figure(test[name])} on test" if test else "")
    for name, value in read.get("validation", {}).items()
  ]


def seeds(run: Run) -> Markup:
  """A row for each seed: its life and what it was worth."""
  if not run.growth.seeds:
    return tag("p", "No seed was planted.", class_="none")
  return markup.table(
    "The seeds, in the order in which they were planted",
    (
      "slot",
      "seed",
      _right("parameters"),
      _right("planted"),
      _right("ended"),
      "became",
      _right("contribution when it ended, nats"),
      _right("standard errors"),
    ),
    (_seed(seed) for seed in run.growth.seeds),
  )


def _seed(seed: Seed) -> list[str | Cell]:
  value, error = seed.contribution, seed.error
  fate = _SAYS[seed.fate]
  if seed.fate == growth.ALIVE:
    fate = seed.stage.lower()
  return [
    seed.slot,
    seed.key,
    Cell(f"{seed.parameters:,}", "number"),
    Cell(str(seed.planted), "number"),
    Cell("" if seed.ended is None else str(seed.ended), "number"),
    Cell(_badge(fate, seed)),
    Cell(_worth(value, error), "number"),
    Cell(_sigmas(value, error), "number"),
  ]


def decisions(run: Run) -> Markup:
  """The growth table: every decision, why, what came of it, its effect."""
  if not run.growth.entries:
    return tag("p", "Nothing was decided.", class_="none")
  return markup.table(
    "Every decision, what came of it, and what happened without one",
    (
      "epoch",
      "slot",
      "decision",
      "reason",
      "outcome",
      _right("effect measured by then, nats"),
    ),
    (_decision(entry) for entry in run.growth.entries),
    kind="log",
  )


def _decision(entry: Entry) -> list[str | Cell]:
  what = " ".join(filter(None, (entry.action, entry.blueprint)))
  effect = _worth(entry.contribution, entry.error)
  kind = "words" if entry.action else "words soft"
  seed = entry.seed
  if entry.action == "germinate" and seed:
    effect = markup.join(
      (_badge(_SAYS[seed.fate], seed), _worth(seed.contribution, seed.error)),
      " ",
    )
  return [
    str(entry.epoch),
    entry.slot,
    Cell(what if entry.action else tag("span", "none", class_="soft"), "what"),
    Cell(entry.reason, kind),
    Cell(entry.outcome, kind),
    Cell(effect, "number"),
  ]


def trouble(run: Run) -> Markup | None:
  """What was not plain sailing; None where everything was."""
  told = [e for e in run.events if e.get("type") in _TROUBLE]
  if not told:
    return None
  return markup.table(
    "Resumptions, faults and fallbacks",
    ("epoch", _right("step"), "what"),
    (
      [
        str(e["epoch"]),
        Cell(f"{e['step']:,}", "number"),
        Cell(describe(e), "words"),
      ]
      for e in told
    ),
  )


def epochs(run: Run) -> Markup:
  """Every epoch's figures: what the curves show, as numbers."""
  return markup.table(
    "Every epoch",
    (
      "epoch",
      *map(
        _right,
        (
          "train loss",
          "validation loss",
          "train accuracy",
          "validation accuracy",
          "parameters",
          "all FLOPs",
          "seconds",
        ),
      ),
    ),
    (
      [
        str(line["epoch"]),
        *(
          Cell(_decimal(line.get(key)), "number")
          for key in ("train/epoch_loss", "val/loss")
        ),
        *(
          Cell(_share(line.get(key)), "number")
          for key in ("train/epoch_accuracy", "val/accuracy")
        ),
        Cell(_number(line.get("parameters")), "number"),
        Cell(engineering(line.get("flops/total")), "number"),
        Cell(_decimal(line.get("time/epoch")), "number"),
      ]
      for line in run.lines
    ),
  )


def config(run: Run) -> Markup:
  """All keys of the config, a table for each section."""
  grouped: dict[str, list[tuple[str, Any]]] = {}
  for key, value in sorted(run.config.items()):
    if key == "data.name" and run.config["data.source"]:
      value = "not read: data.source takes its place"
    section, _, name = key.rpartition(".")
    grouped.setdefault(section or "general", []).append((name, value))
  return tag(
    "div",
    *(_pairs(section, keys) for section, keys in sorted(grouped.items())),
    class_="config",
  )


def environment(run: Run) -> Markup:
  """Versions, device and hashes."""
  known = dict(run.environment)
  for key in ("data", "policy_used", "policy_sha256", "timing_dependent"):
    if run.result and run.result.get(key) not in (None, False):
      known[key] = run.result[key]
  return _pairs("environment", known.items())


def _pairs(caption: str, keys: Iterable[tuple[str, Any]]) -> Markup:
  rows = (
    (
      name.replace("_", " ") if caption == "environment" else name,
      Cell(shown(value), "words"),
    )
    for name, value in keys
  )
  return markup.table(caption, ("key", "value"), rows, kind="pairs")


def shown(value: Any) -> str:
  """A value of a config as one would write it."""
  if isinstance(value, list | tuple):
    return ", ".join(map(shown, value)) or "none"
  return '""' if value == "" else str(value)


def _badge(words: str, seed: Seed) -> Markup:
  return tag("span", words, class_=f"badge {seed.stage.lower()}")


def _worth(value: float | None, error: float | None) -> Markup:
  words = story.measure(value, error)
  if value is None:
    return markup.text(words)
  return tag("span", words, class_="good" if value > 0 else "bad")


def _sigmas(value: float | None, error: float | None) -> str:
  if value is None or not error:
    return ""
  return f"{value / error:+.1f}".replace("-", "\u2212")


def _right(words: str) -> Cell:
  return Cell(words, "number")


def _number(value: int | None) -> str:
  return "-" if value is None else f"{value:,}"


def _decimal(value: Any) -> str:
  return "-" if value is None else f"{float(value):.4f}"


def _share(value: Any) -> str:
  return "-" if value is None else percent(float(value))
