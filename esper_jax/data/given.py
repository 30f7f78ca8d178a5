"""Data of one's own that is in memory already, or comes through Grain."""

import sys
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from esper_jax.data.splits import Split, Splits
from esper_jax.knobs import nearest
from esper_jax.types import InputError, form

_SPLITS = ("train", "validation", "test")
_FIELDS = ("image", "label")


def read(data: Any) -> Splits:
  """Checks data and infers sizes and classes.

  Args:
    data: (examples, labels), arrays of numpy or JAX; a Grain MapDataset of
      (example, label) or {"image", "label"}, which is read once into memory;
      or {"train": ..., "validation": ..., "test": ...} of these, the last two
      optional. Examples: uint8 images [n, height, width] or [n, height, width,
      channels], which training normalizes; or float or int [n, ...], which
      reach the network as float32 or int32 and otherwise as they are. Labels:
      classes, int [n, ...] from 0 or texts [n]; or float [n, ...] for a loss
      of one's own.

  Raises:
    InputError: it is none of these, empty, of unequal lengths or forms, not
      finite, or has one class only.
  """
  by_split = data if isinstance(data, Mapping) else {"train": data}
  unknown = [name for name in by_split if name not in _SPLITS]
  if unknown or "train" not in by_split:
    hints = [f"'{nearest(str(n), _SPLITS)}' for '{n}'" for n in unknown]
    hint = f": did you mean {' and '.join(hints)}?" if hints else ""
    raise InputError(
      f"data has the splits {', '.join(map(repr, by_split)) or 'none'}; give"
      f" 'train', and 'validation' and 'test' where you have them{hint}"
    )
  arrays = {name: _arrays(by_split[name], name) for name in by_split}
  arrays, names = _classes(arrays)
  examples, labels = arrays["train"]
  for name, (x, y) in arrays.items():
    for what, one, first in (("examples", x, examples), ("labels", y, labels)):
      if (one.shape[1:], one.dtype) != (first.shape[1:], first.dtype):
        raise InputError(
          f"data: the {what} of '{name}' are {form(one)} and those of 'train'"
          f" {form(first)}; give equal shapes and dtypes"
        )
  num_classes = 0
  if labels.dtype == np.int32:
    num_classes = 1 + max(int(y.max()) for _, y in arrays.values())
    if num_classes < 2 or (labels.ndim == 1 and len(np.unique(labels)) < 2):
      raise InputError(
        f"data: all training labels are {names[0] if names else labels.min()};"
        " classification needs two classes at least"
      )
  side = "x".join(map(str, examples.shape[1:])) or "single"
  kind = f"{num_classes} classes" if num_classes else f"labels {form(labels)}"
  if names:
    kind += f" ({', '.join(names)})"
  return Splits(
    train=arrays["train"],
    validation=arrays.get("validation"),
    test=arrays.get("test"),
    num_classes=num_classes,
    source=f"given {side} {examples.dtype} examples of {kind}",
    classes=tuple(names),
  )


def _arrays(data: Any, name: str) -> Split:
  if isinstance(data, grain.MapDataset):
    data = _read_all(data, name)
  if not isinstance(data, tuple | list) or len(data) != 2:
    raise InputError(
      f"data: '{name}' is a {type(data).__name__}; give (examples, labels) or a"
      " grain.MapDataset, and splits of yours as {'train': ..., 'test': ...}"
    )
  examples = _as_array(data[0], "examples", name)
  labels = _as_array(data[1], "labels", name)
  if not examples.ndim or examples.shape[:1] != labels.shape[:1]:
    raise InputError(
      f"data: '{name}' has examples {form(examples)} and labels"
      f" {form(labels)}; the first axis must be equally long"
    )
  if not labels.size:
    raise InputError(f"data: '{name}' is empty; give examples")
  return _as_examples(examples, name), _as_labels(labels, name)


def _as_array(values: Any, what: str, name: str) -> np.ndarray:
  try:
    return np.asarray(values)
  except ValueError as error:  # rows of unequal lengths, for one
    raise InputError(
      f"data: the {what} of '{name}' make no array ({error}); give all of them"
      " one shape, such as images of one size"
    ) from None


def _as_examples(examples: np.ndarray, name: str) -> np.ndarray:
  if examples.dtype == np.uint8:
    if examples.ndim == 3:
      return examples[..., np.newaxis]
    if examples.ndim == 4:
      return examples
    raise InputError(
      f"data: the examples of '{name}' are {form(examples)}; bytes are images"
      " [n, height, width] or [n, height, width, channels]: turn others into"
      " float32 or int32"
    )
  if np.issubdtype(examples.dtype, np.integer):
    return examples.astype(np.int32)
  if examples.dtype.name.startswith(("float", "bfloat")):
    return _finite(examples, "examples", name)
  raise InputError(
    f"data: the examples of '{name}' are {form(examples)}; give uint8 images,"
    " float or int"
  )


def _as_labels(labels: np.ndarray, name: str) -> np.ndarray:
  if labels.dtype.kind in "US" and labels.ndim == 1:
    return labels
  if labels.dtype.kind in "biu":
    if labels.min() < 0:
      raise InputError(
        f"data: '{name}' has the label {labels.min()}; classes count from 0"
      )
    return labels.astype(np.int32)
  if labels.dtype.name.startswith(("float", "bfloat")):
    return _finite(labels, "labels", name)
  raise InputError(
    f"data: the labels of '{name}' are {form(labels)}; give classes (int from"
    " 0, or texts) or, with a loss of yours, float"
  )


def _finite(values: np.ndarray, what: str, name: str) -> np.ndarray:
  values = values.astype(np.float32)
  bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
  if bad.size:
    raise InputError(
      f"data: the {what} of '{name}' are not finite, first in number {bad[0]};"
      " mend or remove them"
    )
  return values


def _classes(arrays: dict[str, Split]) -> tuple[dict[str, Split], list[str]]:
  """Labels that are texts as integers, in alphabetical order; the names."""
  if arrays["train"][1].dtype.kind not in "US":
    return arrays, []
  names = np.unique(arrays["train"][1])
  out = {}
  for split, (examples, labels) in arrays.items():
    unknown = np.setdiff1d(labels, names)
    if unknown.size:
      raise InputError(
        f"data: '{split}' has the class '{unknown[0]}', which 'train' lacks"
        f" (it has {', '.join(map(str, names))})"
      )
    out[split] = examples, np.searchsorted(names, labels).astype(np.int32)
  return out, [str(name) for name in names]


def _read_all(data: grain.MapDataset[Any], name: str) -> Split:
  try:
    if len(data) == sys.maxsize:
      raise ValueError("it repeats without end")
    pairs = [_pair(data[n]) for n in range(len(data))]
    examples, labels = (np.stack(part) for part in zip(*pairs, strict=True))
  except ValueError as error:
    raise InputError(
      f"data: '{name}', a MapDataset, cannot be read into arrays ({error}); its"
      " elements must be (example, label) or {'image', 'label'}, each of the"
      " same shape, and finitely many, one at least (no .repeat())"
    ) from None
  return examples, labels


def _pair(element: Any) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(element, Mapping) and set(element) == set(_FIELDS):
    element = tuple(element[field] for field in _FIELDS)
  if not isinstance(element, tuple | list) or len(element) != 2:
    raise ValueError(f"an element is a {type(element).__name__}")
  return np.asarray(element[0]), np.asarray(element[1])
