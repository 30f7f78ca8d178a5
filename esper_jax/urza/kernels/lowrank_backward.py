"""The host's cotangent through all low-rank seeds of a slot."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from esper_jax.urza.kernel import Arguments, Cost, Form, Kernel, Plan, Tiles
from esper_jax.urza.kernels import lowrank_parts as parts
from esper_jax.urza.kernels.lowrank_parts import is_live, load_factor
from esper_jax.urza.language import jit, tl

# (channels, seeds) -> channels and rows of a tile, warps, stages,
# programs: the quickest of five to twenty on an H200, in bfloat16.
_QUICKEST = {
  (64, 1): (64, 64, 4, 2, 1056),
  (64, 4): (64, 64, 4, 3, 528),
  (128, 1): (128, 64, 4, 2, 528),
  (128, 4): (128, 64, 4, 3, 528),
  (256, 1): (64, 64, 4, 2, 528),
  (512, 1): (128, 64, 8, 2, 528),
}


@jit
def lowrank_backward(
  g,
  down,
  up,
  alpha,
  isolation,
  dx,
  rows,
  C: tl.constexpr,
  R: tl.constexpr,
  S: tl.constexpr,
  RANK: tl.constexpr,
  SEEDS: tl.constexpr,
  BLOCK_C: tl.constexpr,
  BLOCK_M: tl.constexpr,
  PROGRAMS: tl.constexpr,
):
  """Takes every n-th block of rows of the cotangent through the live seeds.

  The seeds' ranks lie side by side, so two products do for all seeds.
  """
  dtype = g.dtype.element_ty
  row = tl.arange(0, BLOCK_M)
  column = tl.arange(0, BLOCK_C)
  seed = tl.arange(0, SEEDS * RANK) // RANK
  rank = tl.arange(0, SEEDS * RANK) % RANK
  strength = tl.load(alpha + seed, mask=seed < S, other=0.0)
  isolated = tl.load(isolation + seed, mask=seed < S, other=1.0)
  live = is_live(strength, isolated) & (rank < R)
  # These stay where all channels fit a tile; else each tile has its own.
  outer = load_factor(up, seed, column, rank, live, C, R, False).to(dtype)
  inner = load_factor(down, seed, column, rank, live, C, R, True)
  inner = tl.trans(inner.to(dtype))

  blocks = tl.cdiv(rows, BLOCK_M)
  for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
    own = block * BLOCK_M + row
    ranks = tl.zeros([BLOCK_M, SEEDS * RANK], tl.float32)
    tile = tl.zeros([BLOCK_M, BLOCK_C], dtype)
    for start in range(0, C, BLOCK_C):
      c = start + column
      known = (own < rows)[:, None] & (c < C)[None, :]
      tile = tl.load(g + own[:, None] * C + c[None, :], mask=known, other=0.0)
      if C > BLOCK_C:
        outer = load_factor(up, seed, c, rank, live, C, R, False).to(dtype)
      ranks = tl.dot(tile, outer, ranks, input_precision="ieee")
    # An infinite g times the zeros of a seed that is not live would be NaN.
    ranks = tl.where(live[None, :], ranks * strength[None, :], 0.0).to(dtype)

    for start in range(0, C, BLOCK_C):
      c = start + column
      known = (own < rows)[:, None] & (c < C)[None, :]
      if C > BLOCK_C:
        inner = load_factor(down, seed, c, rank, live, C, R, True)
        inner = tl.trans(inner.to(dtype))
      total = tl.dot(ranks, inner, input_precision="ieee")
      offset = own[:, None] * C + c[None, :]
      if C > BLOCK_C:
        tile = tl.load(g + offset, mask=known, other=0.0)
      tl.store(dx + offset, (tile.to(tl.float32) + total).to(dtype), mask=known)


def form(g: Any, down: Any, up: Any, alpha: Any, isolation: Any) -> Form:
  """See `Kernel.form`; raises Unsuitable."""
  constants = parts.slot_constants(g, down, up, (alpha, isolation))
  own = parts.pointer_of(g)
  signature = (
    ("g", own),
    ("down", "*fp32"),
    ("up", "*fp32"),
    ("alpha", "*fp32"),
    ("isolation", "*fp32"),
    ("dx", own),
    ("rows", "i32"),
  )
  return Form(str(g.dtype), signature, constants)


def tiles(form: Form) -> tuple[Tiles, ...]:
  """See `Kernel.tiles`."""
  constants = dict(form.constants)
  channels, rank = (parts.padded(constants[name]) for name in "CR")
  seeds = parts.padded(constants["S"], 1)
  if form.dtype == "float32":
    # Products on plain units, unrolled: small tiles keep the code small.
    choices = [(16, 16, 8, 2, 528)]
  elif seeds * rank > 128:
    # More channels at once leave some sums without a register.
    choices = [(32, 64, 8, 2, 528), (32, 32, 8, 2, 528)]
  else:
    choices = [(64, 64, 8, 2, 528), (64, 128, 8, 2, 528), (64, 32, 4, 2, 528)]
    choices = parts.first(_QUICKEST, constants, choices)
  return tuple(
    {
      "RANK": rank,
      "SEEDS": seeds,
      "PROGRAMS": programs,
      "BLOCK_C": min(channels, block),
      "BLOCK_M": rows,
      "num_warps": warps,
      "num_stages": stages,
    }
    for block, rows, warps, stages, programs in choices
  )


def plan(arguments: Arguments, tiles: Tiles) -> Plan:
  """See `Kernel.plan`."""
  g = arguments[0]
  rows = parts.rows_of(g)
  programs = min(-(-rows // tiles["BLOCK_M"]), tiles["PROGRAMS"])
  outputs = (jax.ShapeDtypeStruct(g.shape, g.dtype),)
  return Plan((programs, 1, 1), (rows,), outputs)


def finish(outputs: tuple[Any, ...], arguments: Arguments) -> tuple[Any, ...]:
  """Nothing is left to do; see `Kernel.finish`."""
  del arguments
  return outputs


def reference(
  g: jax.Array,
  down: jax.Array,
  up: jax.Array,
  alpha: jax.Array,
  isolation: jax.Array,
) -> tuple[jax.Array]:
  """Returns the cotangent of a slot's input.

  A seed that is isolated or silent adds nothing, by selection.

  Args:
    g: [..., C], cotangent of the slot's output; products are made in its
      dtype.
    down: float32 [S, C, R].
    up: float32 [S, R, C].
    alpha: float32 [S].
    isolation: float32 [S], 0 or 1.

  Returns:
    (dx as g,).
  """
  dx = g
  for s in reversed(range(down.shape[0])):
    inner = (alpha[s].astype(g.dtype) * g) @ up[s].T.astype(g.dtype)
    own = inner @ down[s].T.astype(g.dtype)
    live = (alpha[s] != 0) & (isolation[s] == 0)
    dx = jnp.where(live, dx + own, dx)
  return (dx,)


def arguments(
  dtype: str,
  constants: Mapping[str, int],
  batch: int,
  height: int,
  width: int,
) -> tuple[jax.ShapeDtypeStruct, ...]:
  """See `Kernel.arguments`."""
  shapes = parts.slot_shapes(dtype, constants, batch, height, width)
  names = ("g", "down", "up", "alpha", "isolation")
  return tuple(shapes[name] for name in names)


def cost(g: Any, down: Any, up: Any, *scalars: Any) -> Cost:
  """Two products for each seed; g read and dx written."""
  return Cost(
    bytes=parts.size_in_bytes(g, g, down, up, *scalars),
    flops=4 * parts.rows_of(g) * down.size,
  )


KERNEL = Kernel(
  name="lowrank_backward",
  source=lowrank_backward,
  form=form,
  tiles=tiles,
  plan=plan,
  finish=finish,
  reference=reference,
  arguments=arguments,
  shipped=parts.SHIPPED,
  cost=cost,
  tolerance=parts.TOLERANCE,
  note=(
    "Gradient of low-rank adapters (Hu et al., 2021, arXiv:2106.09685) with"
    " respect to their input, all of a slot in one pass over the cotangent;"
    " XLA makes at least three passes for each seed."
  ),
)
