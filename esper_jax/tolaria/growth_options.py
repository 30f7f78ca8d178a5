"""What a run fixes about growth."""

from typing import NamedTuple

import numpy as np
import optax

from esper_jax.kasmina import lifecycle
from esper_jax.tamiyo.replay import Plan
from esper_jax.types import Path, SlotTable


class GrowthOptions(NamedTuple):
  """What a run fixes about growth.

  Attributes:
    slots: the host's slot table.
    lanes: live seeds that a slot may hold; row r belongs to slot r // lanes.
    blueprints: names, in the order of every blueprint axis.
    fits: bool [rows, blueprints].
    cost: float32 [rows, blueprints], parameters of a newborn.
    rules: lifecycle numbers.
    initializer, blend, proximal, newborn: see `surgery.germinate`.
    optimizer: the chain of one group.
    seed: of policy draws and newborn parameters.
    frequency: epochs between two decisions.
    guesses: likely decisions to prepare for before they are taken.
    timeout: seconds to wait for a newborn's programs; 0 waits.
    replay: what happens in place of a policy's decisions; None asks it.
    warmup: steps of a newborn's warm-up; what is there from the start of a
      replay is past it.
    stop_on_policy_error: whether a learned policy that cannot be used ends the
      run; else the heuristic goes on.
  """

  slots: SlotTable
  lanes: int
  blueprints: tuple[str, ...]
  fits: np.ndarray
  cost: np.ndarray
  rules: lifecycle.Rules
  initializer: str
  blend: str
  proximal: float
  newborn: str
  optimizer: optax.GradientTransformation
  seed: int
  frequency: int
  guesses: int
  timeout: float
  replay: Plan | None = None
  warmup: int = 0
  stop_on_policy_error: bool = False

  @property
  def rows(self) -> int:
    return len(self.fits)

  def path(self, row: int) -> Path:
    """The slot of a row."""
    return list(self.slots)[row // self.lanes]
