"""The gradients of all low-rank seeds of a slot."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from esper_jax.urza.kernel import (
  Arguments,
  Cost,
  Form,
  Kernel,
  Plan,
  Tiles,
  Unsuitable,
)
from esper_jax.urza.kernels import lowrank_parts as parts
from esper_jax.urza.kernels.lowrank_parts import load_factor
from esper_jax.urza.language import jit, tl

# (channels, seeds) -> seeds at once, channels and rows of a tile,
# warps, programs: the quickest of seven to twenty on an H200, in bfloat16.
_QUICKEST = {
  (64, 1): (1, 64, 64, 4, 528),
  (64, 4): (4, 64, 64, 4, 264),
  (128, 1): (1, 128, 32, 4, 264),
  (128, 4): (2, 128, 64, 4, 264),
  (256, 1): (1, 128, 64, 8, 264),
  (512, 1): (1, 128, 64, 8, 264),
}


@jit
def lowrank_weights(
  x,
  down,
  up,
  alpha,
  isolation,
  proximal,
  g,
  ddown,
  dup,
  rows,
  batch,
  C: tl.constexpr,
  R: tl.constexpr,
  S: tl.constexpr,
  RANK: tl.constexpr,
  SEEDS: tl.constexpr,
  BLOCK_C: tl.constexpr,
  BLOCK_M: tl.constexpr,
  PROGRAMS: tl.constexpr,
):
  """Sums gradients of SEEDS seeds at BLOCK_C channels over blocks of rows.

  The seeds' ranks lie side by side. Programs that read the same rows are
  neighbours.
  """
  dtype = x.dtype.element_ty
  row = tl.arange(0, BLOCK_M)
  column = tl.arange(0, BLOCK_C)
  groups: tl.constexpr = (S + SEEDS - 1) // SEEDS
  first = tl.program_id(0) % groups * SEEDS
  mine = tl.program_id(0) // groups * BLOCK_C + column
  index = tl.arange(0, SEEDS * RANK) // RANK
  seed = first + index
  rank = tl.arange(0, SEEDS * RANK) % RANK
  fits = (seed < S) & (rank < R)
  # These stay where all channels fit a tile; else each tile has its own.
  outer = load_factor(down, seed, column, rank, fits, C, R, True).to(dtype)
  inner = load_factor(up, seed, column, rank, fits, C, R, False).to(dtype)

  isolated = tl.load(isolation + seed, mask=seed < S, other=0.0) > 0.0
  force = tl.load(proximal + seed, mask=seed < S, other=0.0)
  force = tl.where(isolated, force / batch, 0.0)
  pulled = tl.max((force != 0.0).to(tl.int32), 0) > 0

  ddowns = tl.zeros([BLOCK_C, SEEDS * RANK], tl.float32)
  dups = tl.zeros([BLOCK_C, SEEDS * RANK], tl.float32)
  blocks = tl.cdiv(rows, BLOCK_M)
  for block in range(tl.program_id(1), blocks, tl.num_programs(1)):
    here = block * BLOCK_M + row
    inside = (here < rows)[:, None]
    t = tl.zeros([BLOCK_M, SEEDS * RANK], tl.float32)
    w = tl.zeros([BLOCK_M, SEEDS * RANK], tl.float32)
    tile = tl.zeros([BLOCK_M, BLOCK_C], dtype)
    cotangent = tl.zeros([BLOCK_M, BLOCK_C], dtype)
    for start in range(0, C, BLOCK_C):
      c = start + column
      offset = here[:, None] * C + c[None, :]
      known = inside & (c < C)[None, :]
      tile = tl.load(x + offset, mask=known, other=0.0)
      cotangent = tl.load(g + offset, mask=known, other=0.0)
      if C > BLOCK_C:
        outer = load_factor(down, seed, c, rank, fits, C, R, True).to(dtype)
        inner = load_factor(up, seed, c, rank, fits, C, R, False).to(dtype)
      t = tl.dot(tile, outer, t, input_precision="ieee")
      w = tl.dot(cotangent, inner, w, input_precision="ieee")

    if C > BLOCK_C:
      offset = here[:, None] * C + mine[None, :]
      known = inside & (mine < C)[None, :]
      tile = tl.load(x + offset, mask=known, other=0.0)
      cotangent = tl.load(g + offset, mask=known, other=0.0)
    # An infinite x times the zeros beside a rank would be NaN.
    t = tl.where(fits[None, :], t, 0.0).to(dtype)
    dups = tl.dot(tl.trans(cotangent), t, dups, input_precision="ieee")
    if pulled:
      for i in range(SEEDS):
        only = index == i
        pull = tl.max(tl.where(only, force, 0.0), 0)
        if pull != 0.0:
          # Its own cotangent is g + pull r. Selected on both sides of each
          # product: no seed's NaN gets into another's.
          own = tl.where(only[None, :], t, 0.0).to(dtype)
          more = tl.zeros([BLOCK_M, SEEDS * RANK], tl.float32)
          for start in range(0, C, BLOCK_C):
            c = start + column
            factor = load_factor(up, seed, c, rank, fits & only, C, R, False)
            factor = factor.to(dtype)
            r = tl.dot(own, tl.trans(factor), input_precision="ieee")
            # Rows beyond the last have no r, whatever the weights are.
            r = tl.where(inside, pull * r, 0.0).to(dtype)
            more = tl.dot(r, factor, more, input_precision="ieee")
          w = tl.where(only[None, :], w + more, w)
          factor = load_factor(up, seed, mine, rank, fits & only, C, R, False)
          factor = tl.trans(factor.to(dtype))
          r = tl.dot(own, factor, input_precision="ieee")
          r = tl.where(inside, pull * r, 0.0).to(dtype)
          more = tl.dot(tl.trans(r), own, input_precision="ieee")
          dups = tl.where(only[None, :], dups + more, dups)
    w = w.to(dtype)
    ddowns = tl.dot(tl.trans(tile), w, ddowns, input_precision="ieee")

  # Alpha scales the sums, and silence is selected, only here.
  strength = tl.load(alpha + seed, mask=seed < S, other=0.0)
  strength = tl.where(isolated, 1.0, strength)[None, :]
  place = (tl.program_id(1) * S + seed[None, :]) * C + mine[:, None]
  place = place * R + rank[None, :]
  known = (mine < C)[:, None] & fits[None, :]
  value = tl.where(strength == 0.0, 0.0, strength * ddowns)
  tl.store(ddown + place, value, mask=known)
  value = tl.where(strength == 0.0, 0.0, strength * dups)
  tl.store(dup + place, value, mask=known)


def form(
  x: Any,
  down: Any,
  up: Any,
  alpha: Any,
  isolation: Any,
  proximal: Any,
  g: Any,
) -> Form:
  """See `Kernel.form`; raises Unsuitable."""
  constants = parts.slot_constants(x, down, up, (alpha, isolation, proximal))
  if (g.shape, g.dtype) != (x.shape, x.dtype):
    raise Unsuitable(f"a cotangent {g.dtype}{g.shape} of {x.dtype}{x.shape}")
  own = parts.pointer_of(x)
  signature = (
    ("x", own),
    ("down", "*fp32"),
    ("up", "*fp32"),
    ("alpha", "*fp32"),
    ("isolation", "*fp32"),
    ("proximal", "*fp32"),
    ("g", parts.pointer_of(g)),
    ("ddown", "*fp32"),
    ("dup", "*fp32"),
    ("rows", "i32"),
    ("batch", "i32"),
  )
  return Form(str(x.dtype), signature, constants)


def tiles(form: Form) -> tuple[Tiles, ...]:
  """See `Kernel.tiles`."""
  constants = dict(form.constants)
  seeds = constants["S"]
  channels, rank = (parts.padded(constants[name]) for name in "CR")
  # As many seeds as keep the sums, [channels, ranks] twice, in registers.
  together = min(parts.padded(seeds, 1), max(1, 64 // rank))
  if form.dtype == "float32":
    # Products on plain units, unrolled: small tiles keep the code small.
    choices = [(1, 1024 // rank, 16, 8, 264)]
  else:
    choices = [(together, 64, 32, 8, 264), (together, 64, 64, 4, 264)]
    choices = parts.first(_QUICKEST, constants, choices)
  return tuple(
    {
      "RANK": rank,
      "SEEDS": count,
      "PROGRAMS": programs,
      "BLOCK_C": min(channels, block),
      "BLOCK_M": rows,
      "num_warps": warps,
      "num_stages": 2,
    }
    for count, block, rows, warps, programs in choices
  )


def plan(arguments: Arguments, tiles: Tiles) -> Plan:
  """See `Kernel.plan`."""
  x, down = arguments[0], arguments[1]
  seeds, channels, rank = down.shape
  rows = parts.rows_of(x)
  groups = -(-seeds // tiles["SEEDS"])
  together = groups * -(-channels // tiles["BLOCK_C"])
  programs = max(1, tiles["PROGRAMS"] // together)
  programs = min(-(-rows // tiles["BLOCK_M"]), programs)
  part = jax.ShapeDtypeStruct((programs, seeds, channels, rank), jnp.float32)
  return Plan((together, programs, 1), (rows, x.shape[0]), (part, part))


def finish(
  outputs: tuple[Any, ...], arguments: Arguments
) -> tuple[jax.Array, jax.Array]:
  """Sums up what the programs have; see `Kernel.finish`."""
  del arguments
  ddown, dup = outputs
  return ddown.sum(0), dup.sum(0).transpose(0, 2, 1)


def reference(
  x: jax.Array,
  down: jax.Array,
  up: jax.Array,
  alpha: jax.Array,
  isolation: jax.Array,
  proximal: jax.Array,
  g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the cotangents of the seeds' two factors.

  An isolated seed learns from g + proximal r / batch, a silent one nothing,
  any other from alpha g.

  Args:
    x: [batch, ..., C]; products are made in its dtype.
    down: float32 [S, C, R].
    up: float32 [S, R, C].
    alpha: float32 [S].
    isolation: float32 [S], 0 or 1.
    proximal: float32 [S].
    g: as x, cotangent of the slot's output.

  Returns:
    (float32 [S, C, R], float32 [S, R, C]).
  """
  found = []
  for s in range(down.shape[0]):
    r, backward = jax.vjp(
      lambda a, b: parts.contribution(x, a, b), down[s], up[s]
    )
    pull = (proximal[s] / x.shape[0]).astype(r.dtype) * r
    joined = alpha[s].astype(g.dtype) * g
    joined = jnp.where(alpha[s] == 0, jnp.zeros_like(g), joined)
    isolated = isolation[s] > 0
    off = ~isolated & (alpha[s] == 0)
    own = backward(jnp.where(isolated, g + pull, joined))
    # 0 times a factor's NaN is NaN: a silent seed's is selected away.
    found.append([jnp.where(off, jnp.zeros_like(a), a) for a in own])
  ddowns, dups = zip(*found, strict=True)
  return jnp.stack(ddowns), jnp.stack(dups)


def arguments(
  dtype: str,
  constants: Mapping[str, int],
  batch: int,
  height: int,
  width: int,
) -> tuple[jax.ShapeDtypeStruct, ...]:
  """See `Kernel.arguments`."""
  shapes = parts.slot_shapes(dtype, constants, batch, height, width)
  names = ("x", "down", "up", "alpha", "isolation", "proximal", "g")
  return tuple(shapes[name] for name in names)


def cost(x: Any, down: Any, up: Any, *others: Any) -> Cost:
  """Four products for each seed; x and g read, two factors written."""
  return Cost(
    bytes=parts.size_in_bytes(x, down, up, *others, down, up),
    flops=8 * parts.rows_of(x) * down.size,
  )


KERNEL = Kernel(
  name="lowrank_weights",
  source=lowrank_weights,
  form=form,
  tiles=tiles,
  plan=plan,
  finish=finish,
  reference=reference,
  arguments=arguments,
  shipped=parts.SHIPPED,
  cost=cost,
  # A gradient of few rows is a product of two rounded numbers, each up to five
  # times its usual size: with 64 to 512 channels the kernel is off by up to
  # 0.029 and the same sums in plain bfloat16 by up to 0.036.
  tolerance=parts.TOLERANCE | {"bfloat16": 3 * 2.0**-6},
  note=(
    "Gradients of low-rank adapters (Hu et al., 2021, arXiv:2106.09685), all"
    " of a slot from one pass over x and its cotangent; XLA makes at least six"
    " for each seed. A program sums over many rows in registers, without"
    " atomics: the result is the same each time."
  ),
)
