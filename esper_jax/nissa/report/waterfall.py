"""What each seed contributed: a bar a seed, adding up what stayed."""

from collections.abc import Sequence

from esper_jax.nissa.report import markup, story
from esper_jax.nissa.report.axis import Axis, short
from esper_jax.nissa.report.growth import CULLED, FOSSILIZED, Seed
from esper_jax.nissa.report.markup import Markup, tag

WIDTH = 1080
_RIGHT, _TOP, _ROW = 190, 6, 24
_LETTER = 6.8  # pixels of a character
_TITLE = "What each seed contributed"
_NOTE = (
  "The contribution: by how many nats the mean validation loss rose when the"
  " seed alone was taken out, with one standard error, as it had been measured"
  " when the seed was made permanent or culled; of one that is still judged,"
  " the last one. Solid bars stayed and add up; outlined ones were culled, or"
  " are still judged, and do not. Each was measured against the network of its"
  " time, so the sum is not what growth as a whole gained."
)


def draw(seeds: Sequence[Seed]) -> Markup:
  """Draws the waterfall of the seeds whose contribution was measured."""
  known = [seed for seed in seeds if seed.contribution is not None]
  if not known:
    words = (
      "No seed was planted."
      if not seeds
      else "No contribution has been measured."
    )
    return markup.figure(_TITLE, tag("p", words, class_="none"))
  names = [f"{s.slot} {s.key}, epoch {s.ended or s.planted}" for s in known]
  left = 18 + _LETTER * max(map(len, [*names, "what stayed"]))
  bars, total = [], 0.0
  for seed in known:
    stays = seed.fate == FOSSILIZED
    end = total + (seed.contribution or 0.0)
    bars.append((total, end, seed))
    total = end if stays else total
  x = _across(bars, left)
  bottom = _TOP + _ROW * (len(known) + 1) + 6
  parts = list(_scale(x, bottom))
  for n, (name, (start, end, seed)) in enumerate(zip(names, bars, strict=True)):
    top = float(_TOP + _ROW * n)
    parts += _bar(name, start, end, seed, x, top)
  top = float(_TOP + _ROW * len(known) + 6)
  stayed = sum(seed.fate == FOSSILIZED for seed in known)
  parts += [
    tag("line", x1=0, x2=WIDTH, y1=top - 3, y2=top - 3, class_="base"),
    tag("text", "what stayed", x=left - 10, y=top + 15, class_="end strong"),
    _rect(x, 0.0, total, top, "bar total"),
    tag(
      "text",
      f"{total:+.4f} ({stayed} of {len(known)})",
      x=WIDTH - _RIGHT + 12.0,
      y=top + 15,
      class_="strong",
    ),
  ]
  svg = tag(
    "svg",
    tag(
      "title",
      f"Contributions of {len(known)} seeds; those that"
      f" stayed add up to {total:+.4f} nats",
    ),
    *parts,
    viewBox=f"0 0 {WIDTH} {bottom + 38}",
    role="group",
    class_="wide",
  )
  return markup.figure(
    _TITLE, tag("div", svg, class_="scroll"), note=_NOTE, kind="whole"
  )


def _across(bars: Sequence[tuple[float, float, Seed]], left: float) -> Axis:
  ends = [0.0]
  for start, end, seed in bars:
    error = seed.error or 0.0
    ends += [start, end - error, end + error]
  space = 0.04 * (max(ends) - min(ends)) or 1.0
  return Axis(min(ends) - space, max(ends) + space, left, WIDTH - _RIGHT)


def _scale(x: Axis, bottom: float) -> list[Markup]:
  out = []
  for tick in x.ticks(7):
    kind = "zero" if abs(tick) < 1e-12 else "grid"
    at = x(tick)
    out.append(tag("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_=kind))
    words = short(round(tick, 12))
    out.append(tag("text", words, x=at, y=bottom + 16, class_="mid"))
  middle = (x.start + x.end) / 2
  words = "nats of validation loss that it takes away"
  out.append(tag("text", words, x=middle, y=bottom + 33, class_="mid soft"))
  return out


def _bar(
  name: str, start: float, end: float, seed: Seed, x: Axis, top: float
) -> list[Markup]:
  value, error = seed.contribution or 0.0, seed.error
  words = story.measure(value, error)
  label = f"{name}: {seed.blueprint}, {seed.fate}, {words} nats"
  kind = "stays" if seed.fate == FOSSILIZED else "gone"
  if value < 0:
    kind += " hurts"
  middle = top + _ROW / 2
  parts = [
    tag("text", name, x=x.start - 10, y=middle + 4, class_="end"),
    _rect(x, start, end, top, f"bar {kind}", label),
  ]
  if error:
    low, high = x(end - error), x(end + error)
    parts.append(
      tag(
        "path",
        class_="whisker",
        d=f"M{low:.1f},{middle - 4:.1f}v8m0,-4H{high:.1f}m0,-4v8",
      )
    )
  sign = {FOSSILIZED: " stayed", CULLED: " culled"}.get(
    seed.fate, " " + seed.fate
  )
  right = WIDTH - _RIGHT + 12.0
  parts.append(tag("text", words + sign, x=right, y=middle + 4))
  return parts


def _rect(
  x: Axis, start: float, end: float, top: float, kind: str, label: str = ""
) -> Markup:
  left, right = sorted((x(start), x(end)))
  about = [tag("title", label)] if label else []
  return tag(
    "rect",
    *about,
    x=left,
    y=top + 4,
    width=max(right - left, 1.0),
    height=float(_ROW - 8),
    class_=kind,
    **({"tabindex": "-1", "role": "img", "aria_label": label} if label else {}),
  )
