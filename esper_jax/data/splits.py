"""Examples and labels before and after they are divided into three splits."""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from esper_jax.data.pipeline import permutation
from esper_jax.types import InputError

Split = tuple[np.ndarray, np.ndarray]  # examples, labels
TEST_FRACTION = 0.2  # of data that comes without a test set
TEST_SEED = 0  # not a knob: a test set that a seed draws anew is no test set
# Streams of the seeds: what is drawn.
_TEST, _VALIDATION, _LIMIT = range(3)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Three disjoint splits and what is known about them.

  Attributes:
    name: as in the config, e.g. "cifar10".
    train_images: uint8 [train, height, width, channels]; of a text, tokens
      int32 [train, context]; data of one's own may be float32 or int32 [train,
      ...]. All but bytes reach the network as they are.
    train_labels: int32 [train]; of a text, the next tokens int32 [train,
      context]; data of one's own may be int32 or float32 [train, ...].
    validation_images: as train_images; held out of the official training set.
    validation_labels: as train_labels.
    test_images: as train_images; the official test set.
    test_labels: as train_labels.
    num_classes: labels are 0..num_classes-1; 0 where they are no classes.
    mean: per channel over train_images, in units of 255; of bytes only.
    std: as mean.
    sha256: of the decoded arrays before any split, hexadecimal: the same for
      the same data in whatever layout it came.
    source: where it came from, for people.
    vocabulary: of a text, the character of each token; else empty.
    classes: the name of each class; empty where they have no names.
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
  vocabulary: str = ""
  classes: tuple[str, ...] = ()


class Splits(NamedTuple):
  """What a source holds.

  Attributes:
    train: examples and labels.
    test: None where the source has none.
    num_classes: see `Dataset`.
    source: see `Dataset`.
    validation: None where it is to be held out of `train`.
    vocabulary: see `Dataset`.
    classes: see `Dataset`.
  """

  train: Split
  test: Split | None
  num_classes: int
  source: str
  validation: Split | None = None
  vocabulary: str = ""
  classes: tuple[str, ...] = ()


def divide(
  name: str,
  splits: Splits,
  *,
  validation_fraction: float,
  split_seed: int,
  train_limit: int,
) -> Dataset:
  """Completes the three splits; within each the order of the source is kept.

  Args:
    name: see `Dataset`.
    splits: where `test` is None, `TEST_FRACTION` of `train` becomes the test
      set, the same one for every `split_seed`.
    validation_fraction: share of `train` held out where `validation` is None,
      above 0 and below 1; stratified by class.
    split_seed: draws the validation split and the `train_limit` examples.
    train_limit: number of training examples kept, stratified; 0 keeps all.

  Raises:
    InputError: an argument is out of range.
  """
  train, test, source = splits.train, splits.test, splits.source
  if test is None:
    train, test = hold_out_test(train)
    source += f"; {TEST_FRACTION:.0%} of it, drawn once for all, is the test"
  validation = splits.validation
  if validation is None:
    whole = (train, test)
    kept, held = _hold_out(train[1], validation_fraction, split_seed)
    train, validation = _pick(train, kept), _pick(train, held)
  else:
    whole = (train, validation, test)
  arrays = [array for split in whole for array in split]
  if splits.vocabulary:
    letters = splits.vocabulary.encode("utf-32-le")
    arrays.append(np.frombuffer(letters, np.uint32))
  train = _pick(train, _limit(train[1], train_limit, split_seed))
  mean, std = (0.0,), (1.0,)
  if train[0].dtype == np.uint8:
    mean, std = channel_statistics(train[0])
  return Dataset(
    name,
    *train,
    *validation,
    *test,
    num_classes=splits.num_classes,
    mean=mean,
    std=std,
    sha256=_digest(*arrays),
    source=source,
    vocabulary=splits.vocabulary,
    classes=splits.classes,
  )


def hold_out_test(whole: Split) -> tuple[Split, Split]:
  """(the rest, the test set) of data that comes without one; stratified."""
  labels = whole[1]
  count = round(TEST_FRACTION * len(labels))
  held = _stratified(labels, count, TEST_SEED, _TEST)
  rest = np.setdiff1d(np.arange(len(labels)), held)
  return _pick(whole, rest), _pick(whole, held)


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


def _stratified(
  labels: np.ndarray, count: int, seed: int, stream: int
) -> np.ndarray:
  """Draws `count` examples with the classes in proportion.

  Returns their indices in ascending order. Shares are rounded by largest
  remainder, so that they sum to `count`. Labels that are not one class per
  example are drawn without regard to them.
  """
  if labels.ndim > 1 or not np.issubdtype(labels.dtype, np.integer):
    labels = np.zeros(len(labels), np.int32)
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


def _pick(split: Split, indices: np.ndarray) -> Split:
  return split[0][indices], split[1][indices]


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
  n = len(labels)
  if not 0 <= limit <= n:
    raise InputError(
      f"data.train_limit is {limit}; valid is 0 (all) to {n}, the training"
      " examples that validation leaves: set --config.data.train_limit"
    )
  return _stratified(labels, limit or n, seed, _LIMIT)


def _digest(*arrays: np.ndarray) -> str:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()
