"""The JAX side of the peer benchmarks: hosts, our trainer, a bare loop."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks._common import load_config
from esper_jax.data.splits import Dataset
from esper_jax.hosts.host import from_linen
from esper_jax.hosts.registry import make_host
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import Slot
from esper_jax.tezzeret.program import Limits
from esper_jax.tolaria import assembly, hosting, recovery
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.profile import Profile
from esper_jax.tolaria.programs import Programs
from esper_jax.tolaria.state import TrainState
from esper_jax.tolaria.steps import empty_sums

CNN = "cnn"
CLASSES = 10
CNN_WIDTH = 32
ALPHA = 0.5  # of the growing network's seed
BLUEPRINT = "conv3x3"
RATE, MOMENTUM, DECAY = 0.02, 0.9, 5e-4  # SGD; the decay is decoupled
_SHAPE = (32, 32, 3)  # of an image


class Block(NamedTuple):
  """One contestant.

  Attributes:
    run: makes so many steps and returns their seconds.
    loss: makes so many steps and returns the mean loss of all their examples.
  """

  run: Callable[[int], float]
  loss: Callable[[int], float]


class PooledCNN(nn.Module):
  """Three 3x3 convolutions, each with ReLU and 2x2 max pooling, then a head.

  Attributes:
    width: channels of the first convolution; each next one has twice as many.
    slots: whether a slot follows each pooling.
  """

  width: int
  slots: bool

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    for n in range(1, 4):
      features = self.width * 2 ** (n - 1)
      x = nn.relu(nn.Conv(features, (3, 3), name=f"conv{n}")(x))
      x = max_pool(x)
      if self.slots:
        x = Slot(name=f"slot{n}")(x, train=train)
    return nn.Dense(CLASSES, name="head")(x.mean(axis=(1, 2)))


def max_pool(x: jax.Array) -> jax.Array:
  """Maxima of 2x2 windows: [b, h, w, c] -> [b, h / 2, w / 2, c].

  As a maximum over two axes: the gradient of `nn.max_pool`, a
  select-and-scatter, is slow on XLA:CPU.
  """
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def noise(examples: int) -> Dataset:
  """A data set of noise in CIFAR-10's shapes."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (examples, *_SHAPE), np.uint8)
  labels = np.arange(examples, dtype=np.int32) % CLASSES
  few = images[:CLASSES], labels[:CLASSES]
  half, third = (0.5,) * 3, (0.29,) * 3
  return Dataset(
    "cifar10", images, labels, *few, *few, CLASSES, half, third, "", "noise"
  )


def make_config(
  network: str,
  *,
  width: int,
  batch: int,
  precision: str = "float32",
  augment: Sequence[str] = (),
  chunk: int = 0,
) -> ConfigDict:
  """The config of a network: SGD at a constant rate, seeds at full rate.

  Args:
    network: "cnn", or the name of a host.
    width: channels of the first stage; 0 = the network's own.
    batch: examples of a step.
    precision: of the computation.
    augment: operations; see `data.augment`.
    chunk: steps of one call; 0 = the backend's default.

  Raises:
    InputError: a value is not valid.
  """
  host = "resnet8" if network == CNN else network
  flags = {
    "host.name": host,
    "host.width": width,
    "data.batch_size": batch,
    "data.augment": tuple(augment) or "none",
    "optimizer.name": "sgd",
    "optimizer.schedule": "constant",
    "optimizer.warmup_epochs": 0.0,
    "optimizer.learning_rate": RATE,
    "optimizer.momentum": MOMENTUM,
    "optimizer.weight_decay": DECAY,
    "optimizer.newborn_warmup_steps": 0,
    "train.precision": precision,
    "train.chunk_steps": chunk,
    "kasmina.blueprints": (BLUEPRINT,),
  }
  overrides = [f"--config.{key}={value}" for key, value in flags.items()]
  return load_config("configs/cifar10.py:gpu", overrides)


def make_parts(network: str, config: ConfigDict, data: Dataset) -> Parts:
  """The parts of a run; those of "cnn" have `PooledCNN` as the host."""
  parts = assembly.assemble(config, data)
  if network != CNN:
    return parts
  host = from_linen(PooledCNN(config.host.width or CNN_WIDTH, slots=True))
  slots = hosting.slots_of(host, parts.example)
  return parts._replace(host=host, growth=parts.growth._replace(slots=slots))


def plain_module(network: str, config: ConfigDict, dtype: Any) -> nn.Module:
  """The network without any slot."""
  width = config.host.width
  if network == CNN:
    return PooledCNN(width or CNN_WIDTH, slots=False)
  return make_host(
    network, num_classes=CLASSES, width=width, slots=(), dtype=dtype
  )


def planted(state: TrainState, parts: Parts) -> tuple[TrainState, str]:
  """A state with one blending seed in its middle slot, and the slot's name."""
  growth = parts.growth
  slot = list(growth.slots)[len(growth.slots) // 2]
  state, key = surgery.germinate(
    state,
    growth.slots[slot],
    BLUEPRINT,
    key=jax.random.key(0),
    optimizer=growth.optimizer,
    initializer="random",
    proximal=growth.proximal,
    permanent=(),
  )
  return surgery.set_leaves(state, slot, key, alpha=ALPHA, isolation=0.0), slot


def trainer_block(parts: Parts, state: TrainState, batch: int) -> Block:
  """Our trainer's own calls of its own programs, from a state on."""
  programs = Programs(
    parts,
    batch_size=batch,
    probe_examples=batch,
    seed=0,
    limits=Limits(threads=0),  # nothing is compiled beside the steps
    stopping=lambda: False,
    on_compile=lambda compiled: None,
    on_use=lambda seconds: None,
    profile=Profile((), ""),
  )
  # The trainer donates its state, and the same one may start several blocks.
  own = jax.tree.map(jnp.copy, state)
  run = recovery.new_run(parts, own, seed=0)
  programs.begin(run)
  order = rows_of(parts, batch)

  def steps(count: int) -> None:
    done = 0
    while done < count:
      size = parts.chunk if count - done >= parts.chunk else 1
      programs.train(run, np.stack([next(order) for _ in range(size)]))
      done += size
    jax.block_until_ready(run.state)

  def loss(count: int) -> float:
    run.sums = empty_sums(run.state)
    steps(count)
    return float(run.sums.loss / run.sums.examples)

  return Block(timed(steps), loss)


def bare_block(
  module: nn.Module, parts: Parts, state: TrainState, batch: int
) -> Block:
  """A training step as one would write it for this network alone."""
  preprocess = parts.steps.preprocess
  optimizer = optax.chain(
    optax.trace(MOMENTUM),
    optax.add_decayed_weights(
      DECAY, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
    ),
    optax.scale(-RATE),
  )
  images = jax.device_put(parts.data.train_images)
  labels = jax.device_put(parts.data.train_labels)

  def loss_fn(params, collections, x, y):
    logits, updated = module.apply(
      {"params": params, **collections}, x, train=True, mutable=["batch_stats"]
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return losses.mean(), updated

  def step(carry, total, images, labels, indices):
    params, collections, moments, key = carry
    key, own = jax.random.split(key)
    x = preprocess(images[indices], own)
    (loss, collections), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      params, collections, x, labels[indices]
    )
    with jax.numpy_dtype_promotion("standard"):
      updates, moments = optimizer.update(gradients, moments, params)
    params = optax.apply_updates(params, updates)
    return (params, collections, moments, key), total + loss

  params, collections = jax.tree.map(
    jnp.copy, (state.params, state.collections)
  )
  carry = (params, collections, optimizer.init(params), jax.random.key(0))
  total = jnp.zeros((), jnp.float32)
  order = rows_of(parts, batch)
  lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
    carry, total, images, labels, next(rows_of(parts, batch))
  )
  program = lowered.compile()

  def steps(count: int) -> None:
    nonlocal carry, total
    for _ in range(count):
      carry, total = program(carry, total, images, labels, next(order))
    jax.block_until_ready(carry)

  def loss(count: int) -> float:
    nonlocal total
    total = jnp.zeros((), jnp.float32)
    steps(count)
    return float(total) / count

  return Block(timed(steps), loss)


def rows_of(parts: Parts, batch: int) -> Any:
  """Yields the indices of batch after batch, int32 [batch], for ever."""
  examples, start = len(parts.data.train_labels), 0
  while True:
    rows = np.arange(start, start + batch, dtype=np.int32) % examples
    start = (start + batch) % examples
    yield rows


def timed(steps: Callable[[int], None]) -> Callable[[int], float]:
  """Makes what runs so many steps and returns their seconds."""

  def run(count: int) -> float:
    start = time.perf_counter()
    steps(count)
    return time.perf_counter() - start

  return run
