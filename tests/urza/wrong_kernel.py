"""A kernel that does not compute what its reference does: it adds one."""

from esper_jax.urza.language import jit, tl
from tests.urza import sample_kernel


@jit
def wrong_rows(x, scale, y, rows, C: tl.constexpr, BM: tl.constexpr):
  row = tl.program_id(0) * BM + tl.arange(0, BM)
  column = tl.arange(0, C)
  at = row[:, None] * C + column[None, :]
  inside = (row < rows)[:, None]
  value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
  factor = tl.load(scale + column)[None, :]
  out = value * factor + 1.0
  tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


KERNEL = sample_kernel.KERNEL._replace(name="wrong_rows", source=wrong_rows)
