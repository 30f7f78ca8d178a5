"""Whole lives of growing networks, played by a policy or by a network.

An episode is one `lax.scan` over the epochs of an environment; `population`
makes many of it. What an environment draws (host, data, order of the batches)
depends on its own key and the epoch alone, never on what the policy did, so
two policies that are given the same key meet the same environment: that is
what makes paired comparisons and the never-grown twin of `reward` exact.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.tamiyo import shepherd
from esper_jax.tamiyo.observation import Decisions, Observation
from esper_jax.tamiyo.policy import Policy
from esper_jax.types import Action, PyTree

# (memory, observation, key) -> (memory, decisions, what shall be recorded).
Decide = Callable[
  [PyTree, Observation, jax.Array], tuple[PyTree, Decisions, PyTree]
]
MOVES = (Action.GERMINATE, Action.ADVANCE, Action.CULL, Action.FOSSILIZE)
_PARTS = jax.sharding.PartitionSpec("environments")


class Trajectory(struct.PyTreeNode):
  """One episode, or many; arrays of [..., epochs, ...].

  Attributes:
    observation: `Observation` before each decision.
    decisions: the `Decisions` taken.
    outcome: `Outcome` of the epoch that followed.
    record: what `decide` gave beside its decisions.
  """

  observation: Observation
  decisions: Decisions
  outcome: Any
  record: PyTree


class Trials(struct.PyTreeNode):
  """Environments by their keys, each with its never-grown run.

  Attributes:
    keys: typed random keys [environments].
    still: `Outcome`, [environments, epochs]: the same environment in which
      nobody ever decides anything.
  """

  keys: jax.Array
  still: Any

  def take(self, index: jax.Array) -> "Trials":
    """Picks environments by int32 index, any shape."""
    return jax.tree.map(lambda leaf: leaf[index], self)


def play(
  environment: Any,
  decide: Decide,
  memory: PyTree,
  key: jax.Array,
  policy_key: jax.Array,
) -> Trajectory:
  """Plays one episode.

  Args:
    environment: see `simic.records.Environment`.
    decide: see `Decide`.
    memory: what the policy carries from epoch to epoch, at the start.
    key: of the environment.
    policy_key: of the policy's draws.

  Returns:
    A `Trajectory` whose arrays begin with [epochs].
  """
  start, steps = jax.random.split(key)

  def epoch(carry, number):
    state, observation, memory = carry
    draw = jax.random.fold_in(policy_key, number)
    memory, decisions, record = decide(memory, observation, draw)
    state, after, outcome = environment.step(
      state, decisions, jax.random.fold_in(steps, number)
    )
    step = Trajectory(observation, decisions, outcome, record)
    return (state, after, memory), step

  state, observation = environment.reset(start)
  _, trajectory = jax.lax.scan(
    epoch,
    (state, observation, memory),
    jnp.arange(environment.epochs, dtype=jnp.int32),
  )
  return trajectory


def population(one: Callable[..., Any], *keys: jax.Array) -> Any:
  """Plays one episode per key, `vmap` on each of the devices there are.

  Each device takes equal parts; where their number does not divide that of
  the keys, the first takes all. Results differ in rounding alone.

  Args:
    one: what is played, a function of one key from each argument.
    *keys: typed random keys [environments].

  Returns:
    The arrays of all, [environments, ...], on every device.
  """
  many = jax.vmap(one)
  mesh = _mesh_for(keys[0].shape[0])
  if mesh is None:
    return many(*keys)
  played = jax.shard_map(
    many, mesh=mesh, in_specs=_PARTS, out_specs=_PARTS, check_vma=False
  )(*keys)
  return jax.lax.with_sharding_constraint(played, _whole(mesh))


def apart(tree: PyTree) -> PyTree:
  """Lets each device work on its part of the leading axis, under jit.

  Args:
    tree: arrays [n, ...]; where the devices do not divide n, it stays whole.
  """
  mesh = _mesh_for(jax.tree.leaves(tree)[0].shape[0])
  if mesh is None:
    return tree
  parts = jax.sharding.NamedSharding(mesh, _PARTS)
  return jax.lax.with_sharding_constraint(tree, parts)


def everywhere(tree: PyTree) -> PyTree:
  """Puts arrays on every device, as `population` returns them.

  A program that takes its own results is then compiled once.
  """
  mesh = _mesh_for(0)
  return tree if mesh is None else jax.device_put(tree, _whole(mesh))


def _mesh_for(size: int) -> jax.sharding.Mesh | None:
  """All devices; None where there is one, or where they do not divide size.

  Any number of them divides 0.
  """
  devices = jax.devices()
  if len(devices) == 1 or size % len(devices):
    return None
  return jax.sharding.Mesh(devices, ("environments",))


def _whole(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def deciding(policy: Policy) -> Decide:
  """Makes the `Decide` of a `Policy`; nothing is recorded."""

  def decide(memory, observation, key):
    memory, decisions = policy.decide(memory, observation, key)
    return memory, decisions, ()

  return decide


def play_policy(
  environment: Any, policy: Policy, keys: jax.Array, policy_key: jax.Array
) -> Trajectory:
  """Plays one episode with a `Policy` in each environment.

  Args:
    environment: see `play`.
    policy: see `tamiyo.policy.Policy`.
    keys: typed random keys [environments].
    policy_key: the policy's draws differ between environments.
  """

  decide = deciding(policy)

  def one(key, own):
    first, rest = jax.random.split(own)
    return play(environment, decide, policy.init(first), key, rest)

  return population(one, keys, jax.random.split(policy_key, keys.shape[0]))


def play_still(environment: Any, keys: jax.Array) -> Any:
  """Runs environments in which nobody decides anything.

  Returns:
    Their `Outcome`, [environments, epochs].
  """

  def decide(memory, observation, key):
    del key
    return memory, shepherd.waiting(observation.stage.shape[0]), ()

  def one(key):
    return play(environment, decide, (), key, key).outcome

  return population(one, keys)


def make_trials(
  environment: Any,
  key: jax.Array,
  size: int,
  *,
  batch: int = 64,
  still: Callable[[jax.Array], Any] | None = None,
) -> Trials:
  """Draws environments and runs the never-grown twin of each, once.

  Args:
    environment: see `play`.
    key: decides which environments.
    size: how many.
    batch: how many run at a time; a bound on the memory.
    still: keys -> `Outcome`, as `play_still` does it; None compiles that.
  """
  keys = jax.random.split(key, size)
  run = still or jax.jit(lambda some: play_still(environment, some))
  return Trials(keys, by_batch(run, keys, batch))


def by_batch(run: Callable[[jax.Array], Any], keys: jax.Array, batch: int):
  """Runs a program on some keys at a time.

  Args:
    run: keys [batch] -> arrays [batch, ...].
    keys: [n].
    batch: at most so many at a time.

  Returns:
    The arrays of all, [n, ...].
  """
  size, parts = keys.shape[0], []
  batch = min(batch, size)
  for start in range(0, size, batch):
    # A whole batch each time, the last one overlapping: one program does.
    first = min(start, size - batch)
    part = run(keys[first : first + batch])
    parts.append(jax.tree.map(lambda x, s=start - first: x[s:], part))
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def free(observation: Observation) -> jax.Array:
  """Tells where anything but waiting is legal.

  Args:
    observation: arrays of [..., rows, actions, blueprints] and so on.

  Returns:
    float32 [...]: 1 where there is something to decide, else 0.
  """
  moves = observation.legal[..., int(Action.WAIT) + 1 :, :]
  return moves.any(axis=(-3, -2, -1)).astype(jnp.float32)


def decision_statistics(trajectory: Trajectory) -> dict[str, jax.Array]:
  """Counts what a policy did, so that a collapse shows.

  Args:
    trajectory: arrays of [environments, epochs, ...].

  Returns:
    float32 [] each: germinated, fossilized and culled per episode; and for
    each move, the share of the rows where it was legal that made it
    (`germinate_share`, ...). A share is 0 where the move was never legal.
  """
  outcome, decisions = trajectory.outcome, trajectory.decisions
  out = {}
  for name in ("germinated", "fossilized", "culled"):
    counts = getattr(outcome, name).astype(jnp.float32)
    out[name] = counts.sum(axis=1).mean()
  legal = trajectory.observation.legal.any(axis=-1)
  for move in MOVES:
    open_ = legal[..., int(move)]
    made = open_ & (decisions.action == int(move))
    total = jnp.maximum(open_.sum().astype(jnp.float32), 1.0)
    out[f"{move.name.lower()}_share"] = made.sum().astype(jnp.float32) / total
  return out
