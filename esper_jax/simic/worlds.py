"""Worlds: what differs between the environments in which a policy learns.

Data and shapes are shared by a whole population; a world says which part of
them one environment uses. A policy that has met many worlds has less reason
to learn one by heart (domain randomization, Tobin et al. 2017,
arXiv:1703.06907).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from esper_jax.data.pipeline import permutation
from esper_jax.data.splits import Dataset, channel_statistics
from esper_jax.hosts.host import Host
from esper_jax.kasmina import blueprints, surgery
from esper_jax.simic.hosts import FIRST, MASKS
from esper_jax.types import InputError, PyTree, SlotTable

_BACKWARD = 3  # a training step costs this many forward passes


class Material(NamedTuple):
  """The data that all environments share, on the device.

  Attributes:
    images: uint8 [train, height, width, channels].
    labels: int32 [train].
    validation_images, validation_labels: what policies and rewards may know.
    report_images, report_labels: disjoint from both; for reports alone.
    num_classes: labels are 0..num_classes-1.
    mean, std: per channel over `images`, in units of 255.
  """

  images: jax.Array
  labels: jax.Array
  validation_images: jax.Array
  validation_labels: jax.Array
  report_images: jax.Array
  report_labels: jax.Array
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


def make_material(
  data: Dataset, *, report: int, pool: int = 1, seed: int = 0
) -> Material:
  """Cuts the report split out of a data set's validation split.

  The data set's own test images are left alone.

  Args:
    data: see `datasets.load`.
    report: number of examples.
    pool: side of the squares whose mean becomes a pixel.
    seed: draws the report split.

  Raises:
    InputError: too few validation examples, or a side that pool does not
      divide.
  """
  held = len(data.validation_labels)
  if not 0 < report <= held - 2:
    raise InputError(
      f"simic: {report} report examples of {held} held out; give 1 to"
      f" {held - 2}, or hold out more with --config.data.validation_fraction"
    )
  order = permutation(held, seed=seed, stream=())
  shown, kept = np.sort(order[report:]), np.sort(order[:report])
  images = _pooled(data.train_images, pool)
  mean, std = channel_statistics(images)
  held_out = _pooled(data.validation_images, pool)
  return Material(
    images=jnp.asarray(images),
    labels=jnp.asarray(data.train_labels),
    validation_images=jnp.asarray(held_out[shown]),
    validation_labels=jnp.asarray(data.validation_labels[shown]),
    report_images=jnp.asarray(held_out[kept]),
    report_labels=jnp.asarray(data.validation_labels[kept]),
    num_classes=data.num_classes,
    mean=mean,
    std=std,
  )


def _pooled(images: np.ndarray, side: int) -> np.ndarray:
  n, height, width, channels = images.shape
  if height % side or width % side:
    raise InputError(
      f"simic: images of {height}x{width} cannot be pooled by {side}; give a"
      " number that divides both"
    )
  if side == 1:
    return images
  parts = (n, height // side, side, width // side, side, channels)
  mean = images.reshape(parts).mean(axis=(2, 4), dtype=np.float32)
  return np.round(mean).astype(np.uint8)


class Ranges(NamedTuple):
  """From what worlds are drawn, uniformly unless noted.

  Attributes:
    units: choices of the host's width; () = all of it.
    layers: choices of its number of layers; () = all.
    examples: least and most training examples, as shares of all.
    label_noise: least and most share of training labels drawn anew.
    learning_rate: least and most factor on the schedule, log-uniform.
    missing: most slots that do not exist; which, and how many, is drawn. One
      slot stays.
    budget: least and most parameters, as multiples of the host's own; a
      germination beyond it is not legal.
    attention: least and most probability that a seed whose contribution
      nobody waits for is measured at a boundary.
  """

  units: tuple[int, ...] = ()
  layers: tuple[int, ...] = ()
  examples: tuple[float, float] = (1.0, 1.0)
  label_noise: tuple[float, float] = (0.0, 0.0)
  learning_rate: tuple[float, float] = (1.0, 1.0)
  missing: int = 0
  budget: tuple[float, float] = (1e6, 1e6)
  attention: tuple[float, float] = (1.0, 1.0)


class World(struct.PyTreeNode):
  """What one environment is made of.

  Attributes:
    labels: int32 [train]. The training labels, noise included.
    examples: int32 [train]. Indices; the first `count` are trained on.
    count: int32 [].
    rate: float32 []. Factor on the learning rate.
    masks: of the host, see `simic.hosts`.
    exists: bool [rows]. Which slots there are.
    budget: float32 []. Most parameters.
    parameters: float32 []. The host's own.
    flops: float32 []. Of a training step of the host on one example.
    attention: float32 []. See `Ranges`.
    fits: bool [rows, blueprints].
    cost: float32 [rows, blueprints]. Parameters of a newborn; 0 where there is
      no slot. Seeds are as wide as the widest host: a host is narrow, what
      grows on it is not.
    seed_flops: float32 [rows, blueprints]. Of a training step of a seed on
      one example.
  """

  labels: jax.Array
  examples: jax.Array
  count: jax.Array
  rate: jax.Array
  masks: PyTree
  exists: jax.Array
  budget: jax.Array
  parameters: jax.Array
  flops: jax.Array
  attention: jax.Array
  fits: jax.Array
  cost: jax.Array
  seed_flops: jax.Array


def make_draw(
  material: Material,
  ranges: Ranges,
  *,
  build: Callable[[int, int], Host],
  width: int,
  depth: int,
  names: Sequence[str],
) -> Callable[[jax.Array], World]:
  """Builds key -> World.

  Args:
    material: the data.
    ranges: from what is drawn.
    build: (units, layers) -> the plain host of that size, all masks on.
    width: units of the host that has room for all.
    depth: its layers.
    names: the blueprints, in the order of every blueprint axis.

  Raises:
    InputError: a choice that does not fit the host.
  """
  units = ranges.units or (width,)
  layers = ranges.layers or (depth,)
  if max(units) > width or max(layers) > depth or min(*units, *layers) < 1:
    raise InputError(
      f"simic: units {units} and layers {layers} do not fit a host of width"
      f" {width} and depth {depth}; valid are 1 to {width} and 1 to {depth}"
    )
  bill = _Bill.of(material, build, units, layers, (width, depth), names)
  total = len(material.labels)

  def draw(key: jax.Array) -> World:
    keys = dict(zip(_DRAWN, jax.random.split(key, len(_DRAWN)), strict=True))
    u = jax.random.randint(keys["units"], (), 0, len(units))
    n = jax.random.randint(keys["layers"], (), 0, len(layers))
    mine, deep = jnp.asarray(units)[u], jnp.asarray(layers)[n]
    flips = jax.random.uniform(keys["flips"], (total,)) < _between(
      keys["noise"], ranges.label_noise
    )
    other = jax.random.randint(
      keys["label"], (total,), 0, material.num_classes, jnp.int32
    )
    share = _between(keys["count"], ranges.examples)
    low, high = np.log(ranges.learning_rate)
    depths = jnp.arange(depth, dtype=jnp.int32)
    place = jax.random.uniform(keys["place"], (depth,))
    # Those of layers that are off come last, and so are missing first.
    order = jnp.argsort(jnp.argsort(jnp.where(depths < deep, place, 2.0)))
    gone = jax.random.randint(keys["gone"], (), 0, ranges.missing + 1)
    exists = (depths < deep) & (order < jnp.maximum(deep - gone, 1))
    return World(
      labels=jnp.where(flips, other, material.labels),
      examples=jax.random.permutation(keys["examples"], total).astype(
        jnp.int32
      ),
      count=jnp.maximum(1, jnp.round(share * total)).astype(jnp.int32),
      rate=jnp.exp(_between(keys["rate"], (float(low), float(high)))),
      masks={
        "units": jnp.arange(width, dtype=jnp.int32) < mine,
        "layers": depths < deep,
      },
      exists=exists,
      budget=bill.parameters[u, n] * _between(keys["budget"], ranges.budget),
      parameters=bill.parameters[u, n],
      flops=bill.flops[u, n],
      attention=_between(keys["attention"], ranges.attention),
      fits=bill.fits & exists.reshape(-1, 1),
      cost=jnp.where(exists.reshape(-1, 1), bill.cost, 0.0),
      seed_flops=bill.seed_flops,
    )

  return draw


_DRAWN = (
  *("units", "layers", "noise", "flips", "label", "count", "examples"),
  *("rate", "place", "gone", "budget", "attention"),
)


def _between(key: jax.Array, ends: tuple[float, float]) -> jax.Array:
  low, high = ends
  return low + (high - low) * jax.random.uniform(key, ())


def narrowed(params: PyTree, world: World, *, width: int) -> PyTree:
  """A host's first parameters, as wide as the world says.

  Kernels that read hidden units were drawn for `width` of them; where fewer
  are on, their weights are scaled up to keep the scale of what comes out.
  """
  on = world.masks["units"].sum(dtype=jnp.float32)
  scale = jnp.sqrt(width / on)

  def fit(path, leaf):
    first = path[0].key == FIRST
    return leaf if first or leaf.ndim < 2 else leaf * scale

  return jax.tree_util.tree_map_with_path(fit, params)


class _Bill(NamedTuple):
  """What hosts cost, by the choices of units and layers, and seeds.

  Attributes:
    parameters: float32 [units, layers].
    flops: float32 [units, layers], a training step on one example.
    fits: bool [rows, blueprints].
    cost: float32 [rows, blueprints].
    seed_flops: float32 [rows, blueprints].
  """

  parameters: jax.Array
  flops: jax.Array
  fits: jax.Array
  cost: jax.Array
  seed_flops: jax.Array

  @classmethod
  def of(cls, material, build, units, layers, most, names) -> "_Bill":
    x = jax.ShapeDtypeStruct((1, *material.images.shape[1:]), jnp.float32)
    sizes = np.zeros((2, len(units), len(layers)))
    for u, size in enumerate(units):
      for n, depth in enumerate(layers):
        sizes[:, u, n] = _host_cost(build(size, depth), x)
    slots = slots_of(build(*most), x)
    shape = (len(slots), len(names))
    fits, cost, seed_flops = np.zeros(shape, bool), *np.zeros((2, *shape))
    for row, spec in enumerate(slots.values()):
      may = blueprints.fitting(spec)
      for column, name in enumerate(names):
        if name in may:
          fits[row, column] = True
          count, flops = blueprints.cost(name, spec)
          cost[row, column] = count
          seed_flops[row, column] = _BACKWARD * flops
    f32 = jnp.float32
    return cls(
      jnp.asarray(sizes[0], f32),
      jnp.asarray(_BACKWARD * sizes[1], f32),
      jnp.asarray(fits),
      jnp.asarray(cost, f32),
      jnp.asarray(seed_flops, f32),
    )


def slots_of(host: Host, x: jax.ShapeDtypeStruct) -> SlotTable:
  """The host's slot table, from one abstract trace."""

  def forward(x):
    params, collections = host.init(jax.random.key(0), x)
    return host.apply(params, collections, {}, x, train=False, key=None)[0]

  return surgery.slot_table(lambda: jax.eval_shape(forward, x))


def _host_cost(host: Host, x: jax.ShapeDtypeStruct) -> tuple[int, float]:
  """(parameters, FLOPs of one forward pass) of a host of this size."""
  params, collections = jax.eval_shape(
    lambda x: host.init(jax.random.key(0), x), x
  )
  collections = {k: v for k, v in collections.items() if k != MASKS}

  def forward(params, x):
    masks = host.init(jax.random.key(0), x)[1][MASKS]  # constants, all on
    variables = {**collections, MASKS: masks}
    return host.apply(params, variables, {}, x, train=False, key=None)[0]

  lowered = jax.jit(forward).trace(params, x).lower(lowering_platforms=("cpu",))
  analysis = lowered.cost_analysis() or {}
  return blueprints.count(params), float(analysis.get("flops", 0.0))
