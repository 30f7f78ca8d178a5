"""The page around a report: style, script, headings and their links."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from esper_jax.nissa.report.markup import Markup, join, tag, text

_HERE = Path(__file__).parent


class Section(NamedTuple):
  """A part of the page that the contents link to.

  Attributes:
    name: the link's target.
    heading: above it.
    parts: what is in it.
  """

  name: str
  heading: str
  parts: Sequence[str]


def make(
  title: str,
  *,
  above: str,
  state: str,
  told: str,
  parts: Sequence[str],
  sections: Sequence[Section],
  footer: str,
  reload: bool,
) -> str:
  """Makes the whole document.

  Args:
    title: of the page and its first heading.
    above: a small line over the heading.
    state: where the run stands, in a few words.
    told: the paragraph below the heading.
    parts: what comes before the first section.
    sections: with their headings.
    footer: the last line.
    reload: whether the page should look for a newer one now and then.
  """
  style = (_HERE / "style.css").read_text(encoding="utf-8")
  script = (_HERE / "script.js").read_text(encoding="utf-8")
  links = [tag("a", s.heading, href=f"#{s.name}") for s in sections]
  body = join(
    (
      tag("a", "Skip to the report", href="#main", class_="skip"),
      tag(
        "header",
        tag("p", above, class_="above"),
        tag("h1", title, tag("span", state, class_="state")),
        tag("nav", *links, aria_label="Contents"),
      ),
      tag(
        "main",
        tag("p", told, class_="told"),
        *parts,
        *map(_section, sections),
        id="main",
      ),
      tag("footer", tag("p", footer)),
      tag("div", id="tip", role="status", aria_live="polite", hidden="hidden"),
    )
  )
  return (
    '<!doctype html>\n<html lang="en"'
    + (' data-reload="yes"' if reload else "")
    + '>\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    # Nothing is fetched, and no script runs but this one.
    '<meta http-equiv="Content-Security-Policy" content="default-src'
    f" 'none'; img-src data:; style-src 'unsafe-inline'; script-src"
    f" '{_digest(script)}'\">\n"
    f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n"
    f"<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
  )


def _section(section: Section) -> Markup:
  return tag(
    "section",
    tag("h2", section.heading),
    *section.parts,
    id=section.name,
  )


def _digest(script: str) -> str:
  found = hashlib.sha256(script.encode()).digest()
  return f"sha256-{base64.b64encode(found).decode()}"
