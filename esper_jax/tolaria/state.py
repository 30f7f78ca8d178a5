"""The training state: everything a step reads and writes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from esper_jax.hosts.host import Host
from esper_jax.kasmina.surgery import group_params, with_group_params
from esper_jax.types import HOST_GROUP, PyTree


class TrainState(struct.PyTreeNode):
  """What one step turns into the next; its tree structure is the topology.

  Attributes:
    step: int32 []. Steps done.
    params: the host's parameters, float32.
    collections: the host's other variables by collection (batch_stats ...).
    seeds: slot path -> {key -> Seed}; {} while every slot is dormant.
    optimizer: group -> optax state; "host" and "<slot>/<key>" per seed.
    age: group -> int32 [], steps since the group was born.
    average: group -> exponential moving average of its parameters; None where
      the run keeps none.
    lr_factor: float32 []. The governor's factor on the learning rate.
    key: typed PRNG key []. Never consumed: step keys are folded from it.
  """

  step: jax.Array
  params: PyTree
  collections: dict[str, PyTree]
  seeds: dict[str, Any]
  optimizer: dict[str, PyTree]
  age: dict[str, jax.Array]
  average: dict[str, PyTree] | None
  lr_factor: jax.Array
  key: jax.Array


def init_state(
  host: Host,
  optimizer: optax.GradientTransformation,
  x: jax.Array,
  *,
  seed: int,
  average: bool,
  variables: tuple[PyTree, dict[str, PyTree]] | None = None,
) -> TrainState:
  """A host at birth, all slots dormant.

  Args:
    host: the network.
    optimizer: the chain of one group.
    x: [batch, ...], an example input.
    seed: of parameters and of every later draw.
    average: whether to keep a moving average of the parameters.
    variables: (params, collections) to start with; None draws them.
  """
  init_key, key = jax.random.split(jax.random.key(seed))
  params, collections = variables or jax.jit(host.init)(init_key, x)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    collections=collections,
    seeds={},
    optimizer={HOST_GROUP: optimizer.init(params)},
    age={HOST_GROUP: jnp.zeros((), jnp.int32)},
    average={HOST_GROUP: jax.tree.map(jnp.copy, params)} if average else None,
    lr_factor=jnp.ones((), jnp.float32),
    key=key,
  )


def evaluation_view(state: TrainState) -> tuple[PyTree, Any, Any]:
  """(params, collections, seeds) to evaluate: the average where one is kept."""
  if state.average is None:
    return state.params, state.collections, state.seeds
  seeds = with_group_params(state.seeds, state.average)
  return state.average[HOST_GROUP], state.collections, seeds


def count_parameters(state: TrainState) -> int:
  """Trainable scalars of the host and its seeds."""
  groups = group_params(state.params, state.seeds)
  return sum(leaf.size for leaf in jax.tree.leaves(groups))
