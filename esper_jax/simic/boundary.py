"""What an environment finds out at an epoch boundary.

The figures are those of `tolaria.measure` and `tolaria.growth`, as pure
functions of arrays: there a run is measured within a budget and between
programs, here every seed at every boundary inside one program. What nobody
waits for is then told only now and then, as a budget would have it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.kasmina import lifecycle
from esper_jax.kasmina.gates import is_in
from esper_jax.simic.learner import Epoch, Learner, view
from esper_jax.simic.planted import Grid
from esper_jax.tamiyo.observation import Observation
from esper_jax.tolaria.measure import MEASURABLE
from esper_jax.tolaria.run import History
from esper_jax.tolaria.steps import Probed
from esper_jax.types import LIVE_STAGES, Action, Stage

# Those whose seed is in the tree of a run.
PLANTED = (*LIVE_STAGES[1:], Stage.FOSSILIZED, Stage.CULLED)
_TINY = float(np.finfo(np.float32).tiny)


class Ablated(NamedTuple):
  """Losses on the validation split, per example.

  Attributes:
    losses: float32 [examples], of the network as it is.
    hits: float32 [examples].
    switched: float32 [rows, examples], with a row's seed switched.
  """

  losses: jax.Array
  hits: jax.Array
  switched: jax.Array


def ablate(
  evaluate: Callable[..., tuple[jax.Array, jax.Array]],
  learner: Learner,
  grid: Grid,
  stage: jax.Array,
  images: jax.Array,
  labels: jax.Array,
) -> Ablated:
  """Validates the network, and once more with each row's seed switched.

  As in `tolaria.measure`: a seed in TRAINING is switched on, others off. All
  passes are one batched pass, paired by example.
  """
  rows, leaves = len(grid.paths), learner.leaves
  mask = jnp.ones(labels.shape, jnp.float32)

  def losses(alpha, isolation):
    own = leaves.replace(alpha=alpha, isolation=isolation)
    seeds = grid.seeds(learner.pool, own)
    return evaluate(learner.params, view(learner), seeds, images, labels, mask)

  here = jnp.concatenate(
    [jnp.zeros((1, rows), jnp.bool_), jnp.eye(rows, dtype=jnp.bool_)]
  )
  tried = (stage == int(Stage.TRAINING)).astype(jnp.float32)
  both = jax.vmap(losses)(
    jnp.where(here, tried.reshape(1, -1), leaves.alpha.reshape(1, -1)),
    jnp.where(here, 0.0, leaves.isolation.reshape(1, -1)),
  )
  return Ablated(both[0][0], both[1][0], both[0][1:])


def judge(
  signals: lifecycle.Signals,
  slots: lifecycle.SlotState,
  ablated: Ablated,
  epoch: Epoch,
  learner: Learner,
  grid: Grid,
  *,
  attended: jax.Array,
  min_training: int,
) -> lifecycle.Signals:
  """Brings the signals of every row up to the epoch that just ended.

  Args:
    signals: of the boundary before.
    slots: as the epoch ran, not yet ticked.
    ablated: see `ablate`.
    epoch: what training told.
    learner: after it.
    grid: where seeds are.
    attended: bool [rows]. Whose contribution is told though nobody waits.
    min_training: see `measure.plan`: epochs from which one waits for it.
  """
  planted = is_in(slots.stage, PLANTED)
  ripe = (slots.stage == int(Stage.TRAINING)) & (slots.age + 1 >= min_training)
  awaited = ripe | (slots.stage == int(Stage.HOLDING))
  measured = is_in(slots.stage, MEASURABLE) & (awaited | attended)
  pool = learner.pool
  whole = jnp.isfinite(pool.kernels).all(axis=(1, 2))
  healthy = epoch.finite & whole & jnp.isfinite(pool.vectors).all(axis=1)
  sizes = jnp.asarray(grid.sizes, jnp.float32)
  square = epoch.row_square / sizes[jnp.maximum(slots.blueprint, 0)]
  host = jnp.maximum(epoch.host_square, _TINY)
  parity = jnp.where(healthy, jnp.sqrt(square / host), 0.0)

  gap = ablated.switched - ablated.losses.reshape(1, -1)
  tried = slots.stage == int(Stage.TRAINING)
  gap = jnp.where(tried.reshape(-1, 1), -gap, gap)  # without less with
  mean = gap.mean(axis=1)
  n = gap.shape[1]
  spread = jnp.square(gap - mean.reshape(-1, 1)).sum(axis=1) / (n - 1)
  error = jnp.sqrt(spread) / n**0.5
  s = signals
  return lifecycle.Signals(
    contribution=jnp.where(measured, mean, s.contribution),
    contribution_se=jnp.where(measured, error, s.contribution_se),
    contribution_known=measured | s.contribution_known,
    contribution_age=jnp.where(measured, 0, s.contribution_age + 1),
    contribution_stage=jnp.where(measured, slots.stage, s.contribution_stage),
    parity=jnp.where(planted, parity, s.parity),
    parity_known=planted | s.parity_known,
    finite=jnp.where(planted, healthy, s.finite),
  )


def forget(signals: lifecycle.Signals, rows: jax.Array) -> lifecycle.Signals:
  """As `tolaria.run.forget`, of rows bool [rows]."""
  return signals.replace(
    contribution_known=signals.contribution_known & ~rows,
    parity_known=signals.parity_known & ~rows,
    finite=signals.finite | rows,
  )


def remember(
  history: History,
  *,
  train_loss: jax.Array,
  val_loss: jax.Array,
  train_accuracy: jax.Array,
  val_accuracy: jax.Array,
) -> History:
  """As `History.append`, of float32 []."""

  def push(values, value):
    return jnp.concatenate([values[1:], value.reshape(1)])

  return history.replace(
    train_loss=push(history.train_loss, train_loss),
    val_loss=push(history.val_loss, val_loss),
    train_accuracy=push(history.train_accuracy, train_accuracy),
    val_accuracy=push(history.val_accuracy, val_accuracy),
    known=push(history.known, jnp.ones((), jnp.bool_)),
  )


def with_scores(
  observation: Observation,
  probed: Probed,
  scores: jax.Array,
  exists: jax.Array,
) -> Observation:
  """An observation with what the probe found; see `Growth.boundary`.

  Args:
    observation: without it.
    probed: by the probe.
    scores: float32 [blueprints, 2, rows], germination scores and first gains.
    exists: bool [rows]. Of the others nothing is known; nor of any where
      nothing may germinate, as a run does not look then.
  """
  supply = jnp.stack(list(probed.supply.values()))
  squares = [
    jnp.stack([jnp.square(signal[part]).mean() for signal in signals])
    for signals in [list(probed.signals.values())]
    for part in (0, 1)
  ]
  known = observation.legal[:, int(Action.GERMINATE)].any(-1) & exists
  looked = exists & known.any()
  score, gain = jnp.where(known.reshape(-1, 1, 1), scores.T, 0.0).transpose(
    1, 0, 2
  )
  return observation.replace(
    activation_ms=jnp.where(looked, squares[0], 0.0),
    cotangent_ms=jnp.where(looked, squares[1], 0.0),
    signal_known=looked,
    scores=score,
    scores_known=known,
    expansion=gain / jnp.maximum(supply, _TINY).reshape(-1, 1),
    expansion_known=known,
  )
