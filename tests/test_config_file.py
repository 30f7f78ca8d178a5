"""Config files: how they are found, run, refused and described."""

import os
from pathlib import Path

import pytest

from esper_jax import config_file
from esper_jax.types import InputError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
  ("source", "says"),
  [
    ("x = (", r"c\.py, line 1: SyntaxError: '\(' was never closed"),
    ("import re\nre.nothing", r"c\.py, line 2: AttributeError: module 're'"),
    ("x = 1", r"c\.py: defines no get_config\(profile\)"),
    ("get_config = 1", r"c\.py: defines no get_config\(profile\)"),
    ("def get_config(profile=''):\n  1 / 0", r"line 2: ZeroDivisionError"),
    ("def get_config(profile=''):\n  return 3", "returned int, not"),
    ("import json\njson.loads('{')", "c.py, line 2: JSONDecodeError"),
    ("x = '\0'", r"c\.py.*: (SyntaxError|ValueError): "),
  ],
)
def test_broken_config_file_is_explained(tmp_path, source, says):
  path = tmp_path / "c.py"
  path.write_text(source)
  with pytest.raises(InputError, match=says) as caught:
    config_file.load(str(path))
  assert "\n" not in str(caught.value)


def test_profile_for_a_config_without_profiles_is_explained(tmp_path):
  path = tmp_path / "c.py"
  path.write_text("def get_config():\n  return 3")
  with pytest.raises(InputError, match="c.py: TypeError: get_config"):
    config_file.load(f"{path}:cpu")


def test_missing_config_file_names_the_nearest(tmp_path):
  nearest = CONFIGS / "cifar10.py"
  with pytest.raises(
    InputError, match=f"no such file; the nearest is {nearest}"
  ):
    config_file.load(str(CONFIGS / "cifar.py"))
  with pytest.raises(InputError, match="x.py: no such file$"):
    config_file.load(str(tmp_path / "x.py"))
  with pytest.raises(InputError, match="Is a directory"):
    config_file.load(str(tmp_path))


def test_profile_is_what_follows_the_file():
  split = config_file.split_profile
  assert split("configs/digits.py") == ("configs/digits.py", "")
  assert split("configs/digits.py:cpu") == ("configs/digits.py", "cpu")
  assert split("configs/digits.py:") == ("configs/digits.py:", "")
  assert split("digits") == ("digits", "")


def test_file_name_may_hold_a_colon(tmp_path):
  path = os.path.join(tmp_path, "a.py:b.py")
  Path(path).write_text(
    "from configs import base\nget_config = base.get_config"
  )
  assert config_file.split_profile(path) == (path, "")
  assert config_file.load(path).seed == 0


def test_config_file_without_docstring_describes_nothing(tmp_path):
  path = tmp_path / "c.py"
  path.write_text("x = 1")
  assert config_file.describe(path) == ("", {})
