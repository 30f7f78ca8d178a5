"""What looks like a mistake in data of one's own, and what to do about it."""

import numpy as np

from esper_jax.data.splits import Dataset

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA


def of_labels(data: Dataset) -> str:
  """Says what may be wrong where a classifier does not fit the labels.

  Args:
    data: see `Dataset`.

  Returns:
    A clause; "" where nothing is odd.
  """
  splits = {
    "train": data.train_labels,
    "validation": data.validation_labels,
    "test": data.test_labels,
  }
  every = np.concatenate(list(splits.values()))
  if every.ndim == 2 and np.isin(every, (0, 1)).all():
    one_hot = every.shape[1] > 1 and (every.sum(1) == 1).all()
    return "the labels are one-hot: give labels.argmax(-1)" if one_hot else ""
  if every.ndim > 1:
    return ""
  if not np.issubdtype(every.dtype, np.integer):
    whole = (every == np.round(every)).all()
    return "the labels are floats: give labels.astype(int)" if whole else ""
  lowest, known = every.min(), data.train_labels.max()
  if lowest > 0:
    return (
      f"the lowest label is {lowest} and classes count from 0: give labels -"
      f" {lowest}"
    )
  for name, labels in splits.items():
    if labels.max() > known:
      return (
        f"the label {labels.max()} is in '{name}' alone, and those of 'train'"
        f" go up to {known}: mend or remove it"
      )
  absent = np.setdiff1d(np.arange(known), every)
  if absent.size:
    return (
      f"the highest label is {known} and no example has {absent[0]}: classes"
      " are numbered without gaps"
    )
  return ""


def of_shape(data: Dataset) -> str:
  """Says so where images seem to have their channels first; else "".

  Args:
    data: see `Dataset`.
  """
  shape = data.train_images.shape[1:]
  if len(shape) != 3 or shape[0] not in _CHANNELS or min(shape[1:]) <= 4:
    return ""
  size = "x".join(map(str, shape))
  return (
    f"examples of {size} look like images with the channels first; give"
    " [examples, height, width, channels]: np.moveaxis(images, 1, -1)"
  )
