"""CIFAR-10 and CIFAR-100 as they lie on disk (Krizhevsky 2009).

Both layouts of https://www.cs.toronto.edu/~kriz/cifar.html are read: the binary
one and the Python one. Every file is checked by size, count and label range.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esper_jax.data import unpickle
from esper_jax.data.download import Archive
from esper_jax.types import InputError

_IMAGE_BYTES = 3 * 32 * 32
_SITE = "https://www.cs.toronto.edu/~kriz/"
# A pickle also holds file names and keys, and Python 3 writes bytes as UTF-8 in
# old protocols; beyond this many bytes an image it is another file.
_MAX_PICKLE_BYTES = 2 * _IMAGE_BYTES + 256

Split = tuple[np.ndarray, np.ndarray]  # images, labels


class LabelField(NamedTuple):
  """One label of a CIFAR record: its key in the pickle and its range."""

  key: bytes
  num_classes: int


class CifarFormat(NamedTuple):
  """How one of the CIFAR data sets lies on disk.

  Attributes:
    title: its name for people.
    files: training files and, last, the test file, each with its number of
      records; named as in the Python layout (binary: plus ".bin").
    labels: the label bytes in front of each binary record, in order; the last
      one is the label that is learned.
    python_folder: folder of the official Python archive.
    archive: the official binary archive.
    classes: names of what is learned, by label.
  """

  title: str
  files: tuple[tuple[str, int], ...]
  labels: tuple[LabelField, ...]
  python_folder: str
  archive: Archive
  classes: tuple[str, ...]


def _cifar_format(
  title: str,
  files: tuple[tuple[str, int], ...],
  labels: tuple[LabelField, ...],
  python_folder: str,
  binary_folder: str,
  url: str,
  sha256: str,
  classes: str,
) -> CifarFormat:
  record = len(labels) + _IMAGE_BYTES
  members = {f"{name}.bin": count * record for name, count in files}
  archive = Archive(url, sha256, binary_folder, members)
  names = tuple(classes.split())
  return CifarFormat(title, files, labels, python_folder, archive, names)


# As batches.meta and meta have them; the binary archives' *.meta.txt too.
_CLASSES_10 = """
airplane automobile bird cat deer dog frog horse ship truck
"""
_CLASSES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee
clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""

FORMATS = {
  "cifar10": _cifar_format(
    "CIFAR-10",
    (
      *((f"data_batch_{i}", 10_000) for i in range(1, 6)),
      ("test_batch", 10_000),
    ),
    (LabelField(b"labels", 10),),
    "cifar-10-batches-py",
    "cifar-10-batches-bin",
    _SITE + "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    _CLASSES_10,
  ),
  "cifar100": _cifar_format(
    "CIFAR-100",
    (("train", 50_000), ("test", 10_000)),
    (LabelField(b"coarse_labels", 20), LabelField(b"fine_labels", 100)),
    "cifar-100-python",
    "cifar-100-binary",
    _SITE + "cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    _CLASSES_100,
  ),
}


def read(
  layout: CifarFormat, folder: Path, *, remedy: str
) -> tuple[Split, Split, str]:
  """Read and check the files of a CIFAR data set.

  Args:
    layout: one of the values of `FORMATS`.
    folder: the folder with the files, or its parent.
    remedy: what to do about a bad file; the end of each error.

  Returns:
    (training images uint8 [n, 32, 32, 3] and labels int32 [n], the same of the
    test set, text that names layout and folder).

  Raises:
    InputError: if a file is absent, of the wrong size, damaged, or has a label
      out of range.
  """
  # Binary first: it needs no pickle.
  places = [
    (place, suffix)
    for suffix, own in (
      (".bin", layout.archive.folder),
      ("", layout.python_folder),
    )
    for place in (folder, folder / own)
  ]

  def present(place: tuple[Path, str]) -> list[str]:
    names = [name + place[1] for name, _ in layout.files]
    return [name for name in names if (place[0] / name).is_file()]

  best = max(places, key=lambda place: len(present(place)))
  path, suffix = best
  names = [name + suffix for name, _ in layout.files]
  missing = [name for name in names if name not in present(best)]
  if len(missing) == len(names):
    raise InputError(
      f"'{folder}' holds no {layout.title}: expected {names[0]} ... {names[-1]}"
      " (binary layout) or the same names without .bin (Python layout), in it"
      f" or in its folder {layout.archive.folder} or {layout.python_folder};"
      f" {remedy}"
    )
  if missing:
    raise InputError(
      f"'{path}' lacks {', '.join(missing)} of {layout.title}; {remedy}"
    )
  parse = _parse_binary if suffix else _parse_pickle
  parts = [
    parse(path / name, count, layout, remedy)
    for name, (_, count) in zip(names, layout.files, strict=True)
  ]
  images = np.concatenate([images for images, _ in parts[:-1]])
  labels = np.concatenate([labels for _, labels in parts[:-1]])
  kind = "binary" if suffix else "Python"
  return (images, labels), parts[-1], f"{layout.title}, {kind} files in {path}"


def _parse_binary(
  path: Path, count: int, layout: CifarFormat, remedy: str
) -> Split:
  num_labels = len(layout.labels)
  record = num_labels + _IMAGE_BYTES
  content = _read_bytes(path, count * record, count * record, remedy)
  records = np.frombuffer(content, np.uint8).reshape(count, record)
  for column, field in enumerate(layout.labels):
    _check_range(records[:, column], path, field, remedy)
  labels = records[:, num_labels - 1].astype(np.int32)
  return _to_images(records[:, num_labels:]), labels


def _parse_pickle(
  path: Path, count: int, layout: CifarFormat, remedy: str
) -> Split:
  low, high = count * _IMAGE_BYTES, count * _MAX_PICKLE_BYTES
  content = _read_bytes(path, low, high, remedy)
  batch = unpickle.load(content, name=str(path))
  if not isinstance(batch, dict):
    raise InputError(
      f"'{path}' holds a {type(batch).__name__}, expected a dict with the keys"
      f" data and {layout.labels[-1].key.decode()}; {remedy}"
    )
  # Keys are bytes when Python 2 wrote them, strings when Python 3 did.
  batch = {k.encode() if isinstance(k, str) else k: v for k, v in batch.items()}
  for key in (b"data", *(field.key for field in layout.labels)):
    if key not in batch:
      raise InputError(
        f"'{path}' lacks the key {key.decode()} of {layout.title}; {remedy}"
      )
  data, shape = batch[b"data"], (count, _IMAGE_BYTES)
  if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
    raise InputError(
      f"data in '{path}' is not a uint8 array, expected one of shape {shape};"
      f" {remedy}"
    )
  if data.shape != shape:
    raise InputError(
      f"data in '{path}' has shape {data.shape}, expected {shape}; {remedy}"
    )
  for field in layout.labels:
    labels = batch[field.key]
    if isinstance(labels, np.ndarray):
      labels = labels.tolist()
    if not isinstance(labels, list) or any(type(v) is not int for v in labels):
      raise InputError(
        f"{field.key.decode()} in '{path}' is not a list of ints; {remedy}"
      )
    if len(labels) != count:
      raise InputError(
        f"'{path}' has {len(labels)} {field.key.decode()}, expected {count};"
        f" {remedy}"
      )
    _check_range(labels, path, field, remedy)
  return _to_images(data), np.asarray(batch[layout.labels[-1].key], np.int32)


def _read_bytes(path: Path, low: int, high: int, remedy: str) -> bytes:
  """Reads a file of `low` to `high` bytes, and never more than that."""
  try:
    with path.open("rb") as file:
      content = file.read(high + 1)
      size = os.fstat(file.fileno()).st_size
  except OSError as error:
    raise InputError(
      f"'{path}' cannot be read ({error.strerror}); {remedy}"
    ) from None
  if not low <= len(content) <= high:
    valid = str(low) if low == high else f"{low} to {high}"
    raise InputError(
      f"'{path}' has {size} bytes, expected {valid}: it is truncated or another"
      f" file; {remedy}"
    )
  return content


def _check_range(
  labels: Sequence[int] | np.ndarray,
  path: Path,
  field: LabelField,
  remedy: str,
) -> None:
  low, high = min(labels), max(labels)
  if low < 0 or high >= field.num_classes:
    bad = low if low < 0 else high
    raise InputError(
      f"'{path}' has the label {bad} among its {field.key.decode()}, valid are"
      f" 0 to {field.num_classes - 1}: it is damaged or another data set;"
      f" {remedy}"
    )


def _to_images(planes: np.ndarray) -> np.ndarray:
  """Turns rows of R, G and B planes into uint8 [n, 32, 32, 3]."""
  images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return np.ascontiguousarray(images)
