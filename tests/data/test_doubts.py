"""What looks like a mistake in data is said, and nothing else."""

import numpy as np
import pytest

from esper_jax.data import doubts, given
from esper_jax.data.splits import divide

N = 40
IMAGES = np.zeros((N, 2, 3), np.uint8)
LABELS = np.arange(N) % 3


def made(labels, images=IMAGES, **splits):
  return divide(
    "given",
    given.read({"train": (images, labels), **splits}),
    validation_fraction=0.25,
    split_seed=0,
    train_limit=0,
  )


@pytest.mark.parametrize(
  ("labels", "says"),
  [
    (LABELS, ""),
    (np.array(["a", "b", "c"])[LABELS], ""),
    (LABELS + 1, "the lowest label is 1 and classes count from 0: give labels"),
    (LABELS * 2, "the highest label is 4 and no example has 1: classes are"),
    (np.eye(3)[LABELS], "the labels are one-hot: give labels.argmax(-1)"),
    (np.eye(3, dtype=int)[LABELS], "the labels are one-hot"),
    (np.stack([LABELS, LABELS], 1), ""),
    (np.stack([LABELS % 2, LABELS % 2], 1), ""),
    (LABELS.astype(float), "the labels are floats: give labels.astype(int)"),
    (LABELS / 2, ""),
  ],
)
def test_labels_that_a_classifier_does_not_fit(labels, says):
  told = doubts.of_labels(made(labels))
  assert told.startswith(says) and bool(told) == bool(says)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_stray_label_is_named_with_its_split(split):
  stray = np.where(np.arange(N) == 5, 7, LABELS)
  told = doubts.of_labels(made(LABELS, **{split: (IMAGES, stray)}))
  assert told.startswith(f"the label 7 is in '{split}' alone, and those of")


@pytest.mark.parametrize(
  ("shape", "odd"),
  [
    ((3, 24, 24), True),
    ((1, 28, 20), True),
    ((4, 8, 9), True),
    ((24, 24, 3), False),
    ((2, 24, 24), False),
    ((3, 3, 3), False),
    ((3, 24, 4), False),
    ((3, 24), False),
  ],
)
def test_channels_that_come_first(shape, odd):
  told = doubts.of_shape(made(LABELS, np.zeros((N, *shape), np.float32)))
  assert bool(told) == odd
  if odd:
    assert "x".join(map(str, shape)) in told and "np.moveaxis" in told
