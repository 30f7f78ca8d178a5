"""Reading a pickle that somebody else made, without running anything of it.

`pickle.load` calls whatever a file names. Here the few names that a pickle of
plain arrays needs are answered by the stand-ins below, every other name is
refused, and numpy sees only checked bytes, shapes and type codes.
"""

import io
import math
import pickle
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from esper_jax.types import InputError

ALLOWED = "numpy arrays, bytes, strings, lists, dicts and ints"
_TYPE_CODES = frozenset(f"{kind}{n}" for kind in "iu" for n in (1, 2, 4, 8)) | {
  "f2",
  "f4",
  "f8",
  "b1",
}
_MAX_DEPTH = 16


def load(data: bytes, *, name: str) -> Any:
  """Read a pickle that holds nothing but `ALLOWED`.

  Args:
    data: the pickle, any protocol. Strings of Python 2 come back as bytes.
    name: what to call it in errors, e.g. the file's path.

  Returns:
    The object; arrays have a boolean, integer or float dtype and own their
    memory.

  Raises:
    InputError: if it is damaged, or holds or names anything else.
  """
  try:
    return _convert(_Unpickler(io.BytesIO(data), encoding="bytes").load(), {})
  except _Refused as refusal:
    raise InputError(
      f"'{name}' is a pickle with {refusal}; only {ALLOWED} are read: replace"
      " the file by the one from the official archive"
    ) from None
  except Exception as error:
    # Hostile or damaged bytes can raise nearly anything from the machine that
    # interprets them; all of it means the same to the user.
    detail = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
      f"'{name}' is not a readable pickle ({detail}): it is damaged or"
      " truncated; replace the file by the one from the official archive"
    ) from None


class _Refused(Exception):
  """Says what the pickle holds that is not allowed."""


class _Global:
  """Stands for a global that the pickle names; it can only be called."""

  __slots__ = ("_call",)

  def __init__(self, call: Callable[..., Any]):
    self._call = call

  def __call__(self, *args: Any) -> Any:
    return self._call(*args)

  def __setstate__(self, state: Any) -> None:
    # Without this, a BUILD instruction could write the attributes.
    raise _Refused("state for something other than an array")


class _Dtype:
  """Stands for a numpy.dtype until its byte order is known."""

  __slots__ = ("code", "order")

  def __init__(self, code: Any, align: Any = 0, copy: Any = 1):
    del align, copy
    self.code = code.decode("latin1") if isinstance(code, bytes) else code
    self.order = "="
    if self.code not in _TYPE_CODES:
      raise _Refused(f"an array of type {self.code!r}")

  def __setstate__(self, state: Any) -> None:
    order = state[1]
    self.order = order.decode("latin1") if isinstance(order, bytes) else order
    if self.order not in ("<", ">", "|", "="):
      raise _Refused(f"an array of byte order {self.order!r}")

  def resolve(self) -> np.dtype:
    return np.dtype(self.order + self.code)


class _Array:
  """Stands for a numpy.ndarray: shape, type, order and bytes."""

  __slots__ = ("value",)

  def __init__(self, subtype: Any, shape: Any, code: Any):
    del shape, code  # always (0,) and b"b": a placeholder
    if subtype is not _NDARRAY:
      raise _Refused("an array that is not a plain numpy.ndarray")
    self.value: np.ndarray | None = None

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, fortran, data = state
    self.value = _build(data, dtype, shape, "F" if fortran else "C")


def _build(
  data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]
) -> np.ndarray:
  if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
    raise _Refused("an array of objects")
  kind = dtype.resolve()
  wanted = math.prod(shape) * kind.itemsize
  if any(n < 0 for n in shape) or wanted != len(data):
    raise _Refused(
      f"an array of shape {shape} and type {kind} in {len(data)} bytes"
    )
  return np.frombuffer(data, kind).reshape(shape, order=order).copy()


def _rebuild(
  data: Any, dtype: Any, shape: Any, order: Any, *unused: Any
) -> _Array:
  """Answers numpy's `_frombuffer`, the form of pickle protocol 5."""
  del unused
  array = _Array(_NDARRAY, (0,), b"b")
  array.value = _build(data, dtype, shape, "F" if order == "F" else "C")
  return array


def _encode(text: str, encoding: Any) -> bytes:
  """Answers `_codecs.encode`: how protocols 0 to 2 of Python 3 write bytes."""
  if encoding not in ("latin1", b"latin1"):
    raise _Refused(f"bytes in the encoding {encoding!r}")
  return text.encode("latin1")


def _empty_bytes() -> bytes:
  """Answers `bytes()`: how those protocols write b""."""
  return b""


def _not_called(*args: Any) -> Any:
  raise _Refused(f"an array made from {len(args)} arguments, not from bytes")


_NDARRAY = _Global(_not_called)
_ENTRIES: dict[tuple[str, str], _Global] = {
  ("numpy", "ndarray"): _NDARRAY,
  ("numpy", "dtype"): _Global(_Dtype),
  ("_codecs", "encode"): _Global(_encode),
  ("builtins", "bytes"): _Global(_empty_bytes),
  ("__builtin__", "bytes"): _Global(_empty_bytes),
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
  _ENTRIES[_core + ".multiarray", "_reconstruct"] = _Global(_Array)
  _ENTRIES[_core + ".numeric", "_frombuffer"] = _Global(_rebuild)


class _Unpickler(pickle.Unpickler):
  """Finds the stand-ins and nothing else."""

  def find_class(self, module: str, name: str, /) -> Any:
    try:
      return _ENTRIES[module, name]
    except KeyError:
      raise _Refused(f"a reference to {module}.{name}") from None


def _convert(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
  """Replaces the stand-ins and refuses every type that is not allowed.

  `done` maps the id of a container to its copy, so that a list that is shared
  many times over costs its length once.
  """
  if type(value) in (bytes, str, int):
    return value
  if isinstance(value, _Array):
    if value.value is None:
      raise _Refused("an array without contents")
    return value.value
  if type(value) not in (list, dict):
    raise _Refused(f"an object of type {type(value).__name__.lstrip('_')}")
  if depth == _MAX_DEPTH:
    raise _Refused(f"more than {_MAX_DEPTH} nested lists or dicts")
  if id(value) not in done:
    if type(value) is list:
      copy: Any = [_convert(v, done, depth + 1) for v in value]
    else:
      copy = {
        _convert(k, done, depth + 1): _convert(v, done, depth + 1)
        for k, v in value.items()
      }
    done[id(value)] = copy
  return done[id(value)]
