"""Networks of a user's models that have grown, exported without a run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esper_jax import Slot, apply_slot, from_nnx, nnx_slot
from esper_jax.export import topology, writing
from esper_jax.hosts.host import Host, from_model
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import seeds_at, with_seeds_at
from esper_jax.oona import lineage
from esper_jax.tolaria import workdir
from esper_jax.tolaria.hosting import slots_of

X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)


class Part(nn.Module):
  """A slot inside another module."""

  @nn.compact
  def __call__(self, x, *, train=False):
    return Slot(name="inner")(nn.relu(nn.Dense(8)(x)), train=train)


class Net(nn.Module):
  """Batch statistics, a collection of the user's, and two slots."""

  activation: str = "tanh"

  @nn.compact
  def __call__(self, x, *, train=False):
    x = Part(name="part")(x, train=train)
    x = nn.BatchNorm(use_running_average=not train)(x)
    calls = self.variable("calls", "count", lambda: jnp.ones((), jnp.int32))
    if train:
      calls.value = calls.value + jnp.int32(1)
    x = getattr(jnp, self.activation)(x) * calls.value.astype(x.dtype)
    return nn.Dense(2)(Slot(name="middle")(x, train=train))


class Nnx(nnx.Module):
  """Flax NNX, with batch statistics."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(5, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.head = nnx.Linear(8, 2, rngs=rngs)

  def __call__(self, x):
    x = self.norm(jnp.tanh(self.hidden(x)))
    return self.head(nnx_slot("middle", x))


def plain():
  """A host that is no module of Flax: its parameters are a list."""

  def init(key, x):
    del x
    a, b = jax.random.split(key)
    return [jax.random.normal(a, (5, 8)), jax.random.normal(b, (8, 2))], {}

  def apply(params, collections, seeds, x, *, train, key):
    x, seeds = apply_slot(
      seeds, "middle", jnp.tanh(x @ params[0]), train=train, key=key
    )
    return x @ params[1], dict(collections), seeds

  return Host(init, apply)


MODELS = {"linen": Net, "nnx": lambda: from_nnx(Nnx), "plain": plain}


def varied(tree, seed):
  """Arrays as training may leave them: none is at its first value."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: (
      leaf + jnp.asarray(rng.uniform(0.1, 0.3, leaf.shape), leaf.dtype)
    ),
    tree,
  )


def export(model, planted, folder, *, title="Net", x=X, reads=None, classes=()):
  """Writes an export.

  Args:
    model: as `grow` takes it.
    planted: (slot, blueprint, {alpha, blend, depth}), in the order of birth.
    folder: that exists.
    title, x, reads, classes: of the network, see `topology.build`.

  Returns:
    What its network gives for x, as training evaluates it.
  """
  host = from_model(model)
  slots = slots_of(host, jnp.asarray(x[:1]))
  params, collections = varied(host.init(jax.random.key(0), x[:1]), 0)
  seeds, story = {}, [{"type": "began"}]
  for number, (slot, blueprint, options) in enumerate(planted):
    alpha = {"alpha": jnp.float32(options.get("alpha", 1))}
    options = {k: v for k, v in options.items() if k != "alpha"}
    seed = surgery.make_seed(
      slots[slot],
      blueprint,
      initializer="random",
      key=jax.random.key(number),
      **options,
    ).replace(isolation=jnp.float32(0), **alpha)
    own, key = seeds_at(seeds, slot), f"{blueprint}_{number + 1}"
    seeds = with_seeds_at(seeds, slot, {**own, key: seed})
    born = {"slot": slot, "lane": number, "key": key, "blueprint": blueprint}
    story.append({"type": "germinated", **born})
  made = topology.build(
    (params, collections, seeds),
    {"name": "given", "title": title, "dtype": "float32"},
    slots,
    reads=reads or topology.examples(x.shape[1:], str(x.dtype)),
    classes=classes,
    model=host,
  )
  writing.write_formats(folder, made)
  files = {path.name: lineage.hash_file(path) for path in folder.iterdir()}
  story.append({"type": "exported", "files": files})
  workdir.write_json(folder / lineage.LINEAGE, lineage.chain(story))
  view = params, collections, seeds
  return np.asarray(host.apply(*view, x, train=False, key=None)[0])
