"""Launch messages: what they hold, and that jax-triton sends the same bytes."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from esper_jax.urza import compile as compiling
from esper_jax.urza import dispatch, wire
from esper_jax.urza.artefact import Artefact
from esper_jax.urza.dispatch import Dispatcher
from esper_jax.urza.kernel import Kernel, Tiles
from esper_jax.urza.kernels.catalogue import KERNELS
from tests.urza import handmade, sample_kernel
from tests.urza.handmade import H100
from tests.urza.lowered import for_cuda, launches

FULL = os.environ.get("ESPER_TEST_FULL") == "1"
TARGETS = (75, 80, 90)
X = jax.ShapeDtypeStruct((6, 16), "float32")
SCALE = jax.ShapeDtypeStruct((16,), "float32")


# --- what a message holds -------------------------------------------------


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
  """(number, value) of every field of a protobuf message, in order."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = message[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while at < len(message):
    number, kind = divmod(varint(), 8)
    assert kind in (0, 2)
    value: int | bytes = varint()
    if kind == 2:
      assert isinstance(value, int)
      value, at = message[at : at + value], at + value
      assert len(value) == len(message[at - len(value) : at])
    yield number, value


def made(**changes: Any) -> bytes:
  artefact, files = handmade.artefact(sample_kernel.KERNEL, X, SCALE)
  options: dict[str, Any] = {
    "grid": (300, 2, 1),
    "scalars": (6, 0, 2**31 - 1),
    "pointers": 3,
    "name": "scale_rows",
  }
  return wire.message(artefact, files, **options | changes)


def test_a_message_says_everything():
  artefact, files = handmade.artefact(sample_kernel.KERNEL, X, SCALE)
  (number, call), name = fields(made())
  assert (number, name) == (1, (4, b"scale_rows"))
  assert isinstance(call, bytes)
  (number, kernel), *grid_and_parameters = fields(call)
  assert number == 1 and isinstance(kernel, bytes)
  assert list(fields(kernel)) == [
    (1, artefact.launch.entry.encode()),
    (2, 4),  # warps
    (4, files["ptx"]),  # shared memory, field 3, is none
    (5, files["ttir"]),
    (6, 90),
    (10, 1),
  ]
  assert grid_and_parameters[:3] == [(2, 300), (3, 2), (4, 1)]
  parameters = [value for _, value in grid_and_parameters[3:]]
  assert {number for number, _ in grid_and_parameters[3:]} == {5}
  arrays, scalars = parameters[:3], parameters[3:]
  for array in arrays:
    assert isinstance(array, bytes)
    assert list(fields(array)) == [(1, bytes([2 << 3, 16]))]
  values = [next(fields(s)) for s in scalars if isinstance(s, bytes)]
  assert values == [(3, 6), (3, 0), (3, 2**31 - 1)]  # a zero is written too


@pytest.mark.parametrize("value", [-1, 2**31])
def test_a_scalar_that_is_no_size_is_refused(value):
  with pytest.raises(ValueError, match=f"{value} is no value"):
    made(scalars=(value,))


# --- what jax-triton sends ------------------------------------------------


class _Stored:
  """A registry of one artefact without evidence."""

  def __init__(self, artefact: Artefact, files: dict[str, bytes]):
    self.artefact, self.files = artefact, files

  def find(self, handle: str) -> tuple[tuple[Artefact, ...], tuple[str, ...]]:
    del handle
    return (self.artefact,), ()

  def record(self, key: str) -> Any:
    del key
    return self

  def load(self, key: str) -> tuple[Artefact, dict[str, bytes]]:
    del key
    return self.artefact, self.files

  evidence = ()


def ours(kernel: Kernel, args: tuple[Any, ...], tiles: Tiles, target: int):
  """The message of our call."""
  compiled = compiling.compile_kernel(kernel, kernel.form(*args), tiles, target)
  stored = _Stored(compiled.artefact, compiled.files)
  device = H100._replace(target=target)
  with dispatch.using(Dispatcher(stored, device, require="nothing")):
    lowered = for_cuda(lambda *a: dispatch.call(kernel, *a), *args)
  return launches(lowered)


def theirs(kernel: Kernel, args: tuple[Any, ...], tiles: Tiles, target: int):
  """The message of jax-triton's call."""
  import jax_triton

  plan = kernel.plan(args, tiles)
  form = kernel.form(*args)
  pointers = len(args) + len(plan.outputs)
  names = [name for name, _ in form.signature[pointers:]]
  constants = {k: v for k, v in tiles.items() if not k.startswith("num_")}

  def call(*arrays: jax.Array) -> Any:
    return jax_triton.triton_call(
      *arrays,
      kernel=kernel.source.activate(),
      name=kernel.name,
      out_type=plan.outputs,
      grid=plan.grid,
      num_warps=tiles["num_warps"],
      num_stages=tiles["num_stages"],
      compute_capability=target,
      backend_options=dict(compiling.OPTIONS),
      **dict(zip(names, plan.scalars, strict=True)),
      **dict(form.constants),
      **constants,
    )

  with compiling.reproducible():
    return launches(for_cuda(call, *args))


def cases() -> Iterator[Any]:
  kernels = [sample_kernel.KERNEL, *KERNELS.values()]
  for n, kernel in enumerate(kernels):
    for m, target in enumerate(TARGETS):
      if FULL or m == n % len(TARGETS):
        yield pytest.param(kernel, target, id=f"{kernel.name}-sm{target}")


@pytest.mark.skipif(
  sys.version_info < (3, 12)
  or importlib.util.find_spec("jax_triton") is None
  or not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
  reason="needs Python 3.12, jax-triton, and JAX's CUDA plugin, without which"
  " jax-triton lowers nothing",
)
@pytest.mark.filterwarnings("default")  # they are theirs
@pytest.mark.parametrize(("kernel", "target"), list(cases()))
def test_jax_triton_sends_the_same_bytes(kernel, target):
  constants = kernel.shipped[0]
  dtype = "float32" if target == 75 else "bfloat16"
  args = kernel.arguments(dtype, constants, 3, 5, 7)
  tiles = kernel.tiles(kernel.form(*args))[0]
  (mine,) = ours(kernel, args, tiles, target)
  (other,) = theirs(kernel, args, tiles, target)
  assert mine == other
