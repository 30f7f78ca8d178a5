"""The low-rank kernels: against autodiff of the plain slot, and interpreted."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina import slot
from esper_jax.urza.interpret import Request, compare_many
from esper_jax.urza.kernel import Unsuitable, handle_of
from esper_jax.urza.kernels import (
  lowrank_backward,
  lowrank_forward,
  lowrank_parts,
  lowrank_weights,
)
from esper_jax.urza.kernels.lowrank_forward import lowrank_slot
from esper_jax.urza.samples import samples

KERNELS = (
  lowrank_forward.KERNEL,
  lowrank_backward.KERNEL,
  lowrank_weights.KERNEL,
)
SIZE = {"C": 24, "R": 3, "S": 4}
# Isolated, silent, blending, at full strength.
ALPHA = (0.0, 0.0, 0.3, 1.0)
ISOLATION = (1.0, 0.0, 0.0, 0.0)
PROXIMAL = (0.7, 0.5, 0.9, 0.2)
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
needs_triton = pytest.mark.skipif(
  importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def drawn(dtype):
  x, down, up, *_, g = samples(lowrank_weights.KERNEL, "float32", SIZE, 2, 3, 5)
  x, g = (jnp.asarray(a, dtype) for a in (x, g))
  scalars = [jnp.asarray(a, jnp.float32) for a in (ALPHA, ISOLATION, PROXIMAL)]
  return x, jnp.asarray(down), jnp.asarray(up), scalars, g


def plain(x, down, up, scalars):
  """The slot as Kasmina computes it."""
  seeds = {
    f"s{i}": slot.Seed(
      params={"branch": {"down": {"kernel": down[i]}, "up": {"kernel": up[i]}}},
      state={},
      alpha=scalars[0][i],
      isolation=scalars[1][i],
      proximal=scalars[2][i],
      updates=jnp.float32(1),
      blueprint="lowrank",
    )
    for i in range(down.shape[0])
  }
  return slot.apply_seeds(seeds, x, train=True)[0]


def fused(x, down, up, scalars):
  return lowrank_slot(x, down, up, *scalars)[0]


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def with_gradients(slot_of, x, down, up, scalars, g):
  y, backward = jax.vjp(lambda *a: slot_of(*a, scalars), x, down, up)
  return (y, *backward(g))


@pytest.mark.parametrize(
  "dtype, tolerance",
  [("float64", 1e-6), ("float32", 1e-6), ("bfloat16", 2.0**-6)],
)
def test_operation_equals_autodiff_of_the_plain_slot(dtype, tolerance):
  # Weights and their gradients are float32 in any case, which bounds what
  # float64 can show of them; y and dx are float64 throughout.
  exact = 1e-14 if dtype == "float64" else tolerance
  with jax.enable_x64(dtype == "float64"):
    arguments = drawn(dtype)
    got = with_gradients(fused, *arguments)
    expected = with_gradients(plain, *arguments)
    for one, two, limit in zip(
      got, expected, (exact, exact, tolerance, tolerance), strict=True
    ):
      assert one.dtype == two.dtype
      one, two = (np.asarray(a).astype(np.float64) for a in (one, two))
      assert np.isfinite(one).all()
      np.testing.assert_allclose(one, two, rtol=limit, atol=limit)


def test_pull_of_an_isolated_seed_is_the_gradient_of_its_quadratic():
  x, down, up, scalars, _ = drawn("float32")

  def pull(down, up):
    r = lowrank_parts.contribution(x, down, up)
    return 0.5 * PROXIMAL[0] / x.shape[0] * jnp.sum(r * r)

  found = with_gradients(fused, x, down, up, scalars, jnp.zeros_like(x))[2:]
  own = jax.jit(jax.grad(pull, argnums=(0, 1)), compiler_options=QUICK)(
    down[0], up[0]
  )
  for got, expected in zip(found, own, strict=True):
    np.testing.assert_allclose(got[0], expected, rtol=1e-5, atol=1e-6)
    assert not np.asarray(got[1:]).any()


@pytest.mark.parametrize("seed", [0, 1], ids=["isolated", "silent"])
@pytest.mark.parametrize("factor", ["down", "up"])
def test_nan_stays_in_an_isolated_or_silent_seed(seed, factor):
  x, down, up, scalars, g = drawn("float32")
  clean = with_gradients(fused, x, down, up, scalars, g)
  if factor == "down":
    down = down.at[seed].set(jnp.nan)
  else:
    up = up.at[seed].set(jnp.nan)
  got = with_gradients(fused, x, down, up, scalars, g)
  others = [i for i in range(4) if i != seed]
  for one, two in zip(got[:2], clean[:2], strict=True):
    np.testing.assert_array_equal(one, two)
  for one, two in zip(got[2:], clean[2:], strict=True):
    np.testing.assert_array_equal(one[others, ...], two[others, ...])
  assert np.isnan(np.asarray(got[2][seed])).any() == (seed == 0)


def test_health_describes_every_contribution():
  x, down, up, scalars, _ = drawn("float32")
  down = down.at[3].set(0)
  _, health = jax.jit(lowrank_slot, compiler_options=QUICK)(
    x, down, up, *scalars
  )
  assert health.shape == (4, 4) and health.dtype == jnp.float32
  for i in range(4):
    r = np.asarray(x, np.float64) @ np.asarray(down[i], np.float64)
    r = r @ np.asarray(up[i], np.float64)
    size = np.abs(r)
    expected = [r.sum(), (r * r).sum(), size.max(), (size < 1e-6).sum()]
    np.testing.assert_allclose(health[i], expected, rtol=1e-5, atol=1e-4)
  assert health[3, 3] == x.size


def test_health_of_a_seed_with_nan_shows_it():
  x, down, up, scalars, _ = drawn("float32")
  down = down.at[1].set(jnp.nan)
  _, health = jax.jit(lowrank_slot, compiler_options=QUICK)(
    x, down, up, *scalars
  )
  assert np.isnan(health[1, :3]).all() and np.isfinite(health[2]).all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_form_does_not_depend_on_the_number_of_rows(kernel):
  one = kernel.form(*kernel.arguments("bfloat16", SIZE, 1, 1, 1))
  many = kernel.form(*kernel.arguments("bfloat16", SIZE, 9, 8, 7))
  assert handle_of(kernel, one) == handle_of(kernel, many)
  other = kernel.form(*kernel.arguments("float32", SIZE, 1, 1, 1))
  assert handle_of(kernel, one) != handle_of(kernel, other)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize(
  "size, dtype, batch",
  [
    (SIZE | {"C": 1024}, "float32", 2),
    (SIZE | {"R": 65}, "float32", 2),
    (SIZE | {"S": 5}, "float32", 2),
    (SIZE, "int32", 2),
    (SIZE, "float32", 0),
    (SIZE, "float32", 2**30),
  ],
)
def test_unfit_arguments_are_unsuitable(kernel, size, dtype, batch):
  with pytest.raises(Unsuitable):
    kernel.form(*kernel.arguments(dtype, size, batch, 8, 8))


def test_arguments_that_do_not_fit_each_other_are_unsuitable():
  kernel = lowrank_weights.KERNEL
  fit = kernel.arguments("float32", SIZE, 2, 3, 5)
  mixed = kernel.arguments("bfloat16", SIZE, 2, 3, 5)
  narrow = kernel.arguments("float32", SIZE | {"C": 16}, 2, 3, 5)
  more = kernel.arguments("float32", SIZE, 3, 3, 5)
  double = jax.ShapeDtypeStruct(fit[1].shape, jnp.float16)
  for wrong in (
    (*fit[:-1], mixed[-1]),
    (*fit[:-1], more[-1]),
    (narrow[0], *fit[1:]),
    (fit[0], fit[1], narrow[2], *fit[3:]),
    (*fit[:3], jax.ShapeDtypeStruct((3,), jnp.float32), *fit[4:]),
    (fit[0], double, *fit[2:]),
  ):
    with pytest.raises(Unsuitable):
      kernel.form(*wrong)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_reference_has_the_shapes_that_finish_returns(kernel):
  arguments = kernel.arguments("bfloat16", SIZE, 2, 3, 5)
  tiles = kernel.tiles(kernel.form(*arguments))[0]
  outputs = kernel.plan(arguments, tiles).outputs
  finished = jax.eval_shape(lambda o: kernel.finish(o, arguments), outputs)
  assert finished == jax.eval_shape(kernel.reference, *arguments)


def test_cost_counts_each_array_once():
  x, w = 2 * 3 * 5 * 24, 4 * 24 * 3
  forward, backward, weights = (
    k.cost(*k.arguments("bfloat16", SIZE, 2, 3, 5)) for k in KERNELS
  )
  assert forward.bytes == backward.bytes == 2 * 2 * x + 2 * 4 * w + 2 * 4 * 4
  assert weights.bytes == 2 * 2 * x + 4 * 4 * w + 3 * 4 * 4
  assert forward.flops == backward.flops == 2 * 2 * 30 * w
  assert weights.flops == 2 * forward.flops


def quick(kernel, dtype, size, **changes):
  """Tiles as the first choice, small enough for two blocks and two chunks."""
  form = kernel.form(*kernel.arguments(dtype, size, 1, 1, 1))
  return {**kernel.tiles(form)[0], "BLOCK_M": 16, **changes}


@needs_triton
def test_interpreted_kernels_equal_their_references():
  many = ((1, 1, 1), (3, 3, 5))
  looped = {"BLOCK_C": 16, "PROGRAMS": 1}  # each loop goes round twice
  requests = []
  for kernel in KERNELS:
    size = SIZE | {"S": 3}
    for dtype in ("float32", "bfloat16"):
      tiles = quick(kernel, dtype, size, **looped)
      requests.append(Request(kernel, dtype, size, many, tiles=tiles))
    size = {"C": 16, "R": 2, "S": 1}
    tiles = quick(kernel, "bfloat16", size)
    requests.append(Request(kernel, "bfloat16", size, many, True, tiles))
    size = {"C": 32, "R": 16, "S": 3}
    tiles = quick(kernel, "float32", size, **looped)
    requests.append(Request(kernel, "float32", size, many[1:], True, tiles))
  for request, cases in zip(requests, compare_many(requests), strict=True):
    for case in cases:
      assert case.ok, (request.kernel.name, request.constants, case)
