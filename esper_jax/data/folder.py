"""Images in a folder per class, decoded once.

  PATH/CLASS/....png                      a fifth becomes the test set
  PATH/{train,test}/CLASS/....png         and val/ beside them, if it is there

Pillow decodes them. The arrays are kept in the cache until a file changes.
"""

import contextlib
import difflib
import hashlib
import os
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from esper_jax import commands
from esper_jax.data.splits import Splits
from esper_jax.types import InputError

SUFFIXES = frozenset(
  (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff")
) | {".webp"}
_SPLITS = ("train", "val", "test")
_VERSION = 1  # of what the cache holds
_GRAY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_NAMED = 5  # classes that are named to people
_SOURCE = "set --config.data.source=folder:PATH"


class _File(NamedTuple):
  """One image: where it lies, of which split and class."""

  path: Path
  split: str
  label: int


def read(path: Path, *, image_size: int, cache: Path) -> Splits:
  """Reads a folder of images by class.

  Classes are the folders' names in alphabetical order. The images are gray
  where all of them are, else all are taken as RGB; transparency is dropped,
  and the orientation that a camera noted is applied.

  Args:
    path: the folder.
    image_size: pixels; side of the square that each image is resized and,
      about its centre, cropped to. 0: as they are, all of one size.
    cache: folder that keeps the decoded arrays; where it cannot be written
      they are decoded again each time.

  Returns:
    Images uint8 [n, height, width, 1 or 3], labels int32 [n].

  Raises:
    InputError: no image, fewer than two classes, a file that is no image,
      sizes that differ, a layout that is neither of the two; or Pillow is not
      installed.
  """
  try:
    files, classes = _find(path)
    images = _cached(path, files, image_size, cache)
  except OSError as error:
    raise InputError(
      f"data.source: '{error.filename}' cannot be read ({error.strerror});"
      " change its permissions, or remove it"
    ) from None
  labels = np.array([file.label for file in files], np.int32)
  by_split = {
    name: (images[rows], labels[rows])
    for name in _SPLITS
    if len(rows := [n for n, f in enumerate(files) if f.split == name])
  }
  height, width, channels = images.shape[1:]
  kind = "gray" if channels == 1 else "RGB"
  named = ", ".join(classes[:_NAMED]) + (
    ", ..." if len(classes) > _NAMED else ""
  )
  return Splits(
    train=by_split["train"],
    validation=by_split.get("val"),
    test=by_split.get("test"),
    num_classes=len(classes),
    source=f"{width}x{height} {kind} images in {path} ({named})",
    classes=tuple(classes),
  )


def count(path: Path) -> tuple[int, int]:
  """(images, classes) of a folder, found as `read` finds them, not decoded.

  Raises:
    InputError: no image, fewer than two classes, or neither layout.
    OSError: a folder cannot be read.
  """
  files, classes = _find(path)
  return len(files), len(classes)


def _instead(path: Path) -> str:
  """What to give in place of a folder that is not there."""
  around = path.parent
  beside = [p.name for p in _folders(around)] if around.is_dir() else []
  near = difflib.get_close_matches(path.name, beside, n=1)
  return f"did you mean 'folder:{around / near[0]}'?" if near else _SOURCE


def _find(path: Path) -> tuple[list[_File], list[str]]:
  """Every image, by split, class and name; and the names of the classes."""
  if not path.is_dir():
    found = "is no folder" if path.exists() else "is not there"
    raise InputError(f"data.source: '{path}' {found}; {_instead(path)}")
  there = {folder.name: folder for folder in _folders(path)}
  given = [name for name in _SPLITS if name in there]
  if given and not {"train", "test"} <= there.keys():
    raise InputError(
      f"data.source: '{path}' has {' and '.join(given)} but not both train and"
      " test; have both, with a folder per class in each, or neither"
    )
  if given and "validation" in there:
    raise InputError(
      f"data.source: '{there['validation']}' is none of {', '.join(_SPLITS)};"
      " did you mean val? Rename it, or move it elsewhere"
    )
  splits = {name: there[name] for name in given} or {"train": path}
  classes = [folder.name for folder in _folders(splits["train"])]
  if len(classes) < 2:
    raise InputError(
      f"data.source: '{splits['train']}' has {_count(classes)}; a class is a"
      f" folder with its images, and at least two are needed; {_SOURCE}"
    )
  files = []
  for split, place in splits.items():
    stray = [p for p in sorted(place.iterdir()) if _is_image(p)]
    if stray:
      raise InputError(
        f"data.source: '{stray[0]}' is in no class; move it into the folder of"
        " its class"
      )
    for folder in _folders(place):
      if folder.name not in classes:
        raise InputError(
          f"data.source: '{folder}' is a class that train lacks; those of train"
          f" are {', '.join(classes)}"
        )
      label = classes.index(folder.name)
      own = [p for p in sorted(folder.rglob("*")) if _is_image(p)]
      if not own:
        raise InputError(
          f"data.source: '{folder}' holds no image ("
          f"{', '.join(sorted(SUFFIXES))}); add some, or remove it"
        )
      files += [_File(p, split, label) for p in own]
  return files, classes


def _count(classes: list[str]) -> str:
  return f"only the class '{classes[0]}'" if classes else "no folder in it"


def _folders(path: Path) -> list[Path]:
  return [
    p
    for p in sorted(path.iterdir())
    if p.is_dir() and not p.name.startswith(".")
  ]


def _is_image(path: Path) -> bool:
  return (
    path.suffix.lower() in SUFFIXES
    and not path.name.startswith(".")
    and path.is_file()
  )


def _cached(
  path: Path, files: list[_File], image_size: int, cache: Path
) -> np.ndarray:
  """The decoded images, kept for as long as no file changes."""
  place = hashlib.sha256(f"{path.resolve()}\0{image_size}".encode())
  kept = cache / "images" / f"{place.hexdigest()[:24]}.npz"
  key = _key(path, files)
  # Whatever is wrong with it: it is made again.
  with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
    with kept.open("rb") as file, np.load(file) as arrays:
      if str(arrays["key"]) == key:
        return arrays["images"]
  images = _decode(files, image_size)
  with contextlib.suppress(OSError):
    _keep(kept, key, images)
  return images


def _key(path: Path, files: list[_File]) -> str:
  digest = hashlib.sha256(f"version {_VERSION}".encode())
  for file in files:
    stat = file.path.stat()
    name = file.path.relative_to(path).as_posix()
    digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
  return digest.hexdigest()


def _keep(kept: Path, key: str, images: np.ndarray) -> None:
  kept.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
    try:
      np.savez(file, key=np.asarray(key), images=images)
      file.flush()
      os.replace(file.name, kept)
    except OSError:
      os.unlink(file.name)
      raise


def _decode(files: list[_File], image_size: int) -> np.ndarray:
  try:
    from PIL import Image, ImageOps
  except ImportError:
    raise InputError(
      "data.source: images are decoded by Pillow, which is not installed; in"
      f" the repository: {commands.pip()} install -e '.[images]'"
    ) from None

  def decode(file: _File) -> np.ndarray:
    try:
      with Image.open(file.path) as opened:
        image: Any = ImageOps.exif_transpose(opened)
        if image.mode not in _GRAY + _COLOUR:
          raise ValueError(
            f"its pixels are of mode {image.mode}, not of 8 bits"
          )
        image = image.convert("L" if image.mode in _GRAY else "RGB")
    except Exception as error:  # damaged bytes raise nearly anything
      reason = " ".join(str(error).split()) or type(error).__name__
      raise InputError(
        f"data.source: '{file.path}' cannot be read as an image ({reason});"
        " replace it, or remove it"
      ) from None
    if image_size:
      side = (image_size, image_size)
      image = ImageOps.fit(image, side, Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)

  with ThreadPoolExecutor() as pool:
    images = list(pool.map(decode, files))
  for file, image in zip(files, images, strict=True):
    if image.shape[:2] != images[0].shape[:2]:
      raise InputError(
        f"data.source: '{files[0].path}' has {_size(images[0])} pixels and"
        f" '{file.path}' {_size(image)}; resize them all with"
        " --config.data.image_size=N"
      )
  gray = all(image.ndim == 2 for image in images)
  channels = 1 if gray else 3
  return np.stack([_with_channels(image, channels) for image in images])


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
  if image.ndim == 3:
    return image
  return np.repeat(image[:, :, np.newaxis], channels, axis=2)


def _size(image: np.ndarray) -> str:
  return f"{image.shape[1]}x{image.shape[0]}"
