"""Kernels that cannot be compiled, or not for every target."""

from typing import Any

from esper_jax.urza.kernel import Form, Kernel
from esper_jax.urza.language import Source, jit, tl
from tests.urza import sample_kernel

FACTOR = 3


@jit
def uses_a_global(x, y, C: tl.constexpr):
  at = tl.arange(0, C)
  tl.store(y + at, tl.load(x + at) * FACTOR)


@jit
def does_not_add_up(x, y, C: tl.constexpr):
  tl.store(y + tl.arange(0, C), tl.load(x + tl.arange(0, 2 * C)))


@jit
def wants_scratch(x, y, C: tl.constexpr):
  source = tl.make_tensor_descriptor(x, [C, C], [C, 1], [C, C])
  at = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
  tl.store(y + at, source.load([0, 0]))


@jit
def wants_a_descriptor(x, y, C: tl.constexpr):
  at = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
  tl.store(y + at, x.load([0, 0]))


@jit
def gathers(x, y, C: tl.constexpr, BM: tl.constexpr):
  at = tl.arange(0, BM)
  tl.store(y + at, tl.gather(tl.load(x + at), BM - 1 - at, 0))


def made_of(source: Source, **tiles: int) -> Kernel:
  """A kernel that can be compiled only, with these tiles."""
  chosen = {"num_warps": 4, "num_stages": 1, **tiles}
  return sample_kernel.KERNEL._replace(
    name=source.name,
    source=source,
    form=lambda x, scale: form(C=x.shape[-1]),
    tiles=lambda form: (chosen,),
  )


def form(x: str = "*fp32", **constants: Any) -> Form:
  """Of every kernel here."""
  pairs = tuple(sorted(constants.items()))
  return Form("float32", (("x", x), ("y", "*fp32")), pairs)
