"""What a blueprint is like in a slot, measured: a name says nothing of it.

A learned policy ranks blueprints by these numbers, so one that it was never
trained with can be ranked too.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.kasmina import blueprints
from esper_jax.types import SlotSpec

# flops: of a forward pass, and flops_per_parameter, how often a weight is
# used; both against the slot's largest. narrowest: the fewest channels that
# the signal passes through, against the slot's. normalises: whether it
# divides by a measured size.
TRAITS = (
  "flops?",
  "flops",
  "flops_per_parameter",
  "narrowest",
  "normalises",
)
_DECADES = 4.0  # ratios down to 1e-4 are told apart
_DIVIDES = frozenset(("rsqrt", "sqrt"))


def unknown(rows: int, num_blueprints: int) -> np.ndarray:
  """float32 [rows, blueprints, traits] that say nothing."""
  return np.zeros((rows, num_blueprints, len(TRAITS)), np.float32)


def describe(specs: Sequence[SlotSpec], names: Sequence[str]) -> np.ndarray:
  """Measures blueprints in slots; nothing is compiled or run.

  Args:
    specs: of each row's slot.
    names: of the blueprints, in the order of the blueprint axis.

  Returns:
    float32 [rows, blueprints, traits], in [-1, 1], 0 where it does not fit;
    see TRAITS.
  """
  out = unknown(len(specs), len(names))
  by_form: dict[Any, np.ndarray] = {}
  for row, spec in enumerate(specs):
    if spec.form not in by_form:
      by_form[spec.form] = _in_slot(spec, tuple(names))
    out[row] = by_form[spec.form]
  return out


def _in_slot(spec: SlotSpec, names: tuple[str, ...]) -> np.ndarray:
  fitting = blueprints.fitting(spec)
  out = np.zeros((len(names), len(TRAITS)), np.float32)
  costs = {n: blueprints.cost(n, spec) for n in names if n in fitting}
  intensity = {n: flops / max(size, 1) for n, (size, flops) in costs.items()}
  most = max((flops for _, flops in costs.values()), default=0.0)
  densest = max(intensity.values(), default=0.0)
  for column, name in enumerate(names):
    if name in costs:
      known = costs[name][1] > 0
      out[column] = [
        known,
        _decades(costs[name][1], most) if known else 0.0,
        _decades(intensity[name], densest) if known else 0.0,
        *_structure(blueprints.get(name), spec.form),
      ]
  return out


def _decades(value: float, largest: float) -> float:
  """0 for the largest, -1 for what is 1e-4 of it or less."""
  return float(np.clip(np.log10(value / largest) / _DECADES, -1.0, 0.0))


@functools.lru_cache(maxsize=1024)
def _structure(
  blueprint: blueprints.Blueprint,
  form: tuple[tuple[int, ...], str, str, bool],
) -> tuple[float, float]:
  """(narrowest, normalises), from shapes and the traced operations."""
  spec = SlotSpec("", *form)
  params, state = blueprints.abstract_init(blueprint, spec)
  x = jax.ShapeDtypeStruct((1, *spec.shape), jnp.dtype(spec.dtype))

  def forward(params, state, x):
    return blueprint.apply(params, state, x, train=False, key=None)[0]

  used = set(_operations(jax.make_jaxpr(forward)(params, state, x).jaxpr))
  matrices = [p.shape for p in jax.tree.leaves(params) if len(p.shape) > 1]
  width = min((shape[-1] for shape in matrices), default=spec.channels)
  narrowest = min(width / spec.channels, 1.0)
  return narrowest, float(bool(used & _DIVIDES))


def _operations(jaxpr: Any) -> Iterator[str]:
  """Names of the primitives in a jaxpr and in those inside it."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for value in equation.params.values():
      for item in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(item, "jaxpr", item)
        if hasattr(inner, "eqns"):
          yield from _operations(inner)
