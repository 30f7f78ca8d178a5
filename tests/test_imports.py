"""The shape of the source: what may import what, file lengths, docstrings."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "esper_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

# Each level imports from the levels before it; parts of one level not from
# each other. A part that is new is added here, at its place.
LEVELS = (
  ("types",),
  ("commands",),
  ("knobs",),
  ("oona",),
  ("config", "config_file", "control", "defaults"),
  ("urza",),
  ("kasmina",),
  ("hosts", "tamiyo"),
  ("tezzeret", "data"),
  ("tolaria",),
  ("simic",),
  ("nissa",),
  ("export",),
  ("usage", "arguments"),
  ("api", "command_line"),
  ("doctor",),
)
LEVEL_OF = {part: n for n, level in enumerate(LEVELS) for part in level}
# The only ones that may know what a config looks like.
READERS = (
  "api",
  "config",
  "config_file",
  "control",
  "command_line",
  "defaults",
  "tolaria",
)
READING_FILES = (
  "esper_jax/doctor/command_line.py",
  "esper_jax/simic/command_line.py",
)
# What a config file may import of ours.
CONFIG_PARTS = ("config_file", "defaults", "knobs")


def name_of(path: Path) -> str:
  return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
  """esper_jax/data/cifar.py -> data; esper_jax/types.py -> types."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
  """Full names of what a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{name_of(path)}: relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
  names = [name.split(".") for name in imports_of(path)]
  return {n[1] for n in names if n[0] == "esper_jax" and len(n) > 1}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
  part = part_of(path)
  if part == "__init__":  # the package's front door stands above all
    return
  assert part in LEVEL_OF, f"{part} has no level yet; add it to LEVELS"
  for other in parts_imported(path) - {part}:
    assert LEVEL_OF[other] < LEVEL_OF[part], (
      f"{name_of(path)} imports esper_jax.{other}, which stands above it"
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_entry_points_and_tolaria_read_a_config(path):
  if part_of(path) in READERS or name_of(path) in READING_FILES:
    return
  libraries = {name.split(".")[0] for name in imports_of(path)}
  assert "ml_collections" not in libraries
  assert "configs" not in libraries
  assert "config" not in parts_imported(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_package_imports_nothing_that_is_not_shipped(path):
  libraries = {name.split(".")[0] for name in imports_of(path)}
  assert not libraries & {"main", "tests", "benchmarks", "configs"}


def test_main_knows_the_command_line_alone():
  assert parts_imported(ROOT / "main.py") == {"command_line"}
  assert len((ROOT / "main.py").read_text().splitlines()) < 80


@pytest.mark.parametrize(
  "path", sorted((ROOT / "configs").glob("*.py")), ids=name_of
)
def test_a_config_file_needs_no_jax(path):
  libraries = {name.split(".")[0] for name in imports_of(path)}
  assert libraries <= {"configs", "esper_jax", "ml_collections"}
  assert parts_imported(path) <= set(CONFIG_PARTS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path):
  assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_a_drawer_for_odds_and_ends(path):
  drawers = {"utils", "util", "helpers", "misc", "common"}
  names = {path.stem, path.parent.name}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
  assert not names & drawers


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_has_a_docstring(path):
  tree = ast.parse(path.read_text())
  assert not tree.body or ast.get_docstring(tree), "the module itself"
  for node in tree.body:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
      continue
    if not node.name.startswith("_"):
      assert ast.get_docstring(node), node.name
