"""All low-rank seeds of a slot, blended into x, and their health.

`lowrank_slot` is the differentiable operation; its gradient has two kernels of
its own.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from esper_jax.urza import dispatch
from esper_jax.urza.kernel import Arguments, Cost, Form, Kernel, Plan, Tiles
from esper_jax.urza.kernels import lowrank_backward, lowrank_weights
from esper_jax.urza.kernels import lowrank_parts as parts
from esper_jax.urza.kernels.lowrank_parts import is_live, load_factor
from esper_jax.urza.language import jit, tl

NEAR_ZERO = 1e-6

# (channels, seeds) -> channels and rows of a tile, warps, stages: the
# quickest of ten to twenty on an H200, in bfloat16.
_QUICKEST = {
  (64, 1): (64, 64, 4, 3),
  (64, 4): (64, 64, 4, 3),
  (128, 1): (128, 64, 4, 2),
  (128, 4): (128, 32, 4, 2),
}

_Residuals = tuple[jax.Array, ...]


@jit
def lowrank_forward(
  x,
  down,
  up,
  alpha,
  isolation,
  y,
  health,
  rows,
  C: tl.constexpr,
  R: tl.constexpr,
  S: tl.constexpr,
  RANK: tl.constexpr,
  BLOCK_C: tl.constexpr,
  BLOCK_M: tl.constexpr,
  PROGRAMS: tl.constexpr,
):
  """Blends every n-th block of rows, and sums up health over them.

  Rows come from memory once; where not all channels fit a tile, they come from
  a cache once more.
  """
  dtype = x.dtype.element_ty
  row = tl.arange(0, BLOCK_M)
  rank = tl.arange(0, RANK)
  fits = rank < R
  seed = tl.zeros([RANK], tl.int32)
  column = tl.arange(0, BLOCK_C)
  # Partial sums of a row in a block, reduced over rows only at the end.
  sums, squares, peaks, zeros, downs, ups = (), (), (), (), (), ()
  for s in tl.static_range(S):
    sums = sums + (tl.zeros([BLOCK_M], tl.float32),)
    squares = squares + (tl.zeros([BLOCK_M], tl.float32),)
    peaks = peaks + (tl.zeros([BLOCK_M], tl.float32),)
    zeros = zeros + (tl.zeros([BLOCK_M], tl.float32),)
    if C <= BLOCK_C:
      held = load_factor(down, seed + s, column, rank, fits, C, R, True)
      downs = downs + (held.to(dtype),)
      held = load_factor(up, seed + s, column, rank, fits, C, R, False)
      ups = ups + (tl.trans(held.to(dtype)),)

  blocks = tl.cdiv(rows, BLOCK_M)
  for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
    own = block * BLOCK_M + row
    ranks = ()
    for _s in tl.static_range(S):
      ranks = ranks + (tl.zeros([BLOCK_M, RANK], tl.float32),)
    tile = tl.zeros([BLOCK_M, BLOCK_C], dtype)
    for start in range(0, C, BLOCK_C):
      c = start + column
      known = (own < rows)[:, None] & (c < C)[None, :]
      tile = tl.load(x + own[:, None] * C + c[None, :], mask=known, other=0.0)
      further = ()
      for s in tl.static_range(S):
        if C <= BLOCK_C:
          factor = downs[s]
        else:
          factor = load_factor(down, seed + s, c, rank, fits, C, R, True)
          factor = factor.to(dtype)
        further = further + (
          tl.dot(tile, factor, ranks[s], input_precision="ieee"),
        )
      ranks = further
    inner = ()
    for s in tl.static_range(S):
      # An infinite x times the zeros beside a rank would be NaN.
      exact = tl.where(fits[None, :], ranks[s], 0.0)
      inner = inner + (exact.to(dtype),)

    for start in range(0, C, BLOCK_C):
      c = start + column
      known = (own < rows)[:, None] & (c < C)[None, :]
      total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
      more_sums, more_squares, more_peaks, more_zeros = (), (), (), ()
      for s in tl.static_range(S):
        if C <= BLOCK_C:
          factor = ups[s]
        else:
          factor = load_factor(up, seed + s, c, rank, fits, C, R, False)
          factor = tl.trans(factor.to(dtype))
        r = tl.dot(inner[s], factor, input_precision="ieee")
        strength = tl.load(alpha + s)
        live = is_live(strength, tl.load(isolation + s))
        total = tl.where(live, total + strength * r, total)
        size = tl.abs(r)
        near = tl.where(size < 1e-6, 1.0, 0.0)
        if C % BLOCK_C != 0:
          r = tl.where((c < C)[None, :], r, 0.0)
          size = tl.where((c < C)[None, :], size, 0.0)
          near = tl.where((c < C)[None, :], near, 0.0)
        # Rows beyond the last are cheapest to leave out here.
        value = tl.where(own < rows, tl.sum(r, 1), 0.0)
        more_sums = more_sums + (sums[s] + value,)
        value = tl.where(own < rows, tl.sum(r * r, 1), 0.0)
        more_squares = more_squares + (squares[s] + value,)
        value = tl.where(own < rows, tl.max(size, 1), 0.0)
        more_peaks = more_peaks + (tl.maximum(peaks[s], value),)
        value = tl.where(own < rows, tl.sum(near, 1), 0.0)
        more_zeros = more_zeros + (zeros[s] + value,)
      sums, squares = more_sums, more_squares
      peaks, zeros = more_peaks, more_zeros
      offset = own[:, None] * C + c[None, :]
      if C > BLOCK_C:
        tile = tl.load(x + offset, mask=known, other=0.0)
      tl.store(y + offset, (tile.to(tl.float32) + total).to(dtype), mask=known)

  for s in tl.static_range(S):
    place = health + (tl.program_id(0) * S + s) * 4
    tl.store(place, tl.sum(sums[s], 0))
    tl.store(place + 1, tl.sum(squares[s], 0))
    tl.store(place + 2, tl.max(peaks[s], 0))
    tl.store(place + 3, tl.sum(zeros[s], 0))


def form(x: Any, down: Any, up: Any, alpha: Any, isolation: Any) -> Form:
  """See `Kernel.form`; raises Unsuitable."""
  constants = parts.slot_constants(x, down, up, (alpha, isolation))
  own = parts.pointer_of(x)
  signature = (
    ("x", own),
    ("down", "*fp32"),
    ("up", "*fp32"),
    ("alpha", "*fp32"),
    ("isolation", "*fp32"),
    ("y", own),
    ("health", "*fp32"),
    ("rows", "i32"),
  )
  return Form(str(x.dtype), signature, constants)


def tiles(form: Form) -> tuple[Tiles, ...]:
  """See `Kernel.tiles`."""
  constants = dict(form.constants)
  channels, rank = (parts.padded(constants[name]) for name in "CR")
  if form.dtype == "float32":
    # Products on plain units, unrolled: small tiles keep the code small.
    choices = [(16 if rank == 64 else 32, 16, 8, 2)]
  else:
    # With 32 channels at once two programs of up to 64 ranks fit an SM.
    choices = [(32, 64, 8, 2), (64, 64, 8, 2), (64, 128, 8, 2), (64, 64, 4, 2)]
    choices = parts.first(_QUICKEST, constants, choices)
  return tuple(
    {
      "RANK": rank,
      "PROGRAMS": 528,
      "BLOCK_C": min(channels, block),
      "BLOCK_M": rows,
      "num_warps": warps,
      "num_stages": stages,
    }
    for block, rows, warps, stages in choices
  )


def plan(arguments: Arguments, tiles: Tiles) -> Plan:
  """See `Kernel.plan`."""
  x, down = arguments[0], arguments[1]
  rows = parts.rows_of(x)
  programs = min(-(-rows // tiles["BLOCK_M"]), tiles["PROGRAMS"])
  outputs = (
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct((programs, down.shape[0], 4), jnp.float32),
  )
  return Plan((programs, 1, 1), (rows,), outputs)


def finish(
  outputs: tuple[Any, ...], arguments: Arguments
) -> tuple[jax.Array, jax.Array]:
  """Sums up the programs' health; see `Kernel.finish`."""
  del arguments
  y, health = outputs
  total = health.sum(0).at[:, 2].set(health[:, :, 2].max(0))
  return y, _show_nan(total)


def reference(
  x: jax.Array,
  down: jax.Array,
  up: jax.Array,
  alpha: jax.Array,
  isolation: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Adds low-rank seeds to x and describes what each contributes.

  Args:
    x: [..., C], any float dtype; products are made in it.
    down: float32 [S, C, R].
    up: float32 [S, R, C].
    alpha: float32 [S]; 0 silences a seed, by selection.
    isolation: float32 [S], 0 or 1; 1 keeps the seed out of y.

  Returns:
    (y as x, health float32 [S, 4]: sum, sum of squares, largest size and
    number of sizes below 1e-6 of each seed's contribution).
  """
  y, rows = x, []
  for s in range(down.shape[0]):
    r = parts.contribution(x, down[s], up[s])
    off = (isolation[s] > 0) | (alpha[s] == 0)
    y = jnp.where(off, y, y + alpha[s].astype(r.dtype) * r)
    z = r.astype(jnp.float32)
    size = jnp.abs(z)
    near = (size < NEAR_ZERO).astype(jnp.float32)
    rows.append(jnp.stack([z.sum(), (z * z).sum(), size.max(), near.sum()]))
  return y, _show_nan(jnp.stack(rows))


def _show_nan(health: jax.Array) -> jax.Array:
  """Health [S, 4] with NaN for the largest size where some size is NaN.

  A GPU's maximum passes NaN by, and so does XLA's on a CPU at times; a sum of
  squares is NaN just if one of them is.
  """
  peak = jnp.where(jnp.isnan(health[:, 1]), jnp.nan, health[:, 2])
  return health.at[:, 2].set(peak)


def arguments(
  dtype: str,
  constants: Mapping[str, int],
  batch: int,
  height: int,
  width: int,
) -> tuple[jax.ShapeDtypeStruct, ...]:
  """See `Kernel.arguments`."""
  shapes = parts.slot_shapes(dtype, constants, batch, height, width)
  names = ("x", "down", "up", "alpha", "isolation")
  return tuple(shapes[name] for name in names)


def cost(x: Any, down: Any, up: Any, *scalars: Any) -> Cost:
  """Two products for each seed; x read and y written."""
  return Cost(
    bytes=parts.size_in_bytes(x, x, down, up, *scalars),
    flops=4 * parts.rows_of(x) * down.size,
  )


KERNEL = Kernel(
  name="lowrank_forward",
  source=lowrank_forward,
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
    "Low-rank adapters (Hu et al., 2021, arXiv:2106.09685), all of a slot in"
    " one pass: XLA reads x twice for each seed and writes each seed's output."
    " Health is summed where the output is, in registers."
  ),
)


@jax.custom_vjp
def lowrank_slot(
  x: jax.Array,
  down: jax.Array,
  up: jax.Array,
  alpha: jax.Array,
  isolation: jax.Array,
  proximal: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Blends low-rank seeds of one depth into x, with their health.

  y = x + sum of alpha_s r_s, r_s = (x @ down_s) @ up_s, over the seeds that
  are neither isolated nor silent. An isolated seed learns from the cotangent
  of y plus proximal_s r_s / batch. Both are selections, so NaN in a seed
  reaches nothing else. Health, alpha, isolation and proximal have no gradient.

  Args:
    x: [batch, ..., C], any float dtype; products are made in it.
    down: float32 [S, C, R].
    up: float32 [S, R, C].
    alpha: float32 [S].
    isolation: float32 [S], 0 or 1.
    proximal: float32 [S].

  Returns:
    (y as x, health float32 [S, 4]: sum, sum of squares, largest size and
    number of sizes below 1e-6 of r_s).
  """
  del proximal
  arguments = (x, down, up, alpha, isolation)
  y, health = dispatch.call(KERNEL, *arguments)
  return y, health


def _forward(
  *arguments: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], _Residuals]:
  return lowrank_slot(*arguments), arguments


def _backward(
  residuals: _Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
  _, down, up, alpha, isolation, _ = residuals
  g = cotangents[0]
  kernel = lowrank_backward.KERNEL
  (dx,) = dispatch.call(kernel, g, down, up, alpha, isolation)
  ddown, dup = dispatch.call(lowrank_weights.KERNEL, *residuals, g)
  return dx, ddown, dup, None, None, None


lowrank_slot.defvjp(_forward, _backward)
