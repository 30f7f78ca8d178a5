"""Loading whole data sets: digits, and CIFAR at its real size."""

import dataclasses
import os

import numpy as np
import pytest

from esper_jax.data import datasets
from esper_jax.types import InputError


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
  """The folder of CIFAR-10's binary layout: one random file, six names."""
  folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-bin"
  folder.mkdir()
  generator = np.random.default_rng(0)
  records = generator.integers(0, 256, (10_000, 3073), np.uint8)
  records[:, 0] = np.repeat(np.arange(10), 1000)
  records[:, 1:1025] //= 2  # the red plane
  (folder / "test_batch.bin").write_bytes(records.tobytes())
  for i in range(1, 6):
    os.link(folder / "test_batch.bin", folder / f"data_batch_{i}.bin")
  return folder


@pytest.fixture
def no_network(monkeypatch):
  monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens
  monkeypatch.delenv("no_proxy", raising=False)


def _check(data, shape, sizes):
  splits = ("train", "validation", "test")
  for split, size in zip(splits, sizes, strict=True):
    images = getattr(data, f"{split}_images")
    labels = getattr(data, f"{split}_labels")
    assert images.shape == (size, *shape) and images.dtype == np.uint8
    assert labels.shape == (size,) and labels.dtype == np.int32
    assert len(data.mean) == len(data.std) == shape[-1]


def test_digits():
  data = datasets.load("digits")
  _check(data, (8, 8, 1), (1294, 144, 359))
  assert (data.name, data.num_classes) == ("digits", 10)
  assert data.classes == tuple("0123456789")
  assert data.train_images.max() == 255
  assert "scikit-learn" in data.source
  images = data.train_images / 255
  np.testing.assert_allclose(data.mean[0], images.mean(), rtol=1e-12)
  np.testing.assert_allclose(data.std[0], images.std(), rtol=1e-12)
  # Every digit once: the three splits are all of the data set.
  parts = (data.train_images, data.validation_images, data.test_images)
  rows = np.concatenate(parts).reshape(1797, 64)
  assert len(np.unique(rows, axis=0)) == 1797
  for labels in (data.validation_labels, data.test_labels):
    counts = np.bincount(labels)
    assert len(counts) == 10 and counts.max() - counts.min() <= 2


def test_the_split_seed_moves_validation_but_not_test():
  a, b = (datasets.load("digits", split_seed=seed) for seed in (0, 1))
  again = datasets.load("digits", split_seed=0)
  np.testing.assert_array_equal(a.test_images, b.test_images)
  assert not np.array_equal(a.validation_images, b.validation_images)
  assert a.sha256 == b.sha256
  for field in dataclasses.fields(a):
    np.testing.assert_array_equal(
      getattr(a, field.name), getattr(again, field.name)
    )


def test_train_limit_keeps_classes_in_proportion():
  whole = datasets.load("digits")
  some = datasets.load("digits", train_limit=100)
  _check(some, (8, 8, 1), (100, 144, 359))
  counts = np.bincount(some.train_labels)
  assert counts.min() >= 9 and counts.max() <= 11
  np.testing.assert_array_equal(some.validation_images, whole.validation_images)
  kept = {image.tobytes() for image in some.train_images}
  assert len(kept) == 100
  assert kept <= {image.tobytes() for image in whole.train_images}
  assert some.mean != whole.mean  # of what is trained on
  last = datasets.load("digits", train_limit=1294)
  np.testing.assert_array_equal(last.train_images, whole.train_images)


def test_cifar10_at_its_real_size(cifar10):
  data = datasets.load("cifar10", dir=str(cifar10.parent))
  _check(data, (32, 32, 3), (45_000, 5000, 10_000))
  assert np.bincount(data.train_labels).tolist() == [4500] * 10
  assert np.bincount(data.validation_labels).tolist() == [500] * 10
  assert data.source == f"CIFAR-10, binary files in {cifar10}"
  assert data.classes[::9] == ("airplane", "truck")
  np.testing.assert_allclose(data.mean, (63.5 / 255, 0.5, 0.5), rtol=2e-3)
  np.testing.assert_allclose(data.std, (37 / 255, 0.29, 0.29), rtol=2e-2)


def test_the_cache_is_used_and_its_damage_says_delete(cifar10, no_network):
  cache = str(cifar10.parent)
  data = datasets.load("cifar10", cache_dir=cache, download=False)
  assert data.num_classes == 10
  path = cifar10 / "data_batch_3.bin"
  content = path.read_bytes()
  path.unlink()
  path.write_bytes(content[:-5])
  try:
    with pytest.raises(InputError, match="30729995 bytes, expected 30730000:"):
      datasets.load("cifar10", cache_dir=cache)
    with pytest.raises(InputError, match=f"delete '{cifar10}' and run again"):
      datasets.load("cifar10", cache_dir=cache)
    with pytest.raises(InputError, match="set --config.data.dir to the folder"):
      datasets.load("cifar10", dir=cache)
  finally:
    path.write_bytes(content)


def test_cifar100_at_its_real_size(tmp_path):
  # Files without content: every byte is zero, and none is on the disk.
  for name, count in (("train.bin", 50_000), ("test.bin", 10_000)):
    with (tmp_path / name).open("wb") as file:
      file.truncate(count * 3074)
  data = datasets.load("cifar100", dir=str(tmp_path), train_limit=500)
  _check(data, (32, 32, 3), (500, 5000, 10_000))
  assert data.num_classes == 100
  assert data.mean == (0.0,) * 3
  assert data.std == (1 / 255,) * 3  # a constant channel is not divided by 0


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_data_and_no_network(name, tmp_path, no_network):
  with pytest.raises(InputError, match="cannot be downloaded") as caught:
    datasets.load(name, cache_dir=str(tmp_path))
  assert "--config.data.dir" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_no_data_and_no_download(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  with pytest.raises(InputError, match="data.download is False") as caught:
    datasets.load("cifar10", download=False)
  assert str(tmp_path / ".cache" / "esper_jax") in str(caught.value)
  assert "--config.data.dir" in str(caught.value)


@pytest.mark.parametrize(
  ("name", "arguments", "text"),
  [
    ("cifar11", {}, "'cifar11'; valid are cifar10, cifar100, digits"),
    ("digits", {"dir": "x"}, "leave --config.data.dir empty"),
    ("cifar10", {"dir": "absent"}, "'absent' holds no CIFAR-10"),
    ("digits", {"validation_fraction": 0.0}, "holds out 0 of 1438"),
    ("digits", {"validation_fraction": 0.0007}, "holds out 1 of 1438"),
    ("digits", {"validation_fraction": 1.0}, "holds out 1438 of 1438"),
    ("digits", {"validation_fraction": -0.5}, "validation_fraction is -0.5"),
    ("digits", {"train_limit": 1295}, "valid is 0 (all) to 1294"),
    ("digits", {"train_limit": -1}, "train_limit is -1"),
  ],
)
def test_bad_arguments(name, arguments, text):
  with pytest.raises(InputError) as caught:
    datasets.load(name, **arguments)
  assert text in str(caught.value)
  assert "--config.data." in str(caught.value)
  assert "\n" not in str(caught.value)
