"""The two layouts of CIFAR on disk, small, and what can be wrong with them."""

import os
import pickle

import numpy as np
import pytest

from esper_jax.data import cifar
from esper_jax.types import InputError

SMALL = {
  "cifar10": cifar.FORMATS["cifar10"]._replace(
    files=(("data_batch_1", 12), ("data_batch_2", 12), ("test_batch", 10))
  ),
  "cifar100": cifar.FORMATS["cifar100"]._replace(
    files=(("train", 24), ("test", 10))
  ),
}


def _records(layout, seed=0):
  """Per file: the labels by field and uint8 [n, 3, 32, 32] planes."""
  generator = np.random.default_rng(seed)
  for name, count in layout.files:
    labels = [
      generator.integers(0, f.num_classes, count) for f in layout.labels
    ]
    yield name, labels, generator.integers(0, 256, (count, 3, 32, 32), np.uint8)


def _write_binary(layout, folder):
  folder.mkdir(parents=True, exist_ok=True)
  for name, labels, planes in _records(layout):
    columns = [field.astype(np.uint8)[:, None] for field in labels]
    rows = np.hstack([*columns, planes.reshape(len(planes), -1)])
    (folder / f"{name}.bin").write_bytes(rows.tobytes())


def _batch(layout, labels, planes):
  fields = {
    field.key: values.tolist()
    for field, values in zip(layout.labels, labels, strict=True)
  }
  data = planes.reshape(len(planes), -1)
  return {**fields, b"data": data, b"filenames": [b"a.png"] * len(planes)}


def _write_python(layout, folder, protocol=2):
  folder.mkdir(parents=True, exist_ok=True)
  for name, labels, planes in _records(layout):
    content = pickle.dumps(_batch(layout, labels, planes), protocol=protocol)
    (folder / name).write_bytes(content)


def _read(layout, folder):
  return cifar.read(layout, folder, remedy="do this")


@pytest.fixture(params=["cifar10", "cifar100"])
def layout(request):
  return SMALL[request.param]


@pytest.mark.parametrize("parent", [True, False])
@pytest.mark.parametrize("kind", ["binary", "Python"])
def test_both_layouts_give_the_same_arrays(layout, kind, parent, tmp_path):
  own = layout.archive.folder if kind == "binary" else layout.python_folder
  folder = tmp_path / own
  (_write_binary if kind == "binary" else _write_python)(layout, folder)
  train, test, source = _read(layout, tmp_path if parent else folder)
  assert source == f"{layout.title}, {kind} files in {folder}"
  *parts, (_, test_labels, test_planes) = _records(layout)
  planes = np.concatenate([planes for _, _, planes in parts])
  labels = np.concatenate([labels[-1] for _, labels, _ in parts])
  np.testing.assert_array_equal(train[0], planes.transpose(0, 2, 3, 1))
  np.testing.assert_array_equal(train[1], labels)
  np.testing.assert_array_equal(test[0], test_planes.transpose(0, 2, 3, 1))
  np.testing.assert_array_equal(test[1], test_labels[-1])
  for images, own_labels in (train, test):
    assert images.dtype == np.uint8 and images.flags.c_contiguous
    assert own_labels.dtype == np.int32


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_with_string_keys_and_label_arrays(tmp_path, protocol):
  layout = SMALL["cifar10"]
  for name, labels, planes in _records(layout):
    batch = _batch(layout, labels, planes)
    batch = {key.decode(): value for key, value in batch.items()}
    batch["labels"] = np.array(batch["labels"])
    (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=protocol))
  got = _read(layout, tmp_path)
  _write_binary(layout, tmp_path / "other")
  want = _read(layout, tmp_path / "other")
  for a, b in zip(got[:2], want[:2], strict=True):
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_every_class_has_a_name(layout):
  assert len(set(layout.classes)) == layout.labels[-1].num_classes
  assert layout.classes[3] in ("cat", "bear")


def test_binary_files_come_first(tmp_path):
  layout = SMALL["cifar10"]
  _write_python(layout, tmp_path / layout.python_folder)
  _write_binary(layout, tmp_path / layout.archive.folder)
  assert "binary files" in _read(layout, tmp_path)[2]
  (tmp_path / layout.archive.folder / "test_batch.bin").unlink()
  assert "Python files" in _read(layout, tmp_path)[2]  # the complete one


def _refuse(layout, folder, *texts):
  with pytest.raises(InputError) as caught:
    _read(layout, folder)
  message = str(caught.value)
  assert "\n" not in message
  for text in texts:
    assert text in message
  return message


def test_nothing_there(layout, tmp_path):
  for folder in (tmp_path, tmp_path / "absent"):
    _refuse(
      layout,
      folder,
      f"'{folder}' holds no {layout.title}",
      layout.archive.folder,
      layout.python_folder,
      "do this",
    )


def test_a_missing_file_is_named(layout, tmp_path):
  _write_binary(layout, tmp_path)
  name = f"{layout.files[0][0]}.bin"
  (tmp_path / name).unlink()
  _refuse(layout, tmp_path, f"'{tmp_path}' lacks {name} of", "do this")


@pytest.mark.parametrize("change", [-1, 1])
def test_a_binary_file_of_another_size(layout, tmp_path, change):
  _write_binary(layout, tmp_path)
  path = tmp_path / f"{layout.files[0][0]}.bin"
  content = path.read_bytes()
  path.write_bytes(content[:-1] if change < 0 else content + b"x")
  size = len(content)
  text = f"has {size + change} bytes, expected {size}"
  _refuse(layout, tmp_path, f"'{path}'", text, "truncated", "do this")


@pytest.mark.parametrize(
  ("name", "offset", "field", "valid"),
  [
    ("cifar10", 0, "labels", "0 to 9"),
    ("cifar100", 0, "coarse_labels", "0 to 19"),
    ("cifar100", 1, "fine_labels", "0 to 99"),
  ],
)
def test_a_binary_label_out_of_range(tmp_path, name, offset, field, valid):
  layout = SMALL[name]
  _write_binary(layout, tmp_path)
  path = tmp_path / f"{layout.files[-1][0]}.bin"
  content = bytearray(path.read_bytes())
  content[3 * (len(layout.labels) + 3072) + offset] = 200
  path.write_bytes(content)
  _refuse(layout, tmp_path, f"'{path}' has the label 200", field, valid)


@pytest.mark.skipif(
  not os.path.exists("/proc/self/mem"), reason="needs Linux's /proc"
)
def test_an_unreadable_file(tmp_path):
  layout = SMALL["cifar10"]
  _write_binary(layout, tmp_path)
  path = tmp_path / "test_batch.bin"
  path.unlink()
  path.symlink_to("/proc/self/mem")  # a plain file whose first page is not
  _refuse(layout, tmp_path, f"'{path}' cannot be read", "do this")


@pytest.mark.parametrize("change", ["short", "long"])
def test_a_pickle_of_another_size(layout, tmp_path, change):
  _write_python(layout, tmp_path)
  path = tmp_path / layout.files[0][0]
  content = path.read_bytes()
  path.write_bytes(content[:30_000] if change == "short" else content * 2)
  _refuse(layout, tmp_path, f"'{path}' has ", "bytes, expected ", "do this")


def test_a_truncated_pickle(layout, tmp_path):
  _write_python(layout, tmp_path)
  path = tmp_path / layout.files[0][0]
  path.write_bytes(path.read_bytes()[:-9])
  _refuse(layout, tmp_path, f"'{path}' is not a readable pickle")


def _pixels(shape, dtype=np.uint8):
  return np.zeros(shape, dtype)


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({b"data": None}, "lacks the key data"),
    ({b"labels": None}, "lacks the key labels"),
    ({b"data": "x"}, "is not a uint8 array"),
    ({b"data": _pixels((10, 3072), np.int8)}, "is not a uint8 array"),
    ({b"data": _pixels((10, 3071))}, "shape (10, 3071), expected (10, 3072)"),
    ({b"labels": 3}, "labels in "),
    ({b"labels": [0] * 9 + [b"1"]}, "is not a list of ints"),
    ({b"labels": _pixels(10, np.float32)}, "is not a list of ints"),
    ({b"labels": _pixels((10, 1))}, "is not a list of ints"),
    ({b"labels": [0] * 11}, "has 11 labels, expected 10"),
    ({b"labels": [0] * 9 + [10]}, "the label 10 among its labels"),
    ({b"labels": [0] * 9 + [-1]}, "the label -1 among its labels"),
    ({b"labels": [0] * 9 + [2**80]}, "valid are 0 to 9"),
  ],
)
def test_a_pickle_of_another_content(tmp_path, changes, text):
  layout = SMALL["cifar10"]
  _write_python(layout, tmp_path)
  path = tmp_path / "test_batch"
  *_, (_, labels, planes) = _records(layout)
  batch = {**_batch(layout, labels, planes), **changes}
  batch = {key: value for key, value in batch.items() if value is not None}
  batch[b"filenames"] = b"x" * 1000  # keeps the size plausible
  batch[b"padding"] = b"x" * max(0, 30_720 - len(pickle.dumps(batch)))
  path.write_bytes(pickle.dumps(batch))
  _refuse(layout, tmp_path, f"'{path}'", text, "do this")


def test_a_pickle_that_is_no_dict(tmp_path):
  layout = SMALL["cifar10"]
  _write_python(layout, tmp_path)
  path = tmp_path / "test_batch"
  path.write_bytes(pickle.dumps([b"x" * 31_000]))
  _refuse(layout, tmp_path, f"'{path}' holds a list, expected a dict")
