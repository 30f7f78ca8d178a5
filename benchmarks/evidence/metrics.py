"""Figures of one row: curves against cost, waste, thrash, growth's cost.

A curve is a list of points, one an epoch, with the keys epoch, flops (all so
far), train_flops, seconds, val_accuracy, val_loss and parameters.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Point = Mapping[str, Any]
Row = Mapping[str, Any]


class GrowthCost(NamedTuple):
  """What a grown run's training costs next to its final network's.

  Attributes:
    r: step FLOPs at the end / at the start.
    t: share of the epochs that were over when the first seed was planted.
    realised: training FLOPs / those of the final network for as many epochs.
    lowest: 1 - t' (1 - 1/r), with t' the largest t at which a seed could
      still live a whole life: the ratio that this r could have reached.
  """

  r: float
  t: float
  realised: float
  lowest: float


def trajectory_average(
  curve: Sequence[Point], *, against: str, up_to: float
) -> float:
  """Averages validation accuracy over a cost, from 0 to `up_to`.

  At each cost counts the last accuracy known by then: 0 before the first
  validation; a run that ends sooner keeps its last.

  Args:
    curve: of one run.
    against: "flops" or "seconds".
    up_to: above 0, in that unit; the same for all arms that are compared.
  """
  area, known, at = 0.0, 0.0, 0.0
  for point in curve:
    x = min(float(point[against]), up_to)
    area += known * (x - at)
    known, at = float(point["val_accuracy"]), x
  return (area + known * (up_to - at)) / up_to


def cost_to_target(
  curve: Sequence[Point], *, against: str, target: float
) -> float | None:
  """The cost at which validation first reached a target; None: never did.

  Args:
    curve: of one run.
    against: "flops" or "seconds".
    target: accuracy, 0 to 1.
  """
  for point in curve:
    if point["val_accuracy"] >= target:
      return float(point[against])
  return None


def median_with_censored(costs: Sequence[float | None]) -> float | None:
  """The median where None means "more than was spent"; None: more."""
  known = sorted(cost for cost in costs if cost is not None)
  middle = (len(costs) - 1) / 2
  low, high = math.floor(middle), math.ceil(middle)
  if high >= len(known):
    return None
  return (known[low] + known[high]) / 2


def thrash(timeline: Sequence[Mapping[str, Any]]) -> int:
  """Germinations in a slot in which a seed had been culled before."""
  culled: set[str] = set()
  count = 0
  for event in timeline:
    if event["type"] == "culled":
      culled.add(event["slot"])
    elif event["type"] == "germinated" and event["slot"] in culled:
      count += 1
  return count


def wasted_flops(row: Row) -> float:
  """Estimates the training FLOPs of seeds that were culled.

  What an epoch's training costs more from a planting on, times the epochs
  that the seed lived; seeds planted together share it by their parameters.
  Their part of validation is not counted.
  """
  each = _epoch_flops(row["curve"])
  planted: dict[int, list[Mapping[str, Any]]] = {}
  for event in row["timeline"]:
    if event["type"] == "germinated":
      planted.setdefault(event["epoch"], []).append(event)
  waste = 0.0
  for epoch, events in planted.items():
    more = each.get(epoch + 1, 0.0) - each.get(epoch, 0.0)
    size = sum(event["parameters"] for event in events)
    for event in events:
      end = _culled_at(row["timeline"], event)
      if end is not None and size:
        share = event["parameters"] / size
        waste += max(0.0, more) * share * (end - epoch)
  return waste


def has_grown(row: Row) -> bool:
  """Whether a seed was planted after the start."""
  return any(
    event["type"] == "germinated" and event["epoch"] > 0
    for event in row["timeline"]
  )


def growth_cost(row: Row) -> GrowthCost | None:
  """The cost of growing; None where nothing was planted."""
  born = [e["epoch"] for e in row["timeline"] if e["type"] == "germinated"]
  each = _epoch_flops(row["curve"])
  if not born or not each:
    return None
  first, last = each[min(each)], each[max(each)]
  epochs = len(each)
  r = last / first
  latest = max(0.0, epochs - row["life_epochs"]) / epochs
  return GrowthCost(
    r=r,
    t=min(born) / epochs,
    realised=sum(each.values()) / (epochs * last),
    lowest=1 - latest * (1 - 1 / r),
  )


def culling_shock(timeline: Sequence[Mapping[str, Any]]) -> list[float]:
  """How much the loss rose by each cull, nats; where it was measured.

  A seed's last measured contribution: the paired loss difference without it.
  """
  found = [e.get("contribution") for e in timeline if e["type"] == "culled"]
  return [float(value) for value in found if value is not None]


def shock_after_events(row: Row) -> float | None:
  """The largest rise of validation loss over the epoch after an event.

  Events: a seed is planted, enters the forward pass, or is culled. An epoch
  of training lies between the two figures, so this is only an upper look at
  what the event itself did. None where nothing happened.
  """
  loss = {p["epoch"]: p["val_loss"] for p in row["curve"]}
  rises = [
    loss[event["epoch"] + 1] - loss[event["epoch"]]
    for event in row["timeline"]
    if event["type"] in ("germinated", "stage_changed", "culled")
    and event["epoch"] in loss
    and event["epoch"] + 1 in loss
  ]
  return max(rises, default=None)


def newborn_parity(row: Row) -> list[float]:
  """Each seed's gradient parity in the first epoch after its birth.

  Rms gradient of the seed / of the host over that epoch.
  """
  parity = {(p["epoch"], p["slot"]): p["parity"] for p in row["parity"]}
  born = [
    (event["epoch"] + 1, event["slot"])
    for event in row["timeline"]
    if event["type"] == "germinated"
  ]
  return [parity[key] for key in born if key in parity]


def images_per_second(row: Row) -> float | None:
  """Of the median epoch, compilations that it waited for included."""
  curve = row["curve"]
  steps = [curve[0]["step"]] if curve else []
  steps += [
    b["step"] - a["step"] for a, b in zip(curve, curve[1:], strict=False)
  ]
  rates = sorted(
    row["batch_size"] * n / p["epoch_seconds"]
    for n, p in zip(steps, curve, strict=True)
    if p["epoch_seconds"] > 0
  )
  return rates[len(rates) // 2] if rates else None


def _epoch_flops(curve: Sequence[Point]) -> dict[int, float]:
  """epoch -> training FLOPs of it."""
  each, before = {}, 0.0
  for point in curve:
    each[point["epoch"]] = point["train_flops"] - before
    before = point["train_flops"]
  return each


def _culled_at(
  timeline: Sequence[Mapping[str, Any]], born: Mapping[str, Any]
) -> int | None:
  """The epoch at which a seed was culled; None where it was not."""
  start = next(n for n, event in enumerate(timeline) if event is born)
  for event in timeline[start + 1 :]:
    if event["slot"] == born["slot"] and event["type"] in (
      "culled",
      "fossilized",
      "germinated",
    ):
      return event["epoch"] if event["type"] == "culled" else None
  return None
