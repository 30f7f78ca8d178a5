"""Curves over epochs or FLOPs, with the growth events marked below them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from esper_jax.nissa.report import markup
from esper_jax.nissa.report.axis import Axis, short
from esper_jax.nissa.report.markup import Markup, tag

WIDTH = 520
_LEFT, _RIGHT, _TOP, _PLOT = 68, 14, 12, 216
_LANE = 15  # pixels of a row of marks
_CROWD = 24  # marked epochs from which marks are drawn smaller, without lines
_COLOURS = 6  # of --s0 and on in the style; then they repeat, dashed
# Kind of mark -> (its sign, its name); the sign tells it without colour.
MARKS = {
  "planted": ("M0,-4.5L4.5,4L-4.5,4Z", "planted"),
  "fossilized": ("M-4,-4H4V4H-4Z", "permanent"),
  "culled": ("M-4,-4L4,4M4,-4L-4,4", "culled"),
  "trouble": ("M0,-5L5,0L0,5L-5,0Z", "rolled back"),
}


class Curve(NamedTuple):
  """A line of a chart.

  Attributes:
    name: in the legend.
    points: (x, y) in order; a y of None leaves a gap.
    steps: whether a value holds until the next one.
  """

  name: str
  points: Sequence[tuple[float, float | None]]
  steps: bool = False


class Mark(NamedTuple):
  """An event below the curves.

  Attributes:
    epoch: where.
    kind: of MARKS.
    label: what happened.
  """

  epoch: int
  kind: str
  label: str


def chart(
  title: str,
  lines: Sequence[Curve],
  *,
  across: str = "epoch",
  up: str,
  unit: str = "",
  marks: Sequence[Mark] = (),
  logarithmic: bool = False,
  clip: bool = False,
  zero: bool = False,
  note: str = "",
) -> Markup:
  """Draws a chart; words in place of one where there is no point.

  Args:
    title: of the figure.
    lines: the curves.
    across, up: what the axes show.
    unit: "%" writes shares of 1 in per cent.
    marks: drawn in a row for each kind.
    logarithmic: where all values are above 0.
    clip: leaves out the steep start at the bottom.
    zero: begins at 0.
    note: below the chart.
  """
  points = [p for line in lines for p in line.points if p[1] is not None]
  if not points:
    return markup.figure(
      title, tag("p", "No epoch is over yet.", class_="none")
    )
  kinds = [kind for kind in MARKS if any(m.kind == kind for m in marks)]
  bottom = _TOP + _PLOT
  base = bottom + (6 + _LANE * len(kinds) if kinds else 0)
  x = _across([p[0] for p in points] + [mark.epoch for mark in marks])
  y, cut = _up([p[1] or 0.0 for p in points], bottom, logarithmic, clip, zero)
  svg = tag(
    "svg",
    tag("title", f"{title}: {_spoken(lines, unit)}"),
    *_grid(x, y, unit),
    *_uprights(x, marks, base),
    *(_line(line, x, y, n) for n, line in enumerate(lines)),
    *_rows(x, marks, kinds, bottom),
    *_labels(x, base, across),
    tag("line", class_="cursor", y1=_TOP, y2=bottom, x1=0, x2=0),
    viewBox=f"0 0 {WIDTH} {base + 40}",
    role="img",
    tabindex="0",
    class_="chart",
    data_left=x.start,
    data_right=x.end,
    data_low=f"{x.low:.9g}",
    data_high=f"{x.high:.9g}",
  )
  told = {
    "across": across,
    "unit": unit,
    "curves": [
      {"name": c.name, "points": [_rounded(p) for p in c.points]} for c in lines
    ],
    "marks": [[m.epoch, m.label] for m in marks],
  }
  words = " ".join(filter(None, (note, _CUT if cut else "")))
  return markup.figure(
    title,
    legend([line.name for line in lines]),
    tag("p", up, class_="up"),
    svg,
    markup.data(told),
    note=words,
  )


_CUT = "Values of the steep start lie below the axis and are cut off."


def legend(names: Sequence[str]) -> Markup:
  """The names with the strokes of their curves."""
  items = [
    tag(
      "li",
      tag(
        "svg",
        tag("line", x1=0, x2=22, y1=5, y2=5, class_=stroke(n)),
        viewBox="0 0 22 10",
        aria_hidden="true",
      ),
      name,
    )
    for n, name in enumerate(names)
  ]
  return tag("ul", *items, class_="legend")


def stroke(number: int) -> str:
  """Classes of the n-th curve: colour and dashes."""
  return f"s s{number % _COLOURS} d{(number + number // _COLOURS) % 4}"


def _across(places: Sequence[float]) -> Axis:
  low, high = min(places), max(places)
  space = max((high - low) * 0.015, 0.5 if high - low < 2 else 0.0)
  return Axis(low - space, high + space, _LEFT, WIDTH - _RIGHT)


def _up(
  values: Sequence[float],
  bottom: float,
  logarithmic: bool,
  clip: bool,
  zero: bool,
) -> tuple[Axis, bool]:
  """The axis, and whether it leaves something out."""
  ordered = sorted(values)
  low, high = ordered[0], ordered[-1]
  if logarithmic and low > 0:
    return Axis(low / 1.15, high * 1.15, bottom, _TOP, True), False
  cut = False
  if clip:
    quarter = ordered[len(ordered) // 4]
    floor = quarter - 0.6 * (high - quarter)
    cut = low < floor < quarter
    low = max(low, floor) if cut else low
  low = min(0.0, low) if zero else low
  space = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
  bare = low if zero or (low >= 0 > low - space) else low - space
  return Axis(bare, high + space, bottom, _TOP), cut


def _grid(x: Axis, y: Axis, unit: str) -> list[Markup]:
  out = []
  for tick in y.ticks():
    label = f"{100 * tick:.6g} %" if unit == "%" else short(tick)
    out.append(
      tag("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), class_="grid")
    )
    out.append(tag("text", label, x=x.start - 8, y=y(tick) + 4, class_="end"))
  return out


def _labels(x: Axis, bottom: float, across: str) -> list[Markup]:
  out = [tag("line", x1=x.start, x2=x.end, y1=bottom, y2=bottom, class_="base")]
  if across == "epoch":
    ticks: Sequence[float] = [tick for tick in x.whole_ticks(6) if tick]
  else:
    ticks = x.ticks(6)
  for tick in ticks:
    words = short(tick)
    out.append(tag("text", words, x=x(tick), y=bottom + 17, class_="mid"))
  middle = (x.start + x.end) / 2
  out.append(tag("text", across, x=middle, y=bottom + 35, class_="mid soft"))
  return out


def _line(line: Curve, x: Axis, y: Axis, number: int) -> Markup:
  """A path with gaps; it begins and ends where it crosses the lower end."""
  steps = []
  before: tuple[float, float] | None = None
  for at, value in line.points:
    seen = before is not None and before[1] >= y.low
    if value is not None and before and seen != (value >= y.low):
      share = (y.low - before[1]) / (value - before[1])
      edge = x(before[0] + share * (at - before[0]))
      steps.append(f"{'L' if seen else 'M'}{edge:.1f},{y.start:.1f}")
      seen = not seen
    if value is not None and value >= y.low:
      here = f"{x(at):.1f},{y(value):.1f}"
      if not seen:
        steps.append(f"M{here}h0")  # a point alone is drawn as a dot
      elif line.steps:
        steps.append(f"H{x(at):.1f}V{y(value):.1f}")
      else:
        steps.append(f"L{here}")
    before = None if value is None else (at, value)
  return tag("path", d="".join(steps), class_=stroke(number))


def _uprights(x: Axis, marks: Sequence[Mark], bottom: float) -> list[Markup]:
  kinds: Mapping[int, str] = {mark.epoch: mark.kind for mark in marks}
  if len(kinds) > _CROWD:
    return []
  return [
    tag("line", x1=x(e), x2=x(e), y1=_TOP, y2=bottom, class_=f"at {kind}")
    for e, kind in sorted(kinds.items())
  ]


def _rows(
  x: Axis, marks: Sequence[Mark], kinds: Sequence[str], bottom: float
) -> list[Markup]:
  out = []
  size = " scale(.6)" if len({mark.epoch for mark in marks}) > _CROWD else ""
  for n, kind in enumerate(kinds):
    sign, name = MARKS[kind]
    middle = bottom + 6 + _LANE * (n + 0.5)
    out.append(
      tag("text", name, x=x.start - 8, y=middle + 4, class_="end lane")
    )
    labels: dict[int, list[str]] = {}
    for mark in marks:
      if mark.kind == kind:
        labels.setdefault(mark.epoch, []).append(mark.label)
    for epoch, words in sorted(labels.items()):
      label = f"epoch {epoch}: {'; '.join(words)}"
      out.append(
        tag(
          "path",
          tag("title", label),
          d=sign,
          transform=f"translate({x(epoch):.1f} {middle:.1f}){size}",
          class_=f"sign {kind}",
        )
      )
  return out


def _spoken(lines: Sequence[Curve], unit: str) -> str:
  """The ends of the curves, for who cannot see them."""
  words = []
  for line in lines:
    known = [p[1] for p in line.points if p[1] is not None]
    if known:
      ends = [
        f"{100 * v:.2f} %" if unit == "%" else f"{v:.4g}"
        for v in (known[0], known[-1])
      ]
      words.append(f"{line.name} from {ends[0]} to {ends[1]}")
  return "; ".join(words)


def _rounded(point: tuple[float, float | None]) -> list[float | None]:
  return [v if v is None else float(f"{v:.6g}") for v in point]
