"""Does the heuristic find the place that is too small?

Digits; a ResNet of three stages with a slot after each. In the impaired host
one stage, drawn from the seed, has a single channel between the convolutions
of its block; in the unimpaired host none has. For each seed:

  unimpaired  never grows
  impaired    never grows; the gap is what it loses, in validation accuracy
  heuristic   grows once, where and when the heuristic decides
  elsewhere   grows once at the same epoch at each other slot (schedule)

Reported: how often the heuristic's first choice is the narrowed stage's slot
(chance: 1/3), and what share of the gap growth closes there and elsewhere.

  .venv/bin/python -m benchmarks.bottleneck
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks._common import (
  changed,
  interval,
  load_config,
  make_parser,
  report,
  train,
)
from esper_jax.control import never_grown

SLOTS = ("slot1_1", "slot2_1", "slot3_1")
TARGET = 0.8  # share of first choices at the narrowed stage
LEAST_GAP = 3.0  # points, on average over the seeds
_INNER = 16  # channels inside a block that is not narrowed
_BLUEPRINT = "wide_block"  # has as many
FLAGS = (
  "--config.host.name=resnet8",
  "--config.host.width=2",
  "--config.data.augment=crop",
  "--config.data.crop_padding=2",
  "--config.train.epochs=40",
  "--config.urza.modules=benchmarks._wide_block",
  f"--config.kasmina.blueprints={_BLUEPRINT}",
  "--config.tamiyo.policy=heuristic",
  "--config.tamiyo.max_growths=1",
)


def narrowed_stage(seed: int) -> int:
  """Which stage, from 0, is narrowed: drawn from the seed."""
  return int(np.random.default_rng([seed, len(SLOTS)]).integers(len(SLOTS)))


def make_config(
  seed: int, *, narrowed: int | None, overrides: Sequence[str] = ()
) -> ConfigDict:
  """The run of a three-stage host that may grow once.

  Args:
    seed: of the run.
    narrowed: stage with inner width 1; None narrows none.
    overrides: flags of the form --config.section.key=value.
  """
  inner = [1 if stage == narrowed else _INNER for stage in range(len(SLOTS))]
  own = (
    f"--config.seed={seed}",
    f"--config.host.inner_widths={tuple(inner)}",
    *FLAGS,
  )
  return load_config("configs/digits.py", [*own, *overrides])


def examine(seed: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
  """All runs of one seed; gaps in points, closed shares relative to the gap."""
  stage = narrowed_stage(seed)
  impaired = make_config(seed, narrowed=stage, overrides=overrides)
  whole = make_config(seed, narrowed=None, overrides=overrides)
  full = train(never_grown(whole)).result["val_accuracy"]
  never = train(never_grown(impaired)).result["val_accuracy"]
  grown = train(impaired)
  choice = first_choice(grown.events)
  scores = {}
  if choice:
    scores[choice["slot"]] = grown.result["val_accuracy"]
    for slot in SLOTS:
      if slot not in scores:
        planted = planted_at(impaired, choice["epoch"], slot)
        scores[slot] = train(planted).result["val_accuracy"]
  closed = {slot: 100 * (score - never) for slot, score in scores.items()}
  others = [x for slot, x in closed.items() if slot != SLOTS[stage]]
  return {
    "seed": seed,
    "narrowed": SLOTS[stage],
    "first": choice["slot"] if choice else None,
    "epoch": choice["epoch"] if choice else None,
    "reason": choice["reason"] if choice else None,
    "fossilized": grown.result["fossilized"],
    "unimpaired": full,
    "impaired": never,
    "gap": 100 * (full - never),
    "grown": grown.result["val_accuracy"],
    "closed": closed,
    "closed_there": closed.get(SLOTS[stage]),
    "closed_elsewhere": float(np.mean(others)) if others else None,
  }


def planted_at(config: ConfigDict, epoch: int, slot: str) -> ConfigDict:
  """The same run with one seed planted at a given place and time."""
  schedule = ((epoch, slot, _BLUEPRINT),)
  return changed(config, tamiyo={"policy": "schedule", "schedule": schedule})


def first_choice(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
  """The decision of the first germination; None where there was none."""
  for event in events:
    if event["type"] == "decision" and event["action"] == "germinate":
      return event
  return None


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = make_parser(__doc__, seeds=10)
  options, overrides = parser.parse_known_args(argv)
  rows = []
  for seed in range(options.first, options.first + options.seeds):
    row = examine(seed, overrides)
    rows.append(row)
    closed = ", ".join(
      f"{s} {x:+.1f}" for s, x in sorted(row["closed"].items())
    )
    print(
      f"seed {seed}: narrowed {row['narrowed']}, gap {row['gap']:+.1f} points,"
      f" first choice {row['first']} at epoch {row['epoch']}"
      f" ({row['fossilized']} fossilized); growth gains"
      f" {closed or 'nothing'} points",
      flush=True,
    )
  figures = summarize(rows)
  print(f"gap: {interval([r['gap'] for r in rows]).text(' points')}")
  for where in ("there", "elsewhere"):
    points = figures[f"closed_{where}"]
    print(
      f"closed {where}: {points['mean']:+.2f} points"
      f" [{points['low']:+.2f}, {points['high']:+.2f}],"
      f" {figures[f'share_{where}']:.0%} of the gap"
    )
  print(
    f"first choice at the narrowed stage: {figures['hits']} of"
    f" {figures['choices']} (chance 1/3; target {TARGET:.0%})"
  )
  report("bottleneck", figures, options.json)
  return figures


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Figures over the seeds; a share is a ratio of means over all seeds."""
  gap = interval([row["gap"] for row in rows])
  figures: dict[str, Any] = {"gap": gap._asdict(), "least_gap": LEAST_GAP}
  for where in ("there", "elsewhere"):
    points = [row[f"closed_{where}"] for row in rows if row["closed"]]
    estimate = interval(points or [0.0])
    figures[f"closed_{where}"] = estimate._asdict()
    figures[f"share_{where}"] = estimate.mean / gap.mean if gap.mean else 0.0
  hits = sum(row["first"] == row["narrowed"] for row in rows)
  return figures | {
    "hits": hits,
    "choices": len(rows),
    "target": TARGET,
    "met": hits >= TARGET * len(rows) and gap.mean >= LEAST_GAP,
    "seeds": list(rows),
  }


if __name__ == "__main__":
  main(sys.argv[1:])
