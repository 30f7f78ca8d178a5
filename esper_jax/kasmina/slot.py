"""Slots, the seeds they hold, and how a seed's output joins the host.

A slot without a seed returns its input and adds no operation to the program.
The stage of a seed reaches the program only through float32 leaves, so one
compiled program serves a seed's whole life.
"""

import contextlib
import contextvars
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.kasmina import blueprints
from esper_jax.types import InputError, Path, PyTree, SlotSpec
from esper_jax.urza import dispatch
from esper_jax.urza.kernels import blend_forward

BLEND_MODES = ("add", "multiply", "gate")
_KINDS = {2: "features", 3: "tokens", 4: "nhwc"}


class Seed(struct.PyTreeNode):
  """One planted module.

  Attributes:
    params: {"branch": the blueprint's parameters} and, in blend mode "gate",
      {"gate": {"kernel": [channels, 1], "bias": [1]}}; float32. The only part
      that is differentiated and seen by the optimizer.
    state: the blueprint's non-trainable variables (may be empty).
    alpha: float32 []. Blend weight; 0 silences the seed by selection.
    isolation: float32 []. 1 while the seed trains without touching the host.
    proximal: float32 []. Strength of the pull of an isolated seed's output
      towards zero.
    updates: float32 []. Multiplier of the seed's parameter updates.
    blueprint: static. Name in the blueprint registry.
    blend: static. One of BLEND_MODES.
    depth: static. Seeds of equal depth share an input; a deeper one reads the
      output of the shallower ones.
  """

  params: PyTree
  state: PyTree
  alpha: jax.Array
  isolation: jax.Array
  proximal: jax.Array
  updates: jax.Array
  blueprint: str = struct.field(pytree_node=False)
  blend: str = struct.field(pytree_node=False, default="add")
  depth: int = struct.field(pytree_node=False, default=0)


@jax.custom_vjp
def fork(x: jax.Array, live: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Gives the host and a seed the same value, and the host a clean gradient.

  Args:
    x: any shape and dtype.
    live: bool []. False selects the host's cotangent alone, so that a seed
      that is isolated, silenced or full of NaN cannot reach it.

  Returns:
    (x for the host, x for the seed).
  """
  del live
  return x, x


def _fork_fwd(x, live):
  return (x, x), live


def _fork_bwd(live, cotangents):
  host, seed = cotangents
  return jnp.where(live, host + seed, host), None


fork.defvjp(_fork_fwd, _fork_bwd)


@jax.custom_vjp
def blend(
  x: jax.Array,
  r: jax.Array,
  alpha: jax.Array,
  isolation: jax.Array,
  proximal: jax.Array,
) -> jax.Array:
  """Adds a seed's output r to x: x + alpha r.

  While isolated the value is exactly x, and r receives the cotangent of x
  (straight-through) plus proximal * r / batch, the gradient of a quadratic
  that keeps r bounded: the straight-through loss alone is linear in r.
  Silence (alpha = 0) and isolation are selections, so NaN in r stays in r.

  Args:
    x: [batch, ...].
    r: as x.
    alpha: float32 [].
    isolation: float32 [], 0 or 1.
    proximal: float32 [].

  Returns:
    As x.
  """
  off = (isolation > 0) | (alpha == 0)
  return jnp.where(off, x, x + alpha.astype(r.dtype) * r)


def _blend_fwd(x, r, alpha, isolation, proximal):
  return blend(x, r, alpha, isolation, proximal), (
    r,
    alpha,
    isolation,
    proximal,
  )


def _blend_bwd(residuals, g):
  r, alpha, isolation, proximal = residuals
  pull = (proximal / r.shape[0]).astype(r.dtype) * r
  joined = jnp.where(alpha == 0, jnp.zeros_like(g), alpha.astype(g.dtype) * g)
  return g, jnp.where(isolation > 0, g + pull, joined), None, None, None


blend.defvjp(_blend_fwd, _blend_bwd)


def contribution(
  seed: Seed, x: jax.Array, *, train: bool, key: jax.Array | None
) -> tuple[jax.Array, PyTree]:
  """What a seed adds to its slot at alpha = 1, and its new state.

  add: F(x); multiply: x tanh F(x); gate: sigmoid(g(x)) F(x).
  """
  branch = blueprints.get(seed.blueprint)
  y, state = branch.apply(
    seed.params["branch"], seed.state, x, train=train, key=key
  )
  if seed.blend == "multiply":
    y = x * jnp.tanh(y)
  elif seed.blend == "gate":
    y = jax.nn.sigmoid(_gate_logit(seed.params["gate"], x)) * y
  return y, state


def init_gate(key: jax.Array, spec: SlotSpec) -> PyTree:
  """Parameters of the gate g: a linear map of the (pooled) input to 1."""
  scale = spec.channels**-0.5
  return {
    "kernel": scale * jax.random.normal(key, (spec.channels, 1), jnp.float32),
    "bias": jnp.zeros((1,), jnp.float32),
  }


def _gate_logit(params: PyTree, x: jax.Array) -> jax.Array:
  pooled = x.mean(axis=(1, 2), keepdims=True) if x.ndim == 4 else x
  bias = params["bias"].astype(x.dtype)
  logit = pooled @ params["kernel"].astype(x.dtype)
  return logit + bias.reshape((1,) * (logit.ndim - 1) + (1,))


def apply_seeds(
  seeds: Mapping[str, Seed],
  x: jax.Array,
  *,
  train: bool,
  key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Seed]]:
  """Runs the seeds of one slot.

  Args:
    seeds: key -> Seed; empty means identity.
    x: [batch, ...].
    train: whether blueprints behave as in training.
    key: consumed by blueprints that draw (dropout); None where none does.

  Returns:
    (y as x, the seeds with their new state).
  """
  new = dict(seeds)
  for depth in sorted({seed.depth for seed in seeds.values()}):
    outputs = {}
    beside = {n: s for n, s in sorted(seeds.items()) if s.depth == depth}
    y, joined = _join(beside, x)
    for name, seed in beside.items():
      if name in joined:
        continue
      live = (seed.alpha != 0) & (seed.isolation == 0)
      x, own = fork(x, live)
      drawn = None if key is None else own_key(key, name)
      outputs[name], state = contribution(seed, own, train=train, key=drawn)
      new[name] = seed.replace(state=state)
    x = x if y is None else y
    for name, r in outputs.items():
      x = _blend_seed(seeds[name], x, r)
  return x, new


def _blend_seed(seed: Seed, x: jax.Array, r: jax.Array) -> jax.Array:
  args = (x, r, seed.alpha, seed.isolation)
  if dispatch.serves(blend_forward.KERNEL, *args):
    args = dispatch.level(*args, seed.proximal)
    return blend_forward.blend_with_health(*args)[0]
  return blend(*args, seed.proximal)


def _join(
  beside: Mapping[str, Seed], x: jax.Array
) -> tuple[jax.Array | None, tuple[str, ...]]:
  """(x with some seeds of one depth blended in, their keys), or (None, ()).

  They are of one blueprint: a second one would have to read x as it was.
  """
  groups: dict[str, list[str]] = {}
  for name, seed in beside.items():
    if seed.blend == "add" and blueprints.get(seed.blueprint).join:
      groups.setdefault(seed.blueprint, []).append(name)
  for blueprint, names in groups.items():
    join = blueprints.get(blueprint).join
    assert join is not None  # or there were no group
    own = [beside[name] for name in names]
    y = join(
      [seed.params["branch"] for seed in own],
      x,
      alpha=[seed.alpha for seed in own],
      isolation=[seed.isolation for seed in own],
      proximal=[seed.proximal for seed in own],
    )
    if y is not None:
      return y, tuple(names)
  return None, ()


def own_key(key: jax.Array, name: str) -> jax.Array:
  """The key of one seed among those of a slot."""
  # By name, not by position: a newborn must not change a survivor's draws.
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


class SlotTrace:
  """What the slots did during one trace (see `observe_slots`).

  Attributes:
    specs: path -> SlotSpec, in the order in which the slots ran.
    consumed: the (path, key) of every seed that ran.
    outputs: path -> the slot's output (a tracer of the surrounding trace).
    offsets: path -> array added to the slot's output, given by the caller.
  """

  def __init__(self, offsets: Mapping[Path, jax.Array] | None = None):
    self.specs: dict[Path, SlotSpec] = {}
    self.consumed: set[tuple[Path, str]] = set()
    self.outputs: dict[Path, jax.Array] = {}
    self.offsets: Mapping[Path, jax.Array] = offsets or {}


_TRACE: contextvars.ContextVar[SlotTrace | None] = contextvars.ContextVar(
  "slot_trace", default=None
)


@contextlib.contextmanager
def observe_slots(
  offsets: Mapping[Path, jax.Array] | None = None,
) -> Iterator[SlotTrace]:
  """Records the slots that run inside the block.

  Args:
    offsets: path -> array added to that slot's output. The gradient with
      respect to a zero offset is the cotangent at the slot.
  """
  trace = SlotTrace(offsets)
  token = _TRACE.set(trace)
  try:
    yield trace
  finally:
    _TRACE.reset(token)


def _announce(
  name: Path, seeds: Mapping[str, Seed], y: jax.Array, causal: bool
) -> jax.Array:
  trace = _TRACE.get()
  if trace is None:
    return y
  if y.ndim not in _KINDS:
    raise InputError(
      f"slot '{name}' got an array of shape {y.shape}; a slot takes"
      " [batch, features], [batch, tokens, features] or"
      " [batch, height, width, channels]"
    )
  trace.specs[name] = SlotSpec(
    name=name,
    shape=tuple(y.shape[1:]),
    dtype=str(y.dtype),
    kind=_KINDS[y.ndim],
    causal=causal,
  )
  trace.consumed.update((name, key) for key in seeds)
  if name in trace.offsets:
    y = y + trace.offsets[name].astype(y.dtype)
  trace.outputs[name] = y
  return y


class Slot(nn.Module):
  """A place where a Flax Linen host can grow: `x = Slot(name="slot1")(x)`.

  Without `train=train` seeds always run as in evaluation. That matters only to
  blueprints that draw or keep a state, which none of the package's does.

  Attributes:
    causal: whether blueprints must respect the order of tokens.
  """

  causal: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns x changed by the slot's seeds; x itself where there is none."""
    seeds: Mapping[str, Any] = self.variables.get("seeds", {})
    if seeds:
      key = self.make_rng("dropout") if self.has_rng("dropout") else None
      x, new = apply_seeds(seeds, x, train=train, key=key)
      if self.is_mutable_collection("seeds"):
        for name, seed in new.items():
          self.put_variable("seeds", name, seed)
    return _announce("/".join(self.path), seeds, x, self.causal)


def apply_slot(
  seeds: Mapping[str, Any],
  name: Path,
  x: jax.Array,
  *,
  train: bool = False,
  key: jax.Array | None = None,
  causal: bool = False,
) -> tuple[jax.Array, dict[str, Any]]:
  """The slot for hosts that are not Flax modules.

  Args:
    seeds: the whole seeds tree of the host, nested by the parts of the path.
    name: this slot's path.
    x: [batch, ...].
    train: whether blueprints behave as in training.
    key: consumed by blueprints that draw.
    causal: whether blueprints must respect the order of tokens.

  Returns:
    (y as x, the seeds tree with this slot's new seed states).
  """
  own = seeds_at(seeds, name)
  if own:
    x, own = apply_seeds(own, x, train=train, key=key)
    seeds = with_seeds_at(seeds, name, own)
  return _announce(name, own, x, causal), dict(seeds)


def seeds_at(seeds: Mapping[str, Any], path: Path) -> dict[str, Seed]:
  """The key -> Seed of one slot; empty where it is dormant."""
  node: Any = seeds
  for part in path.split("/"):
    node = node.get(part, {})
  return dict(node)


def with_seeds_at(
  seeds: Mapping[str, Any], path: Path, own: Mapping[str, Seed]
) -> dict[str, Any]:
  """The tree with one slot's seeds replaced; an empty slot leaves no entry."""
  head, _, rest = path.partition("/")
  below = with_seeds_at(seeds.get(head, {}), rest, own) if rest else dict(own)
  out = {k: v for k, v in seeds.items() if k != head}
  return {**out, head: below} if below else out


def all_seeds(seeds: Mapping[str, Any]) -> dict[tuple[Path, str], Seed]:
  """Every seed of the tree by (slot path, key), sorted."""

  def walk(node, path):
    for name, child in node.items():
      if isinstance(child, Seed):
        yield (path, name), child
      else:
        yield from walk(child, f"{path}/{name}" if path else name)

  return dict(sorted(walk(seeds, "")))


def group_name(path: Path, key: str) -> str:
  """Name of a seed's optimizer group."""
  return f"{path}/{key}"
