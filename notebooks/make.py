"""Renews what the notebooks have in common, and takes their outputs out.

  .venv/bin/python -m notebooks.make
      writes notebooks/*.ipynb and README.md
  .venv/bin/python -m notebooks.make --check
      writes nothing and says what would change

The badge that opens a notebook in Colab and the cell that installs esper_jax
follow from one entry of pyproject.toml:

  [project.urls]
  Repository = "https://github.com/OWNER/NAME"

Without it there is no badge, and the cell installs from a checkout.
"""

import argparse
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from esper_jax import commands
from esper_jax.tolaria.workdir import replace_text
from esper_jax.types import InputError

ROOT = Path(__file__).parents[1]
BADGE, INSTALL = "badge", "install"  # ids of the cells that are made here
# What JSON and nbformat raise on other files.
_NO_NOTEBOOK = (
  AttributeError,
  KeyError,
  ValueError,
  nbformat.ValidationError,
)
_METADATA = {
  "kernelspec": {
    "display_name": "Python 3",
    "language": "python",
    "name": "python3",
  },
  "language_info": {"name": "python"},
}
# After the `if` of where esper_jax is missing.
_MATPLOTLIB = """\
elif importlib.util.find_spec("matplotlib") is None:
  %pip install --quiet matplotlib
"""
_FROM_URL = """\
import importlib.util

if importlib.util.find_spec("esper_jax") is None:
  %pip install --quiet "esper-jax[notebooks] @ git+{url}"
"""
_FROM_CHECKOUT = """\
# Where esper_jax is missing: from a checkout beside or around this notebook; in
# Colab, from a zip of one, which it lets you upload.
import importlib.util
import sys
import zipfile
from pathlib import Path

if importlib.util.find_spec("esper_jax") is None:
  near = [Path(".."), *Path().iterdir()]
  found = [p for p in near if (p / "esper_jax/api.py").exists()]
  if not found and "google.colab" in sys.modules:
    from google.colab import files

    for name in files.upload():
      zipfile.ZipFile(name).extractall("checkout")
    apis = Path("checkout").rglob("esper_jax/api.py")
    found = [p.parents[1] for p in apis]
  if not found:
    raise ModuleNotFoundError(
      "esper_jax is missing, and there is no checkout of it to install; put one"
      " beside this notebook"
    )
  %pip install --quiet "{found[0].resolve()}[notebooks]"
"""


def main(argv: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
  """Runs the command and returns its exit code.

  0: done, or nothing to do; 1: with --check, a file is not as it would be
  written; 2: bad input, in one line, and nothing was written.
  """
  return commands.run(lambda args: _run(args, root), argv)


def _run(argv: list[str], root: Path) -> int:
  parser = commands.Parser(
    prog=".venv/bin/python -m notebooks.make",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    hint="; --help shows how",
  )
  parser.add_argument("--check", action="store_true", help="write nothing")
  check = parser.parse_args(argv).check
  url = repository(root)
  paths = [root / "README.md", *sorted(root.glob("notebooks/*.ipynb"))]
  texts = {path: path.read_text(encoding="utf-8") for path in paths}
  new = {path: _renewed(path, text, url) for path, text in texts.items()}
  changed = [path for path in paths if new[path] != texts[path]]
  for path in changed:
    if check:
      name, how = path.relative_to(root), commands.python()
      print(f"{name}: run {how} -m notebooks.make")
    else:
      replace_text(path, new[path])
      print(f"{path.relative_to(root)}: written")
  return commands.FAILED if check and changed else commands.OK


def repository(root: Path) -> str:
  """The repository's URL as pyproject.toml has it, or "".

  Raises:
    InputError: it is not one that pip and a browser can use.
  """
  text = (root / "pyproject.toml").read_text(encoding="utf-8")
  url = tomllib.loads(text)["project"].get("urls", {}).get("Repository", "")
  if url and not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", url):
    raise InputError(
      f"pyproject.toml, [project.urls]: Repository is '{url}'; give a URL such"
      " as https://github.com/OWNER/NAME, or leave it out"
    )
  return url.removesuffix(".git")


def install_cell(url: str) -> str:
  """The source of the cell that installs esper_jax, or Matplotlib alone."""
  source = _FROM_URL.format(url=url) if url else _FROM_CHECKOUT
  return (source + _MATPLOTLIB).rstrip()


def badge(url: str, name: str) -> str:
  """The badge of a notebook in Markdown; "" where Colab cannot open it.

  Args:
    url: of the repository; Colab opens those on GitHub.
    name: of the notebook, "quickstart".
  """
  if not url.startswith("https://github.com/"):
    return ""
  place = url.removeprefix("https://")
  colab = "https://colab.research.google.com"
  return (
    f"[![Open in Colab]({colab}/assets/colab-badge.svg)]"
    f"({colab}/{place.replace('.com', '', 1)}/blob/main/notebooks/{name}.ipynb)"
  )


def _renewed(path: Path, text: str, url: str) -> str:
  if path.suffix == ".md":
    return _readme(text, url)
  return _notebook(path, text, url)


def _readme(text: str, url: str) -> str:
  """With a badge behind each link to a notebook."""
  return re.sub(
    r"(\(notebooks/(\w+)\.ipynb\))( \[!\[.*?\]\(.*?\)\]\(.*?\))?",
    lambda link: f"{link[1]} {badge(url, link[2])}".rstrip(),
    text,
  )


def _notebook(path: Path, text: str, url: str) -> str:
  """With badge and install cell, without outputs."""
  try:
    document = json.loads(text)
    nbformat.validate(document)
  except _NO_NOTEBOOK as error:
    reason = str(error).partition("\n")[0]
    raise InputError(f"{path} is no notebook: {reason}; restore it") from error
  cells: list[Any] = [c for c in document["cells"] if c.get("id") != BADGE]
  if [cell.get("id") for cell in cells].count(INSTALL) != 1:
    raise InputError(
      f"{path} needs one code cell with the id '{INSTALL}', where esper_jax is"
      " to be installed"
    )
  for cell in cells:
    cell["metadata"] = {}
    if cell["cell_type"] == "code":
      cell |= {"execution_count": None, "outputs": []}
    if cell["id"] == INSTALL:
      cell["source"] = install_cell(url)
  if shown := badge(url, path.stem):
    cells.insert(0, nbformat.v4.new_markdown_cell(shown, id=BADGE))
  whole = nbformat.v4.new_notebook(
    cells=[nbformat.from_dict(cell) for cell in cells], metadata=_METADATA
  )
  nbformat.validate(whole)
  return nbformat.writes(whole) + "\n"


if __name__ == "__main__":
  raise SystemExit(main())
