"""Named features side by side, each brought to [-1, 1] and never not finite.

What needs a logarithm is gathered first, so that a program has one of each: it
takes a fraction of the time to compile.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Columns:
  """Features of one kind, all of one shape, in any order."""

  def __init__(self) -> None:
    self._known: dict[str, jax.Array] = {}
    self._plain: dict[str, jax.Array] = {}
    self._squashed: dict[str, tuple[jax.Array, float, float]] = {}
    self._ratios: dict[str, tuple[jax.Array, Any, float]] = {}

  def put(self, name: str, value: Any, known: Any = True) -> None:
    """Adds a value as it is, clipped to [-1, 1].

    Args:
      name: of the feature.
      value: float32, int32 or bool.
      known: bool, as value; False makes it 0.
    """
    self._plain[name] = number(jnp.asarray(value))
    self._known[name] = jnp.asarray(known)

  def squash(
    self,
    name: str,
    value: jax.Array,
    *,
    small: float,
    large: float = 1.0,
    known: Any = True,
  ) -> None:
    """Adds a value on a scale that is logarithmic on both sides of 0.

    Args:
      name, value, known: see `put`.
      small: a size that can still be told from 0.
      large: what becomes 1.
    """
    self._squashed[name] = (number(jnp.asarray(value)), small, large)
    self._known[name] = jnp.asarray(known)

  def ratio(
    self,
    name: str,
    above: jax.Array,
    below: Any,
    *,
    decades: float,
    known: Any = True,
  ) -> None:
    """Adds the logarithm of a ratio; unknown where either is not positive.

    Args:
      name, known: see `put`.
      above: float32.
      below: float32 that `above` is divided by.
      decades: powers of ten that become 1.
    """
    self._ratios[name] = (above, below, decades)
    self._known[name] = jnp.asarray(known)

  def stack(self, names: tuple[str, ...]) -> jax.Array:
    """Puts the features side by side along a new last axis.

    Args:
      names: their order; a name that ends in "?" is the flag that says whether
        the feature without it is known. Flags come last.

    Returns:
      float32 [..., len(names)].
    """
    order = [*self._plain, *self._squashed, *self._ratios]
    values = list(self._plain.values())
    values += [value for value, _, _ in self._squashed.values()]
    values += [above for above, _, _ in self._ratios.values()]
    shape = jnp.broadcast_shapes(*(value.shape for value in values))
    x = _side_by_side(values, shape)
    plain, first = len(self._plain), len(self._plain) + len(self._squashed)
    parts = [x[..., :plain]]
    if self._squashed:
      small, large = (
        _row([sizes[n] for _, *sizes in self._squashed.values()], x.ndim)
        for n in range(2)
      )
      y = x[..., plain:first]
      y = jnp.sign(y) * jnp.log1p(jnp.abs(y) / small) / jnp.log1p(large / small)
      parts.append(y)
    if self._ratios:
      below = [jnp.asarray(b, jnp.float32) for _, b, _ in self._ratios.values()]
      span = [math.log(10.0) * d for _, _, d in self._ratios.values()]
      logs = jnp.log(x[..., first:]) - jnp.log(_side_by_side(below, shape))
      parts.append(logs / _row(span, x.ndim))
    x = jnp.concatenate(parts, axis=-1)
    known = [jnp.broadcast_to(self._known[name], shape) for name in order]
    good = jnp.stack(known, axis=-1) & jnp.isfinite(x)
    x = jnp.where(good, jnp.clip(x, -1.0, 1.0), 0.0)
    at = {name: n for n, name in enumerate(order)}
    plain_names = [name for name in names if not name.endswith("?")]
    flags = [at[name[:-1]] for name in names if name.endswith("?")]
    index = np.asarray([at[name] for name in plain_names], np.int32)
    flagged = number(good[..., np.asarray(flags, np.int32)])
    return jnp.concatenate([x[..., index], flagged], axis=-1)


def number(value: jax.Array) -> jax.Array:
  """The value as float32."""
  return value.astype(jnp.float32)


def clean(value: jax.Array) -> jax.Array:
  """Clips to [-1, 1]; what is not finite becomes 0."""
  return jnp.where(jnp.isfinite(value), jnp.clip(value, -1.0, 1.0), 0.0)


def saturating(count: jax.Array, half: float) -> jax.Array:
  """0 for 0, 1/2 at `half`, below 1 for any count."""
  count = number(jnp.maximum(count, 0))
  return count / (count + half)


def rank(value: jax.Array, known: jax.Array) -> jax.Array:
  """Share of the other known values that are below, ties half; 1 if alone.

  Args:
    value: float32 [n].
    known: bool [n].
  """
  value = jnp.where(known, value, 0.0)
  own, other = value.reshape(-1, 1), value.reshape(1, -1)
  won = jnp.where(own > other, 1.0, jnp.where(own == other, 0.5, 0.0))
  won = jnp.where(known.reshape(1, -1), won, 0.0).sum(axis=1) - 0.5  # itself
  rivals = number(known.sum()) - 1.0
  return jnp.where(rivals > 0, won / jnp.maximum(rivals, 1.0), 1.0)


def geometric_mean(value: jax.Array, known: jax.Array) -> jax.Array:
  """float32 []: of what is known and positive; 1 where nothing is."""
  good = known & (value > 0) & jnp.isfinite(value)
  logs = jnp.where(good, jnp.log(jnp.where(good, value, 1.0)), 0.0)
  return jnp.exp(logs.sum() / jnp.maximum(number(good.sum()), 1.0))


def _side_by_side(values: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
  return jnp.stack([jnp.broadcast_to(v, shape) for v in values], axis=-1)


def _row(values: list[float], rank: int) -> jax.Array:
  """Numbers along the last of so many axes."""
  return jnp.asarray(values, jnp.float32).reshape((1,) * (rank - 1) + (-1,))
