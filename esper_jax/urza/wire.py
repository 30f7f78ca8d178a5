"""The bytes with which a stored kernel is launched from a compiled program.

jaxlib takes a Triton kernel as a protobuf message, `TritonAnyKernelCall`. It
is written here by hand, so that a stored kernel needs neither Triton nor
jax-triton; a test holds it to the bytes that jax-triton sends.
"""

from collections.abc import Mapping, Sequence

from esper_jax.urza.artefact import Artefact

CALL_TARGET = "triton_kernel_call_ffi"
ALIGNMENT = 16  # bytes, of every array
_MAX_INT32 = 2**31 - 1

# Numbers of the message's fields.
_KERNEL_NAME, _WARPS, _SHARED, _PTX, _TTIR, _TARGET, _CTAS = (
  1,
  2,
  3,
  4,
  5,
  6,
  10,
)
_KERNEL, _GRID_X, _GRID_Y, _GRID_Z, _PARAMETER = 1, 2, 3, 4, 5
_ARRAY, _INT32 = 1, 3
_ARRAY_ALIGNMENT = 2
_CALL, _CALL_NAME = 1, 4


def message(
  artefact: Artefact,
  files: Mapping[str, bytes],
  grid: tuple[int, int, int],
  scalars: Sequence[int],
  pointers: int,
  name: str,
) -> bytes:
  """The launch of an artefact as jaxlib reads it, before compression.

  Args:
    artefact: what is launched.
    files: its "ptx" and "ttir".
    grid: number of programs along each axis.
    scalars: values of the i32 parameters, 0 to 2^31 - 1.
    pointers: number of arrays, inputs and outputs together.
    name: what a profile calls it.
  """
  launch = artefact.launch
  kernel = b"".join(
    [
      _text(_KERNEL_NAME, launch.entry.encode()),
      _number(_WARPS, launch.num_warps),
      _number(_SHARED, launch.shared),
      _text(_PTX, files["ptx"]),
      _text(_TTIR, files["ttir"]),
      _number(_TARGET, artefact.spec.target),
      _number(_CTAS, 1),
    ]
  )
  array = _nested(_ARRAY, _number(_ARRAY_ALIGNMENT, ALIGNMENT))
  call = b"".join(
    [
      _nested(_KERNEL, kernel),
      _number(_GRID_X, grid[0]),
      _number(_GRID_Y, grid[1]),
      _number(_GRID_Z, grid[2]),
      *[_nested(_PARAMETER, array)] * pointers,
      *[_nested(_PARAMETER, _scalar(value)) for value in scalars],
    ]
  )
  return _nested(_CALL, call) + _text(_CALL_NAME, name.encode())


def _scalar(value: int) -> bytes:
  if not 0 <= value <= _MAX_INT32:
    raise ValueError(f"{value} is no value of a kernel's i32 parameter")
  # One of several choices, so that a zero is written too.
  return _tag(_INT32, 0) + _varint(value)


def _number(field: int, value: int) -> bytes:
  return _tag(field, 0) + _varint(value) if value else b""


def _text(field: int, value: bytes) -> bytes:
  return _nested(field, value) if value else b""


def _nested(field: int, value: bytes) -> bytes:
  return _tag(field, 2) + _varint(len(value)) + value


def _tag(field: int, kind: int) -> bytes:
  return _varint(field << 3 | kind)


def _varint(value: int) -> bytes:
  low = []
  while value > 127:
    low.append(value & 127 | 128)
    value >>= 7
  return bytes([*low, value])
