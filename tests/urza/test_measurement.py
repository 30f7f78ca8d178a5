"""A kernel is measured beside its reference, alone and inside a step.

Here a reference is in the kernel's place; everything but the launch runs.
"""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from esper_jax.urza import (
  dispatch,
  evidence,
  judging,
  launching,
  measurement,
  timing,
  workload,
)
from esper_jax.urza.judging import Measured
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.launching import Loaded
from esper_jax.urza.measurement import Effort
from esper_jax.urza.registry import open_registry
from esper_jax.urza.samples import FAR, samples
from esper_jax.urza.workload import OPERATIONS, Sizes
from tests.urza import handmade, sample_kernel
from tests.urza.handmade import H100
from tests.urza.lowered import for_cuda, launches

SMALL = Sizes(batch=2, side=4, channels=16, blocks=1)
BRIEF = Effort(rounds=5, calls=2, attempts=4)
BLEND = KERNELS["blend_backward"]  # the quickest to compile


def constants_of(kernel):
  """Those that fit SMALL, or the first where any do."""
  fitting = [c for c in kernel.shipped if c.get("C", 16) == 16]
  return fitting[0]


def stored(kernel, dtype="float32", target=90):
  args = kernel.arguments(dtype, constants_of(kernel), 1, 1, 1)
  return Loaded(*handmade.artefact(kernel, *args, target=target))


def right(kernel):
  reference = jax.jit(kernel.reference)
  return lambda *args: reference(*args)


# --- the step --------------------------------------------------------------


def test_every_kernel_belongs_to_one_operation():
  named = [name for o in OPERATIONS.values() for name in o.kernels]
  assert sorted(named) == sorted(KERNELS)
  assert workload.operation_of("blend_backward") is OPERATIONS["blend"]
  with pytest.raises(KeyError):
    workload.operation_of("no_such_kernel")


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_step_has_every_kernel_of_its_operation(name):
  operation = OPERATIONS[name]
  kernels = [KERNELS[kernel] for kernel in operation.kernels]
  constants = constants_of(kernels[0])
  sizes = SMALL._replace(blocks=2)
  step = workload.make_step(operation, sizes, "float32", constants)
  own = launching.dispatcher([stored(k) for k in kernels], H100)
  assert launches(for_cuda(step.run, *step.arguments)) == []
  with dispatch.using(own):
    # A new function: JAX knows the other one's trace.
    found = launches(for_cuda(lambda *a: step.run(*a), *step.arguments))
  assert own.fallbacks() == []
  for kernel in kernels:
    ptx = stored(kernel).files["ptx"]
    assert sum(ptx in message for message in found) == 2, kernel.name
  new, loss = jax.jit(step.run)(*step.arguments)
  assert np.isfinite(loss)
  before = step.arguments[0]
  moved = {k for k in new if not np.array_equal(new[k], before[k])}
  assert moved == set(before)


def test_sizes_are_those_of_a_resnet18():
  sizes = [workload.sizes_of({"C": c}) for c in (16, 64, 128, 256, 512)]
  assert [s.side for s in sizes] == [32, 32, 16, 8, 4]
  assert {s.batch for s in sizes} == {512}
  assert workload.sizes_of({"LANES": 16}).channels == 64


def test_a_call_has_as_many_elements_as_the_activations():
  for kernel in KERNELS.values():
    constants = kernel.shipped[-1]
    sizes = workload.sizes_of(constants, batch=2)
    shape = workload.shape_of_call(kernel, "bfloat16", constants, sizes)
    x = kernel.arguments("bfloat16", constants, *shape)[0]
    assert x.size == 2 * sizes.side**2 * sizes.channels, kernel.name


# --- the figures -----------------------------------------------------------


@pytest.fixture
def loud(monkeypatch):
  """An operation that is most of its step, so that no noise hides it."""
  blend = OPERATIONS["blend"]

  def apply(own, x):
    return lax.scan(lambda x, _: (blend.apply(own, x), None), x, length=100)[0]

  monkeypatch.setitem(OPERATIONS, "blend", blend._replace(apply=apply))


def test_the_figures_are_a_gpu_record(loud):
  found = judging.measure(
    [stored(BLEND)],
    H100,
    launch=right(BLEND),
    sizes=SMALL._replace(batch=8, side=8),
    effort=BRIEF,
  )
  assert found.ran and found.failure == "" and found.figures is not None
  record = handmade.gpu() | json.loads(json.dumps(found.figures))
  assert evidence.validated(record) == record
  assert record["max_error"] <= record["tolerance"] and record["wrong"] == ""
  assert record["deterministic"] is True
  seconds = record["step_seconds"]
  assert set(seconds) == {"kernel", "reference", "bare"}
  for ratio, own, other, bare in zip(
    record["step_ratios"],
    seconds["kernel"],
    seconds["reference"],
    seconds["bare"],
    strict=True,
  ):
    assert ratio == pytest.approx((other - bare) / (own - bare))
  x = 8 * 8 * 8 * 16 * 4
  assert record["bytes"] == 2 * x
  assert record["peak_bytes"] > x


def results(launch):
  constants, shape = constants_of(BLEND), (2, 4, 4)
  args = samples(BLEND, "float32", constants, *shape)
  return measurement.judge_results(
    BLEND, "float32", constants, launch, shape, args
  )


def test_a_wrong_kernel_is_rejected_by_its_own_record():
  def launch(*args):
    dx, *others = right(BLEND)(*args)
    return (dx + 0.1, *others)

  found = results(launch)
  assert found["max_error"] > found["tolerance"]
  assert "result 0 has an error" in found["wrong"]
  record = evidence.validated(handmade.gpu() | found)
  status = evidence.status([record], H100.kind)
  assert status is evidence.Status.REJECTED


def test_a_result_of_a_wrong_dtype_is_as_wrong_as_can_be():
  def launch(*args):
    dx, *others = right(BLEND)(*args)
    return (dx.astype(jnp.bfloat16), *others)

  found = results(launch)
  assert found["max_error"] == FAR and "bfloat16" in found["wrong"]


def test_a_kernel_that_raises_has_no_figures():
  def launch(*args):
    raise RuntimeError("INTERNAL: an illegal address\nand more")

  found = judging.measure([stored(BLEND)], H100, launch=launch, sizes=SMALL)
  reason = "RuntimeError: INTERNAL: an illegal address"
  assert found == Measured(None, reason, ran=True)


def test_without_time_of_its_own_a_kernel_has_no_figures(monkeypatch):
  nothing = workload.Operation(("nothing",), lambda *a: {}, lambda own, x: x)
  monkeypatch.setitem(OPERATIONS, "nothing", nothing)
  with pytest.raises(timing.Noise):
    measurement.measure(
      BLEND._replace(name="nothing"),
      "float32",
      constants_of(BLEND),
      right(BLEND),
      contextlib.nullcontext,
      sizes=SMALL,
      effort=Effort(rounds=30, calls=1, attempts=2),
    )


# --- the process apart -----------------------------------------------------


@pytest.fixture
def registry(tmp_path):
  return open_registry(layers=(tmp_path / "urza",))


def test_here_without_a_gpu_nothing_is_measured(registry):
  loaded = stored(BLEND)
  registry.put(*loaded)
  judge = judging.make_judge(registry)
  assert judge(loaded.artefact, H100) == Measured(None, "no GPU", ran=False)


def test_a_kernel_without_an_operation_is_told_so(registry):
  kernel = sample_kernel.KERNEL
  args = kernel.arguments("float32", {"C": 16}, 1, 1, 1)
  artefact, _ = handmade.artefact(kernel, *args)
  found = judging.make_judge(registry)(artefact, H100)
  assert found.figures is None and not found.ran
  assert found.failure == (
    "scale_rows belongs to no operation, so there is no step to measure it in:"
    " add one to OPERATIONS in esper_jax/urza/workload.py"
  )


def test_what_the_process_says_is_read_with_care():
  read = judging.read_measured
  line = json.dumps(
    {"key": "k", "figures": {"a": 1}, "failure": "", "ran": True}
  )
  assert read(f"noise\n{line}\n", "k", 0) == Measured({"a": 1})
  for text, key, code in (
    (line, "other", 0),
    (line, "k", 1),
    (line, "k", -11),
    ("", "k", 0),
    ("[]", "k", 0),
    (line[:-2], "k", 0),
  ):
    found = read(text, key, code)
    assert found == Measured(None, f"exit code {code} without figures")
  assert read(line, "k", None).figures is None
  assert not read(line, "k", None).ran


def test_the_other_kernels_of_the_operation_come_along(registry):
  first = stored(KERNELS["lowrank_forward"])
  others = [stored(KERNELS[n]) for n in ("lowrank_backward", "lowrank_weights")]
  strangers = [stored(BLEND), stored(KERNELS["lowrank_weights"], target=80)]
  for loaded in (first, *others, *strangers):
    registry.put(*loaded)
  found = judging.companions(registry, first.artefact, H100)
  assert found == [loaded.artefact.key for loaded in others]
  registry.append(found[0], handmade.gpu(ratio=0.5))
  assert judging.companions(registry, first.artefact, H100) == found[1:]
  other = H100._replace(kind="another")
  assert judging.companions(registry, first.artefact, other) == found
