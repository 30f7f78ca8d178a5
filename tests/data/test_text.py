"""Texts: their vocabulary, their windows, their three stretches."""

import collections

import numpy as np
import pytest

from esper_jax.data import datasets, text
from esper_jax.types import InputError

CONTENT = "".join(chr(97 + n * n % 23) for n in range(500))


@pytest.fixture
def path(tmp_path):
  place = tmp_path / "mine.txt"
  place.write_text(CONTENT)
  return place


def train(data):
  return data.train_images, data.train_labels


def decoded(parts, tokens):
  return "".join(parts.vocabulary[t] for t in tokens.ravel())


def test_the_three_stretches_are_the_text_in_order(path):
  parts = text.read(path, context=7, validation_fraction=0.2)
  # 50 characters are the test, 90 of the other 450 validation.
  starts, sizes = (0, 360, 450), (360, 90, 50)
  splits = (parts.train, parts.validation, parts.test)
  for split, start, size in zip(splits, starts, sizes, strict=True):
    tokens, labels = split
    windows = (size - 1) // 7
    assert tokens.shape == labels.shape == (windows, 7)
    assert tokens.dtype == labels.dtype == np.int32
    end = start + 7 * windows
    assert decoded(parts, tokens) == CONTENT[start:end]
    assert decoded(parts, labels) == CONTENT[start + 1 : end + 1]
    assert end + 1 <= start + size, "no label is of the next stretch"


def test_the_vocabulary_is_the_file_s_characters(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_bytes("\ufeffb\r\n\U0001f600a\u00e9".encode() * 20)
  parts = text.read(path, context=2, validation_fraction=0.3)
  assert parts.vocabulary == "\n\rab\u00e9\ufeff\U0001f600"  # one BOM is none
  assert "7 distinct" in parts.source and str(path) in parts.source


def test_load_takes_a_file_in_place_of_a_name(path):
  load = datasets.load
  data = load("cifar10", source=f"text:{path}", context=7)
  assert (data.name, data.num_classes) == ("mine.txt", len(set(CONTENT)))
  assert data.train_images.shape == data.train_labels.shape == (57, 7)
  assert len(data.validation_images) == 6 and len(data.test_images) == 7
  some = load("cifar10", source=f"text:{path}", context=7, train_limit=9)
  every, few = (
    collections.Counter(
      bytes(x) + bytes(y) for x, y in zip(*train(one), strict=True)
    )
    for one in (data, some)
  )
  assert few.total() == 9 and few <= every, "some of them, none twice"
  assert some.sha256 == data.sha256
  assert data.vocabulary == "".join(sorted(set(CONTENT)))
  path.write_text(CONTENT.replace("a", "~"))  # equal tokens of other letters
  other = load("cifar10", source=f"text:{path}", context=7)
  assert other.sha256 != data.sha256


@pytest.mark.parametrize("name", text.SHIPPED)
def test_what_is_shipped_is_read(name):
  data = datasets.load(name, context=64)
  assert data.name == name and "(embedded)" in data.source
  assert len(data.train_images) > 1500
  assert text.shipped(name).stat().st_size < 200_000


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (None, "there is no file"),
    (b"", "has 0 distinct characters"),
    (b"aaaaaaaaaa", "has 1 distinct characters"),
    (b"caf\xe9 " * 99, r"no text in UTF-8 \(byte 3 is 0xe9\)"),
    (b"ab" * 40, "80 characters, of which 72 .* training|are for validation"),
  ],
)
def test_a_file_that_will_not_do_is_explained(tmp_path, content, says):
  path = tmp_path / "mine.txt"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match=says) as caught:
    datasets.load("digits", source=f"text:{path}", context=8)
  assert "\n" not in str(caught.value)
  assert str(path) in str(caught.value)


def test_a_folder_is_no_text(tmp_path):
  with pytest.raises(InputError, match="cannot be read .Is a directory"):
    text.read(tmp_path, context=8, validation_fraction=0.1)


@pytest.mark.parametrize(
  ("fraction", "context", "part"),
  [(0.99, 7, "training"), (0.01, 7, "validation"), (0.5, 30, "test")],
)
def test_each_stretch_must_hold_its_windows(path, fraction, context, part):
  with pytest.raises(InputError, match=f"are for {part} .* 500 char|{part}"):
    text.read(path, context=context, validation_fraction=fraction)


@pytest.mark.parametrize("source", ["text:", "poem:x", "x"])
def test_an_unknown_source_is_refused(source):
  with pytest.raises(InputError, match="valid are folder:PATH, text:PATH, and"):
    datasets.load("digits", source=source)


def test_what_is_shipped_lies_in_no_folder():
  with pytest.raises(InputError, match="'as_you_like_it' comes with esper_jax"):
    datasets.load("as_you_like_it", dir="elsewhere")


def test_a_train_limit_beyond_the_text_is_refused(path):
  with pytest.raises(InputError, match=r"valid is 0 \(all\) to 57"):
    datasets.load("x", source=f"text:{path}", context=7, train_limit=58)
