"""Slots by epochs: in which stage each slot was, as blocks.

A stage is told three times: by colour, by the height of its block (the nearer
to permanent, the higher) and, where there is room, by its letter.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from esper_jax.nissa.report import markup
from esper_jax.nissa.report.axis import Axis
from esper_jax.nissa.report.markup import Markup, tag
from esper_jax.nissa.report.record import Run

WIDTH = 1080
_RIGHT, _TOP = 12, 8
_LETTER = 7.2  # pixels of a character of a slot's name
_ROOM = 10  # pixels of height that the letter of a stage takes
# Stage -> (letter, share of the row's height).
STAGES = {
  "GERMINATED": ("G", 0.46),
  "TRAINING": ("T", 0.58),
  "BLENDING": ("B", 0.72),
  "HOLDING": ("H", 0.86),
  "FOSSILIZED": ("F", 1.0),
  "CULLED": ("C", 0.46),
  "EMBARGOED": ("E", 0.12),
}


class Span(NamedTuple):
  """Epochs in a row in which a slot stayed in a stage.

  Attributes:
    first, last: epochs at whose ends it was in the stage.
    stage: in upper case.
    blueprint: of the living seed; "" without one.
  """

  first: int
  last: int
  stage: str
  blueprint: str


def spans(lines: list[dict[str, Any]], slot: str) -> list[Span]:
  """The stages of a slot in order; dormant epochs are left out."""
  found: list[Span] = []
  for line in lines:
    stage = line.get(f"slots/{slot}/stage") or "DORMANT"
    blueprint = line.get(f"slots/{slot}/blueprint") or ""
    epoch = line["epoch"]
    if stage not in STAGES:
      continue
    last = found[-1] if found else None
    if last and last.last == epoch - 1 and last[2:] == (stage, blueprint):
      found[-1] = last._replace(last=epoch)
    else:
      found.append(Span(epoch, epoch, stage, blueprint))
  return found


def draw(run: Run, title: str = "Slots over the epochs") -> Markup:
  """Draws the timeline of a run with the key to its stages."""
  if not run.slots:
    return markup.figure(
      title, tag("p", "The host has no slots.", class_="none")
    )
  if not run.lines:
    return markup.figure(
      title, tag("p", "No epoch is over yet.", class_="none")
    )
  found = {slot: spans(run.lines, slot) for slot in run.slots}
  if not any(found.values()):
    words = f"All {len(found)} slots were dormant throughout."
    return markup.figure(title, tag("p", words, class_="none"))
  row = 30 if len(run.slots) <= 12 else 20
  left = 16 + _LETTER * max(map(len, run.slots))
  first, end = run.lines[0]["epoch"], max(run.planned, run.epochs)
  x = Axis(first - 0.5, end + 0.5, left, WIDTH - _RIGHT)
  bottom = _TOP + row * len(run.slots)
  parts = []
  for n, (slot, stages) in enumerate(found.items()):
    floor = _TOP + row * (n + 1) - 3
    parts.append(tag("text", slot, x=left - 10, y=floor - 4, class_="end"))
    parts.append(
      tag("line", x1=x.start, x2=x.end, y1=floor, y2=floor, class_="grid")
    )
    for span in stages:
      parts += _block(run, slot, span, x, floor, row - 6)
  svg = tag(
    "svg",
    tag("title", _spoken(run)),
    *parts,
    *_ticks(x, bottom),
    viewBox=f"0 0 {WIDTH} {bottom + 40}",
    role="group",
    class_="wide",
  )
  return markup.figure(
    title,
    _key(),
    tag("div", svg, class_="scroll"),
    kind="whole",
    note="A block stands for the stage at the end of an epoch. Arrow keys go"
    " from block to block.",
  )


def _block(
  run: Run, slot: str, span: Span, x: Axis, floor: float, height: float
) -> Iterator[Markup]:
  letter, share = STAGES[span.stage]
  start, end = x(span.first - 0.5), x(span.last + 0.5)
  gap = 1.0 if end - start > 4 else 0.2
  yield tag(
    "rect",
    tag("title", _label(run, slot, span)),
    x=start + gap / 2,
    y=floor - height * share,
    width=end - start - gap,
    height=height * share,
    class_=f"stage {span.stage.lower()}",
    tabindex="-1",
    role="img",
    aria_label=_label(run, slot, span),
  )
  if end - start >= 10 and height * share >= _ROOM:
    middle = (start + end) / 2
    yield tag(
      "text",
      letter,
      x=middle,
      y=floor - height * share / 2 + 3.6,
      class_=f"letter {span.stage.lower()}",
      aria_hidden="true",
    )


def _label(run: Run, slot: str, span: Span) -> str:
  when = (
    f"epoch {span.first}"
    if span.first == span.last
    else f"epochs {span.first} to {span.last}"
  )
  what = f" ({span.blueprint})" if span.blueprint else ""
  return f"{slot}, {when}: {span.stage.lower()}{what}" + _worth(run, slot, span)


def _worth(run: Run, slot: str, span: Span) -> str:
  key = f"slots/{slot}/contribution"
  values = [
    line[key]
    for line in run.lines
    if span.first <= line["epoch"] <= span.last and line.get(key) is not None
  ]
  return f", last contribution {float(values[-1]):+.4f} nats" if values else ""


def _ticks(x: Axis, bottom: float) -> Iterator[Markup]:
  yield tag(
    "line", x1=x.start, x2=x.end, y1=bottom + 2, y2=bottom + 2, class_="base"
  )
  for tick in x.whole_ticks(10):
    yield tag("text", tick, x=x(tick), y=bottom + 19, class_="mid")
  middle = (x.start + x.end) / 2
  yield tag("text", "epoch", x=middle, y=bottom + 36, class_="mid soft")


def _key() -> Markup:
  items = []
  for stage, (letter, share) in STAGES.items():
    name = stage.lower()
    block = tag(
      "rect",
      x=0,
      y=16.0 * (1 - share),
      width=16,
      height=16 * share,
      class_=f"stage {name}",
    )
    svg = tag("svg", block, viewBox="0 0 16 16", aria_hidden="true")
    items.append(tag("li", svg, tag("b", letter), f" {name}"))
  return tag("ul", *items, class_="legend")


def _spoken(run: Run) -> str:
  last = run.lines[-1]
  return "Stages of the slots. At the last epoch: " + ", ".join(
    f"{slot} {(last.get(f'slots/{slot}/stage') or 'DORMANT').lower()}"
    for slot in run.slots
  )
