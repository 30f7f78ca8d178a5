"""Writes configuration.md from the config itself: defaults, ranges, comments.

.venv/bin/python docs/make_configuration.py
  writes it
.venv/bin/python docs/make_configuration.py --check
  exits with 1 where it is not up to date
"""

import re
import sys
from pathlib import Path

from esper_jax import commands, defaults
from esper_jax import config as config_lib
from esper_jax.knobs import FREE_KEYS, KNOBS

PAGE = Path(__file__).with_name("configuration.md")
_HEAD = """\
# Configuration

<!-- Made by make_configuration.py: edit esper_jax/defaults.py or knobs.py. -->

Every key of a config, with its default. On the command line
`--config.SECTION.KEY=VALUE`; in a config file `config.SECTION.KEY = VALUE`; in
Python `esper_jax.grow(..., config={"SECTION.KEY": VALUE})`. A value that is not
valid ends with one line that says what is, exit code 2. Keys marked * may
differ when a run is resumed, and are outside the hash of the config: they
change no result, or only say where something lies whose content counts.

"""


# What is valid too, but nothing to choose on a command line.
_IN_PYTHON = ", given (set by `esper_jax.grow`, not by hand)"
_REGISTERED = ", a name that a module of `urza.modules` registers"
_ALSO = {
  "host.name": _IN_PYTHON,
  "data.source": _IN_PYTHON,
  "tamiyo.policy": _REGISTERED + _IN_PYTHON,
}


def comments() -> dict[str, str]:
  """Key -> what the comment at its default says."""
  found, above = {}, []
  for line in Path(defaults.__file__).read_text().splitlines():
    text = line.strip()
    if text.startswith("# "):
      above.append(text[2:])
      continue
    key = re.match(r'config\.(\w+)(?:\.(\w+)|\["(\w+)"\])? = ', text)
    if key and "ConfigDict()" not in text:
      name = ".".join(filter(None, key.groups()))
      _, mark, inline = text.partition("  # ")
      found[name] = inline if mark else " ".join(above)
    above = []
  return found


def page() -> str:
  """The text of configuration.md."""
  told, flat = comments(), config_lib.flatten(defaults.get_config())
  sections: dict[str, list[str]] = {}
  for key, knob in KNOBS.items():
    section = key.rpartition(".")[0]
    star = " *" if key in FREE_KEYS else ""
    valid = knob.valid + _ALSO.get(key, "")
    cells = (f"`{key}`{star}", _code(flat[key]), valid, told[key])
    row = " | ".join(cell.replace("|", "\\|") for cell in cells)
    sections.setdefault(section, []).append(f"| {row} |")
  parts = [_HEAD.rstrip()]
  for section, rows in sections.items():
    title = f"## {section}" if section else "## The run"
    table = "| key | default | valid | what it is |\n| --- | --- | --- | --- |"
    parts.append("\n".join((title, "", table, *rows)))
  return "\n\n".join(parts) + "\n"


def _code(value: object) -> str:
  if value == "":
    return '`""`'
  return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main(argv: list[str]) -> int:
  """Writes the page, or checks it; returns the exit code."""
  if argv == ["--check"]:
    same = PAGE.exists() and PAGE.read_text() == page()
    if not same:
      print(f"{PAGE.name} is old: run {commands.python()} {__file__}")
    return 0 if same else 1
  PAGE.write_text(page())
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
