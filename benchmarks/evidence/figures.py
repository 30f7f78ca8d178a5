"""The report's figures as SVG text: curves, a forest plot, a slot timeline."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# Tol's "bright" and "muted" colours, told apart by most colour-blind readers.
_COLOURS = (
  "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
  "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99",
  "#999933", "#cc6677", "#aa4499", "#777777",
)  # fmt: skip
_STAGES = {
  "TRAINING": "#ccbb44",
  "BLENDING": "#66ccee",
  "HOLDING": "#4477aa",
  "FOSSILIZED": "#228833",
}
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 70, 150, 12, 46
_LINE = 18  # height of a row of text


class Curve(NamedTuple):
  """A line with a band.

  Attributes:
    name: of the line.
    points: (x, y, low, high), x rising; low and high may be NaN.
  """

  name: str
  points: Sequence[tuple[float, float, float, float]]


class Effect(NamedTuple):
  """A line of a forest plot: a mean and its interval."""

  name: str
  mean: float
  low: float
  high: float


class _Axis:
  """Maps a range of values to a range of pixels."""

  def __init__(self, low: float, high: float, start: float, end: float):
    self.low, self.high = low, high if high > low else low + 1.0
    self._start, self._end = start, end

  def __call__(self, value: float) -> float:
    share = (value - self.low) / (self.high - self.low)
    return round(self._start + share * (self._end - self._start), 2)

  def ticks(self) -> list[float]:
    """About five round numbers inside the range."""
    rough = (self.high - self.low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(self.low / step - 1e-9)
    last = math.floor(self.high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def curves(
  lines: Sequence[Curve], *, across: str, up: str, height: int = 420
) -> str:
  """Draws lines with their bands and a legend.

  Args:
    lines: at least one with a point.
    across, up: what the axes show.
    height: pixels.
  """
  points = [point for line in lines for point in line.points]
  ys = [y for _, *values in points for y in values if math.isfinite(y)]
  x = _Axis(0.0, max(p[0] for p in points), _LEFT, _WIDTH - _RIGHT)
  y = _Axis(_floor(ys), max(ys), height - _BOTTOM, _TOP)
  out = [_frame(x, y, across=across, up=up, height=height)]
  for n, line in enumerate(lines):
    colour = _COLOURS[n % len(_COLOURS)]
    band = [p for p in line.points if math.isfinite(p[2] + p[3])]
    edge = [(x(p[0]), y(max(p[2], y.low))) for p in band]
    edge += [(x(p[0]), y(min(p[3], y.high))) for p in reversed(band)]
    out.append(
      f'<polygon points="{_joined(edge)}" fill="{colour}" opacity="0.12"/>'
    )
    middle = [(x(p[0]), y(max(p[1], y.low))) for p in line.points]
    out.append(
      f'<polyline points="{_joined(middle)}" fill="none" stroke="{colour}"'
      ' stroke-width="1.8"/>'
    )
    top = _TOP + _LINE * n + 10
    out.append(
      f'<rect x="{_WIDTH - _RIGHT + 12}" y="{top - 8}" width="14" height="4"'
      f' fill="{colour}"/>'
    )
    out.append(_text(_WIDTH - _RIGHT + 32, top - 2, line.name))
  return _svg(out, height)


def _floor(values: Sequence[float]) -> float:
  """Leaves out the steep start: from the lower quarter of what is shown."""
  ordered = sorted(values)
  quarter = ordered[len(ordered) // 4]
  return max(ordered[0], quarter - (ordered[-1] - quarter))


def forest(effects: Sequence[Effect], *, across: str) -> str:
  """Draws means with intervals, one a line, and a line at 0.

  Args:
    effects: from top to bottom; low and high may be NaN.
    across: what is measured, with its unit.
  """
  height = _TOP + _BOTTOM + 26 * max(1, len(effects))
  ends = [0.0]
  for effect in effects:
    ends += [v for v in effect[1:] if math.isfinite(v)]
  space = 0.05 * (max(ends) - min(ends) or 1.0)
  x = _Axis(min(ends) - space, max(ends) + space, _LEFT, _WIDTH - _RIGHT)
  bottom = height - _BOTTOM
  out = [_across(x, bottom, across)]
  out.append(_segment(x(0), _TOP, x(0), bottom, "#888", dashed=True))
  for n, effect in enumerate(effects):
    at = _TOP + 26 * n + 14
    out.append(_text(_LEFT - 8, at + 4, effect.name, "end"))
    if math.isfinite(effect.low):
      out.append(_segment(x(effect.low), at, x(effect.high), at, "#4477aa"))
    out.append(
      f'<circle cx="{x(effect.mean)}" cy="{at}" r="4" fill="#4477aa"/>'
    )
    words = f"{effect.mean:+.2f}"
    if math.isfinite(effect.low):
      words += f" [{effect.low:+.2f}, {effect.high:+.2f}]"
    out.append(_text(_WIDTH - _RIGHT + 8, at + 4, words))
  return _svg(out, height)


def slot_timeline(
  runs: Sequence[tuple[str, Mapping[str, Any]]],
) -> str:
  """Draws the stages of every slot that grew, over the epochs.

  Args:
    runs: (name, row); a run without growth takes one empty line.
  """
  lines = [
    (f"{name} {slot}".strip(), spans)
    for name, row in runs
    for slot, spans in (stages(row) or {"": []}).items()
  ]
  epochs = max(len(row["curve"]) for _, row in runs)
  height = _TOP + _BOTTOM + _LINE * len(lines)
  x = _Axis(0, epochs, _LEFT + 30, _WIDTH - _RIGHT)
  out = [_across(x, height - _BOTTOM, "epochs")]
  for n, (name, spans) in enumerate(lines):
    top = _TOP + _LINE * n
    out.append(_text(_LEFT + 22, top + 12, name, "end"))
    for start, end, stage in spans:
      out.append(
        f'<rect x="{x(start)}" y="{top + 2}" width="{x(end) - x(start):.2f}"'
        f' height="{_LINE - 5}" fill="{_STAGES.get(stage, "#bbb")}"/>'
      )
  for n, (stage, colour) in enumerate(_STAGES.items()):
    top = _TOP + _LINE * n
    out.append(
      f'<rect x="{_WIDTH - _RIGHT + 12}" y="{top + 2}" width="12"'
      f' height="12" fill="{colour}"/>'
    )
    out.append(_text(_WIDTH - _RIGHT + 30, top + 12, stage.lower()))
  return _svg(out, max(height, _TOP + _BOTTOM + _LINE * len(_STAGES)))


def stages(row: Mapping[str, Any]) -> dict[str, list[tuple[int, int, str]]]:
  """slot -> (first epoch, last epoch, stage) of what lived there, in order.

  Lanes of a slot count as slots; a stage that a cull ends ends there.
  """
  end = len(row["curve"])
  spans: dict[str, list[tuple[int, int, str]]] = {}
  present: dict[str, tuple[int, str]] = {}
  for event in row["timeline"]:
    slot, kind = event["slot"], event["type"]
    if event.get("lane"):
      slot = f"{slot}#{event['lane'] + 1}"
    now = {
      "germinated": "TRAINING",
      "stage_changed": event.get("now", ""),
      "fossilized": "FOSSILIZED",
    }.get(kind, "")
    if slot in present:
      start, stage = present.pop(slot)
      spans.setdefault(slot, []).append((start, event["epoch"], stage))
    if now in _STAGES:
      present[slot] = (event["epoch"], now)
  for slot, (start, stage) in present.items():
    spans.setdefault(slot, []).append((start, end, stage))
  return {slot: spans[slot] for slot in sorted(spans)}


def _frame(x: _Axis, y: _Axis, *, across: str, up: str, height: int) -> str:
  out = [_across(x, height - _BOTTOM, across)]
  for tick in y.ticks():
    out.append(_segment(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "#e5e5e5"))
    out.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
  middle = (height - _BOTTOM + _TOP) / 2
  out.append(
    f'<text transform="translate(16 {middle}) rotate(-90)"'
    f' text-anchor="middle">{html.escape(up)}</text>'
  )
  return "\n".join(out)


def _across(x: _Axis, bottom: float, words: str) -> str:
  left, right = x(x.low), x(x.high)
  out = [_segment(left, bottom, right, bottom, "#444")]
  for tick in x.ticks():
    out.append(_segment(x(tick), bottom, x(tick), bottom + 5, "#444"))
    out.append(_text(x(tick), bottom + 18, f"{tick:g}", "middle"))
  out.append(_text((left + right) / 2, bottom + 36, words, "middle"))
  return "\n".join(out)


def _segment(
  x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False
) -> str:
  dashes = ' stroke-dasharray="4 3"' if dashed else ""
  return (
    f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{dashes}/>'
  )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
  return (
    f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'
  )


def _joined(points: Iterable[tuple[float, float]]) -> str:
  return " ".join(f"{x},{y}" for x, y in points)


def _svg(parts: Sequence[str], height: float) -> str:
  body = "\n".join(parts)
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}"'
    f' height="{height}" viewBox="0 0 {_WIDTH} {height}" font-size="12"'
    f' font-family="sans-serif">\n{body}\n</svg>'
  )
