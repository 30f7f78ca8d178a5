"""Data sets are looked for, never downloaded."""

import importlib.util

import pytest

from esper_jax import commands
from esper_jax.data import cifar
from esper_jax.doctor import data
from esper_jax.doctor.report import Level
from esper_jax.doctor.settings import Settings
from esper_jax.types import InputError

DEFAULTS = {
  "name": "cifar10",
  "source": "",
  "image_size": 0,
  "context": 8,
  "dir": "",
  "cache_dir": "",
  "download": True,
  "validation_fraction": 0.1,
  "split_seed": 0,
  "train_limit": 0,
}
KEPT = cifar.FORMATS["cifar10"].archive.folder


def check(**options):
  (line,) = data.check(Settings(data={**DEFAULTS, **options}))
  return line


@pytest.fixture
def images(tmp_path):
  for name in ("cat", "dog"):
    (tmp_path / "in" / name).mkdir(parents=True)
    (tmp_path / "in" / name / "0.png").write_bytes(b"not decoded")
  return f"folder:{tmp_path / 'in'}"


def test_without_a_config_those_on_the_web_are_looked_for(tmp_path):
  (tmp_path / KEPT).mkdir()
  here, absent = data.check(Settings(), cache=tmp_path)
  assert (here.item, absent.item) == ("cifar10", "cifar100")
  assert here.found == f"in {tmp_path}"
  assert (absent.level, absent.remedy) == (Level.OK, "")
  assert absent.found.startswith(f"not in {tmp_path}: ")


def test_what_comes_with_a_package():
  assert check(name="digits").found == (
    "scikit-learn's handwritten digits (embedded): 1294 train, 144 validation,"
    " 359 test"
  )


def test_a_text_is_read_and_its_place_not_told(tmp_path):
  (tmp_path / "a text.txt").write_text("to be or not to be, " * 99)
  line = check(source=f"text:{tmp_path / 'a text.txt'}")
  assert line.level is Level.OK and str(tmp_path) not in line.found


def test_what_can_be_downloaded_is_not(tmp_path):
  line = check(cache_dir=str(tmp_path))
  assert line.level is Level.WARN and "will download it" in line.found
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"download": False}, "is not in"),
    ({"dir": "absent"}, "holds no CIFAR-10"),
    ({"source": "given"}, "data.source is 'given'"),
  ],
)
def test_what_is_absent_is_refused_as_a_run_would(tmp_path, options, message):
  if "dir" in options:
    options = {"dir": str(tmp_path / "absent")}
  with pytest.raises(InputError, match=message):
    check(cache_dir=str(tmp_path), **options)


def test_what_was_downloaded_is_read(tmp_path):
  (tmp_path / KEPT).mkdir()
  with pytest.raises(InputError, match="holds no CIFAR-10"):
    check(cache_dir=str(tmp_path))


def test_images_are_counted(images):
  assert check(source=images)[1:3] == (
    Level.OK,
    "2 images in 2 classes, not decoded",
  )


def test_images_need_pillow(images, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  line = check(source=images)
  assert line.level is Level.FAIL
  assert line.remedy == f"{commands.pip()} install -e '.[images]'"
