"""Grown networks made directly, without a run, and their exports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.export import topology, writing
from esper_jax.hosts import make_host
from esper_jax.hosts.host import from_linen
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import with_seeds_at
from esper_jax.tolaria.assembly import slots_of

IMAGE = (4, 4, 2)
MEAN, STD = (0.3, 0.5), (0.2, 0.4)


def preprocess(images, dtype):
  x = images.astype(jnp.float32) / np.float32(255)
  mean, std = (np.float32(v).reshape(1, 1, 1, 2) for v in (MEAN, STD))
  return ((x - mean) / std).astype(dtype)


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
    dtype = jnp.dtype(dtype)
    self.dtype = dtype
    self.host = from_linen(make_host(**self.arguments, dtype=dtype))
    example = preprocess(jnp.zeros((1, *IMAGE), jnp.uint8), dtype)
    self.slots = slots_of(self.host, example)
    params, collections = jax.jit(self.host.init)(jax.random.key(0), example)
    # Statistics and scales as training leaves them: not 0 and 1.
    rng = np.random.default_rng(0)
    collections, params = (
      jax.tree.map(lambda x: x + np.float32(rng.uniform(0, 0.3, x.shape)), tree)
      for tree in (collections, params)
    )
    seeds = {}
    self.keys = []
    for number, (slot, blueprint, leaves) in enumerate(planted):
      path = list(self.slots)[slot]
      leaves = {"alpha": 1.0, "isolation": 0.0, **leaves}
      made = {k: leaves.pop(k) for k in ("blend", "depth") if k in leaves}
      seed = surgery.make_seed(
        self.slots[path],
        blueprint,
        key=jax.random.key(1 + number),
        initializer="random",
        **made,
      ).replace(**{k: jnp.float32(v) for k, v in leaves.items()})
      key = f"{blueprint}_{number + 2}"
      own = seeds.get(path, {})
      seeds = with_seeds_at(seeds, path, {**own, key: seed})
      self.keys.append((path, key))
    self.view = (params, collections, seeds)

  def network(self, modules=()):
    return topology.build(
      self.view,
      {**self.arguments, "dtype": str(self.dtype)},
      self.slots,
      image=IMAGE,
      mean=MEAN,
      std=STD,
      modules=modules,
    )

  def logits(self, images):
    """Of the network as it was trained."""
    x = preprocess(images, self.dtype)
    return np.asarray(self.host.apply(*self.view, x, train=False, key=None)[0])

  def differences(self, folder):
    """Writes all formats and runs them; format -> share of the tolerance."""
    writing.write_formats(folder, self.network())
    expected = self.logits(some_images(5))
    found = writing.compare(folder, some_images(5), expected)
    bound = writing.TOLERANCE[str(self.dtype)] * max(1, abs(expected).max())
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
