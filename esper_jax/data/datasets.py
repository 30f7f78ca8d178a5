"""Data sets as arrays in memory, split into train, validation and test.

CIFAR-10 and CIFAR-100 come from a folder or a download; "digits" is the 8x8
handwritten digits that scikit-learn carries (real data, no download);
"as_you_like_it" is a play that comes with the package, see `data.text`.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from esper_jax.data import cifar, text
from esper_jax.data.cifar import Split
from esper_jax.data.download import Report, obtain
from esper_jax.data.pipeline import permutation
from esper_jax.types import InputError

_DIGITS_TEST_FRACTION = 0.2
_DIGITS_TEST_SEED = 0
# Streams of the seeds: what is drawn.
_TEST, _VALIDATION, _LIMIT = range(3)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Three disjoint splits and what is known about them.

  Attributes:
    name: as in the config, e.g. "cifar10".
    train_images: uint8 [train, height, width, channels]; of a text, tokens
      int32 [train, context].
    train_labels: int32 [train]; of a text, the next tokens int32 [train,
      context].
    validation_images: as train_images; held out of the official training set.
    validation_labels: as train_labels.
    test_images: as train_images; the official test set.
    test_labels: as train_labels.
    num_classes: labels are 0..num_classes-1.
    mean: per channel over train_images, in units of 255; of images only.
    std: as mean.
    sha256: of the decoded arrays before any split, hexadecimal: the same for
      the same data in whatever layout it came.
    source: where it came from, for people.
  """

  name: str
  train_images: np.ndarray
  train_labels: np.ndarray
  validation_images: np.ndarray
  validation_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  sha256: str
  source: str


NAMES = (*cifar.FORMATS, "digits", *text.SHIPPED)


def load(
  name: str,
  *,
  source: str = "",
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
    source: "text:PATH" in place of the name, see `data.text`.
    context: characters of a text that are seen at once, at least 1.
    dir: folder with the data, or its parent; "" means the cache.
    cache_dir: where downloads are kept; "" means ~/.cache/esper_jax.
    download: whether to download what is in neither.
    validation_fraction: share of the official training set, above 0 and below
      1; stratified by class. Of a text: a stretch of its own.
    split_seed: draws the validation split and the `train_limit` examples; of a
      text nothing is drawn.
    train_limit: number of training examples kept, stratified; 0 keeps all. Of
      a text: the first ones.
    report: called with a line of text as a download goes on.

  Returns:
    The data set. Within each split the official order is kept.

  Raises:
    InputError: if an argument is out of range, or the data is absent, damaged
      or not what its name says.
  """
  if source or name in text.SHIPPED:
    place = _text_path(source) if source else text.shipped(name)
    parts = text.read(
      place, context=context, validation_fraction=validation_fraction
    )
    return _text_dataset(place.stem, parts, train_limit)
  if name == "digits":
    train, test, num_classes = _load_digits(dir)
    source = "scikit-learn's handwritten digits (embedded)"
  elif name in cifar.FORMATS:
    layout = cifar.FORMATS[name]
    num_classes = layout.labels[-1].num_classes
    if dir:
      folder = Path(dir).expanduser()
      remedy = (
        "unpack the official archive again, or set --config.data.dir to the"
        " folder that holds it"
      )
    else:
      folder = _cached(layout, cache_dir, download, report)
      remedy = f"delete '{folder}' and run again to download it anew"
    train, test, source = cifar.read(layout, folder, remedy=remedy)
  else:
    raise InputError(
      f"data.name is {name!r}; valid are {', '.join(NAMES)}: set"
      " --config.data.name"
    )
  kept, held = _hold_out(train[1], validation_fraction, split_seed)
  kept = kept[_limit(train[1][kept], train_limit, split_seed)]
  images = train[0][kept]
  mean, std = channel_statistics(images)
  return Dataset(
    name=name,
    train_images=images,
    train_labels=train[1][kept],
    validation_images=train[0][held],
    validation_labels=train[1][held],
    test_images=test[0],
    test_labels=test[1],
    num_classes=num_classes,
    mean=mean,
    std=std,
    sha256=_digest(*train, *test),
    source=source,
  )


def _text_path(source: str) -> Path:
  kind, _, path = source.partition(":")
  if kind != "text" or not path:
    raise InputError(
      f"data.source is '{source}'; valid are text:PATH, and empty for"
      " data.name: set --config.data.source"
    )
  return Path(path).expanduser()


def _text_dataset(name: str, parts: text.Text, train_limit: int) -> Dataset:
  whole = (parts.train, parts.validation, parts.test)
  kept = _check_limit(len(parts.train[0]), train_limit)
  letters = np.frombuffer(parts.vocabulary.encode("utf-32-le"), np.uint32)
  return Dataset(
    name,
    parts.train[0][:kept],
    parts.train[1][:kept],
    *parts.validation,
    *parts.test,
    num_classes=len(parts.vocabulary),
    mean=(),
    std=(),
    sha256=_digest(*(array for split in whole for array in split), letters),
    source=parts.source,
  )


def channel_statistics(
  images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Compute what normalization needs.

  Args:
    images: uint8 [n, height, width, channels], n at least 1.

  Returns:
    (mean, standard deviation) per channel, in units of 255. A channel that
    never changes gets the deviation 1/255 instead of 0. Sums of bytes are
    exact in float64, so the order of the images does not matter.
  """
  channels = images.shape[-1]
  total, squares = np.zeros(channels), np.zeros(channels)
  for start in range(0, len(images), 1024):
    x = images[start : start + 1024].reshape(-1, channels).astype(np.float64)
    total += x.sum(axis=0)
    squares += (x * x).sum(axis=0)
  n = images.size // channels
  mean = total / n
  std = np.sqrt(np.maximum(squares / n - mean**2, 0))
  std = np.where(std > 0, std, 1.0)
  return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _cached(
  layout: cifar.CifarFormat,
  cache_dir: str,
  download: bool,
  report: Report | None,
) -> Path:
  cache = Path(cache_dir or "~/.cache/esper_jax").expanduser()
  if download:
    return obtain(layout.archive, cache, report=report)
  folder = cache / layout.archive.folder
  if not folder.is_dir():
    raise InputError(
      f"{layout.title} is not in '{cache}' and data.download is False: give"
      " the folder that holds it with --config.data.dir, or allow"
      " --config.data.download=True"
    )
  return folder


def _load_digits(dir: str) -> tuple[Split, Split, int]:
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
  count = round(_DIGITS_TEST_FRACTION * len(labels))
  test = _stratified(labels, count, _DIGITS_TEST_SEED, _TEST)
  train = np.setdiff1d(np.arange(len(labels)), test)
  return (images[train], labels[train]), (images[test], labels[test]), 10


def _hold_out(
  labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the indices that stay in train and those of validation."""
  n = len(labels)
  count = round(fraction * n)
  if not 2 <= count < n:  # a standard error needs two
    raise InputError(
      f"data.validation_fraction is {fraction}, which holds out {count} of {n}"
      " training examples; valid is above 0 and below 1, to hold out two at"
      " least and leave one: set --config.data.validation_fraction"
    )
  held = _stratified(labels, count, seed, _VALIDATION)
  return np.setdiff1d(np.arange(n), held), held


def _limit(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
  return _stratified(labels, _check_limit(len(labels), limit), seed, _LIMIT)


def _check_limit(n: int, limit: int) -> int:
  """How many of n training examples are kept."""
  if not 0 <= limit <= n:
    raise InputError(
      f"data.train_limit is {limit}; valid is 0 (all) to {n}, the training"
      " examples that validation leaves: set --config.data.train_limit"
    )
  return limit or n


def _stratified(
  labels: np.ndarray, count: int, seed: int, stream: int
) -> np.ndarray:
  """Draws `count` examples with the classes in proportion.

  Returns their indices in ascending order. Shares are rounded by largest
  remainder, so that they sum to `count`.
  """
  sizes = np.bincount(labels)
  exact = sizes * (count / len(labels))
  shares = np.floor(exact).astype(int)
  largest = np.argsort(shares - exact, kind="stable")
  shares[largest[: count - shares.sum()]] += 1
  order = permutation(len(labels), seed=seed, stream=(stream,))
  chosen = [
    order[labels[order] == label][:share] for label, share in enumerate(shares)
  ]
  return np.sort(np.concatenate(chosen))


def _digest(*arrays: np.ndarray) -> str:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()
