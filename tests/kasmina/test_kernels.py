"""Seeds on kernels: the same seeds, and without a dispatcher the same program.

Nothing here runs on a GPU. Programs are lowered for one, and what they compute
is looked at on this CPU, where a kernel's place is taken by its reference.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina import blueprints, layers
from esper_jax.kasmina.slot import Seed, apply_seeds, blend, contribution, fork
from esper_jax.types import SlotSpec
from esper_jax.urza import dispatch
from esper_jax.urza.dispatch import Dispatcher
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.lowered import for_cuda, launches

C = 16
NAN = float("nan")
LOWRANK = (
  "lowrank_forward",
  "lowrank_backward",
  "lowrank_weights",
)
BLEND = ("blend_forward", "blend_backward")
IMAGE = SlotSpec("slot", (5, 4, C), "float32", "nhwc")
VECTOR = SlotSpec("slot", (C,), "float32", "features")


def f32(value):
  return jnp.asarray(value, jnp.float32)


def normal(n, shape):
  return jax.random.normal(jax.random.key(n), shape)


def seed(name, n=0, *, spec=IMAGE, alpha=1.0, isolation=0.0, blend="add", at=0):
  """A seed that is not the identity."""
  blueprint = blueprints.get(name)
  params, state = jax.jit(lambda key: blueprint.init(key, spec))(
    jax.random.key(n)
  )
  return Seed(
    params={"branch": params},
    state=state,
    alpha=f32(alpha),
    isolation=f32(isolation),
    proximal=f32(0.5),
    updates=f32(1),
    blueprint=name,
    blend=blend,
    depth=at,
  )


@pytest.fixture
def stored(tmp_path):
  """Installs a dispatcher that has every kernel of C channels; name -> code."""
  registry = open_registry(layers=(tmp_path / "urza",))
  code = {}
  for name, kernel in KERNELS.items():
    for constants in kernel.shipped:
      if constants.get("C", C) != C:
        continue
      for dtype in ("float32", "bfloat16"):
        args = kernel.arguments(dtype, constants, 2, 5, 4)
        artefact, files = handmade.artefact(kernel, *args)
        registry.put(artefact, files)
        code[files["ptx"]] = name
  dispatcher = Dispatcher(registry, handmade.H100, require="nothing")
  with dispatch.using(dispatcher):
    yield code


def trained(seeds, x):
  """Gradients of everything through a slot, and its output."""

  def loss(params, x):
    own = {k: s.replace(params=params[k]) for k, s in seeds.items()}
    y, _ = apply_seeds(own, x, train=True)
    return (y * jnp.cos(y)).sum(dtype=jnp.float32), y

  params = {name: one.params for name, one in seeds.items()}
  return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)


def kernels_of(function, code, *args):
  """Names of the kernels in a program for a GPU, in order."""
  names = []
  for message in launches(for_cuda(function, *args)):
    (name,) = {name for ptx, name in code.items() if ptx in message}
    names.append(name)
  return sorted(names)


# --- without a dispatcher -------------------------------------------------


def plain_depthwise(x, kernel, stride):
  kernel = kernel.astype(x.dtype)
  height, width, _, out = kernel.shape
  rows = kernel.reshape(height * width, 1, 1, 1, out)
  size = x.shape[1:3]
  pads = jax.lax.padtype_to_pads(
    size, (height, width), (stride, stride), "SAME"
  )
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  m, n = (-(-length // stride) for length in size)
  first, *others = [
    padded[
      :,
      i : i + (m - 1) * stride + 1 : stride,
      j : j + (n - 1) * stride + 1 : stride,
    ]
    for i in range(height)
    for j in range(width)
  ]
  y = first * rows[0]
  for tap, row in zip(others, rows[1:], strict=True):
    y = y + tap * row
  return y


def plain_norm(x, scale, bias):
  return jax.nn.relu(layers.normalize(x, scale, bias))


def plain_slot(seeds, x):
  for depth in sorted({s.depth for s in seeds.values()}):
    outputs = {}
    for name, one in sorted(seeds.items()):
      if one.depth == depth:
        x, own = fork(x, (one.alpha != 0) & (one.isolation == 0))
        outputs[name], _ = contribution(one, own, train=True, key=None)
    for name, r in outputs.items():
      one = seeds[name]
      x = blend(x, r, one.alpha, one.isolation, one.proximal)
  return x


def text(function, *args):
  """A program's text, names of functions and places left out."""

  def same_name(*args):
    return function(*args)

  lowered = jax.jit(same_name).lower(*args)
  return re.sub(r"loc\(.*?\)", "", lowered.as_text())


@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_is_the_program_it_was(stride):
  x, kernel = normal(0, (2, 5, 4, C)), normal(1, (3, 3, 1, C))

  def ours(x, k):
    return layers.conv(x, k, stride=stride, groups=C)

  def theirs(x, k):
    return plain_depthwise(x, k, stride)

  for cast in (jnp.float32, jnp.bfloat16):
    args = x.astype(cast), kernel
    assert text(ours, *args) == text(theirs, *args)
    sums = [
      jax.grad(lambda x, k, f=f: f(x, k).sum(dtype=jnp.float32), (0, 1))
      for f in (ours, theirs)
    ]
    assert text(sums[0], *args) == text(sums[1], *args)


@pytest.mark.parametrize("shape", [(2, 5, 4, C), (2, C)])
def test_a_norm_is_the_program_it_was(shape):
  args = normal(0, shape), normal(1, (C,)), normal(2, (C,))
  sums = [
    jax.grad(lambda x, s, b, f=f: f(x, s, b).sum(), (0, 1, 2))
    for f in (layers.normalize_relu, plain_norm)
  ]
  assert text(layers.normalize_relu, *args) == text(plain_norm, *args)
  assert text(sums[0], *args) == text(sums[1], *args)


def test_a_slot_is_the_program_it_was():
  x = normal(0, (2, 5, 4, C))
  seeds = {
    "a": seed("lowrank", 0),
    "b": seed("norm", 1, blend="multiply"),
    "c": seed("lowrank", 2, isolation=1.0),
    "d": seed("depthwise", 3, at=1),
  }
  sums = [
    jax.grad(lambda s, x, f=f: f(s, x).sum(), (0, 1), allow_int=True)
    for f in (lambda s, x: apply_seeds(s, x, train=True)[0], plain_slot)
  ]
  assert text(sums[0], seeds, x) == text(sums[1], seeds, x)


# --- with one -------------------------------------------------------------


def kernels_in_slot(code, spec, batch, **seeds):
  x = jnp.zeros((batch, *spec.shape), spec.dtype)
  return kernels_of(lambda x: trained(seeds, x), code, x)


@pytest.mark.parametrize(
  ("name", "spec", "kernels"),
  [
    (
      "depthwise",
      IMAGE,
      ("depthwise_forward", "depthwise_backward", "group_norm_backward"),
    ),
    ("norm", IMAGE, ("group_norm_backward",)),
    ("norm", VECTOR, ("layer_norm_backward",)),
    ("dense", VECTOR, ("layer_norm_backward",)),
    ("conv3x3", IMAGE, ("group_norm_backward",)),
  ],
)
def test_a_seeds_gradient_takes_its_kernels(stored, name, spec, kernels):
  found = kernels_in_slot(stored, spec, 2, a=seed(name, spec=spec))
  assert found == sorted([*kernels, *BLEND])


@pytest.mark.parametrize(
  ("spec", "count"), [(IMAGE, 1), (IMAGE, 3), (IMAGE, 4), (VECTOR, 2)]
)
def test_low_rank_seeds_go_through_one_kernel(stored, spec, count):
  name = "lowrank" if spec is IMAGE else "lowrank_dense"
  seeds = {f"s{n}": seed(name, n, spec=spec) for n in range(count)}
  assert kernels_in_slot(stored, spec, 2, **seeds) == sorted(LOWRANK)


def test_more_low_rank_seeds_than_a_kernel_takes(stored):
  seeds = {f"s{n}": seed("lowrank", n) for n in range(5)}
  assert kernels_in_slot(stored, IMAGE, 2, **seeds) == sorted(BLEND * 5)


def test_seeds_of_several_kinds_and_depths(stored):
  found = kernels_in_slot(
    stored,
    IMAGE,
    2,
    a=seed("lowrank", 0),
    b=seed("norm", 1),
    c=seed("lowrank", 2),
    d=seed("lowrank", 3, at=1),
    e=seed("lowrank", 4, blend="multiply"),
  )
  assert found == sorted([*LOWRANK * 2, *BLEND * 2, "group_norm_backward"])


def test_what_has_no_kernel_is_run_as_ever_and_told(stored):
  x = normal(0, (2, 5, 4, 20))  # channels that no kernel was stored for
  spec = SlotSpec("slot", (5, 4, 20), "float32", "nhwc")
  names = ("lowrank", "depthwise", "norm")
  seeds = {name: seed(name, spec=spec) for name in names}
  found = kernels_of(lambda x: trained(seeds, x), stored, x)
  assert {*found} == {*BLEND}  # which know nothing of channels
  dispatcher = dispatch.installed()
  assert dispatcher is not None
  assert {fallback.kernel for fallback in dispatcher.fallbacks()} == {
    "lowrank_forward",
    "depthwise_forward",
    "depthwise_backward",
    "group_norm_backward",
  }


LIVES = {
  "one": {"a": seed("lowrank", 0, alpha=0.3)},
  "isolated": {"a": seed("lowrank", 0, isolation=1.0)},
  "silent": {"a": seed("lowrank", 0, alpha=0.0)},
  "many": {
    "a": seed("lowrank", 0, alpha=0.3),
    "b": seed("lowrank", 1, isolation=1.0, alpha=0.0),
    "c": seed("lowrank", 2, alpha=0.0),
  },
  "mixed": {
    "a": seed("lowrank", 0, alpha=0.3),
    "b": seed("norm", 1),
    "c": seed("lowrank", 2),
    "d": seed("depthwise", 3, isolation=1.0),
    "e": seed("lowrank", 4, at=1),
  },
}


@pytest.mark.parametrize(
  ("life", "dtype"),
  [*((life, "float32") for life in LIVES), ("mixed", "bfloat16")],
)
def test_kernels_train_what_would_be_trained_without(stored, life, dtype):
  del stored
  x = normal(9, (2, 5, 4, C)).astype(dtype)
  got = jax.jit(trained)(LIVES[life], x)
  with dispatch.using(None):
    want = jax.jit(trained)(LIVES[life], x)
  tolerance = 2e-4 if dtype == "float32" else 0.1

  def check(a, b):
    scale = max(1.0, float(jnp.abs(b.astype(jnp.float32)).max()))
    np.testing.assert_allclose(
      a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance * scale
    )

  jax.tree.map(check, got, want)


@pytest.mark.parametrize("silent", [{"alpha": 0.0}, {"isolation": 1.0}])
def test_nan_in_a_seed_without_effect_stays_there(stored, silent):
  del stored
  x = normal(9, (2, 5, 4, C))
  sick = seed("lowrank", 1, **silent)
  sick = sick.replace(params=jax.tree.map(lambda p: p * NAN, sick.params))
  well = seed("lowrank", 0, alpha=0.5)
  (params, dx), y = jax.jit(trained)({"a": well, "b": sick}, x)
  (alone, dx_alone), y_alone = jax.jit(trained)({"a": well}, x)
  assert (y == y_alone).all() and (dx == dx_alone).all()
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b), params["a"], alone["a"]
  )


def test_a_kernel_changes_no_other_blueprint(stored):
  """A blueprint without a join is run as ever."""
  assert blueprints.get("conv3x3").join is None
  x = normal(9, (2, 5, 4, C))
  one = {"a": seed("squeeze_excite", 0, alpha=0.5)}
  assert kernels_of(
    lambda x: apply_seeds(one, x, train=False)[0], stored, x
  ) == ["blend_forward"]
