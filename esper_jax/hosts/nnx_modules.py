"""Flax NNX modules as hosts and as blueprints.

An NNX module is a Python object that holds its variables; a host and a
blueprint are pure functions. So its variables are taken out once (`nnx.split`)
and put in for each call (`nnx.merge`).
"""

import contextvars
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from esper_jax.hosts.host import Host
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.kasmina.slot import apply_slot
from esper_jax.types import InputError, Path, PyTree, SlotSpec, uncallable

_STATE = "state"  # collection of what is no parameter: batch statistics ...
_KINDS = {2: "features", 3: "tokens", 4: "nhwc"}


class _Call:
  """One call of a host: what its slots read and leave behind."""

  def __init__(self, seeds: Mapping[str, Any], train: bool, key: Any):
    self.seeds, self.train, self.key = dict(seeds), train, key


_CALL: contextvars.ContextVar[_Call | None] = contextvars.ContextVar(
  "nnx_call", default=None
)


def nnx_slot(name: Path, x: jax.Array, *, causal: bool = False) -> jax.Array:
  """A place to grow, in the `__call__` of an NNX module: `slot.Slot` for NNX.

  Args:
    name: of the slot, another one for each place.
    x: [batch, ...].
    causal: whether blueprints must respect the order of tokens.

  Returns:
    As x: changed by the slot's seeds inside a host that `from_nnx` made, x
    itself elsewhere. Not for use inside `nnx.scan`, `nnx.vmap` or `nnx.remat`.
  """
  call = _CALL.get()
  if call is None:
    return x
  key = call.key
  if key is not None:
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  x, call.seeds = apply_slot(
    call.seeds, name, x, train=call.train, key=key, causal=causal
  )
  return x


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Host:
  """Wraps a Flax NNX module, called as `module(x)`, with `nnx_slot`s in it.

  Dropout and batch statistics follow `module.train()` and `module.eval()`.

  Args:
    make: builds the module, called as `make(rngs)`, with abstract values too: a
      class, or `functools.partial(Net, width=16)`.

  Raises:
    InputError: it is a module, or cannot be called so; in `init`: what it
      builds is no NNX module, or not called with x alone.
  """
  name = _name_of(make)
  if isinstance(make, nnx.Module) or not callable(make):
    raise InputError(
      f"from_nnx was given {name} itself, not what builds it; give the class,"
      f" from_nnx({type(make).__name__}), or a function of rngs"
    )
  problem = _misfit(make, "rngs")
  if problem:
    raise InputError(
      f"from_nnx calls {name}(rngs): {problem}; give"
      f" functools.partial({name}, ...) with the other arguments, or lambda"
      f" rngs: {name}(..., rngs=rngs)"
    )

  def init(key: jax.Array, x: jax.Array) -> tuple[PyTree, dict[str, PyTree]]:
    module = make(nnx.Rngs(key))
    _check_module(module, x)
    params, rest = _take(module)
    return params, {_STATE: rest} if rest else {}

  def apply(
    params: PyTree,
    collections: Mapping[str, PyTree],
    seeds: Mapping[str, Any],
    x: jax.Array,
    *,
    train: bool,
    key: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, PyTree], dict[str, Any]]:
    module = _put(make, params, collections.get(_STATE, {}), key)
    call = _Call(seeds, train, key)
    token = _CALL.set(call)
    try:
      logits = _run(module, x, train=train)
    finally:
      _CALL.reset(token)
    if not train:
      return logits, dict(collections), dict(seeds)
    _, rest = _take(module)
    return logits, {_STATE: rest} if rest else {}, call.seeds

  return Host(init, apply, title=name if name.isidentifier() else "host")


def nnx_blueprint(
  name: str,
  make: Callable[[SlotSpec, nnx.Rngs], nnx.Module],
  kinds: tuple[str, ...],
  zero: tuple[str, ...],
) -> Blueprint:
  """Makes a blueprint of an NNX module F, called as `module(x)`.

  Args:
    name: see `Blueprint`.
    make: (spec, rngs) -> module. Of the spec it may use shape, dtype and kind.
    kinds: see `Blueprint`.
    zero: attributes that lead to the factor that is zero at birth, such as
      ("out", "kernel").
  """

  def init(key: jax.Array, spec: SlotSpec) -> tuple[PyTree, PyTree]:
    return _take(make(spec, nnx.Rngs(key)))

  def apply(
    params: PyTree,
    state: PyTree,
    x: jax.Array,
    *,
    train: bool,
    key: jax.Array | None,
  ) -> tuple[jax.Array, PyTree]:
    spec = SlotSpec("", x.shape[1:], str(x.dtype), _KINDS[x.ndim])
    module = _put(lambda rngs: make(spec, rngs), params, state, key)
    y = _run(module, x, train=train)
    return y, _take(module)[1] if train else state

  return Blueprint(name, init, apply, kinds, zero)


def _name_of(make: Any) -> str:
  """What builds a module, or else the class of what was given."""
  if isinstance(make, functools.partial):
    make = make.func
  return getattr(make, "__name__", type(make).__name__)


def _misfit(make: Any, *args: Any) -> str:
  """Why a class or a function does not take arguments; "" where it does."""
  named: dict[str, Any] = {}
  if isinstance(make, functools.partial):
    args, named, make = (*make.args, *args), make.keywords, make.func
  if isinstance(make, type):  # NNX hides what a class takes
    return uncallable(make.__init__, None, *args, **named)
  return uncallable(make, *args, **named)


def _check_module(module: Any, x: jax.Array) -> None:
  """Refuses what is no NNX module, or takes more than x."""
  name = type(module).__name__
  if not isinstance(module, nnx.Module):
    raise InputError(f"from_nnx needs an NNX module, and was built a {name}")
  own: Any = module.__call__ if callable(module) else None
  problem = uncallable(own, x)
  if not problem and "train" in inspect.signature(own).parameters:
    problem = "it takes train"
  if problem:
    raise InputError(
      f"{name}.__call__ is called with x alone: {problem}; write def"
      " __call__(self, x), as dropout and norms follow module.train() and"
      " module.eval()"
    )


def _run(module: Any, x: jax.Array, *, train: bool) -> jax.Array:
  if train:
    module.train()
  else:
    module.eval()
  return module(x)


def _take(module: nnx.Module) -> tuple[PyTree, PyTree]:
  """(parameters, other variables but random streams), nested by name."""
  _, params, _, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
  return _named(nnx.to_pure_dict(params)), _named(nnx.to_pure_dict(rest))


def _named(tree: Any) -> Any:
  """Its keys as texts: NNX counts the items of a list."""
  if not isinstance(tree, Mapping):
    return tree
  return {str(key): _named(value) for key, value in tree.items()}


def _put(
  make: Callable[[nnx.Rngs], nnx.Module],
  params: PyTree,
  rest: PyTree,
  key: jax.Array | None,
) -> nnx.Module:
  """A module with these variables, its random streams drawn from the key."""
  shapes = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  graph, *parts = nnx.split(shapes, nnx.Param, nnx.RngState, ...)
  own = jax.random.key(0) if key is None else key

  def at(path: tuple[Any, ...], tree: PyTree) -> Any:
    for part in path:
      tree = tree[str(part)]
    return tree

  def stream(path: tuple[Any, ...], leaf: Any) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jnp.zeros(leaf.shape, leaf.dtype)
    name = "/".join(map(str, path))
    return jax.random.fold_in(own, zlib.crc32(name.encode()))

  def fill(state: Any, value: Callable[[Any, Any], Any]) -> Any:
    return nnx.from_flat_state(
      [(p, v.replace(value(p, v))) for p, v in nnx.to_flat_state(state)]
    )

  return nnx.merge(
    graph,
    fill(parts[0], lambda path, leaf: at(path, params)),
    fill(parts[1], stream),
    fill(parts[2], lambda path, leaf: at(path, rest)),
  )
