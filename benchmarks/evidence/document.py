"""A document of headings, words, tables and figures, as Markdown or HTML."""

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

_STYLE = """\
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto;
       padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; display: block;
        overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: .25em .6em; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f3f3f3; }
figure { margin: 1em 0; } figcaption { color: #555; }
svg { max-width: 100%; height: auto; }
code { background: #f3f3f3; padding: 0 .2em; }
"""


class Heading(NamedTuple):
  """A heading of a level from 1."""

  level: int
  text: str


class Words(NamedTuple):
  """A paragraph; `code` and **strong** as in Markdown."""

  text: str


class Bullets(NamedTuple):
  """A list; its items as `Words`."""

  items: Sequence[str]


class Table(NamedTuple):
  """A table of texts; its first column names the rows."""

  header: Sequence[str]
  rows: Sequence[Sequence[str]]


class Figure(NamedTuple):
  """An SVG picture; its file is `name`.svg."""

  name: str
  svg: str
  caption: str


Block = Heading | Words | Bullets | Table | Figure


def to_markdown(blocks: Sequence[Block]) -> str:
  """The document as Markdown; figures are links to figures/NAME.svg."""
  return "\n\n".join(map(_markdown, blocks)) + "\n"


def to_html(blocks: Sequence[Block], *, title: str) -> str:
  """The document as one HTML page that needs no other file."""
  body = "\n".join(map(_html, blocks))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}</style>\n"
    f"</head>\n<body>\n{body}\n</body>\n</html>\n"
  )


def _markdown(block: Block) -> str:
  match block:
    case Heading(level, text):
      return f"{'#' * level} {text}"
    case Words(text):
      return text
    case Bullets(items):
      return "\n".join(f"* {item}" for item in items)
    case Table(header, rows):
      lines = [header, ["---"] * len(header), *rows]
      return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    case Figure(name, _, caption):
      return f"![{caption}](figures/{name}.svg)"


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


def _html(block: Block) -> str:
  match block:
    case Heading(level, text):
      return f"<h{level}>{_inline(text)}</h{level}>"
    case Words(text):
      return f"<p>{_inline(text)}</p>"
    case Bullets(items):
      listed = "".join(f"<li>{_inline(item)}</li>" for item in items)
      return f"<ul>{listed}</ul>"
    case Table(header, rows):
      head = "".join(f"<th>{_inline(text)}</th>" for text in header)
      body = "".join(
        f"<tr>{''.join(f'<td>{_inline(text)}</td>' for text in row)}</tr>\n"
        for row in rows
      )
      return f"<table>\n<tr>{head}</tr>\n{body}</table>"
    case Figure(_, svg, caption):
      return (
        f"<figure>{svg}<figcaption>{_inline(caption)}</figcaption></figure>"
      )


def _inline(text: str) -> str:
  out = html.escape(text, quote=False)
  out = re.sub(r"`([^`]+)`", r"<code>\1</code>", out)
  return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", out)
