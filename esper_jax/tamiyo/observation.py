"""What a policy sees and what it answers.

Rows are the seed positions of the slots: `seeds_per_slot` consecutive rows
belong to one slot, in the order of the slot table. A value that was not
measured has its `known` flag down; unknown is never a zero.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.types import Action, Path, Stage

HISTORY = 8  # epochs of losses and accuracies that a policy can look back on

# Names behind Decisions.initializer; "" is the one that the config names.
INITIALIZERS = ("", "zero_out", "random", "gradient")

# Bits of Decisions.reason.
GATE_PASSED = 1
NOT_FINITE = 2
OVERDUE = 4
HARMFUL = 8
BEST_SCORE = 16
PERIOD = 32
SCHEDULED = 64
DRAWN = 128
OWN_RULE = 256
NOT_POSSIBLE = 512
LEARNED = 1024

REASONS: dict[int, str] = {
  GATE_PASSED: "the gate to the next stage passes",
  NOT_FINITE: "a gradient or parameter of the seed is not finite",
  OVERDUE: "the seed has been in its stage for as long as it may",
  HARMFUL: "the seed makes the validation loss worse",
  BEST_SCORE: "validation has stopped improving; best germination score",
  PERIOD: "a growth period ends",
  SCHEDULED: "the schedule asks for it",
  DRAWN: "drawn at random",
  OWN_RULE: "the rule asks for it",
  NOT_POSSIBLE: "asked for, but not possible now",
  LEARNED: "the learned policy's choice",
}


class Observation(struct.PyTreeNode):
  """Everything a policy sees at one epoch boundary.

  Validation figures come from the split held out of train, never from test.

  Attributes:
    epoch: int32 []. This boundary: how many epochs are over.
    fraction: float32 []. Part of the run that is over, 0 to 1.
    train_loss: float32 [8]. By epoch, the newest last.
    val_loss: float32 [8].
    train_accuracy: float32 [8], 0 to 1.
    val_accuracy: float32 [8], 0 to 1.
    history_known: bool [8]. Which of the eight epochs have been run.
    parameters: float32 []. Of the network as it stands, seeds included.
    flops: float32 []. Of one training step.
    growths_left: int32 []. Germinations still allowed in this run.
    epochs_left: int32 [].
    stage: int32 [rows]. A `Stage`.
    age: int32 [rows]. Epochs in this stage.
    life: int32 [rows]. Epochs since the seed was planted.
    blueprint: int32 [rows]. Index of the seed's blueprint; -1 without seed.
    alpha: float32 [rows].
    contribution: float32 [rows]. Validation loss without the seed minus with
      it: positive where the seed helps.
    contribution_se: float32 [rows]. Its standard error.
    contribution_known: bool [rows].
    contribution_age: int32 [rows]. Epochs since it was measured; 0 = now.
    contribution_stage: int32 [rows]. Stage in which it was measured.
    activation_ms: float32 [rows]. Mean square of the slot's activation.
    cotangent_ms: float32 [rows]. Mean square of the loss gradient there.
    signal_known: bool [rows]. Of the two above.
    parity: float32 [rows]. Rms gradient of the seed's parameters divided by
      that of the host's.
    parity_known: bool [rows].
    finite: bool [rows]. All of the seed's gradients and parameters finite.
    scores: float32 [rows, blueprints]. Germination score: squared gradient
      norm of the factor that is zero at birth, per parameter.
    scores_known: bool [rows].
    expansion: float32 [rows, blueprints]. What the newborn's first step would
      take off the loss, relative to a step of the parameters that the slot
      already has: its own seeds' and the host's that reach no earlier slot.
    expansion_known: bool [rows].
    gate: int32 [rows]. Why the next upward move is refused; 0 = it passes.
    legal: bool [rows, actions, blueprints].
    cost: float32 [rows, blueprints]. Parameters of each blueprint there.
  """

  epoch: jax.Array
  fraction: jax.Array
  train_loss: jax.Array
  val_loss: jax.Array
  train_accuracy: jax.Array
  val_accuracy: jax.Array
  history_known: jax.Array
  parameters: jax.Array
  flops: jax.Array
  growths_left: jax.Array
  epochs_left: jax.Array
  stage: jax.Array
  age: jax.Array
  life: jax.Array
  blueprint: jax.Array
  alpha: jax.Array
  contribution: jax.Array
  contribution_se: jax.Array
  contribution_known: jax.Array
  contribution_age: jax.Array
  contribution_stage: jax.Array
  activation_ms: jax.Array
  cotangent_ms: jax.Array
  signal_known: jax.Array
  parity: jax.Array
  parity_known: jax.Array
  finite: jax.Array
  scores: jax.Array
  scores_known: jax.Array
  expansion: jax.Array
  expansion_known: jax.Array
  gate: jax.Array
  legal: jax.Array
  cost: jax.Array


class Decisions(struct.PyTreeNode):
  """What a policy asks of every row.

  Attributes:
    action: int32 [rows]. An `Action`.
    blueprint: int32 [rows]. The one to germinate; the seed's own for other
      moves; -1 with WAIT.
    initializer: int32 [rows]. Index into INITIALIZERS; 0 = the config's.
    weight: float32 [rows]. How much of the policy's preference the choice
      got, 0 to 1; 0 with WAIT.
    reason: int32 [rows]. Bits of REASONS.
  """

  action: jax.Array
  blueprint: jax.Array
  initializer: jax.Array
  weight: jax.Array
  reason: jax.Array


@dataclasses.dataclass(frozen=True)
class Decision:
  """One row of `Decisions` on the host, in words.

  Attributes:
    slot: name of the slot.
    action: what is asked; WAIT where a wish could not be met.
    blueprint: name; "" where none is concerned.
    initializer: name; "" = the config's.
    reason: a sentence that quotes the signal.
    row: row of the arrays.
    weight: as in `Decisions`.
  """

  slot: Path
  action: Action
  blueprint: str
  initializer: str
  reason: str
  row: int
  weight: float


def unknown(rows: int, blueprints: int) -> Observation:
  """Makes the observation of a dormant network of which nothing is known.

  Args:
    rows: number of slots times seeds per slot.
    blueprints: number of blueprints.

  Returns:
    An `Observation` with every `known` flag down, in which only WAIT is legal
    and no growth is left; fill it with `.replace`.
  """

  def full(shape, value, dtype):
    return jnp.full(shape, value, dtype)

  f, i, b = jnp.float32, jnp.int32, jnp.bool_
  pairs = (rows, blueprints)
  legal = full((rows, len(Action), blueprints), False, b)
  return Observation(
    epoch=full((), 0, i),
    fraction=full((), 0, f),
    train_loss=full((HISTORY,), 0, f),
    val_loss=full((HISTORY,), 0, f),
    train_accuracy=full((HISTORY,), 0, f),
    val_accuracy=full((HISTORY,), 0, f),
    history_known=full((HISTORY,), False, b),
    parameters=full((), 0, f),
    flops=full((), 0, f),
    growths_left=full((), 0, i),
    epochs_left=full((), 0, i),
    stage=full((rows,), int(Stage.DORMANT), i),
    age=full((rows,), 0, i),
    life=full((rows,), 0, i),
    blueprint=full((rows,), -1, i),
    alpha=full((rows,), 0, f),
    contribution=full((rows,), 0, f),
    contribution_se=full((rows,), 0, f),
    contribution_known=full((rows,), False, b),
    contribution_age=full((rows,), 0, i),
    contribution_stage=full((rows,), int(Stage.DORMANT), i),
    activation_ms=full((rows,), 0, f),
    cotangent_ms=full((rows,), 0, f),
    signal_known=full((rows,), False, b),
    parity=full((rows,), 0, f),
    parity_known=full((rows,), False, b),
    finite=full((rows,), True, b),
    scores=full(pairs, 0, f),
    scores_known=full((rows,), False, b),
    expansion=full(pairs, 0, f),
    expansion_known=full((rows,), False, b),
    gate=full((rows,), 0, i),
    legal=legal.at[:, int(Action.WAIT), :].set(True),
    cost=full(pairs, 0, f),
  )


def open_pairs(observation: Observation, seeds_per_slot: int = 1) -> jax.Array:
  """Tells where a germination is legal; of a slot's lanes, the first.

  Args:
    observation: see `Observation`.
    seeds_per_slot: rows of one slot.

  Returns:
    bool [rows, blueprints].
  """
  legal = observation.legal[:, int(Action.GERMINATE), :]
  if seeds_per_slot == 1:
    return legal
  lanes = legal.reshape(-1, seeds_per_slot, legal.shape[1])
  return (lanes & (lanes.cumsum(axis=1) == 1)).reshape(legal.shape)


def improvement(
  observation: Observation, epochs: int
) -> tuple[jax.Array, jax.Array]:
  """Measures by how much the validation loss fell over the last epochs.

  Args:
    observation: see `Observation`.
    epochs: 1 to HISTORY - 1.

  Returns:
    (float32 [] fall relative to the earlier loss, bool [] whether both ends
    are known).
  """
  now, then = observation.val_loss[-1], observation.val_loss[-1 - epochs]
  known = observation.history_known
  gain = (then - now) / jnp.maximum(jnp.abs(then), 1e-12)
  return gain, known[-1] & known[-1 - epochs]


def trend(observation: Observation) -> tuple[jax.Array, jax.Array]:
  """Measures the validation loss's change from epoch to epoch.

  Returns:
    (float32 [] mean, float32 [] standard deviation) of the relative fall per
    epoch over the known history, recent epochs counting more (each earlier
    one half); both 0 with fewer than two known epochs.
  """
  loss, known = observation.val_loss, observation.history_known
  falls = (loss[:-1] - loss[1:]) / jnp.maximum(jnp.abs(loss[:-1]), 1e-12)
  recency = 0.5 ** jnp.arange(HISTORY - 2, -1, -1, dtype=jnp.float32)
  weight = jnp.where(known[:-1] & known[1:], recency, 0.0)
  weight = weight / jnp.maximum(weight.sum(), 1e-12)
  falls = jnp.where(weight > 0, falls, 0.0)
  mean = (weight * falls).sum()
  variance = (weight * (falls - mean) ** 2).sum()
  return mean, jnp.sqrt(variance)


def imagine(observation: Observation, epochs: int) -> Observation:
  """Extrapolates an observation to a later boundary.

  The validation loss follows its `trend`; other curves keep their last value;
  ages grow; stages, gates, scores and legality stay.

  Args:
    observation: see `Observation`.
    epochs: 1 to HISTORY.
  """
  ahead = jnp.arange(1, epochs + 1, dtype=jnp.float32)

  def keep(curve):
    return jnp.concatenate([curve[epochs:], jnp.repeat(curve[-1:], epochs)])

  fall, _ = trend(observation)
  losses = observation.val_loss[-1] * (1.0 - fall) ** ahead
  live = observation.blueprint >= 0
  aged = jnp.where(live, epochs, 0).astype(jnp.int32)
  return observation.replace(
    epoch=observation.epoch + epochs,
    epochs_left=observation.epochs_left - epochs,
    train_loss=keep(observation.train_loss),
    val_loss=jnp.concatenate([observation.val_loss[epochs:], losses]),
    train_accuracy=keep(observation.train_accuracy),
    val_accuracy=keep(observation.val_accuracy),
    history_known=keep(observation.history_known),
    age=observation.age + aged,
    life=observation.life + aged,
    contribution_age=observation.contribution_age + aged,
  )
