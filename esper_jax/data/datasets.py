"""Data sets as arrays in memory, split into train, validation and test.

CIFAR-10 and CIFAR-100 come from a folder or a download; "digits" is the 8x8
handwritten digits that scikit-learn carries (real data, no download); images of
one's own lie in a folder per class, see `data.folder`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from esper_jax.data import cifar, folder
from esper_jax.data.download import Report, obtain
from esper_jax.data.splits import Dataset, Splits, divide, hold_out_test
from esper_jax.types import InputError

CACHE = "~/.cache/esper_jax"

NAMES = (*cifar.FORMATS, "digits")


def load(
  name: str,
  *,
  source: str = "",
  image_size: int = 0,
  dir: str = "",
  cache_dir: str = "",
  download: bool = True,
  validation_fraction: float = 0.1,
  split_seed: int = 0,
  train_limit: int = 0,
  report: Report | None = None,
) -> Dataset:
  """Load a data set and hold a validation split out of its training set.

  Args:
    name: one of `NAMES`.
    source: "folder:PATH" in place of the name, see `data.folder`.
    image_size: of the images in that folder, see there.
    dir: folder with the data, or its parent; "" means the cache.
    cache_dir: where downloads and decoded images are kept; "" means
      ~/.cache/esper_jax.
    download: whether to download what is in neither.
    validation_fraction: share of the official training set, above 0 and below
      1; stratified by class.
    split_seed: draws the validation split and the `train_limit` examples.
    train_limit: number of training examples kept, stratified; 0 keeps all.
    report: called with a line of text as a download goes on.

  Returns:
    The data set. Within each split the official order is kept.

  Raises:
    InputError: if an argument is out of range, or the data is absent, damaged
      or not what its name says.
  """
  if source:
    name, splits = _read_source(source, image_size, _cache(cache_dir))
  else:
    splits = _read_named(name, dir, cache_dir, download, report)
  return divide(
    name,
    splits,
    validation_fraction=validation_fraction,
    split_seed=split_seed,
    train_limit=train_limit,
  )


def _cache(cache_dir: str) -> Path:
  return Path(cache_dir or CACHE).expanduser()


def _read_source(
  source: str, image_size: int, cache: Path
) -> tuple[str, Splits]:
  kind, _, path = source.partition(":")
  if kind != "folder" or not path:
    raise InputError(
      f"data.source is '{source}'; valid are folder:PATH, and empty for"
      " data.name: set --config.data.source"
    )
  place = Path(path).expanduser()
  return place.name, folder.read(place, image_size=image_size, cache=cache)


def _read_named(
  name: str,
  dir: str,
  cache_dir: str,
  download: bool,
  report: Report | None,
) -> Splits:
  if name == "digits":
    return _load_digits(dir)
  if name not in cifar.FORMATS:
    raise InputError(
      f"data.name is {name!r}; valid are {', '.join(NAMES)}: set"
      " --config.data.name"
    )
  layout = cifar.FORMATS[name]
  if dir:
    place = Path(dir).expanduser()
    remedy = (
      "unpack the official archive again, or set --config.data.dir to the"
      " folder that holds it"
    )
  else:
    place = _cached(layout, _cache(cache_dir), download, report)
    remedy = f"delete '{place}' and run again to download it anew"
  train, test, source = cifar.read(layout, place, remedy=remedy)
  return Splits(train, test, layout.labels[-1].num_classes, source)


def _cached(
  layout: cifar.CifarFormat,
  cache: Path,
  download: bool,
  report: Report | None,
) -> Path:
  if download:
    return obtain(layout.archive, cache, report=report)
  place = cache / layout.archive.folder
  if not place.is_dir():
    raise InputError(
      f"{layout.title} is not in '{cache}' and data.download is False: give"
      " the folder that holds it with --config.data.dir, or allow"
      " --config.data.download=True"
    )
  return place


def _load_digits(dir: str) -> Splits:
  if dir:
    raise InputError(
      f"data.dir is '{dir}', but the data set 'digits' comes with scikit-learn:"
      " leave --config.data.dir empty, or set --config.data.name to one of"
      f" {', '.join(cifar.FORMATS)}"
    )
  import sklearn.datasets  # a second of start-up that CIFAR does not need

  digits: Any = sklearn.datasets.load_digits()
  pixels = digits["images"] * (255 / 16)  # they count to 16
  images = np.round(pixels).astype(np.uint8)[..., np.newaxis]
  labels = digits["target"].astype(np.int32)
  train, test = hold_out_test((images, labels))
  source = "scikit-learn's handwritten digits (embedded)"
  return Splits(train, test, 10, source)
