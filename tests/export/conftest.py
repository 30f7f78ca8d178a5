"""Grown networks made directly, without a run, and their exports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.export import stablehlo, topology, writing
from esper_jax.hosts import make_host
from esper_jax.hosts.host import from_linen
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import with_seeds_at
from esper_jax.tolaria.hosting import slots_of

IMAGE = (4, 4, 2)
VOCABULARY, CONTEXT = "abc", 6
MEAN, STD = (0.3, 0.5), (0.2, 0.4)


def preprocess(images, dtype):
  if images.dtype == jnp.int32:  # tokens
    return images
  x = images.astype(jnp.float32) / np.float32(255)
  mean, std = (np.float32(v).reshape(1, 1, 1, 2) for v in (MEAN, STD))
  return ((x - mean) / std).astype(dtype)


def drawn(shapes, seed):
  """Arrays as training may leave them, without a program that draws them."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name in ("scale", "var"):
      values = rng.uniform(0.7, 1.3, leaf.shape)
    else:
      fan_in = max(1, np.prod(leaf.shape[:-1]))
      values = rng.normal(0, fan_in**-0.5, leaf.shape)
    return jnp.asarray(values, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


class Grown:
  """A host with seeds that are part of it, as training evaluates it."""

  def __init__(self, name, planted, *, dtype="float32", norm="batch", **sizes):
    """planted: (slot index, blueprint, {alpha, isolation, blend, depth})."""
    self.arguments = {
      "name": name,
      "num_classes": 3,
      "width": 8,
      "depth": 2,
      "norm": norm,
      "inner_widths": (),
      **sizes,
    }
    self.reads = topology.images(IMAGE, MEAN, STD)
    if name == "gpt":
      self.arguments |= {"heads": 2, "context": CONTEXT}
      self.reads = topology.tokens(CONTEXT, VOCABULARY)
    dtype = jnp.dtype(dtype)
    self.dtype = dtype
    self.host = from_linen(make_host(**self.arguments, dtype=dtype))
    example = preprocess(self.inputs(1), dtype)
    self.slots = slots_of(self.host, example)
    shapes = jax.eval_shape(self.host.init, jax.random.key(0), example)
    params, collections = drawn(shapes, 0)
    seeds = {}
    self.keys = []
    for number, (slot, blueprint, leaves) in enumerate(planted):
      path = list(self.slots)[slot]
      leaves = {"alpha": 1.0, "isolation": 0.0, **leaves}
      made = {k: leaves.pop(k) for k in ("blend", "depth") if k in leaves}
      shapes = jax.eval_shape(
        functools.partial(
          surgery.make_seed,
          self.slots[path],
          blueprint,
          initializer="random",
          **made,
        ),
        key=jax.random.key(0),
      )
      seed = drawn(shapes, 1 + number).replace(
        **{k: jnp.float32(v) for k, v in leaves.items()}
      )
      key = f"{blueprint}_{number + 2}"
      own = seeds.get(path, {})
      seeds = with_seeds_at(seeds, path, {**own, key: seed})
      self.keys.append((path, key))
    self.view = (params, collections, seeds)

  def inputs(self, count):
    """As many examples, drawn."""
    if self.reads["dtype"] == "uint8":
      return some_images(count)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, len(VOCABULARY), (count, CONTEXT), np.int32)
    return jnp.asarray(tokens)

  def network(self, modules=()):
    return topology.build(
      self.view,
      {**self.arguments, "dtype": str(self.dtype)},
      self.slots,
      reads=self.reads,
      modules=modules,
    )

  def logits(self, images):
    """Of the network as it was trained."""

    @jax.jit
    def forward(view, images):
      x = preprocess(images, self.dtype)
      return self.host.apply(*view, x, train=False, key=None)[0]

    return np.asarray(forward(self.view, images))

  def differences(self, folder):
    """Writes all formats and runs them; format -> share of the tolerance."""
    writing.write_formats(folder, self.network())
    expected = self.logits(self.inputs(5))
    found = writing.compare(folder, self.inputs(5), expected)
    bound = stablehlo.TOLERANCE[str(self.dtype)] * max(1, abs(expected).max())
    return {name: difference / bound for name, difference in found.items()}


def some_images(count):
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.integers(0, 256, (count, *IMAGE), np.uint8))


@pytest.fixture
def images():
  """Makes images: uint8 [count, height, width, channels]."""
  return some_images


@pytest.fixture
def grown():
  """Makes grown networks."""
  return Grown
