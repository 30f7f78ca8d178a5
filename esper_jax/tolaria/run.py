"""The record of a run: everything that must survive an interruption."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from esper_jax.kasmina import lifecycle
from esper_jax.kasmina.slot import all_seeds
from esper_jax.tolaria.accounting import Ledger
from esper_jax.tolaria.governor import GovernorState
from esper_jax.tolaria.state import TrainState
from esper_jax.tolaria.steps import Sums
from esper_jax.types import PyTree, Stage

HISTORY = 8  # epochs that an observation looks back


class History(struct.PyTreeNode):
  """The last epochs' figures, oldest first; float32 [HISTORY] each.

  Attributes:
    train_loss, val_loss: nats per example.
    train_accuracy, val_accuracy: 0 to 1.
    known: bool [HISTORY]; False where the run is younger than the entry.
  """

  train_loss: np.ndarray
  val_loss: np.ndarray
  train_accuracy: np.ndarray
  val_accuracy: np.ndarray
  known: np.ndarray

  @classmethod
  def empty(cls) -> "History":
    zeros = np.zeros(HISTORY, np.float32)
    return cls(zeros, zeros, zeros, zeros, np.zeros(HISTORY, bool))

  def append(
    self,
    *,
    train_loss: float,
    val_loss: float,
    train_accuracy: float,
    val_accuracy: float,
  ) -> "History":
    def push(values, value):
      return np.append(values[1:], values.dtype.type(value))

    return History(
      push(self.train_loss, train_loss),
      push(self.val_loss, val_loss),
      push(self.train_accuracy, train_accuracy),
      push(self.val_accuracy, val_accuracy),
      push(self.known, True),
    )


@dataclasses.dataclass
class Run:
  """The state of a run between two steps.

  Attributes:
    state: parameters, seeds, optimizer.
    sums: of the epoch under way.
    slots: lifecycle of every row (slot x lane).
    signals: what Tamiyo and the gates know of every row.
    keys: row -> key of the row's present seed in its slot, None if dormant.
    culls: row -> seeds culled there.
    births: row -> initializer of the row's present or next seed, "" if none.
    history: of the last epochs.
    policy: Tamiyo's own state.
    governor: rollbacks, quarantine, loss window.
    ledger: FLOPs and seconds.
    epoch: whole epochs done.
    next_batch: index of the next batch of the data order.
    logged_loss, logged_examples: of `sums` at the last metrics line, so that
      the next line covers only what is new.
    before_growth: validation accuracy when the first seed was planted.
    changed: slot -> epoch of its last change of stage.
    germinated, fossilized, rolled_back: counts.
    kernels: what runs in place of references, see `Dispatcher.choices`.
  """

  state: TrainState
  sums: Sums
  slots: lifecycle.SlotState
  signals: lifecycle.Signals
  keys: list[str | None]
  births: list[str]
  culls: list[int]
  history: History
  policy: PyTree
  governor: GovernorState
  ledger: Ledger
  epoch: int = 0
  next_batch: int = 0
  logged_loss: float = 0.0
  logged_examples: float = 0.0
  before_growth: float | None = None
  germinated: int = 0
  fossilized: int = 0
  rolled_back: int = 0
  changed: dict[str, int] = dataclasses.field(default_factory=dict)
  kernels: dict[str, str] = dataclasses.field(default_factory=dict)

  def arrays(self) -> dict[str, PyTree]:
    """The part of the run that is arrays."""
    return {
      "state": self.state,
      "sums": self.sums,
      "slots": self.slots,
      "signals": self.signals,
      "history": self.history,
      "policy": self.policy,
    }

  def facts(self) -> dict[str, Any]:
    """The part of the run that is plain JSON."""
    return {
      "keys": self.keys,
      "births": self.births,
      "culls": self.culls,
      "governor": self.governor.to_dict(),
      "ledger": self.ledger.to_dict(),
      **{name: getattr(self, name) for name in FACTS},
      "topology": topology(self.state.seeds),
    }


FACTS = (
  "epoch",
  "next_batch",
  "logged_loss",
  "logged_examples",
  "before_growth",
  "germinated",
  "fossilized",
  "rolled_back",
  "changed",
  "kernels",
)


def topology(seeds: dict[str, Any]) -> list[dict[str, Any]]:
  """The planted seeds as plain records, enough to rebuild their tree."""
  return [
    {
      "slot": path,
      "key": key,
      "blueprint": seed.blueprint,
      "blend": seed.blend,
      "depth": seed.depth,
    }
    for (path, key), seed in all_seeds(seeds).items()
  ]


def unknown_signals(rows: int) -> lifecycle.Signals:
  """Nothing is known of any row."""
  zero = jnp.zeros(rows, jnp.float32)
  no = jnp.zeros(rows, jnp.bool_)
  count = jnp.zeros(rows, jnp.int32)
  return lifecycle.Signals(
    contribution=zero,
    contribution_se=zero,
    contribution_known=no,
    contribution_age=count,
    contribution_stage=jnp.full(rows, int(Stage.DORMANT), jnp.int32),
    parity=zero,
    parity_known=no,
    finite=jnp.ones(rows, jnp.bool_),
  )


def forget(signals: lifecycle.Signals, row: int) -> lifecycle.Signals:
  """Nothing is known of a row whose seed is new or gone."""
  return noted(
    signals, row, contribution_known=False, parity_known=False, finite=True
  )


def noted(
  signals: lifecycle.Signals, row: int, **values: Any
) -> lifecycle.Signals:
  """The signals with some of one row's values changed."""
  arrays = {name: np.array(getattr(signals, name)) for name in values}
  for name, value in values.items():
    arrays[name][row] = value
  return signals.replace(**arrays)
