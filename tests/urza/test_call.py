"""What `call` puts into a program, under every transformation."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.urza import dispatch
from esper_jax.urza.dispatch import Dispatcher
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.lowered import for_cuda, launches
from tests.urza.sample_kernel import KERNEL

ROOT = Path(__file__).parents[2]
X = jnp.arange(96, dtype=jnp.float32).reshape(6, 16) / 8
SCALE = jnp.arange(16, dtype=jnp.float32) - 8


@pytest.fixture
def ptx(tmp_path):
  """Installs a dispatcher whose registry has the kernel; the stored code."""
  registry = open_registry(layers=(tmp_path / "urza",))
  artefact, files = handmade.artefact(KERNEL, X, SCALE)
  registry.put(artefact, files)
  dispatcher = Dispatcher(registry, handmade.H100, require="nothing")
  with dispatch.using(dispatcher):
    yield files["ptx"]


@jax.custom_vjp
def scaled(x, scale):
  return dispatch.call(KERNEL, x, scale)[0]


def _forward(x, scale):
  return scaled(x, scale), (x, scale)


def _backward(residuals, g):
  x, scale = residuals
  axes = tuple(range(x.ndim - 1))
  return scaled(g, scale), (g * x).sum(axes)


scaled.defvjp(_forward, _backward)


def plain(x, scale):
  return x * scale[None, :]


def loss(function):
  return lambda x, scale: (function(x, scale) ** 2).sum()


TRANSFORMATIONS = {
  "plain": (lambda f: f, 1),
  "gradient": (lambda f: jax.grad(loss(f), argnums=(0, 1)), 2),
  "checkpoint": (
    lambda f: jax.grad(loss(jax.checkpoint(f)), argnums=(0, 1)),
    2,
  ),
  "scan": (
    lambda f: (
      lambda x, s: jax.lax.scan(
        lambda c, _: (f(c, s), None), x, None, length=3
      )[0]
    ),
    1,
  ),
  "gradient of a scan": (
    lambda f: jax.grad(
      lambda x, s: jax.lax.scan(
        lambda c, _: (f(c, s), None), x, None, length=3
      )[0].sum()
    ),
    1,
  ),
  "map": (
    lambda f: (
      lambda x, s: jax.vmap(f, in_axes=(0, None))(jnp.stack([x, 2 * x]), s)
    ),
    1,
  ),
  "map of gradients": (
    lambda f: (
      lambda x, s: jax.vmap(jax.grad(loss(f), argnums=(0, 1)))(
        jnp.stack([x, 2 * x]), jnp.stack([s, s + 1])
      )
    ),
    2,
  ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_kernels_in_a_program_for_a_gpu(ptx, name):
  transform, count = TRANSFORMATIONS[name]
  found = launches(for_cuda(transform(scaled), X, SCALE))
  assert len(found) >= count
  assert all(ptx in message for message in found)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_references_in_a_program_for_a_cpu(ptx, name):
  del ptx
  transform, _ = TRANSFORMATIONS[name]
  got = jax.jit(transform(scaled))(X, SCALE)
  want = jax.jit(transform(plain))(X, SCALE)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want
  )
  jitted = jax.jit(transform(scaled))
  lowered = jitted.trace(X, SCALE).lower(lowering_platforms=("cpu",))
  assert launches(lowered) == []


def test_a_count_of_operations_sees_the_reference(ptx):
  del ptx

  def flops():
    jitted = jax.jit(lambda x, s: dispatch.call(KERNEL, x, s)[0])
    lowered = jitted.trace(X, SCALE).lower(lowering_platforms=("cpu",))
    return lowered.cost_analysis()["flops"]

  counted = flops()
  with dispatch.using(None):
    assert counted == flops() == X.size


def test_without_a_dispatcher_a_call_is_its_reference():
  def text(function):
    lowered = for_cuda(function, X, SCALE)
    return lowered.as_text().replace("jit__reference", "jit__lambda")

  assert text(lambda x, s: dispatch.call(KERNEL, x, s)) == text(
    lambda x, s: KERNEL.reference(x, s)
  )


def test_arguments_without_a_kernel_take_the_reference(ptx):
  del ptx
  x = X[:, :5]
  lowered = for_cuda(lambda x, s: dispatch.call(KERNEL, x, s), x, SCALE[:5])
  assert launches(lowered) == []


def test_a_launch_says_how_many_rows(ptx):
  def message(rows):
    x = jnp.zeros((rows, 16), jnp.float32)
    (found,) = launches(for_cuda(scaled, x, SCALE))
    return found

  assert ptx in message(3)
  assert message(3) != message(4)
  assert message(3) == message(3)


MESH = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import sys
import tempfile
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from esper_jax.urza import dispatch
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.lowered import for_cuda, launches
from tests.urza.sample_kernel import KERNEL
from tests.urza.test_call import X, SCALE, plain, scaled

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
folder = tempfile.TemporaryDirectory()
registry = open_registry(layers=(Path(folder.name),))
artefact, files = handmade.artefact(KERNEL, X, SCALE)
registry.put(artefact, files)
dispatcher = dispatch.Dispatcher(registry, handmade.H100, require="nothing")

def step(function, check):
  def one(x, scale):
    return function(*dispatch.level(x, scale))

  sharded = jax.shard_map(
    one, mesh=mesh, in_specs=(P("batch"), P()), out_specs=P("batch"),
    check_vma=check,
  )
  return jax.grad(lambda x, s: (sharded(x, s) ** 2).sum(), argnums=(0, 1))

want = jax.grad(lambda x, s: (plain(x, s) ** 2).sum(), argnums=(0, 1))
want = want(X, SCALE)
for check in (True, False):
  with dispatch.using(dispatcher):
    jitted = jax.jit(step(scaled, check))
    lowered = for_cuda(jitted, X, SCALE)
    got = jitted(X, SCALE)
  found = launches(lowered)
  assert len(found) == 2 and all(files["ptx"] in m for m in found)
  text = lowered.as_text()
  assert "all_gather" not in text
  assert "tensor<3x16xf32>" in text  # each device has half of the rows
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
print("sharded")
"""


def test_kernels_inside_a_mesh():
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", MESH],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == "sharded\n", done.stderr
