"""The package's front door."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import esper_jax

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", esper_jax.__all__)
def test_every_public_name_has_a_docstring(name):
  assert getattr(esper_jax, name).__doc__
  assert name in dir(esper_jax)


def test_an_unknown_name_lists_the_valid_ones():
  with pytest.raises(AttributeError, match="it has Blueprint, Grown"):
    _ = esper_jax.Slots


def test_importing_the_package_loads_no_jax():
  code = "import sys, esper_jax; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_version_is_that_of_the_distribution():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert project["version"] == esper_jax.__version__
