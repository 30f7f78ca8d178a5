"""Surgery on the training state: plant, silence, remove, make permanent.

Every function runs on the host between steps, takes a state and returns a new
one. Everything is keyed by tree path, never by position: a survivor's
parameters and optimizer leaves are the same arrays afterwards.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import optax

from esper_jax.kasmina import blueprints, initializers
from esper_jax.kasmina.slot import (
  BLEND_MODES,
  Seed,
  SlotTrace,
  all_seeds,
  group_name,
  init_gate,
  observe_slots,
  seeds_at,
  with_seeds_at,
)
from esper_jax.types import (
  HOST_GROUP,
  InputError,
  Path,
  PyTree,
  SlotSpec,
  SlotTable,
)

NEWBORN = ("zero", "reset", "copy", "global_count")


class Growing(Protocol):
  """What surgery needs of a state: any record with these and `replace`.

  Attributes:
    params: the host's parameters.
    seeds: slot path (nested by its parts) -> {key -> Seed}.
    optimizer: group -> optax state; "host", and "<slot path>/<key>" per seed.
    age: group -> int32 [], steps since the group was born.
    average: group -> moving average of its parameters, or None where the run
      keeps none.
  """

  params: PyTree
  seeds: dict[str, Any]
  optimizer: dict[str, PyTree]
  age: dict[str, jax.Array]
  average: dict[str, PyTree] | None

  def replace(self, **changes: Any) -> Self: ...


S = TypeVar("S", bound=Growing)


def germinate(
  state: S,
  spec: SlotSpec,
  blueprint: str,
  *,
  key: jax.Array,
  optimizer: optax.GradientTransformation,
  initializer: str = "zero_out",
  blend: str = "add",
  proximal: float = 1.0,
  newborn: str = "zero",
  signal: tuple[jax.Array, jax.Array] | None = None,
  permanent: Collection[str] | None = None,
) -> tuple[S, str]:
  """Plants an isolated seed; outputs do not change.

  Args:
    state: see `Growing`.
    spec: of the slot, from the host's slot table.
    blueprint: name in the registry.
    key: consumed.
    optimizer: the chain of one group, without a learning rate.
    initializer: how the seed is born, see `initializers`.
    blend: how its output joins, see `slot.BLEND_MODES`.
    proximal: strength of the pull on an isolated seed's output.
    newborn: "zero" keeps the survivors' optimizer state and starts the
      newborn's afresh; "global_count" does so with the host's step count (one
      optimizer for all parameters would; Adam's first steps are then up to
      (1 - b1) / sqrt(1 - b2) times as long); "reset" starts every group
      afresh; "copy" lets the newborn inherit the state of the latest seed of
      the same blueprint and shapes, where there is one.
    signal: (activations, cotangents) at the slot, for "gradient".
    permanent: keys of the slot's seeds whose output the newborn reads; it
      stands in parallel to the others. None: all that are at alpha 1.

  Returns:
    (the new state, the seed's key in its slot).

  Raises:
    InputError: unknown blueprint, initializer, blend or newborn rule.
  """
  if newborn not in NEWBORN:
    raise InputError(
      f"newborn '{newborn}' is unknown; use one of {', '.join(NEWBORN)}"
    )
  own = seeds_at(state.seeds, spec.name)
  if permanent is None:
    permanent = [name for name, seed in own.items() if float(seed.alpha) == 1]
  seed = make_seed(
    spec,
    blueprint,
    key=key,
    initializer=initializer,
    blend=blend,
    proximal=proximal,
    signal=signal,
    depth=1 + max((own[name].depth for name in permanent), default=-1),
  )
  name = _free_key(own, blueprint)
  if newborn == "reset":
    groups = group_params(state.params, state.seeds)
    fresh = {g: optimizer.init(p) for g, p in groups.items()}
    state = state.replace(optimizer=fresh)
  donor = _donor(state, seed) if newborn == "copy" else None
  born = optimizer.init(seed.params)
  if newborn == "global_count":
    born = _with_counts(born, state.optimizer[HOST_GROUP])
  if donor is not None:
    born = jax.tree.map(jnp.copy, state.optimizer[donor])
  return plant(state, spec.name, name, seed, born), name


def make_seed(
  spec: SlotSpec,
  blueprint: str,
  *,
  key: jax.Array,
  initializer: str = "zero_out",
  blend: str = "add",
  proximal: float = 1.0,
  signal: tuple[jax.Array, jax.Array] | None = None,
  depth: int = 0,
) -> Seed:
  """An isolated seed that belongs to no state yet.

  Args and errors: see `germinate`; depth: see `Seed`.
  """
  if blend not in BLEND_MODES:
    raise InputError(
      f"blend '{blend}' is unknown; use one of {', '.join(BLEND_MODES)}"
    )
  branch_key, gate_key = jax.random.split(key)
  branch, module_state = initializers.initialize(
    initializer, blueprints.get(blueprint), branch_key, spec, signal=signal
  )
  params = {"branch": branch}
  if blend == "gate":
    params["gate"] = init_gate(gate_key, spec)
  return Seed(
    # Weakly typed leaves would cost a retrace.
    params=jax.tree.map(lambda x: jnp.array(x, x.dtype), params),
    state=jax.tree.map(lambda x: jnp.array(x, x.dtype), module_state),
    alpha=jnp.zeros((), jnp.float32),
    isolation=jnp.ones((), jnp.float32),
    proximal=jnp.full((), proximal, jnp.float32),
    updates=jnp.ones((), jnp.float32),
    blueprint=blueprint,
    blend=blend,
    depth=depth,
  )


def plant(state: S, path: Path, key: str, seed: Seed, born: PyTree) -> S:
  """Puts a seed into the tree, with its optimizer state at birth."""
  own = {**seeds_at(state.seeds, path), key: seed}
  group = group_name(path, key)
  average = state.average
  if average is not None:
    average = {**average, group: jax.tree.map(jnp.copy, seed.params)}
  return state.replace(
    seeds=with_seeds_at(state.seeds, path, own),
    optimizer={**state.optimizer, group: born},
    age={**state.age, group: jnp.zeros((), jnp.int32)},
    average=average,
  )


def cull(state: S, path: Path, key: str) -> S:
  """Removes a seed and all that it alone owned.

  Raises:
    InputError: no such seed.
  """
  own = _own(state, path, key)
  group = group_name(path, key)
  average = state.average
  return state.replace(
    seeds=with_seeds_at(
      state.seeds, path, {k: s for k, s in own.items() if k != key}
    ),
    optimizer=_without(state.optimizer, group),
    age=_without(state.age, group),
    average=None if average is None else _without(average, group),
  )


def set_leaves(
  state: S,
  path: Path,
  key: str,
  *,
  alpha: float | None = None,
  isolation: float | None = None,
  updates: float | None = None,
) -> S:
  """Moves a seed through its life by its leaves; the tree stays the same.

  Raises:
    InputError: no such seed.
  """
  own = _own(state, path, key)
  new = {
    name: jnp.asarray(value, jnp.float32)
    for name, value in (
      ("alpha", alpha),
      ("isolation", isolation),
      ("updates", updates),
    )
    if value is not None
  }
  own[key] = own[key].replace(**new)
  return state.replace(seeds=with_seeds_at(state.seeds, path, own))


def silence(state: S, path: Path, key: str) -> S:
  """Stops a seed at once: no output, no update; it stays in the tree."""
  return set_leaves(state, path, key, alpha=0.0, isolation=0.0, updates=0.0)


def fossilize(state: S, path: Path, key: str) -> S:
  """Makes a seed part of the host: alpha fixed at 1."""
  return set_leaves(state, path, key, alpha=1.0, isolation=0.0, updates=1.0)


def group_params(params: PyTree, seeds: Mapping[str, Any]) -> dict[str, PyTree]:
  """Trainable parameters by optimizer group."""
  from_seeds = {
    group_name(path, key): seed.params
    for (path, key), seed in all_seeds(seeds).items()
  }
  return {"host": params, **from_seeds}


def with_group_params(
  seeds: Mapping[str, Any], groups: Mapping[str, PyTree]
) -> dict[str, Any]:
  """The seeds with the parameters of their groups put in."""
  out = dict(seeds)
  for (path, key), seed in all_seeds(seeds).items():
    own = seeds_at(out, path)
    own[key] = seed.replace(params=groups[group_name(path, key)])
    out = with_seeds_at(out, path, own)
  return out


def slot_table(forward: Callable[[], Any]) -> SlotTable:
  """The slots that one forward pass runs through, in order, by path.

  Args:
    forward: calls the host on abstract or concrete arguments.
  """
  return _trace(forward).specs


def check_consumed(
  forward: Callable[[], Any], seeds: Mapping[str, Any]
) -> None:
  """Refuses a tree with a seed that the host's program never reads.

  Raises:
    InputError: names the slot. It happens with a mistyped path and inside a
      lifted transform (`nn.scan`, `nn.vmap`) that does not carry the
      collection: give it `variable_broadcast="seeds"`
      (one seed, shared by all layers).
  """
  missing = set(all_seeds(seeds)) - _trace(forward).consumed
  if missing:
    path, key = min(missing)
    raise InputError(
      f"slot '{path}': the host never reads its seed '{key}'; the path is"
      " mistyped or the slot lies inside a lifted transform (nn.scan,"
      " nn.vmap) without variable_broadcast='seeds'"
    )


def _trace(forward: Callable[[], Any]) -> SlotTrace:
  with observe_slots() as trace:
    jax.eval_shape(lambda: forward())  # a function seen before is not traced
  return trace


def _own(state: Growing, path: Path, key: str) -> dict[str, Seed]:
  own = seeds_at(state.seeds, path)
  if key not in own:
    known = ", ".join(group_name(*at) for at in all_seeds(state.seeds))
    raise InputError(
      f"slot '{path}' holds no seed '{key}'; planted are: {known or 'none'}"
    )
  return own


def _free_key(own: Mapping[str, Seed], blueprint: str) -> str:
  name, n = blueprint, 1
  while name in own:
    n += 1
    name = f"{blueprint}_{n}"
  return name


def _donor(state: Growing, seed: Seed) -> str | None:
  """The youngest group whose optimizer state fits the seed's parameters."""
  shapes = jax.tree.map(jnp.shape, seed.params)
  groups = [
    group_name(path, key)
    for (path, key), other in all_seeds(state.seeds).items()
    if other.blueprint == seed.blueprint
    and jax.tree.map(jnp.shape, other.params) == shapes
  ]
  return min(groups, key=lambda g: int(state.age[g]), default=None)


def _with_counts(born: PyTree, host: PyTree) -> PyTree:
  """A group's optimizer state with the step counts of the host's."""
  leaves = dict(jax.tree_util.tree_flatten_with_path(host)[0])
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      jnp.copy(leaves[path])
      if jax.tree_util.keystr(path[-1:]) == ".count"
      else leaf
    ),
    born,
  )


def _without(groups: Mapping[str, PyTree], group: str) -> dict[str, PyTree]:
  return {k: v for k, v in groups.items() if k != group}
