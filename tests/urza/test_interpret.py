"""The interpreter's process: what it mends, finds and tells."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.urza import interpret
from esper_jax.urza.interpret import InterpreterFailed, Request
from esper_jax.urza.kernel import TYPES, Cost, Form, Kernel, Plan
from esper_jax.urza.language import jit, tl
from esper_jax.urza.samples import FAR, distance, samples
from tests.urza import crash_kernel

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
N = 16


@jit
def product(x, kernel, y, N: tl.constexpr, BM: tl.constexpr):
  i = tl.arange(0, N)
  place = i[:, None] * N + i[None, :]
  a = tl.load(x + place)
  b = tl.load(kernel + place).to(x.dtype.element_ty)
  total = tl.dot(a, b, input_precision="ieee")
  tl.store(y + place, total.to(y.dtype.element_ty))


@jit
def half_product(x, kernel, y, N: tl.constexpr, BM: tl.constexpr):
  i = tl.arange(0, N)
  place = i[:, None] * N + i[None, :]
  tl.store(y + place, tl.load(x + place), mask=i[:, None] < N // 2)


@jit
def broken(x, kernel, y, N: tl.constexpr, BM: tl.constexpr):
  tl.store(y + tl.arange(0, N), tl.load(x + tl.arange(0, 2 * N)))


def made(name, source, tolerance=1e-6):
  """A kernel y = x @ kernel, [N, N] each, that may compute something else."""

  def form(x, _):
    own = f"*{TYPES[str(x.dtype)]}"
    signature = (("x", own), ("kernel", "*fp32"), ("y", own))
    return Form(str(x.dtype), signature, (("N", N),))

  def arguments(dtype, *_):
    return (
      jax.ShapeDtypeStruct((N, N), jnp.dtype(dtype)),
      jax.ShapeDtypeStruct((N, N), jnp.float32),
    )

  return Kernel(
    name=name,
    source=source,
    form=form,
    tiles=lambda _: ({"BM": N, "num_warps": 4, "num_stages": 1},),
    plan=lambda a, _: Plan(
      (1, 1, 1), (), (jax.ShapeDtypeStruct((N, N), a[0].dtype),)
    ),
    finish=lambda outputs, _: outputs,
    reference=lambda x, w: (x @ w.astype(x.dtype),),
    arguments=arguments,
    shipped=({"N": N},),
    cost=lambda *_: Cost(0, 0),
    tolerance={"float32": tolerance, "bfloat16": 2.0**-7},
    note="For this test.",
  )


PRODUCT = made("product", product)
STRICT = made("strict", product, tolerance=-1.0)
HALF = made("half", half_product)
BROKEN = made("broken", broken)


def test_many_requests_are_answered_in_order():
  one = ((1, 1, 1),)
  wrong, exact, rounded, special, strict = interpret.compare_many(
    [
      Request(HALF, "float32", {"N": N}, one),
      Request(PRODUCT, "float32", {"N": N}, ((1, 1, 1), (2, 1, 1))),
      Request(PRODUCT, "bfloat16", {"N": N}, one),
      Request(PRODUCT, "bfloat16", {"N": N}, one, special=True),
      Request(STRICT, "float32", {"N": N}, one, tiles={"BM": 2 * N}),
    ]
  )
  # What is left unwritten is NaN, which no tolerance allows.
  assert wrong[0].error == FAR and not wrong[0].ok
  assert [case.ok for case in exact] == [True, True]
  assert exact[0].error != exact[1].error  # drawn anew
  assert exact[0].shapes == ((N, N), (N, N)) and exact[0].dtype == "float32"
  # bfloat16 is multiplied as numbers and rounded to nearest, not cut: what is
  # left is half an ulp of the result and of the weights.
  assert rounded[0].ok and 0 < rounded[0].error < 2.0**-7
  assert special[0].ok
  assert strict[0].tolerance == -1 and not strict[0].ok


def test_bfloat16_is_rounded_as_a_gpu_rounds():
  x, _ = samples(SCALED, "bfloat16", {"N": N}, 1, 1, 1)
  exact = x.astype(np.float32) * np.float32(1.0039)
  cut = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
  nearest = exact.astype(jnp.bfloat16)
  assert distance((cut,), (exact,)) > distance((nearest,), (exact,))
  (case,) = interpret.compare(SCALED, "bfloat16", {"N": N}, shapes=((1, 1, 1),))
  assert case.error == distance((nearest,), (exact,))


@jit
def scaled(x, kernel, y, N: tl.constexpr, BM: tl.constexpr):
  i = tl.arange(0, N)
  place = i[:, None] * N + i[None, :]
  value = tl.load(x + place).to(tl.float32) * 1.0039
  tl.store(y + place, value.to(y.dtype.element_ty))


SCALED = made("scaled", scaled)._replace(
  reference=lambda x, _: (x * jnp.float32(1.0039),)
)


def test_no_request_starts_no_process():
  assert interpret.compare_many([], timeout=0) == []


def test_a_kernel_that_raises_is_told_with_its_error():
  with pytest.raises(
    InterpreterFailed, match="interpreter raised .*incompatible dimensions"
  ) as caught:
    interpret.compare(BROKEN, "float32", {"N": N})
  assert "\n" not in str(caught.value)


def test_a_kernel_that_ends_the_process_keeps_no_other_from_being_compared():
  one = ((1, 1, 1),)
  good, crash, raised, last = interpret.compare_each(
    [
      Request(PRODUCT, "float32", {"N": N}, one),
      Request(crash_kernel.KERNEL, "float32", {"C": 16}, one),
      Request(BROKEN, "float32", {"N": N}, one),
      Request(HALF, "float32", {"N": N}, one, special=True),
    ]
  )
  assert good[0].ok and good[0].wrong == ""
  assert crash == (
    "the interpreter crashed (signal 11) on this kernel: are its parameters"
    " inputs, outputs, i32, constants, in this order?"
  )
  assert raised.startswith("the interpreter raised ")
  assert last[0].wrong == (
    "at 1x1x1 with NaN and infinities: result 0 is not finite where it should"
    " be, or the other way round (what is left unwritten is NaN)"
  )


def test_a_process_that_ends_before_any_kernel_says_nothing_of_them(
  tmp_path, monkeypatch
):
  package = tmp_path / "triton"
  package.mkdir()
  (package / "__init__.py").write_text("import os; os.abort()")
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(InterpreterFailed, match="code -6 and said nothing"):
    interpret.compare(PRODUCT, "float32", {"N": N})


def test_too_little_time_is_told():
  with pytest.raises(InterpreterFailed, match=r"more than 0\.05 s"):
    interpret.compare(PRODUCT, "float32", {"N": N}, timeout=0.05)


def test_a_record_that_is_no_global_is_named():
  with pytest.raises(InterpreterFailed, match="no global record.*'lost'"):
    interpret.compare(made("lost", product), "float32", {"N": N})
