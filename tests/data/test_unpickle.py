"""Pickles made by others: plain data is read, everything else is refused."""

import datetime
import os
import pickle

import numpy as np
import pytest

from esper_jax.data import unpickle
from esper_jax.types import InputError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
  "array",
  [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.arange(10, dtype=np.float32)[::2],
    np.array([1, 2], ">i4"),
    np.array([True, False]),
    np.zeros((0, 3), np.uint8),
    np.array(7),
  ],
)
def test_arrays_of_every_protocol_come_back(protocol, array):
  data = pickle.dumps({"data": array}, protocol=protocol)
  read = unpickle.load(data, name="x")["data"]
  np.testing.assert_array_equal(read, array)
  assert read.dtype == array.dtype and read.flags.owndata


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(protocol):
  shared = ["airplane", b"cat", b"\xff\x00", b""]
  value = {b"names": shared, "again": shared, "n": 2**70, "deep": [{"a": [1]}]}
  read = unpickle.load(pickle.dumps(value, protocol=protocol), name="x")
  assert read == value
  assert type(read["n"]) is int


def test_python_2_and_old_numpy_are_read():
  # As cPickle.dump({'data': array, 'labels': [6]}, protocol=2) of Python 2
  # writes it: strings without an encoding, names of numpy before 2.
  data = (
    b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\n"
    b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x02\x86cnumpy\ndtype\n"
    b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    b"K\x00tb\x89U\x04\x01\x02\x03\x04tbU\x06labels]K\x06au."
  )
  read = unpickle.load(data, name="x")
  assert read[b"labels"] == [6]
  np.testing.assert_array_equal(read[b"data"], np.array([[1, 2], [3, 4]]))
  assert read[b"data"].dtype == np.uint8


class _Runs:
  """A pickle of it runs a command when it is read."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_a_command_is_refused_and_not_run(tmp_path):
  data = pickle.dumps([_Runs(tmp_path / "made")])
  with pytest.raises(InputError, match="reference to .*mkdir") as caught:
    unpickle.load(data, name="some/file")
  assert not (tmp_path / "made").exists()
  assert "'some/file'" in str(caught.value)
  assert unpickle.ALLOWED in str(caught.value)
  assert "\n" not in str(caught.value)


_SELF = []
_SELF.append(_SELF)
_NDARRAY = b"cnumpy\nndarray\n"
_DTYPE = b"cnumpy\ndtype\n"
_MAKE = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
  ("data", "text"),
  [
    (pickle.dumps(1.5), "type float"),
    (pickle.dumps((1,)), "type tuple"),
    (pickle.dumps([None]), "type NoneType"),
    (pickle.dumps({"a": True}), "type bool"),
    (pickle.dumps({1}), "type set"),
    (pickle.dumps(bytearray(b"a"), protocol=5), "type bytearray"),
    (pickle.dumps({(1,): 2}), "type tuple"),
    (pickle.dumps(datetime.date(2020, 1, 1)), "datetime.date"),
    (pickle.dumps(np.float32(1)), "multiarray.scalar"),
    (pickle.dumps(np.array([{}], object)), "type 'O8'"),
    (pickle.dumps(np.array(["a"])), "type '<U1'|type 'U1'"),
    (pickle.dumps(np.zeros(2, "u1,i4")), "type 'V5'"),
    (pickle.dumps(np.ma.masked_array([1], [False])), "reference to"),
    (pickle.dumps(_SELF), "more than 16 nested"),
    (_NDARRAY + b".", "type Global"),
    (_NDARRAY + b"((I9\ntI1\ntR.", "made from 2 arguments"),
    (_NDARRAY + b"}b.", "state for something other"),
    (
      _MAKE + b"(cbuiltins\nbytes\n(I0\ntS'b'\ntR.",
      "not a plain numpy.ndarray",
    ),
    (_MAKE + b"(" + _NDARRAY + b"(I0\ntS'b'\ntR.", "without contents"),
    (_DTYPE + b"(S'u1'\nI0\nI1\ntR(I3\nS'!'\nNNNtb.", "byte order '!'"),
    (_DTYPE + b"(S'u1'\ntR.", "type Dtype"),
    (b"c_codecs\nencode\n(Va\nVrot13\ntR.", "encoding 'rot13'"),
    (
      _MAKE + b"(" + _NDARRAY + b"(I0\ntS'b'\ntR(I1\n(I4\nt"
      b"" + _DTYPE + b"(S'u1'\ntRI00\nS'abc'\ntb.",
      r"shape \(4,\) and type uint8 in 3 bytes",
    ),
    (
      _MAKE + b"(" + _NDARRAY + b"(I0\ntS'b'\ntR(I1\n(I-1\nI-3\nt"
      b"" + _DTYPE + b"(S'u1'\ntRI00\nS'abc'\ntb.",
      r"shape \(-1, -3\)",
    ),
    (
      _MAKE + b"(" + _NDARRAY + b"(I0\ntS'b'\ntR(I1\n(I1\nt"
      b"" + _DTYPE + b"(S'u1'\ntRI00\n(lp0\nI1\natb.",
      "array of objects",
    ),
  ],
)
def test_everything_else_is_refused(data, text):
  with pytest.raises(InputError, match=text) as caught:
    unpickle.load(data, name="file")
  assert "\n" not in str(caught.value)


def test_sharing_costs_nothing():
  value = [1]
  for _ in range(14):
    value = [value] * 100
  read = unpickle.load(pickle.dumps(value), name="file")
  assert read[0] is read[99]


def test_damage_is_one_line():
  good = pickle.dumps({b"labels": [1, 2], b"data": np.arange(9, dtype="u1")})
  generator = np.random.default_rng(0)
  outcomes = set()
  for end in range(len(good)):
    with pytest.raises(InputError):
      unpickle.load(good[:end], name="file")
  for _ in range(500):
    bad = bytearray(good)
    bad[generator.integers(len(bad))] ^= 1 << int(generator.integers(8))
    try:
      unpickle.load(bytes(bad), name="file")
      outcomes.add("read")
    except InputError as error:
      assert "\n" not in str(error) and "'file'" in str(error)
      outcomes.add("refused")
  assert outcomes == {"read", "refused"}  # a flip inside the pixels is valid
