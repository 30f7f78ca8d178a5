"""A host as two functions, so that nothing downstream knows its framework."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from esper_jax.types import InputError, PyTree


class Host(NamedTuple):
  """A network that can grow.

  Attributes:
    init: (key, x) -> (params, collections): float32 parameters and the other
      variables (batch statistics ...), by collection name.
    apply: (params, collections, seeds, x, *, train, key) -> (logits float32
      [batch, classes], collections, seeds). `seeds` is the tree of planted
      seeds ({} when dormant); key is consumed by dropout.
    module: the Linen module that it wraps, if it wraps one.
    title: for people: the class of what it wraps.
  """

  init: Callable[[jax.Array, jax.Array], tuple[PyTree, dict[str, PyTree]]]
  apply: Callable[..., tuple[jax.Array, dict[str, PyTree], dict[str, Any]]]
  module: nn.Module | None = None
  title: str = "host"


def from_model(model: Any) -> Host:
  """A user's Flax Linen module as a host; a host as it is.

  Raises:
    InputError: it is neither, or its `__call__` takes no `train`.
  """
  if isinstance(model, Host):
    return model
  if not isinstance(model, nn.Module):
    kind = model.__name__ if isinstance(model, type) else type(model).__name__
    raise InputError(
      f"the model is {kind}; give an instance of a Flax Linen module, such as"
      " Net(), or a host: from_nnx(...) makes one of Flax NNX"
    )
  parameters = inspect.signature(type(model).__call__).parameters
  if "train" not in parameters and not any(
    p.kind is p.VAR_KEYWORD for p in parameters.values()
  ):
    raise InputError(
      f"{type(model).__name__}.__call__ takes no 'train'; write def"
      " __call__(self, x, *, train=False), and tell dropout, norms and slots"
    )
  return from_linen(model)


def from_linen(module: nn.Module) -> Host:
  """Wraps a Flax Linen module called as `module(x, train=...)`."""

  def init(key, x):
    variables = module.init({"params": key}, x, train=False)
    others = {
      k: v for k, v in variables.items() if k not in ("params", "seeds")
    }
    return variables["params"], others

  def apply(
    params: PyTree,
    collections: Mapping[str, PyTree],
    seeds: Mapping[str, Any],
    x: jax.Array,
    *,
    train: bool,
    key: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, PyTree], dict[str, Any]]:
    variables: dict[str, Any] = {"params": params, **collections}
    if seeds:
      variables["seeds"] = dict(seeds)
    rngs = None if key is None else {"dropout": key}
    if not train:
      logits: Any = module.apply(variables, x, train=False)
      return logits, dict(collections), dict(seeds)
    out: Any = module.apply(
      variables, x, train=True, rngs=rngs, mutable=[*collections, "seeds"]
    )
    logits, updated = out
    new = {name: updated.get(name, collections[name]) for name in collections}
    return logits, new, dict(updated.get("seeds", {}))

  return Host(init, apply, module, type(module).__name__)
