"""Optimizer chains per group, the learning-rate schedule, newborn warm-up.

A chain turns gradients into a direction u of ascent; the training step does
`params -= rate * u`. Neither learning rate nor schedule is in the chain: one
chain serves every group (the host, and each seed from its birth), so a schedule
in it would start again in every newborn. Clipping is in the chain and hence
per group: one global norm would let a sick seed shrink the host's update.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from esper_jax.types import InputError, PyTree

NAMES = ("sgd", "adamw", "adam", "lion", "rmsprop")
SCHEDULES = ("constant", "cosine", "wsd")

# Optax exports not all of these types, hence the names.
_SCHEDULED_STATES = (
  "ScaleByScheduleState",
  "WeightDecaySchedule",
  "WrappedScheduleState",
)


def make_optimizer(
  name: str,
  *,
  momentum: float = 0.9,
  b2: float = 0.999,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  accumulate_steps: int = 1,
) -> optax.GradientTransformation:
  """Build the chain of one group, without learning rate or sign.

  Weight decay is decoupled: weight_decay * p is added to the direction, after
  the preconditioner, for parameters of more than one dimension (no norms, no
  biases). "adam" never decays; "adamw" is Adam with that decay (Loshchilov and
  Hutter 2019, arXiv:1711.05101, without their separate schedule multiplier).
  "lion" is Chen et al. 2023, arXiv:2302.06675. "rmsprop" corrects the bias of
  its second moment, since without it a group's first steps are
  1 / sqrt(1 - b2) times too long, and applies momentum to the result.

  Args:
    name: one of NAMES.
    momentum: decay of the first moment (heavy ball for "sgd" and "rmsprop", b1
      for "adam", "adamw" and "lion"); 0 keeps none for the former two.
    b2: decay of the second moment; for "lion", of the momentum itself. Unused
      by "sgd".
    weight_decay: decay per unit of learning rate and step.
    clip_norm: largest global norm of the group's gradient; 0 does not clip.
    accumulate_steps: gradients averaged per update. Between updates the
      direction is exactly 0 and the inner state stands still.

  Returns:
    A gradient transformation; direction leaves have the gradients' dtype.

  Raises:
    InputError: unknown name.
  """
  if name not in NAMES:
    raise InputError(
      f"optimizer.name = '{name}' is unknown; valid: {', '.join(NAMES)}"
    )
  heavy_ball = optax.trace(momentum) if momentum > 0 else optax.identity()
  cores = {
    "sgd": [heavy_ball],
    "adamw": [optax.scale_by_adam(momentum, b2)],
    "adam": [optax.scale_by_adam(momentum, b2)],
    "lion": [optax.scale_by_lion(momentum, b2)],
    "rmsprop": [optax.scale_by_rms(b2, bias_correction=True), heavy_ball],
  }
  parts = list(cores[name])
  if clip_norm > 0:
    parts.insert(0, optax.clip_by_global_norm(clip_norm))
  if weight_decay > 0 and name != "adam":
    parts.append(optax.add_decayed_weights(weight_decay, mask=_decays))
  chain = optax.chain(*parts)
  if accumulate_steps > 1:
    chain = optax.MultiSteps(chain, accumulate_steps).gradient_transformation()
  return with_own_promotion(chain)


def make_schedule(
  name: str,
  *,
  peak: float,
  total_steps: int,
  warmup_steps: int = 0,
  decay_fraction: float = 0.2,
  final_factor: float = 0.0,
) -> Callable[[jax.Array], jax.Array]:
  """Build the learning rate of a run as a function of its step.

  Linear warm-up from peak / (warmup_steps + 1) at step 0 to the peak at step
  warmup_steps, so that no step is lost to a rate of 0; then
    constant: the peak;
    cosine: half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983);
    wsd: the peak, then linear over the last decay_fraction of the run (Hu et
      al. 2024, arXiv:2404.06395; linear as in Haegele et al. 2024,
      arXiv:2405.18392).
  The latter two end at final_factor * peak at step total_steps, which would
  come right after the last.

  Args:
    name: one of SCHEDULES.
    peak: largest rate.
    total_steps: steps of the whole run.
    warmup_steps: steps before the peak.
    decay_fraction: of total_steps; "wsd" alone reads it.
    final_factor: final rate / peak; "constant" does not read it.

  Returns:
    step int32 [] -> rate float32 []; traceable.

  Raises:
    InputError: unknown name.
  """
  if name not in SCHEDULES:
    raise InputError(
      f"optimizer.schedule = '{name}' is unknown; valid: {', '.join(SCHEDULES)}"
    )
  start = float(warmup_steps)
  if name == "wsd":
    start = max(start, total_steps * (1 - decay_fraction))
  length = max(total_steps - start, 1.0)

  def rate(step: jax.Array) -> jax.Array:
    now = jnp.asarray(step).astype(jnp.float32)
    factor = jnp.minimum(1.0, (now + 1) / (warmup_steps + 1))
    if name != "constant":
      done = jnp.clip((now - start) / length, 0.0, 1.0)
      left = (
        0.5 * (1 + jnp.cos(jnp.pi * done)) if name == "cosine" else 1 - done
      )
      factor = factor * (final_factor + (1 - final_factor) * left)
    return peak * factor

  return rate


def newborn_factor(age: jax.Array, warmup_steps: int) -> jax.Array:
  """Warm-up of a newborn group's updates, exactly 1 from warmup_steps on.

  Adam's first steps have the length of the learning rate whatever the
  gradient, and a seed is born in the middle of a run, at its full rate.

  Args:
    age: int32 []. Steps since the group was born; 0 at its first step.
    warmup_steps: steps before the factor is 1; 0 is always 1.

  Returns:
    float32 [], in (0, 1].
  """
  grown = (jnp.asarray(age).astype(jnp.float32) + 1) / (warmup_steps + 1)
  return jnp.minimum(1.0, grown)


def check_user_chain(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Check that a user's chain can serve every group of a growing network.

  It is run once on two parameters of 6 scalars in all.

  Args:
    tx: an optax chain that returns a direction of ascent, without learning
      rate, such as `optax.scale_by_adam()`.

  Returns:
    The chain, in the form that the training step takes.

  Raises:
    InputError: the chain carries a schedule, a (negative) learning rate, needs
      more than gradients and parameters, or changes a shape or dtype.
  """
  chain = with_own_promotion(tx)
  params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros((2,))}
  state = chain.init(params)
  scheduled = [
    type(node).__name__
    for node in jax.tree.leaves(state, is_leaf=_is_scheduled)
    if _is_scheduled(node)
  ]
  if scheduled:
    raise InputError(
      f"the optimizer chain carries its own schedule ({scheduled[0]}), which"
      " would start again in every newborn seed; leave it out and set"
      " optimizer.schedule and optimizer.learning_rate"
    )
  gradients = jax.tree.map(jnp.ones_like, params)
  try:
    direction, new_state = chain.update(gradients, state, params)
  except TypeError as error:
    raise InputError(
      "the optimizer chain needs more than (gradients, state, parameters):"
      f" {error}; line searches and the like cannot serve a growing network"
    ) from error
  for what, old, new in (
    ("updates", gradients, direction),
    ("state", state, new_state),
  ):
    if _form(old) != _form(new):
      raise InputError(
        f"the optimizer chain changes the structure, shape or dtype of its"
        f" {what} from {_form(old)} to {_form(new)}; they must stay the same"
      )
  if sum(leaf.sum() for leaf in jax.tree.leaves(direction)) < 0:
    raise InputError(
      "the optimizer chain contains its own learning rate (its updates point"
      " downhill); leave it out, e.g. optax.scale_by_adam() for"
      " optax.adam(1e-3), and set optimizer.learning_rate"
    )
  return chain


def with_own_promotion(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns `tx`, updating under Optax's own rules of dtype promotion.

  Optax mixes int32 counts with Python floats, so it cannot run under
  jax_numpy_dtype_promotion="strict", which our own code and tests use.
  """

  def update(updates: PyTree, state: PyTree, params: PyTree | None = None):
    with jax.numpy_dtype_promotion("standard"):
      return tx.update(updates, state, params)

  return optax.GradientTransformation(tx.init, update)


def _decays(params: PyTree) -> PyTree:
  return jax.tree.map(lambda p: p.ndim > 1, params)


def _is_scheduled(node: object) -> bool:
  return type(node).__name__ in _SCHEDULED_STATES


def _form(tree: PyTree) -> tuple[str, list[str]]:
  leaves, structure = jax.tree.flatten(tree)
  return str(structure), [f"{x.dtype}{list(x.shape)}" for x in leaves]
