"""The jitted programs of a run: one training step, evaluation, the probe.

They are pure functions of arrays; what the run's configuration fixes is bound
by the factories. `tezzeret.forge` compiles them, one program per topology.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from esper_jax.hosts.host import Host
from esper_jax.kasmina import blueprints, initializers, segments
from esper_jax.kasmina.slot import (
  all_seeds,
  group_name,
  observe_slots,
  seeds_at,
)
from esper_jax.kasmina.surgery import group_params, with_group_params
from esper_jax.tolaria.objective import CLASSIFICATION, Objective
from esper_jax.tolaria.state import TrainState
from esper_jax.types import HOST_GROUP, PyTree, SlotSpec, SlotTable

Images = jax.Array  # [examples, ...], uint8 [.., height, width, channels]
Labels = jax.Array  # int32 [examples, ...]


class Sums(struct.PyTreeNode):
  """What an epoch adds up on the device, so that steps need no host.

  Attributes:
    loss: float32 []. Sum over examples.
    correct: float32 []. Count.
    examples: float32 []. Count.
    steps: float32 []. Count.
    square: group -> float32 [], sum over steps of the gradient's mean square.
    finite: group -> bool [], whether every gradient was finite.
  """

  loss: jax.Array
  correct: jax.Array
  examples: jax.Array
  steps: jax.Array
  square: dict[str, jax.Array]
  finite: dict[str, jax.Array]


class StepOptions(NamedTuple):
  """What shapes the training step.

  Attributes:
    preprocess: (images uint8, key or None) -> float [batch, ...]; augments
      where a key is given.
    optimizer: the chain of one group: (gradients) -> descent direction.
    learning_rate: step int32 [] -> float32 [].
    newborn_factor: age int32 [] -> float32 [], warm-up of a seed's updates.
    objective: loss and hits.
    ema_decay: of the parameter average; unused where none is kept.
  """

  preprocess: Callable[[jax.Array, jax.Array | None], jax.Array]
  optimizer: optax.GradientTransformation
  learning_rate: Callable[[jax.Array], jax.Array]
  newborn_factor: Callable[[jax.Array], jax.Array]
  objective: Objective = CLASSIFICATION
  ema_decay: float = 0.0


def empty_sums(state: TrainState) -> Sums:
  """Zeros for the groups of a state."""
  return Sums(
    loss=jnp.zeros((), jnp.float32),
    correct=jnp.zeros((), jnp.float32),
    examples=jnp.zeros((), jnp.float32),
    steps=jnp.zeros((), jnp.float32),
    square={g: jnp.zeros((), jnp.float32) for g in state.optimizer},
    finite={g: jnp.ones((), jnp.bool_) for g in state.optimizer},
  )


def make_loss(host: Host, options: StepOptions) -> Callable[..., Any]:
  """Builds the loss of a batch, to be differentiated by its first argument.

  (group -> parameters, collections, seeds, x [batch, ...], labels
  [batch, ...], key) -> (mean loss, (collections, seeds, hits float32 [])).
  """

  def loss_fn(groups, collections, seeds, x, labels, key):
    seeds = with_group_params(seeds, groups)
    logits, collections, seeds = host.apply(
      groups[HOST_GROUP], collections, seeds, x, train=True, key=key
    )
    losses = options.objective.train_loss(logits, labels)
    hits = options.objective.hits(logits, labels).sum(dtype=jnp.float32)
    return losses.mean(), (collections, seeds, hits)

  return loss_fn


def move(
  options: StepOptions,
  params: PyTree,
  gradient: PyTree,
  optimizer: PyTree,
  *,
  rate: jax.Array,
) -> tuple[PyTree, PyTree]:
  """Updates one group: (its parameters, its optimizer state).

  Args:
    options: of the step.
    params: of the group.
    gradient: as params.
    optimizer: the group's state.
    rate: float32 []. The learning rate.
  """
  direction, new = options.optimizer.update(gradient, optimizer, params)
  return _descend(params, direction, rate), new


def move_seed(
  options: StepOptions,
  params: PyTree,
  gradient: PyTree,
  optimizer: PyTree,
  *,
  rate: jax.Array,
  age: jax.Array,
  multiplier: jax.Array,
) -> tuple[PyTree, PyTree]:
  """As `move`, of a seed: warmed up by its age, and still where silenced.

  Args:
    options, params, gradient, optimizer, rate: see `move`.
    age: int32 []. Steps since the seed was born.
    multiplier: float32 []. Its `Seed.updates`.
  """
  rate = rate * options.newborn_factor(age)
  moved, new = move(
    options, params, gradient, optimizer, rate=rate * multiplier
  )
  # Silence is a selection, so that a sick seed's NaN stays with it.
  kept = jax.tree.map(
    lambda new, old: jnp.where(multiplier > 0, new, old), moved, params
  )
  return kept, new


def make_train_step(host: Host, options: StepOptions) -> Callable[..., Any]:
  """Builds (state, sums, images, labels, indices int32 [batch]) -> both."""
  loss_fn = make_loss(host, options)

  def step(
    state: TrainState,
    sums: Sums,
    images: Images,
    labels: Labels,
    indices: jax.Array,
  ) -> tuple[TrainState, Sums]:
    augment_key, dropout_key = jax.random.split(
      jax.random.fold_in(state.key, state.step)
    )
    x = options.preprocess(images[indices], augment_key)
    y = labels[indices]
    groups = group_params(state.params, state.seeds)
    (loss, (collections, seeds, hits)), gradients = jax.value_and_grad(
      loss_fn, has_aux=True
    )(groups, state.collections, state.seeds, x, y, dropout_key)

    multiplier = {
      group_name(*at): seed.updates
      for at, seed in all_seeds(state.seeds).items()
    }
    rate = options.learning_rate(state.step) * state.lr_factor
    new_groups, new_optimizer = {}, {}
    for group, params in groups.items():
      args = options, params, gradients[group], state.optimizer[group]
      if group == HOST_GROUP:
        new_groups[group], new_optimizer[group] = move(*args, rate=rate)
        continue
      new_groups[group], new_optimizer[group] = move_seed(
        *args, rate=rate, age=state.age[group], multiplier=multiplier[group]
      )
    average = state.average
    if average is not None:
      average = optax.incremental_update(
        new_groups, average, 1 - options.ema_decay
      )
    new_sums = Sums(
      loss=sums.loss + loss * len(indices),
      correct=sums.correct + hits,
      examples=sums.examples + len(indices),
      steps=sums.steps + 1,
      square={
        g: sums.square[g] + mean_square(tree) for g, tree in gradients.items()
      },
      finite={
        g: sums.finite[g] & jnp.isfinite(mean_square(tree))
        for g, tree in gradients.items()
      },
    )
    new_state = state.replace(
      step=state.step + 1,
      params=new_groups[HOST_GROUP],
      collections=collections,
      seeds=with_group_params(seeds, new_groups),
      optimizer=new_optimizer,
      age={g: age + 1 for g, age in state.age.items()},
      average=average,
    )
    return new_state, new_sums

  return step


def make_chunk(step: Callable[..., Any]) -> Callable[..., Any]:
  """Scans a training step over indices int32 [steps, batch]."""

  def chunk(state, sums, images, labels, indices):
    def body(carry, row):
      return step(*carry, images, labels, row), None

    return jax.lax.scan(body, (state, sums), indices)[0]

  return chunk


def make_evaluate(
  host: Host,
  preprocess: Callable[[jax.Array, jax.Array | None], jax.Array],
  objective: Objective = CLASSIFICATION,
) -> Callable[..., Any]:
  """Builds the evaluation program.

  It is also the ablation's: the caller changes the leaves of the seeds.
  (params, collections, seeds, images [batch, ...], labels [batch, ...], mask
  float32 [batch]) -> (losses float32 [batch], hits float32 [batch]), both 0
  where the mask is 0.
  """

  def evaluate(params, collections, seeds, images, labels, mask):
    x = preprocess(images, None)
    logits, _, _ = host.apply(
      params, collections, seeds, x, train=False, key=None
    )
    losses = objective.loss(logits, labels)
    hits = objective.hits(logits, labels).astype(jnp.float32)
    return jnp.where(mask > 0, losses, 0.0), hits * mask

  return evaluate


def make_metrics(
  host: Host,
  preprocess: Callable[[jax.Array, jax.Array | None], jax.Array],
  objective: Objective,
) -> Callable[..., Any]:
  """Builds what reads an objective's metrics.

  (params, collections, seeds, images and labels [batch, ...]) -> {name:
  float32 [batch]}.
  """

  def read(params, collections, seeds, images, labels):
    x = preprocess(images, None)
    outputs, _, _ = host.apply(
      params, collections, seeds, x, train=False, key=None
    )
    return {
      name: metric(outputs, labels).astype(jnp.float32)
      for name, metric in objective.metrics.items()
    }

  return read


class Probed(NamedTuple):
  """What the probe finds.

  Attributes:
    signals: slot path -> (activation, cotangent of the mean loss),
      float32 [batch, *shape] both.
    supply: slot path -> float32 [], what a first step of the parameters that
      are already there would take off the loss, per learning rate: the sum of
      the magnitudes of their gradients. There are: those of the host that
      reach no earlier slot, and the slot's own seeds. Where a slot has none,
      those of the whole host.
  """

  signals: dict[str, tuple[jax.Array, jax.Array]]
  supply: dict[str, jax.Array]


def make_probe(
  host: Host,
  preprocess: Callable[[jax.Array, jax.Array | None], jax.Array],
  slots: SlotTable,
  objective: Objective = CLASSIFICATION,
) -> Callable[..., Any]:
  """Builds the probe: what every slot carries and feels on one batch.

  (params, collections, seeds, images and labels [batch, ...]) -> Probed.
  Batch statistics are those of the batch and are not updated; nothing is
  augmented; a host with dropout drops the same units each time.
  """

  def probe(params, collections, seeds, images, labels):
    x = preprocess(images, None)
    offsets = {
      path: jnp.zeros((len(images), *spec.shape), jnp.float32)
      for path, spec in slots.items()
    }

    def forward(groups, offsets):
      own = with_group_params(seeds, groups)
      key = jax.random.key(0)
      with observe_slots(offsets) as trace:
        logits, _, _ = host.apply(
          groups[HOST_GROUP], collections, own, x, train=True, key=key
        )
      return logits, [trace.outputs[p].astype(jnp.float32) for p in slots]

    def loss_fn(groups, offsets):
      logits, outputs = forward(groups, offsets)
      return objective.loss(logits, labels).mean(), outputs

    groups = group_params(params, seeds)
    (gradients, cotangents), activations = jax.grad(
      loss_fn, argnums=(0, 1), has_aux=True
    )(groups, offsets)
    fed = segments.first_reached(
      lambda p: forward({**groups, HOST_GROUP: p}, offsets)[1], params
    )
    signals = {
      path: (activations[n], cotangents[path]) for n, path in enumerate(slots)
    }
    return Probed(signals, _supply(list(slots), seeds, gradients, fed))

  return probe


def _supply(
  paths: list[str], seeds: PyTree, gradients: dict[str, PyTree], fed: PyTree
) -> dict[str, jax.Array]:
  host = jax.tree.leaves(gradients[HOST_GROUP])
  owners = jax.tree.leaves(fed)
  supply = {}
  for n, path in enumerate(paths):
    own = [g for g, i in zip(host, owners, strict=True) if i == n]
    for key in seeds_at(seeds, path):
      own += jax.tree.leaves(gradients[group_name(path, key)])
    total = sum(jnp.abs(leaf).sum(dtype=jnp.float32) for leaf in own or host)
    supply[path] = jnp.asarray(total)
  return supply


def make_score(blueprint: str, spec: SlotSpec) -> Callable[..., Any]:
  """Builds what scores a blueprint at a slot.

  (key, activations, cotangents, both float32 [batch, *spec.shape]) -> (its
  germination score, its first gain), float32 [] each; see `initializers`. The
  key draws the newborn.
  """

  def score(key, x, g):
    branch = blueprints.get(blueprint)
    params, state = initializers.initialize("zero_out", branch, key, spec)
    dtype = jnp.dtype(spec.dtype)
    args = branch, params, state, x.astype(dtype), g.astype(dtype)
    return (
      initializers.germination_score(*args),
      initializers.first_gain(*args),
    )

  return score


def mean_square(tree: PyTree) -> jax.Array:
  """Mean of the squares of a tree's elements, float32 []."""
  leaves = jax.tree.leaves(tree)
  total = sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)
  return jnp.asarray(total) / sum(leaf.size for leaf in leaves)


def _descend(params: PyTree, direction: PyTree, rate: jax.Array) -> PyTree:
  return jax.tree.map(
    lambda p, d: p - rate.astype(p.dtype) * d, params, direction
  )
