"""HTML as text: what comes from a run is escaped here, and nowhere else."""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Markup(str):
  """Text that is HTML already."""

  __slots__ = ()


class Cell(NamedTuple):
  """A cell of a table.

  Attributes:
    content: text, or `Markup`.
    kind: its class: "number", "words" or "".
  """

  content: str
  kind: str = ""


def text(content: Any) -> Markup:
  """Escapes what is not `Markup`."""
  if isinstance(content, Markup):
    return content
  return Markup(html.escape(str(content)))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
  """An element, or an empty one where nothing is in it.

  Args:
    name: of the element.
    *content: escaped unless `Markup`.
    **attributes: escaped; "_" stands for "-", a trailing one is dropped; None
      leaves the attribute out.
  """
  listed = "".join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(_short(value))}"'
    for key, value in attributes.items()
    if value is not None
  )
  body = "".join(map(text, content))
  if not content and name in _SHAPES:
    return Markup(f"<{name}{listed}/>")
  return Markup(f"<{name}{listed}>{body}</{name}>")


def join(parts: Iterable[str], between: str = "\n") -> Markup:
  """Puts `Markup` together."""
  return Markup(between.join(map(text, parts)))


def table(
  caption: str,
  header: Sequence[str | Cell],
  rows: Iterable[Sequence[str | Cell]],
  *,
  kind: str = "",
) -> Markup:
  """A table that scrolls where it is too wide.

  Args:
    caption: says what it shows.
    header: of the columns; "" where a column needs none.
    rows: their first cell names them.
    kind: class of the table; "pairs" fits every page, and takes no focus.
  """
  head = tag("tr", *(_cell("th", word, scope="col") for word in header))
  body = []
  for first, *rest in rows:
    cells = [_cell("th", first, scope="row")] + [_cell("td", c) for c in rest]
    body.append(tag("tr", *cells))
  inner = tag(
    "table",
    tag("caption", caption),
    tag("thead", head),
    tag("tbody", join(body)),
    class_=kind or None,
  )
  if kind == "pairs":
    return tag("div", inner)
  # Scrolled with the keyboard, so it takes the focus and has a name.
  region = {"tabindex": "0", "role": "region", "aria_label": caption}
  return tag("div", inner, class_="scroll", **region)


def figure(title: str, *content: str, note: str = "", kind: str = "") -> Markup:
  """A figure with its title above and a note below."""
  parts = [tag("figcaption", tag("strong", title)), *content]
  if note:
    parts.append(tag("p", note, class_="note"))
  return tag("figure", *parts, class_=kind or None)


def data(record: Any) -> Markup:
  """JSON for the page's script; no text in it can end the element."""
  words = json.dumps(record, separators=(",", ":"), allow_nan=False)
  for sign in "<>&":
    words = words.replace(sign, f"\\u{ord(sign):04x}")
  return Markup(f'<script type="application/json">{words}</script>')


_SHAPES = ("path", "rect", "circle", "line")


def _cell(name: str, cell: str | Cell, **attributes: Any) -> Markup:
  content, kind = cell if isinstance(cell, Cell) else (cell, "")
  return tag(name, content, **attributes, class_=kind or None)


def _short(value: Any) -> str:
  """Coordinates to a tenth of a pixel."""
  return (
    f"{value:.1f}".removesuffix(".0")
    if isinstance(value, float)
    else str(value)
  )
