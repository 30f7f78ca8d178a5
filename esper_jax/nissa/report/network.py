"""The network before and after growth, as two columns of slots."""

from collections.abc import Sequence

from esper_jax.nissa.report import markup
from esper_jax.nissa.report.growth import ALIVE, FOSSILIZED, Seed
from esper_jax.nissa.report.markup import Markup, tag
from esper_jax.nissa.report.record import Run, figures

WIDTH = 1080
_ROW, _TOP = 40, 96
_DENSE = 26  # pixels of a row where there are many slots
_MANY = 12
_RAIL = 190  # pixels from a column's left to its rail
_COLUMNS = (0, 500)


def draw(run: Run) -> Markup:
  """Draws both networks: the host as a rail, a node for each slot on it."""
  title = "The network, before and after"
  slots = list(dict.fromkeys(name.partition("#")[0] for name in run.slots))
  if not slots:
    return markup.figure(title, tag("p", "Not known yet.", class_="none"))
  row = _ROW if len(slots) <= _MANY else _DENSE
  there = [s for s in run.growth.seeds if s.fate in (ALIVE, FOSSILIZED)]
  bottom = _TOP + row * len(slots)
  after = figures(run)["params_final"]
  headings = (
    ("before", run.initial_parameters),
    ("now" if run.result is None else "after", after),
  )
  parts = []
  for n, (left, (name, parameters)) in enumerate(
    zip(_COLUMNS, headings, strict=True)
  ):
    parts += _rail(left, name, parameters, bottom)
    for line, slot in enumerate(slots):
      seeds = [s for s in there if s.slot.partition("#")[0] == slot and n]
      parts += _node(left + _RAIL, _TOP + row * (line + 0.5), slot, seeds)
  widest = max(
    sum(_width(s) + 8 for s in there if s.slot.partition("#")[0] == slot)
    for slot in slots
  )
  svg = tag(
    "svg",
    tag("title", _spoken(run.host, slots, there, headings)),
    *parts,
    viewBox=f"0 0 {max(WIDTH, _COLUMNS[1] + _RAIL + 30 + widest)}"
    f" {bottom + 52}",
    role="group",
    class_="wide",
  )
  return markup.figure(
    title,
    tag("div", svg, class_="scroll"),
    kind="whole",
    note="The line is the host; a ring is an empty slot, which does nothing; a"
    " seed that was planted there runs beside it and is blended in. Slots stand"
    " in the order in which the run lists them.",
  )


def _rail(
  left: int, name: str, parameters: int | None, bottom: int
) -> list[Markup]:
  x = left + _RAIL
  count = "" if parameters is None else f"{parameters:,} parameters"
  return [
    tag("text", name, x=x, y=20, class_="mid strong"),
    tag("text", count, x=x, y=38, class_="mid soft"),
    tag("line", x1=x, x2=x, y1=74, y2=bottom + 14, class_="rail"),
    *_box(x, 50, "examples"),
    *_box(x, bottom + 14, "output"),
  ]


def _box(x: int, top: int, words: str) -> list[Markup]:
  return [
    tag("rect", x=x - 46, y=top, width=92, height=24, rx=5, class_="box"),
    tag("text", words, x=x, y=top + 16, class_="mid"),
  ]


def _node(x: int, y: float, slot: str, seeds: Sequence[Seed]) -> list[Markup]:
  name = tag("text", slot, x=x - 18, y=y + 4, class_="end")
  if not seeds:
    return [name, tag("circle", cx=x, cy=y, r=6, class_="empty")]
  out = [
    name,
    tag(
      "path",
      class_="branch",
      d=f"M{x},{y - 11:.1f}"
      f"c0,8 14,11 30,11M{x},{y + 11:.1f}c0,-8 14,-11 30,-11",
    ),
    tag("circle", cx=x, cy=y, r=3, class_="joint"),
  ]
  left = x + 30.0
  for seed in seeds:
    width = _width(seed)
    kind = "fossilized" if seed.fate == FOSSILIZED else seed.stage.lower()
    label = (
      f"{slot}: {seed.blueprint} with {seed.parameters:,} parameters, planted"
      f" after epoch {seed.planted}, {kind}"
    )
    out.append(
      tag(
        "rect",
        tag("title", label),
        x=left,
        y=y - 11,
        width=width,
        height=22,
        rx=11,
        class_=f"pill {kind}",
        tabindex="-1",
        role="img",
        aria_label=label,
      )
    )
    out.append(
      tag(
        "text",
        _words(seed),
        x=left + width / 2,
        y=y + 4,
        class_=f"mid letter {kind}",
        aria_hidden="true",
      )
    )
    left += width + 8
  return out


def _words(seed: Seed) -> str:
  return f"{seed.key} +{seed.parameters:,}"


def _width(seed: Seed) -> int:
  return 20 + 7 * len(_words(seed))


def _spoken(
  host: str,
  slots: Sequence[str],
  seeds: Sequence[Seed],
  headings: Sequence[tuple[str, int | None]],
) -> str:
  counts = "; ".join(
    f"{name}: {count:,} parameters" for name, count in headings if count
  )
  grown = ", ".join(f"{s.key} in {s.slot}" for s in seeds) or "nothing"
  return f"{host} with {len(slots)} slots. {counts}. Grown: {grown}"
