"""A host as two functions, so that nothing downstream knows its framework."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from esper_jax.types import PyTree


class Host(NamedTuple):
  """A network that can grow.

  Attributes:
    init: (key, x) -> (params, collections): float32 parameters and the other
      variables (batch statistics ...), by collection name.
    apply: (params, collections, seeds, x, *, train, key) -> (logits float32
      [batch, classes], collections, seeds). `seeds` is the tree of planted
      seeds ({} when dormant); key is consumed by dropout.
  """

  init: Callable[[jax.Array, jax.Array], tuple[PyTree, dict[str, PyTree]]]
  apply: Callable[..., tuple[jax.Array, dict[str, PyTree], dict[str, Any]]]


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

  return Host(init, apply)
