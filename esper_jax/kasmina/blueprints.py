"""What a seed can be: pairs of pure functions, and their registry.

A blueprint's branch F keeps shape and dtype; the slot adds alpha * F(x), so F
does not add x itself. To add one's own:

  def init(key, spec):
    return {"w": jax.random.normal(key, (spec.channels,))}, {}

  def apply(params, state, x, *, train, key):
    w = params["w"].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    return x * w, state

  register(Blueprint("scale", init, apply, ("nhwc", "features"), ("w",)))
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.kasmina.builtin_blueprints import BUILT_IN
from esper_jax.kasmina.layers import conv as conv
from esper_jax.knobs import nearest
from esper_jax.types import InputError, PyTree, SlotSpec, form


class Init(Protocol):
  """(key, spec) -> (float32 params, none of them all zero by design; state).

  Raises InputError where the slot is too small for the blueprint, or causal
  (`spec.causal`) while a token's output may depend on tokens after it.
  """

  def __call__(
    self, key: jax.Array, spec: SlotSpec, /
  ) -> tuple[PyTree, PyTree]: ...


class Apply(Protocol):
  """(params, state, x [batch, ...]) -> (F(x) as x, new state as state).

  Computes in the dtype of x. `key` is None outside training and where the
  caller has none.
  """

  def __call__(
    self,
    params: PyTree,
    state: PyTree,
    x: jax.Array,
    /,
    *,
    train: bool,
    key: jax.Array | None,
  ) -> tuple[jax.Array, PyTree]: ...


class Join(Protocol):
  """Several seeds of one slot at once, added to their common input.

  (params of each, x, alpha, isolation and proximal of each, float32 []) -> x
  with every seed blended in as `slot.blend` does, to rounding; None where
  there is no faster way than one after another.
  """

  def __call__(
    self,
    params: Sequence[PyTree],
    x: jax.Array,
    /,
    *,
    alpha: Sequence[jax.Array],
    isolation: Sequence[jax.Array],
    proximal: Sequence[jax.Array],
  ) -> jax.Array | None: ...


class Blueprint(NamedTuple):
  """A module that can be planted in a slot.

  Attributes:
    name: letters, digits and underscores; not ending in an underscore and a
      number, which is how repeated seeds of one slot are told apart.
    init: see `Init`.
    apply: see `Apply`.
    kinds: the kinds of slot it fits: "nhwc", "features", "tokens".
    zero: path in params of the one factor that, when zero, makes F zero but
      not its own gradient, e.g. ("conv2", "kernel"). A leaf or a subtree.
    join: see `Join`; for a blueprint without state that draws nothing.
  """

  name: str
  init: Init
  apply: Apply
  kinds: tuple[str, ...]
  zero: tuple[str, ...]
  join: Join | None = None


# Small slots, with room for a quarter of the channels and sides that differ,
# on which `register` tries a blueprint.
_TRIALS = {
  kind: SlotSpec(f"trial_{kind}", shape, "float32", kind)
  for kind, shape in {
    "nhwc": (5, 4, 32),
    "features": (32,),
    "tokens": (5, 32),
  }.items()
}
_REGISTRY = {name: Blueprint(name, *parts) for name, parts in BUILT_IN.items()}


def register(blueprint: Blueprint, *, check: bool = True) -> None:
  """Makes a blueprint known by its name.

  Args:
    blueprint: any name that is not taken.
    check: run `check_blueprint` first (a few seconds per kind).

  Raises:
    InputError: the name, the kinds or the check is wrong.
  """
  name = blueprint.name
  if not re.fullmatch(r"(?!.*_\d+$)[A-Za-z][A-Za-z0-9_]*", name):
    raise InputError(
      f"blueprint name '{name}' is not valid: use letters, digits and"
      " underscores, start with a letter, and do not end in _ and a number"
    )
  if name in _REGISTRY:
    raise InputError(
      f"blueprint '{name}' is already registered: choose another name, or"
      " unregister it first"
    )
  unknown = set(blueprint.kinds) - set(_TRIALS)
  if unknown or not isinstance(blueprint.kinds, tuple) or not blueprint.kinds:
    raise InputError(
      f"blueprint '{name}' has kinds {blueprint.kinds!r}: give a tuple of at"
      f" least one of {', '.join(_TRIALS)}"
    )
  if check:
    for kind in blueprint.kinds:
      spec = _TRIALS[kind]
      ordered = dataclasses.replace(spec, causal=True)
      causal = kind == "tokens" and _fits(blueprint, ordered)
      check_blueprint(blueprint, ordered if causal else spec)
  _REGISTRY[name] = blueprint


def unregister(name: str) -> None:
  """Forgets a blueprint, so that an edited one can take its name."""
  del _REGISTRY[get(name).name]


def get(name: str) -> Blueprint:
  """The blueprint of that name; InputError lists the names if there is none."""
  if name not in _REGISTRY:
    raise InputError(
      f"blueprint '{name}' is not registered: known are"
      f" {', '.join(_REGISTRY)}; the nearest is {nearest(name, _REGISTRY)}."
      " One of yours is registered first, by esper_jax.register_blueprint, or"
      " in a module that --config.urza.modules lists"
    )
  return _REGISTRY[name]


def names() -> tuple[str, ...]:
  """All names, the built-in ones first, in order of registration."""
  return tuple(_REGISTRY)


def fitting(spec: SlotSpec) -> tuple[str, ...]:
  """Names of the blueprints that a slot can hold, in the order of `names`."""
  return tuple(name for name in names() if _fits(get(name), spec))


def _fits(blueprint: Blueprint, spec: SlotSpec) -> bool:
  if spec.kind not in blueprint.kinds:
    return False
  try:
    abstract_init(blueprint, spec)
  except InputError:
    return False
  return True


def abstract_init(
  blueprint: Blueprint, spec: SlotSpec
) -> tuple[PyTree, PyTree]:
  """Shapes and dtypes of (params, state), computing nothing."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(lambda k: blueprint.init(k, spec), key)


def count(tree: PyTree) -> int:
  """Number of scalars in a tree of arrays or shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def cost(name: str, spec: SlotSpec) -> tuple[int, float]:
  """What a blueprint costs in a slot.

  Returns:
    (number of parameters, FLOPs of one example's forward pass as XLA counts
    them for the CPU; a call that XLA cannot see into counts 0). Nothing is
    compiled or run.

  Raises:
    InputError: no such blueprint, or the slot is too small for it.
  """
  blueprint = get(name)
  params, _ = abstract_init(blueprint, spec)
  return count(params), _flops(blueprint, spec.form)


@functools.lru_cache(maxsize=1024)
def _flops(
  blueprint: Blueprint, form: tuple[tuple[int, ...], str, str, bool]
) -> float:
  spec = SlotSpec("", *form)
  params, state = abstract_init(blueprint, spec)
  x = jax.ShapeDtypeStruct((1, *spec.shape), jnp.dtype(spec.dtype))

  def forward(params, state, x):
    return blueprint.apply(params, state, x, train=False, key=None)[0]

  traced = jax.jit(forward).trace(params, state, x)
  analysis = traced.lower(lowering_platforms=("cpu",)).cost_analysis() or {}
  return float(analysis.get("flops", 0.0))  # absent where there are none


def factor(blueprint: Blueprint, params: PyTree) -> PyTree:
  """The leaf or subtree of params at the blueprint's `zero` path."""
  for part in blueprint.zero:
    if not isinstance(params, Mapping) or part not in params:
      raise InputError(
        f"blueprint '{blueprint.name}' names {'/'.join(blueprint.zero)} as the"
        f" factor to zero, and its parameters have no '{part}' there: init"
        f" made {_describe(params)}"
      )
    params = params[part]
  return params


def with_factor(blueprint: Blueprint, params: PyTree, value: PyTree) -> PyTree:
  """Params with the factor at the `zero` path replaced."""

  def replace(node: Any, path: tuple[str, ...]) -> Any:
    if not path:
      return value
    return {**node, path[0]: replace(node[path[0]], path[1:])}

  return replace(params, blueprint.zero)


def zeroed(blueprint: Blueprint, params: PyTree) -> PyTree:
  """Params with the blueprint's one zero factor set to zero, so that F = 0."""
  zeros = jax.tree.map(jnp.zeros_like, factor(blueprint, params))
  return with_factor(blueprint, params, zeros)


def _describe(params: PyTree) -> str:
  if isinstance(params, Mapping):
    return ", ".join(f"'{key}'" for key in params) or "nothing"
  return f"a {type(params).__name__}"


def check_blueprint(blueprint: Blueprint, spec: SlotSpec) -> None:
  """Tries a blueprint on random inputs of one slot.

  Raises:
    InputError: params are not float32, a leaf is weakly typed, F changes shape
      or dtype (float32 and bfloat16 are tried), the state changes structure, F
      is not exactly zero once the zero factor is, a gradient is not finite, or
      the zero factor has none; a token sees one after it where the slot is
      causal; or the blueprint itself raises.
  """
  where = f"blueprint '{blueprint.name}' on a slot of shape {spec.shape}"
  try:
    for dtype in ("bfloat16", "float32"):
      for train in (False, True):
        _check_types(blueprint, spec, dtype, train)
    problems = _problems(blueprint, spec, jax.random.key(0))
  except InputError as error:
    text = str(error).removeprefix(f"blueprint '{blueprint.name}' ")
    raise InputError(f"{where}: {text}") from error
  except Exception as error:
    reason = (str(error).splitlines() or [""])[0]
    raise InputError(
      f"{where} raised {type(error).__name__}: {reason}"
    ) from error
  found = [text for text, bad in problems.items() if bad]
  if found:
    raise InputError(f"{where}: {'; '.join(found)}")


def _check_types(
  blueprint: Blueprint, spec: SlotSpec, dtype: str, train: bool
) -> None:
  params, state = abstract_init(blueprint, spec)
  for path, leaf in jax.tree_util.tree_leaves_with_path((params, state)):
    where = jax.tree_util.keystr(path[1:], simple=True, separator="/")
    if leaf.weak_type:
      raise InputError(
        f"'{where}' is weakly typed: make it with an explicit dtype"
      )
    if path[0].idx == 0 and leaf.dtype != jnp.float32:
      raise InputError(
        f"parameter '{where}' is {leaf.dtype}: make it float32, and let apply"
        " cast it to the dtype of x"
      )
  x = jax.ShapeDtypeStruct((2, *spec.shape), jnp.dtype(dtype))
  key = jax.eval_shape(lambda: jax.random.key(0))
  y, new_state = jax.eval_shape(
    functools.partial(blueprint.apply, train=train), params, state, x, key=key
  )
  if (y.shape, y.dtype) != (x.shape, x.dtype):
    advice = "both must be equal"
    if y.shape == x.shape:
      advice = (
        "compute in the dtype of x: give layers dtype=spec.dtype, or cast"
        " parameters by .astype(x.dtype)"
      )
    raise InputError(f"apply makes {form(y)} of {form(x)}: {advice}")
  if new_state != state:
    raise InputError(
      "apply returns a state whose structure, shapes or dtypes are not those"
      " that init made"
    )


def _problems(
  blueprint: Blueprint, spec: SlotSpec, key: jax.Array
) -> dict[str, bool]:
  """What is wrong numerically: text -> whether it is."""
  keys = jax.random.split(key, 4)
  params, state = jax.jit(lambda k: blueprint.init(k, spec))(keys[0])
  x = jax.random.normal(keys[1], (4, *spec.shape), jnp.float32)
  g = jax.random.normal(keys[2], x.shape, jnp.float32)

  @jax.jit  # one program for both births: compiling is what takes time here
  def pull(params, x, g):
    def forward(params, x):
      return blueprint.apply(params, state, x, train=True, key=keys[3])[0]

    y, vjp = jax.vjp(forward, params, x)
    return y, vjp(g)

  @jax.jit
  def evaluate(params, x):
    return blueprint.apply(params, state, x, train=False, key=None)[0]

  born = zeroed(blueprint, params)
  random = pull(params, x, g)
  silent = pull(born, x, g)
  name = "/".join(blueprint.zero)
  return {
    "a token's output changes with a token after it, and the slot is causal:"
    " mask what comes after, or let init raise InputError where spec.causal": (
      spec.causal
      and spec.kind == "tokens"
      and _looks_ahead(lambda x: evaluate(params, x), x)
    ),
    "init gives values that are not finite": not _finite(params),
    "F or a gradient is not finite": not _finite((random, silent)),
    "F is zero at its random birth": not _any(random[0]),
    f"F is not exactly zero where '{name}' is: zero another factor, or start"
    " the biases that follow it at zero": (
      _any(silent[0]) or _any(evaluate(born, x))
    ),
    f"'{name}' has no gradient where it is zero, so the seed could never"
    " learn: some other factor must be non-zero at birth": (
      not _any(factor(blueprint, silent[1][0]))
    ),
  }


def _looks_ahead(evaluate: Callable[[jax.Array], jax.Array], x: jax.Array):
  half = x.shape[1] // 2
  changed = x.at[:, half:].multiply(-1)
  return _any((evaluate(changed) - evaluate(x))[:, :half])


def _finite(tree: PyTree) -> bool:
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def _any(tree: PyTree) -> bool:
  return any(np.any(leaf) for leaf in jax.tree.leaves(tree))
