"""Folders of images: what is read, kept, stated and refused."""

import os

import numpy as np
import pytest
from PIL import Image

from esper_jax import commands
from esper_jax.data import datasets, folder
from esper_jax.types import InputError


def paint(path, value=7, size=(4, 3), mode="L"):
  """An image of one value; the first pixel of a gray one is 0."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.new(mode, size, value)
  if mode == "L":
    image.putpixel((0, 0), 0)
  image.save(path)
  return path


@pytest.fixture
def root(tmp_path):
  """Two classes of ten gray images each."""
  for n in range(20):
    paint(tmp_path / "in" / ("cat", "dog")[n % 2] / f"{n:02}.png", 10 + n)
  return tmp_path / "in"


@pytest.fixture
def read(root, tmp_path):
  def read(path=root, image_size=0):
    return folder.read(path, image_size=image_size, cache=tmp_path / "cache")

  return read


def refusal(read, **options):
  with pytest.raises(InputError) as caught:
    read(**options)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_classes_are_folders_and_pixels_are_kept(read, root):
  splits = read()
  images, labels = splits.train
  assert (images.shape, images.dtype) == ((20, 3, 4, 1), np.uint8)
  assert labels.tolist() == [0] * 10 + [1] * 10
  assert images[:, 0, 0, 0].tolist() == [0] * 20
  assert images[0, 2, 3, 0] == 10 and images[10, 2, 3, 0] == 11
  assert (splits.validation, splits.test, splits.num_classes) == (None, None, 2)
  assert splits.source == f"4x3 gray images in {root} (cat, dog)"
  assert splits.classes == ("cat", "dog")


def test_images_are_counted_without_being_decoded(root):
  (root / "cat" / "00.png").write_bytes(b"damaged")
  assert folder.count(root) == (20, 2)


def test_one_colour_image_makes_all_of_them_rgb(read, root):
  paint(root / "dog" / "99.png", (1, 2, 3), mode="RGB")
  splits = read()
  assert splits.train[0].shape == (21, 3, 4, 3)
  assert splits.train[0][-1, 2, 3].tolist() == [1, 2, 3]
  assert splits.train[0][0, 2, 3].tolist() == [10, 10, 10]
  assert "4x3 RGB images" in splits.source


def test_folders_of_splits_are_used(read, root, tmp_path):
  for split in ("train", "val", "test"):
    for name in ("cat", "dog"):
      paint(tmp_path / "split" / split / name / "x" / "1.png", len(split))
  (tmp_path / "split" / ".hidden").mkdir()
  splits = read(tmp_path / "split")
  pixels = [s[0][0, 2, 3, 0] for s in (splits.train, splits.validation)]
  assert (pixels, splits.test[0][0, 2, 3, 0]) == ([5, 3], 4)
  assert len(splits.train[1]) == 2


def test_a_split_of_another_name_is_refused(read, tmp_path):
  for split in ("train", "validation", "test"):
    for name in ("cat", "dog"):
      paint(tmp_path / "split" / split / name / "1.png")
  message = refusal(read, path=tmp_path / "split")
  assert "validation' is none of train, val, test; did you mean val?" in message


def test_decoded_once_until_a_file_changes(read, root, tmp_path, monkeypatch):
  decoded = []
  real = folder._decode
  monkeypatch.setattr(
    folder, "_decode", lambda *args: decoded.append(1) or real(*args)
  )
  first = read().train[0]
  (kept,) = (tmp_path / "cache" / "images").iterdir()
  assert (read().train[0] == first).all()
  assert len(decoded) == 1
  paint(root / "cat" / "00.png", 200)
  os.utime(root / "cat" / "00.png", (1, 1))
  assert read().train[0][0, 2, 3, 0] == 200
  kept.write_bytes(kept.read_bytes()[:50])  # damaged
  assert read().train[0][0, 2, 3, 0] == 200
  assert len(decoded) == 3
  assert [p.suffix for p in kept.parent.iterdir()] == [".npz"]  # nothing half


def test_a_cache_that_cannot_be_written_stops_nothing(read, tmp_path):
  (tmp_path / "cache").write_text("a file")
  assert len(read().train[1]) == 20


def test_a_write_that_fails_leaves_nothing(read, tmp_path, monkeypatch):
  def fail(*args):
    raise OSError("no")

  monkeypatch.setattr(folder.os, "replace", fail)
  read()
  assert list((tmp_path / "cache" / "images").iterdir()) == []


def test_sizes_that_differ_are_resized_on_request(read, root):
  paint(root / "dog" / "99.png", 50, size=(9, 8))
  message = refusal(read)
  assert f"{root}/cat/00.png' has 4x3 pixels and" in message
  assert "99.png' 9x8; resize them all with --config.data.image_size" in message
  assert read(image_size=6).train[0].shape == (21, 6, 6, 1)


@pytest.mark.parametrize(
  ("break_it", "says"),
  [
    (lambda r: (r / "cat" / "00.png").write_text("?"), "cat/00.png' cannot be"),
    (lambda r: paint(r / "stray.png"), "stray.png' is in no class"),
    (lambda r: (r / "eel").mkdir(), "eel' holds no image (.bmp, .gif"),
    (lambda r: paint(r / "test" / "cat" / "1.png"), "has test but not both"),
    (
      lambda r: paint(r / "cat" / "00.png", 300, mode="I;16"),
      "its pixels are of mode I;16, not of 8 bits",
    ),
  ],
)
def test_what_is_wrong_with_a_file_or_folder_is_named(
  read, root, break_it, says
):
  break_it(root)
  assert says in refusal(read)


def test_a_layout_without_classes_is_refused(read, root, tmp_path):
  assert "is not there" in refusal(read, path=tmp_path / "none")
  (tmp_path / "file").write_text("")
  assert "is no folder" in refusal(read, path=tmp_path / "file")
  assert "has no folder in it" in refusal(read, path=root / "cat")
  (tmp_path / "one" / "cat").mkdir(parents=True)
  assert "has only the class 'cat'" in refusal(read, path=tmp_path / "one")
  for split in ("train", "test"):
    for name in ("a", "b", f"only_{split}"):
      paint(tmp_path / "more" / split / name / "1.png")
  message = refusal(read, path=tmp_path / "more")
  assert "only_test' is a class that train lacks; those" in message


def test_an_unreadable_folder_is_named(read, monkeypatch):
  def denied(*args):
    raise PermissionError(13, "Permission denied", "in/cat")

  monkeypatch.setattr(folder, "_find", denied)
  assert "'in/cat' cannot be read (Permission denied)" in refusal(read)


def test_without_pillow_the_extra_is_named(read, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "PIL", None)
  needed = f"in the repository: {commands.pip()} install -e '.[images]'"
  assert needed in refusal(read)


def test_a_source_is_divided_like_any_data_set(root, tmp_path):
  options = {"cache_dir": str(tmp_path / "cache"), "validation_fraction": 0.25}
  data = datasets.load("cifar10", source=f"folder:{root}", **options)
  assert data.name == "in"
  sizes = [
    np.bincount(labels).tolist()
    for labels in (data.train_labels, data.validation_labels, data.test_labels)
  ]
  assert sizes == [[6, 6], [2, 2], [2, 2]]
  assert data.source.endswith("; 20% of it, drawn once for all, is the test")
  other = datasets.load(
    "cifar10", source=f"folder:{root}", split_seed=1, **options
  )
  assert (other.test_images == data.test_images).all()
  assert other.sha256 == data.sha256
  with pytest.raises(InputError, match="valid are folder:PATH, text:PATH, and"):
    datasets.load("cifar10", source="given")
