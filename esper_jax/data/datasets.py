"""Data sets as arrays in memory, split into train, validation and test.

CIFAR-10 and CIFAR-100 come from a folder or a download; "digits" is the 8x8
handwritten digits that scikit-learn carries (real data, no download);
"as_you_like_it" is a play that comes with the package. One's own are images in
a folder per class, see `data.folder`, or a text, see `data.text`.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from esper_jax.data import cifar, folder, text
from esper_jax.data.download import Report, obtain
from esper_jax.data.splits import Dataset, Splits, divide, hold_out_test
from esper_jax.types import InputError

CACHE = "~/.cache/esper_jax"

NAMES = (*cifar.FORMATS, "digits", *text.SHIPPED)


def load(
  name: str,
  *,
  source: str = "",
  image_size: int = 0,
  context: int = 64,
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
    source: "folder:PATH" in place of the name, see `data.folder`; or
      "text:PATH", see `data.text`.
    image_size: of the images in that folder, see there.
    context: characters of a text that are seen at once, at least 1.
    dir: folder with the data, or its parent; "" means the cache.
    cache_dir: where downloads and decoded images are kept; "" means
      ~/.cache/esper_jax.
    download: whether to download what is in neither.
    validation_fraction: share of the official training set, above 0 and below
      1; stratified by class. Of a text: a stretch of its own.
    split_seed: draws the validation split and the `train_limit` examples; of a
      text the latter alone.
    train_limit: number of training examples kept, stratified; 0 keeps all.
    report: called with a line of text as a download goes on.

  Returns:
    The data set. Within each split the official order is kept.

  Raises:
    InputError: if an argument is out of range, or the data is absent, damaged
      or not what its name says.
  """
  cache = Path(cache_dir or CACHE).expanduser()
  read_text = functools.partial(
    text.read, context=context, validation_fraction=validation_fraction
  )
  if source:
    readers = {
      "folder": functools.partial(
        folder.read, image_size=image_size, cache=cache
      ),
      "text": read_text,
    }
    name, splits = _read_source(source, readers)
  elif name in text.SHIPPED:
    _check_embedded(name, dir, "esper_jax")
    splits = read_text(text.shipped(name))
  elif name == "digits":
    _check_embedded(name, dir, "scikit-learn")
    splits = _read_digits()
  else:
    splits = _read_cifar(name, dir, cache, download, report)
  return divide(
    name,
    splits,
    validation_fraction=validation_fraction,
    split_seed=split_seed,
    train_limit=train_limit,
  )


def _read_source(
  source: str, readers: Mapping[str, Callable[[Path], Splits]]
) -> tuple[str, Splits]:
  """What is at "kind:PATH", and its name."""
  kind, _, path = source.partition(":")
  if kind not in readers or not path:
    valid = ", ".join(f"{kind}:PATH" for kind in readers)
    raise InputError(
      f"data.source is '{source}'; valid are {valid}, and empty for data.name:"
      " set --config.data.source"
    )
  place = Path(path).expanduser()
  return place.name, readers[kind](place)


def _read_cifar(
  name: str,
  dir: str,
  cache: Path,
  download: bool,
  report: Report | None,
) -> Splits:
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
    place = _cached(layout, cache, download, report)
    remedy = f"delete '{place}' and run again to download it anew"
  train, test, source = cifar.read(layout, place, remedy=remedy)
  classes = layout.classes
  return Splits(train, test, len(classes), source, classes=classes)


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


def _check_embedded(name: str, dir: str, package: str) -> None:
  if dir:
    raise InputError(
      f"data.dir is '{dir}', but the data set '{name}' comes with {package}:"
      " leave --config.data.dir empty, or set --config.data.name to one of"
      f" {', '.join(cifar.FORMATS)}"
    )


def _read_digits() -> Splits:
  import sklearn.datasets  # a second of start-up that CIFAR does not need

  digits: Any = sklearn.datasets.load_digits()
  pixels = digits["images"] * (255 / 16)  # they count to 16
  images = np.round(pixels).astype(np.uint8)[..., np.newaxis]
  labels = digits["target"].astype(np.int32)
  train, test = hold_out_test((images, labels))
  source = "scikit-learn's handwritten digits (embedded)"
  classes = tuple("0123456789")
  return Splits(train, test, len(classes), source, classes=classes)
