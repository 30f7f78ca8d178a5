"""Runs the plain modules of an export, as their user would."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from esper_jax.hosts.host import Host
from esper_jax.kasmina.slot import Slot


def network(path: Path, images: jax.Array) -> jax.Array:
  """Outputs of a model.py."""
  module = _imported(path)
  with _not_strict():
    return jax.jit(module.Network().apply)(module.load(), images)


def slots(path: Path, examples: jax.Array, model: Host | None) -> jax.Array:
  """Outputs of a Linen model whose slots are those of a seeds.py."""
  assert model is not None
  seeds = _imported(path)
  collections = seeds.load()
  params = collections.pop("params")

  class At(nn.Module):
    slot: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
      return seeds.grown(self.slot, x)

  def at_slot(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if not isinstance(context.module, Slot):
      return following(*args, **kwargs)
    own = params
    for part in context.module.path:
      own = own.get(part, {})
    at = At("/".join(context.module.path), parent=None)
    return at.apply({"params": own}, args[0] if args else kwargs["x"])

  def run(examples: jax.Array) -> jax.Array:
    x = seeds.prepare(examples)
    return model.apply(params, collections, {}, x, train=False, key=None)[0]

  with _not_strict(), nn.intercept_methods(at_slot):
    return jax.jit(run)(examples)


def _imported(path: Path) -> Any:
  spec = importlib.util.spec_from_file_location("grown_model", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
  try:
    spec.loader.exec_module(module)
  finally:
    sys.dont_write_bytecode = before
  return module


@contextlib.contextmanager
def _not_strict() -> Iterator[None]:
  """As in a process of its own, whatever this one is strict about."""
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    yield
