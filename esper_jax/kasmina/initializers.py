"""How a seed is born.

zero_out  random parameters, one factor zero: F(x) = 0 exactly.
random    random parameters: F(x) is not zero, so only isolation and alpha
          keep the host's function.
gradient  as zero_out, the other factors turned so that the zero factor
          starts with a larger gradient.
"""

import functools

import jax
import jax.numpy as jnp

from esper_jax.kasmina import blueprints
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.types import InputError, PyTree, SlotSpec

NAMES = ("zero_out", "random", "gradient")

# Few small turns: more would score higher by pointing all units the same way.
_ASCENT_STEPS = 6
_STEP = 0.1  # radians by which a step turns a unit's weights, at most
_TINY = 1e-30

Signal = tuple[jax.Array, jax.Array]


def initialize(
  name: str,
  blueprint: Blueprint,
  key: jax.Array,
  spec: SlotSpec,
  *,
  signal: Signal | None = None,
) -> tuple[PyTree, PyTree]:
  """Draws a seed's first parameters and state.

  Equal keys give equal draws: "gradient" starts from what "zero_out" returns.

  Args:
    name: one of NAMES.
    blueprint: must fit the slot's kind.
    key: a typed PRNG key.
    spec: the slot.
    signal: (x, g), both [batch, *spec.shape]: what the slot carries and the
      cotangent of the loss there. Only "gradient" reads it. Where it is not
      finite the result is that of "zero_out".

  Returns:
    (params, state) as `blueprint.init`.

  Raises:
    InputError: unknown name, wrong kind, too few channels, or no signal.
  """
  if name not in NAMES:
    raise InputError(
      f"initializer '{name}' is unknown: choose one of {', '.join(NAMES)}"
    )
  if spec.kind not in blueprint.kinds:
    raise InputError(
      f"blueprint '{blueprint.name}' is for {', '.join(blueprint.kinds)} and"
      f" slot '{spec.name}' is {spec.kind}: choose one of"
      f" {', '.join(blueprints.fitting(spec))}"
    )
  if name == "gradient" and signal is None:
    raise InputError(
      f"initializer 'gradient' needs a signal for slot '{spec.name}': give"
      " signal=(x, g), or use 'zero_out'"
    )
  params, state = blueprint.init(key, spec)
  if name == "random":
    return params, state
  params = blueprints.zeroed(blueprint, params)
  if name == "gradient" and signal is not None:
    params = _ascend(blueprint, params, state, *signal)
  return params, state


def germination_score(
  blueprint: Blueprint,
  params: PyTree,
  state: PyTree,
  x: jax.Array,
  g: jax.Array,
) -> jax.Array:
  """How strongly the loss asks for this seed, per parameter.

  The squared norm of d<g, F(x)> / d(zero factor), divided by the number of the
  seed's parameters: to first order, what one gradient step of unit learning
  rate would take off the loss (GradMax, Evci et al., 2022, arXiv:2201.05125,
  with the outgoing factor zero instead of the incoming one). Evaluated without
  dropout. Works under jit and vmap.

  Args:
    blueprint: static.
    params: as born; the zero factor is usually zero.
    state: as born.
    x: [batch, ...], what the slot carries.
    g: as x, the cotangent of the loss at the slot's output. Of a mean loss: the
      sum over the batch is then the gradient itself.

  Returns:
    float32 [].
  """
  gradient = _factor_gradient(blueprint, params, state, x, g)
  squares = [jnp.square(leaf).sum() for leaf in gradient]
  return sum(squares, start=jnp.float32(0)) / blueprints.count(params)


def first_gain(
  blueprint: Blueprint,
  params: PyTree,
  state: PyTree,
  x: jax.Array,
  g: jax.Array,
) -> jax.Array:
  """What the seed's first step would take off the loss, per learning rate.

  The sum of magnitudes of d<g, F(x)> / d(zero factor): to first order, the
  gain of one step of Adam or Lion, which moves each parameter by the learning
  rate. Arguments as for `germination_score`.

  Returns:
    float32 [].
  """
  gradient = _factor_gradient(blueprint, params, state, x, g)
  magnitudes = [jnp.abs(leaf).sum() for leaf in gradient]
  return sum(magnitudes, start=jnp.float32(0))


def _factor_gradient(blueprint, params, state, x, g) -> list[jax.Array]:
  def branch(own):
    full = blueprints.with_factor(blueprint, params, own)
    return blueprint.apply(full, state, x, train=False, key=None)[0]

  y, vjp = jax.vjp(branch, blueprints.factor(blueprint, params))
  (gradient,) = vjp(g.astype(y.dtype))
  return jax.tree.leaves(gradient)


def _ascend(
  blueprint: Blueprint,
  params: PyTree,
  state: PyTree,
  x: jax.Array,
  g: jax.Array,
) -> PyTree:
  """Normalised gradient ascent on the germination score (GradMaxOpt).

  Every unit keeps its norm, so none dies and the zero factor stays zero.
  Scales and biases stay as they are where there are kernels to turn: a norm
  scale concentrated on one unit raises the score without a better feature.
  """
  best = params
  best_score, gradient = _score_and_gradient(blueprint, params, state, x, g)
  step = jnp.float32(_STEP)
  # A Python loop: convolutions inside lax.scan are slow on XLA:CPU.
  for _ in range(_ASCENT_STEPS):
    best, best_score, gradient, step = _try_turn(
      blueprint, best, best_score, gradient, step, state, x, g
    )
  return best


@functools.partial(jax.jit, static_argnums=0)
def _score_and_gradient(blueprint, params, state, x, g):
  return jax.value_and_grad(
    lambda p: germination_score(blueprint, p, state, x, g)
  )(params)


@functools.partial(jax.jit, static_argnums=0)
def _try_turn(blueprint, best, best_score, gradient, step, state, x, g):
  """One turn from the best so far; kept if it scores higher, else halved."""
  others = jax.tree.leaves(blueprints.with_factor(blueprint, best, None))
  rank = min(2, max(leaf.ndim for leaf in others))
  params = jax.tree.map(
    lambda p, d: _turn(p, d, step) if p.ndim >= rank else p, best, gradient
  )
  score, new = _score_and_gradient(blueprint, params, state, x, g)
  # False for NaN: a signal that is not finite leaves the birth as it was.
  higher = score > best_score

  def select(a, b):
    return jax.tree.map(lambda p, q: jnp.where(higher, p, q), a, b)

  return (
    select(params, best),
    select(score, best_score),
    select(new, gradient),
    jnp.where(higher, step, step / 2),
  )


def _turn(leaf: jax.Array, direction: jax.Array, step: jax.Array) -> jax.Array:
  """Turns a leaf towards a direction, norms kept.

  A unit is the slice that makes one output (the last axis) of a kernel; a
  vector (a scale, a bias) is one unit.
  """
  axes = tuple(range(max(1, leaf.ndim - 1)))

  def norm(z):
    return jnp.sqrt(jnp.square(z).sum(axis=axes, keepdims=True))

  length = norm(leaf)
  moved = leaf + step * length * direction / jnp.maximum(norm(direction), _TINY)
  moved = moved * length / jnp.maximum(norm(moved), _TINY)
  return jnp.where(length > 0, moved, leaf)
