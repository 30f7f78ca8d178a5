"""What holds of every kernel."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from esper_jax.urza.interpret import Request, compare_many
from esper_jax.urza.kernel import Kernel, Unsuitable, handle_of
from esper_jax.urza.kernels import (
  blend_backward,
  blend_forward,
  depthwise_backward,
  depthwise_forward,
  group_norm_backward,
  layer_norm_backward,
)
from esper_jax.urza.kernels.catalogue import KERNELS

DTYPES = ("float32", "bfloat16")
# The low-rank ones are interpreted in a file of their own.
INTERPRETED = (
  blend_forward.KERNEL,
  blend_backward.KERNEL,
  depthwise_forward.KERNEL,
  depthwise_backward.KERNEL,
  group_norm_backward.KERNEL,
  layer_norm_backward.KERNEL,
)
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
needs_triton = pytest.mark.skipif(
  importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def smallest(kernel: Kernel) -> dict[str, int]:
  return dict(kernel.shipped[0])


@every_kernel
def test_its_name_is_that_of_its_source_and_file(kernel):
  assert KERNELS[kernel.name] is kernel
  assert kernel.source.name == kernel.name
  module = kernel.source.function.__module__
  assert module == f"esper_jax.urza.kernels.{kernel.name}"


@every_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_forms_follow_from_dtype_and_constants_alone(kernel, dtype):
  handles = set()
  for constants in kernel.shipped:
    one, two = (
      kernel.form(*kernel.arguments(dtype, constants, *shape))
      for shape in ((1, 1, 1), (5, 7, 3))
    )
    assert one == two
    assert one.dtype == dtype
    assert dict(one.constants) == dict(constants)
    handles.add(handle_of(kernel, one))
  assert len(handles) == len(kernel.shipped)


@every_kernel
def test_parameters_are_inputs_outputs_scalars_and_constants(kernel):
  constants = smallest(kernel)
  args = kernel.arguments("bfloat16", constants, 2, 3, 5)
  form = kernel.form(*args)
  names = {"float32": "*fp32", "bfloat16": "*bf16"}
  for tiles in kernel.tiles(form):
    plan = kernel.plan(args, tiles)
    arrays = (*args, *plan.outputs)
    types = [names[str(array.dtype)] for array in arrays]
    types += ["i32"] * len(plan.scalars)
    assert [kind for _, kind in form.signature] == types
    rest = set(constants) | set(tiles) - {"num_warps", "num_stages"}
    parameters = kernel.source.parameters
    assert parameters[: len(types)] == tuple(n for n, _ in form.signature)
    assert set(parameters[len(types) :]) == rest
    assert all(n >= 1 for n in plan.grid)


@every_kernel
def test_all_ways_to_cut_the_work_differ(kernel):
  form = kernel.form(*kernel.arguments("float32", smallest(kernel), 2, 3, 5))
  cuts = [tuple(sorted(tiles.items())) for tiles in kernel.tiles(form)]
  assert len(set(cuts)) == len(cuts) >= 1


@every_kernel
def test_finish_returns_what_the_reference_does(kernel):
  args = kernel.arguments("bfloat16", smallest(kernel), 2, 3, 5)
  plan = kernel.plan(args, kernel.tiles(kernel.form(*args))[0])
  expected = jax.eval_shape(kernel.reference, *args)
  finished = jax.eval_shape(kernel.finish, plan.outputs, args)
  assert [(a.shape, a.dtype) for a in finished] == [
    (a.shape, a.dtype) for a in expected
  ]


@every_kernel
def test_what_programs_leave_to_sum_up_does_not_grow_with_the_batch(kernel):
  def parts(batch):
    args = kernel.arguments("bfloat16", dict(kernel.shipped[-1]), batch, 16, 16)
    plan = kernel.plan(args, kernel.tiles(kernel.form(*args))[0])
    whole = {a.shape for a in args}
    return [out.shape for out in plan.outputs if out.shape not in whole]

  assert parts(2048) == parts(4096)


@every_kernel
def test_costs_grow_with_the_work(kernel):
  one, two = (
    kernel.cost(*kernel.arguments("bfloat16", smallest(kernel), n, 8, 8))
    for n in (16, 32)
  )
  assert 1.5 * one.bytes < two.bytes <= 2 * one.bytes
  assert two.flops == 2 * one.flops


@every_kernel
def test_float64_is_unsuitable(kernel):
  args = kernel.arguments("float32", smallest(kernel), 2, 3, 5)
  wide = [jax.ShapeDtypeStruct(a.shape, "float64") for a in args]
  with pytest.raises(Unsuitable):
    kernel.form(*wide)


@every_kernel
def test_a_mixture_of_dtypes_is_unsuitable_or_in_the_signature(kernel):
  args = kernel.arguments("float32", smallest(kernel), 2, 3, 5)
  mixed = (jax.ShapeDtypeStruct(args[0].shape, jnp.bfloat16), *args[1:])
  try:
    signature = kernel.form(*mixed).signature
  except Unsuitable:
    return
  types = [kind for _, kind in signature[: len(args)]]
  assert types == ["*bf16"] + ["*fp32"] * (len(args) - 1)


@pytest.mark.parametrize("kernel", INTERPRETED, ids=lambda k: k.name)
def test_an_empty_batch_is_unsuitable(kernel):
  args = kernel.arguments("float32", smallest(kernel), 0, 3, 5)
  with pytest.raises(Unsuitable, match="empty"):
    kernel.form(*args)


def test_importing_all_kernels_does_not_import_triton():
  code = (
    "import sys, esper_jax.urza.kernels.catalogue;"
    "sys.exit(any(m in sys.modules for m in ('triton', 'jax_triton')))"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@needs_triton
def test_kernels_equal_their_references_in_the_interpreter():
  requests = [
    Request(kernel, dtype, smallest(kernel), shapes, special)
    for kernel in INTERPRETED
    for dtype, special, shapes in (
      ("float32", False, ((1, 1, 1), (2, 5, 7))),
      ("float32", True, ((2, 5, 7),)),
      ("bfloat16", False, ((2, 5, 7),)),
    )
  ]
  for request, cases in zip(requests, compare_many(requests), strict=True):
    for case in cases:
      assert case.ok, (request.kernel.name, request.special, case)
