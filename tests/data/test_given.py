"""Data in memory: what is inferred, what is refused."""

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.data import given
from esper_jax.data.splits import divide
from esper_jax.types import InputError

N = 20
IMAGES = np.arange(N * 6, dtype=np.uint8).reshape(N, 2, 3)
LABELS = np.arange(N) % 4


def test_images_get_a_channel_and_labels_a_count():
  splits = given.read((IMAGES, LABELS))
  assert splits.train[0].shape == (N, 2, 3, 1)
  assert splits.train[1].dtype == np.int32
  assert splits.num_classes == 4
  assert splits.source == "given 2x3x1 uint8 examples of 4 classes"


def test_colour_images_keep_their_channels():
  images = np.zeros((N, 2, 3, 5), np.uint8)
  assert given.read((images, LABELS)).train[0].shape == images.shape


@pytest.mark.parametrize(
  ("examples", "dtype"),
  [
    (jnp.ones((N, 3), jnp.bfloat16), np.float32),
    (np.ones((N,), np.float64), np.float32),
    (np.ones((N, 7), np.int64), np.int32),
  ],
)
def test_other_arrays_are_kept_as_they_are(examples, dtype):
  kept = given.read((examples, jnp.asarray(LABELS))).train[0]
  assert (kept.shape, kept.dtype) == (examples.shape, dtype)
  assert (kept == 1).all()


def test_texts_are_classes_in_alphabetical_order():
  words = np.array(["dog", "cat"])[np.arange(N) % 2]
  splits = given.read({"train": (IMAGES, words), "test": (IMAGES, words)})
  assert splits.train[1][:2].tolist() == [1, 0]
  assert splits.test[1][:2].tolist() == [1, 0]
  assert "2 classes (cat, dog)" in splits.source
  assert splits.classes == ("cat", "dog")
  assert given.read((IMAGES, LABELS)).classes == ()  # numbers have no names


def test_labels_by_position_and_numbers():
  rows = np.stack([LABELS, LABELS], axis=1)
  assert given.read((IMAGES, rows)).num_classes == 4
  splits = given.read((IMAGES, rows / 2))
  assert splits.num_classes == 0
  assert "labels float32[20, 2]" in splits.source


def test_a_grain_data_set_is_read_whole():
  for element in (
    lambda n: (IMAGES[n], LABELS[n]),
    lambda n: {"image": IMAGES[n], "label": LABELS[n]},
  ):
    source = grain.MapDataset.range(N).map(element)
    images, labels = given.read({"train": source}).train
    assert (images[..., 0] == IMAGES).all()
    assert (labels == LABELS).all()


def uneven(n):
  return grain.MapDataset.source([(np.zeros(k + 1), 0) for k in range(n)])


@pytest.mark.parametrize(
  ("data", "says"),
  [
    (IMAGES, "'train' is a ndarray; give (examples, labels)"),
    ({"test": (IMAGES, LABELS)}, "data has the splits 'test'; give 'train'"),
    ({}, "data has the splits none; give 'train'"),
    ({"train": (IMAGES, LABELS), "tset": 0}, "'train', 'tset'; give"),
    (
      {"train": (IMAGES, LABELS), "val": (IMAGES, LABELS)},
      "did you mean 'validation' for 'val'?",
    ),
    (
      ([np.zeros((2, 3)), np.zeros((3, 3))], [0, 1]),
      "examples of 'train' make no array (setting an array element",
    ),
    ((IMAGES, [[0], [1, 2]]), "the labels of 'train' make no array"),
    ((IMAGES, LABELS[1:]), "the first axis must be equally long"),
    ((1.0, 1), "the first axis must be equally long"),
    ((IMAGES[:0], LABELS[:0]), "'train' is empty"),
    ((IMAGES[:, :, 0], LABELS), "bytes are images [n, height, width]"),
    ((np.array(["a"] * N), LABELS), "give uint8 images, float or int"),
    ((IMAGES, LABELS - 1), "'train' has the label -1; classes count from 0"),
    ((IMAGES, LABELS * 1j), "labels of 'train' are complex128[20]; give"),
    ((IMAGES, LABELS * 0), "all training labels are 0; classification needs"),
    ((IMAGES, np.array(["a"] * N)), "all training labels are a; classifi"),
    (
      (np.full((N, 2), np.inf), LABELS),
      "examples of 'train' are not finite, first in n",
    ),
    (
      {"train": (IMAGES, LABELS), "test": (IMAGES[:, 1:], LABELS)},
      "examples of 'test' are uint8[20, 1, 3, 1] and those of 'train' uint8[20",
    ),
    (
      {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS / 2)},
      "the labels of 'test' are float32[20] and those",
    ),
    (
      {"train": (IMAGES[:2], ["a", "b"]), "test": (IMAGES[:1], ["c"])},
      "'test' has the class 'c', which 'train' lacks (it has a, b)",
    ),
    (grain.MapDataset.range(3), "an element is a int"),
    (grain.MapDataset.range(3).repeat(), "it repeats without end"),
    (uneven(2), "all input arrays must have the same shape"),
    (grain.MapDataset.range(0), "not enough values"),
  ],
)
def test_what_cannot_be_used_is_named(data, says):
  with pytest.raises(InputError) as caught:
    given.read(data)
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


def test_given_splits_stay_and_others_are_drawn():
  options = {"validation_fraction": 0.25, "split_seed": 0, "train_limit": 0}
  whole = divide("given", given.read((IMAGES, LABELS)), **options)
  assert len(whole.test_labels) == 4 and len(whole.validation_labels) == 4
  pairs = {"train": (IMAGES, LABELS), "validation": (IMAGES[:8], LABELS[:8])}
  own = divide("given", given.read(pairs), **options)
  assert (own.validation_images[..., 0] == IMAGES[:8]).all()
  assert len(own.train_labels) == 16 and own.sha256 != whole.sha256
  floats = divide("given", given.read((IMAGES / 2.0, LABELS / 2)), **options)
  assert (floats.mean, floats.std) == ((0.0,), (1.0,))
  assert len(floats.train_labels) == 12
