"""What a seed is worth: paired ablation on validation examples.

The contribution of a seed is the mean over a fixed set of examples of
loss(without it) - loss(with it), both from the same compiled program with
only the seed's leaves changed; a positive figure means that the seed helps.
A blending, holding or permanent seed is compared with alpha 0; one in
TRAINING, which has no effect yet, is tried at alpha 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from esper_jax.data.pipeline import eval_batches
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import group_name, seeds_at
from esper_jax.tolaria.run import Run, noted
from esper_jax.tolaria.state import TrainState
from esper_jax.types import HOST_GROUP, Path, Stage

MIN_EXAMPLES = 256
MEASURABLE = (
  Stage.TRAINING,
  Stage.BLENDING,
  Stage.HOLDING,
  Stage.FOSSILIZED,
)


class EvalBatch(NamedTuple):
  """One padded batch on the device.

  Attributes:
    images: uint8 [batch, height, width, channels].
    labels: int32 [batch].
    mask: float32 [batch], 0 on padding.
    count: number of real examples.
  """

  images: jax.Array
  labels: jax.Array
  mask: jax.Array
  count: int


class Contribution(NamedTuple):
  """A measured contribution, in nats of cross-entropy per example."""

  mean: float
  error: float  # standard error of the mean


def device_batches(
  images: np.ndarray, labels: np.ndarray, batch_size: int
) -> list[EvalBatch]:
  """Puts a split on the device as equal padded batches, in order.

  Args:
    images: uint8 [examples, height, width, channels].
    labels: int32 [examples].
    batch_size: examples per batch.
  """
  return [
    EvalBatch(
      jax.device_put(images[batch.indices]),
      jax.device_put(labels[batch.indices]),
      jax.device_put(batch.mask.astype(np.float32)),
      int(batch.mask.sum()),
    )
    for batch in eval_batches(len(labels), batch_size)
  ]


class Plan(NamedTuple):
  """What to measure at a boundary.

  Attributes:
    rows: in order.
    examples: validation examples per row.
  """

  rows: list[int]
  examples: int


def plan(
  stages: np.ndarray,
  ages: np.ndarray,
  since: np.ndarray,
  *,
  min_training: int,
  budget: float,
  cost: float,
  limit: int,
) -> Plan:
  """Decides which seeds are measured, and on how many examples.

  HOLDING seeds come first, then those in TRAINING that may soon leave it:
  both wait for the figure, so they are measured on at least MIN_EXAMPLES even
  beyond the budget. The others share what is left, the longest unmeasured
  first.

  Args:
    stages: int [rows], DORMANT where no seed is in the tree.
    ages: int [rows], epochs in the stage, the last one included.
    since: int [rows], epochs since the last measurement.
    min_training: epochs before which a TRAINING seed is not urgent.
    budget: FLOPs that may be spent now.
    cost: FLOPs of evaluating one example.
    limit: examples that are there at most.
  """
  rows = range(len(stages))
  ripe = (stages == Stage.TRAINING) & (ages >= min_training)
  urgent = [r for r in rows if stages[r] == Stage.HOLDING]
  urgent += [r for r in rows if ripe[r]]
  others = [r for r in rows if stages[r] in MEASURABLE and r not in urgent]
  others.sort(key=lambda r: (-since[r], r))
  affordable = int(budget / (cost * min(limit, MIN_EXAMPLES)))
  chosen = urgent + others[: max(0, affordable - len(urgent))]
  paid = budget / (cost * max(1, len(chosen)))
  return Plan(chosen, int(min(limit, max(MIN_EXAMPLES, paid))))


def ablate(
  state: TrainState, path: Path, key: str, *, isolated: bool
) -> TrainState:
  """The state with one seed switched: on if it is isolated, off otherwise."""
  alpha = 1.0 if isolated else 0.0
  return surgery.set_leaves(state, path, key, alpha=alpha, isolation=0.0)


def contribution(with_seed: np.ndarray, without: np.ndarray) -> Contribution:
  """Paired difference of losses, float [examples] each."""
  difference = without.astype(np.float64) - with_seed.astype(np.float64)
  error = difference.std(ddof=1) / math.sqrt(len(difference))
  return Contribution(float(difference.mean()), float(error))


def losses(
  evaluate: Callable[[EvalBatch], tuple[jax.Array, jax.Array]],
  batches: Sequence[EvalBatch],
) -> tuple[np.ndarray, np.ndarray]:
  """Per-example losses and hits, float32 [examples], padding removed."""
  outputs = [evaluate(batch) for batch in batches]  # all dispatched first
  parts = [
    (np.asarray(loss)[: b.count], np.asarray(hit)[: b.count])
    for (loss, hit), b in zip(outputs, batches, strict=True)
  ]
  return (
    np.concatenate([loss for loss, _ in parts]),
    np.concatenate([hit for _, hit in parts]),
  )


class Limits(NamedTuple):
  """What measuring may cost.

  Attributes:
    share: of the training FLOPs so far, for ablations and probes together.
    examples: validation examples per ablation, at most.
    min_training: see `plan`.
    ablate: whether anybody asks for contributions; a replay does not.
  """

  share: float
  examples: int
  min_training: int
  ablate: bool = True

  @classmethod
  def of(cls, config: ConfigDict) -> "Limits":
    """Those of a config."""
    k, ablate = config.kasmina, config.tamiyo.policy != "replay"
    return cls(
      k.measure_budget, k.measure_examples, k.min_training_epochs, ablate
    )


def update(
  run: Run,
  paths: Sequence[Path],
  *,
  batches: Sequence[EvalBatch],
  baseline: np.ndarray,
  limits: Limits,
  cost: float,
  evaluate: Callable[[TrainState, Sequence[EvalBatch]], np.ndarray],
) -> None:
  """Brings the signals of every row up to an epoch boundary.

  Args:
    run: its signals change.
    paths: slot of each row.
    batches: the validation split.
    baseline: float32 [examples], its losses under the run's own state.
    limits: see `Limits`.
    cost: FLOPs of evaluating one batch.
    evaluate: (state, batches) -> float32 [examples], losses; it is charged.
  """
  note_gradients(run, paths)
  since = run.signals.contribution_age + 1
  run.signals = run.signals.replace(contribution_age=since)
  if not limits.ablate:
    return
  planted = np.array([key is not None for key in run.keys], bool)
  stages = np.where(planted, np.asarray(run.slots.stage), Stage.DORMANT)
  spent = run.ledger.ablation + run.ledger.probe
  size = len(batches[0].mask)
  chosen = plan(
    stages,
    np.asarray(run.slots.age) + 1,
    np.asarray(since),
    min_training=limits.min_training,
    budget=limits.share * run.ledger.train - spent,
    cost=cost / size,
    limit=min(limits.examples, len(baseline)),
  )
  batches = batches[: -(-chosen.examples // size)]
  baseline = baseline[: sum(batch.count for batch in batches)]
  for row in chosen.rows:
    key = run.keys[row]
    assert key is not None  # only planted rows are chosen
    isolated = stages[row] == Stage.TRAINING
    state = ablate(run.state, paths[row], key, isolated=isolated)
    changed = evaluate(state, batches)
    pair = (changed, baseline) if isolated else (baseline, changed)
    note_contribution(run, row, contribution(*pair), Stage(int(stages[row])))


def note_gradients(run: Run, paths: Sequence[Path]) -> None:
  """Brings gradient parity and health up to the epoch that just ended.

  Parity is the newborn's root mean square gradient over the host's (Lillo and
  Cheney 2026, arXiv:2605.15435); finite covers gradients and variables.

  Args:
    run: with the epoch's sums; its signals change.
    paths: slot of each row.
  """
  sums = jax.device_get((run.sums.square, run.sums.finite))
  square, finite = sums
  signals = run.signals
  for row, key in enumerate(run.keys):
    if key is None:
      continue
    group = group_name(paths[row], key)
    seed = seeds_at(run.state.seeds, paths[row])[key]
    leaves = jax.tree.leaves(jax.device_get(seed))
    whole = all(np.isfinite(leaf).all() for leaf in leaves)
    healthy = bool(finite[group]) and whole
    host = max(float(square[HOST_GROUP]), np.finfo(np.float32).tiny)
    parity = math.sqrt(float(square[group]) / host) if healthy else 0.0
    signals = noted(
      signals, row, parity=parity, parity_known=True, finite=healthy
    )
  run.signals = signals


def note_contribution(
  run: Run, row: int, worth: Contribution, stage: Stage
) -> None:
  """Puts a measured contribution into the run's signals."""
  run.signals = noted(
    run.signals,
    row,
    contribution=worth.mean,
    contribution_se=worth.error,
    contribution_known=True,
    contribution_age=0,
    contribution_stage=stage,
  )
