"""Augmentation: right pixels, right distribution, nothing but the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.data import augment
from esper_jax.types import InputError


def _images(batch=16, height=6, width=5, channels=3):
  # Every pixel differs from every other and from 0, so a crop can be located.
  n = batch * height * width * channels
  shape = (batch, height, width, channels)
  return np.arange(1, n + 1, dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize(dtype):
  images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 2), np.uint8)
  mean, std = (0.25, 0.5), (0.1, 0.2)
  got = augment.normalize(jnp.asarray(images), mean, std, dtype)
  want = (images / 255 - np.array(mean)) / np.array(std)
  assert got.dtype == dtype
  # Half of the last place of bfloat16 is 2**-9 of the value.
  tolerance = 1e-5 if dtype == jnp.float32 else 2**-8
  np.testing.assert_allclose(
    np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance
  )


def test_crop_takes_every_window_of_the_padded_image():
  images, padding = _images(batch=400), 2
  got = np.asarray(
    augment.augment(
      jnp.asarray(images), jax.random.key(0), ops="crop", padding=padding
    )
  )
  edge = (padding, padding)
  padded = np.pad(images, ((0, 0), edge, edge, (0, 0)))
  seen = set()
  for before, after in zip(padded, got, strict=True):
    found = [
      (y, x)
      for y in range(5)
      for x in range(5)
      if np.array_equal(before[y : y + 6, x : x + 5], after)
    ]
    assert len(found) == 1
    seen.update(found)
  assert len(seen) == 25


def test_crop_without_padding_changes_nothing():
  images = jnp.asarray(_images())
  got = augment.augment(images, jax.random.key(0), ops=["crop"], padding=0)
  np.testing.assert_array_equal(got, images)


def test_flip_mirrors_about_half_of_the_images():
  images = _images(batch=400)
  got = np.asarray(
    augment.augment(jnp.asarray(images), jax.random.key(1), ops=("flip",))
  )
  flipped = 0
  for before, after in zip(images, got, strict=True):
    mirrored = np.array_equal(before[:, ::-1], after)
    assert mirrored or np.array_equal(before, after)
    flipped += mirrored
  assert 150 < flipped < 250  # 5 standard deviations


@pytest.mark.parametrize("side", [2, 3])
def test_cutout_zeroes_one_square_that_borders_may_clip(side):
  images = _images(batch=400)
  got = np.asarray(
    augment.augment(
      jnp.asarray(images), jax.random.key(2), ops=("cutout",), cutout=side
    )
  )
  centres = set()
  for before, after in zip(images, got, strict=True):
    hole = (after == 0).all(axis=-1)
    np.testing.assert_array_equal(after[~hole], before[~hole])
    rows, columns = np.nonzero(hole.any(1))[0], np.nonzero(hole.any(0))[0]
    assert hole.sum() == len(rows) * len(columns)
    assert 1 <= len(rows) <= side and 1 <= len(columns) <= side
    centres.add((rows[0], rows[-1], columns[0], columns[-1]))
  assert len(centres) == 30  # each pixel is the centre of some hole


def test_operations_draw_independently_and_from_the_key_alone():
  images = jnp.asarray(_images(batch=64))
  key = jax.random.key(3)
  crop = augment.augment(images, key, ops=("crop",))
  both = augment.augment(images, key, ops=("flip", "crop"))
  mirrored = np.asarray(crop)[:, :, ::-1]
  same = (np.asarray(both) == np.asarray(crop)).all(axis=(1, 2, 3))
  other = (np.asarray(both) == mirrored).all(axis=(1, 2, 3))
  assert (same | other).all() and other.any()
  again = augment.augment(images, key, ops=("crop", "flip"))
  np.testing.assert_array_equal(both, again)
  changed = augment.augment(images, jax.random.key(4), ops=("crop", "flip"))
  assert not np.array_equal(both, changed)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_jit_gives_the_same_in_the_same_dtype(dtype):
  images = jnp.asarray(_images(), dtype)

  def apply(x, key):
    return augment.augment(x, key, ops=augment.OPS, padding=2, cutout=3)

  eager = apply(images, jax.random.key(5))
  jitted = jax.jit(apply)(images, jax.random.key(5))
  assert eager.dtype == dtype and not eager.weak_type
  np.testing.assert_array_equal(eager, jitted)


def test_no_operation_is_the_identity():
  images = jnp.asarray(_images())
  for ops in ("none", ("none",), ()):
    assert augment.augment(images, jax.random.key(0), ops=ops) is images


def test_names_are_sorted_and_checked():
  assert augment.check_ops(("cutout", "crop")) == ("crop", "cutout")
  assert augment.check_ops("flip") == ("flip",)
  for bad in ("rotate", ("flip", "none")):
    with pytest.raises(InputError, match="crop, flip, cutout: set --config"):
      augment.check_ops(bad)
