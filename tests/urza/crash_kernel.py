"""A kernel that reads where there is no memory."""

from esper_jax.urza.language import jit, tl
from tests.urza import sample_kernel


@jit
def crash_rows(x, scale, y, rows, C: tl.constexpr, BM: tl.constexpr):
  at = tl.arange(0, C).to(tl.int64) * 1000000000000 + rows
  tl.store(y + at, tl.load(x + at))


KERNEL = sample_kernel.KERNEL._replace(name="crash_rows", source=crash_rows)
