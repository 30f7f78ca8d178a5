"""What is due at a boundary: seeds enter the tree and leave it.

A planting counts once its program is there and its first step has returned.
Until then the state before it is kept, so that a failure costs the seed alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from esper_jax.kasmina import lifecycle, surgery
from esper_jax.tezzeret.program import CompileError, first_line
from esper_jax.tolaria import foresight, processes
from esper_jax.tolaria.growth_options import GrowthOptions
from esper_jax.tolaria.growth_programs import boundary_key
from esper_jax.tolaria.programs import Programs, Signal
from esper_jax.tolaria.run import Run, forget
from esper_jax.tolaria.state import TrainState
from esper_jax.tolaria.steps import empty_sums
from esper_jax.types import Path, Stage

# (attempt, epoch, slot, lane) -> why a planting was given up as its programs
# were late; "" where they came. What is recorded is not left to time again.
Outcomes = Mapping[tuple[int, int, Path, int], str]


class _Before(NamedTuple):
  """What a planting changes, as it was, and the rows that it plants."""

  state: TrainState  # on the host
  slots: lifecycle.SlotState
  signals: lifecycle.Signals
  keys: list[str | None]
  changed: dict[Path, int]
  germinated: int
  before_growth: float | None
  planted: np.ndarray

  @classmethod
  def of(cls, run: Run, planted: Any) -> "_Before":
    return cls(
      state=jax.device_get(run.state),
      slots=run.slots,
      signals=run.signals,
      keys=list(run.keys),
      changed=dict(run.changed),
      germinated=run.germinated,
      before_growth=run.before_growth,
      planted=np.asarray(planted),
    )


class Planting:
  """Changes the tree of a run as its lifecycle says.

  Attributes:
    outcomes: of boundaries that a process before this one has passed.
  """

  def __init__(
    self,
    options: GrowthOptions,
    *,
    call: Callable[..., Any],
    programs: Programs,
    move: Callable[..., None],
    tell: Callable[..., None],
  ):
    """Binds it to a run's parts.

    Args:
      options: what the run fixes.
      call: runs one of `growth_programs`.
      programs: of the network.
      move: (run, slots, cancelled) takes over new stages and tells of them.
      tell: publishes an event (run, type, row=..., **fields).
    """
    self.options = options
    self._call = call
    self._programs = programs
    self._move = move
    self._tell = tell
    self.outcomes: Outcomes = {}
    self._before: _Before | None = None  # the last, until it has made a step

  def carry_out(
    self, run: Run, signals: dict[Path, Signal], *, last: bool = False
  ) -> None:
    """Carries out what is due: surgery on the tree, then the leaves.

    What cannot be compiled does not happen: a seed is not planted; one that
    was culled stays in the tree, silent, and is tried again.

    Args:
      run: at a boundary; changed.
      signals: of the slots, where the policy asked for them.
      last: whether no step follows, so that nothing needs its programs.
    """
    o, epoch = self.options, np.int32(run.epoch)
    moved, planted, removed, leaves = self._call("enact", run.slots, epoch)
    if np.any(planted) and not last:
      failed, late = self._failure(run, planted)
      if failed:
        self._cancel(run, planted, failed, late=late)
        moved, planted, removed, leaves = self._call("enact", run.slots, epoch)
      else:
        self._before = _Before.of(run, planted)
    if np.any(removed) and not np.any(planted) and not last:
      failed, _ = self._failure(run, planted)
      if failed:
        reason = f"a culled seed stays in the tree: {failed}"
        for row in map(int, np.flatnonzero(removed)):
          self._tell(run, "fault", row=row, kind="removal", reason=reason)
        self.set_leaves(run, self._call("leaves", run.slots))
        return
    for row in np.flatnonzero(np.asarray(removed)):
      key = run.keys[row]
      assert key is not None  # what was culled was planted
      run.state = surgery.cull(run.state, o.path(int(row)), key)
      run.keys[row] = None
    newborn = [int(row) for row in np.flatnonzero(np.asarray(planted))]
    if not signals and any(run.births[row] == "gradient" for row in newborn):
      signals = self._programs.probe(run).signals
    for row in newborn:
      self._plant(run, row, moved, signals.get(o.path(row)))
    run.slots = moved
    self.set_leaves(run, leaves)

  def train(self, run: Run, rows: np.ndarray) -> bool:
    """Makes training steps; a planting whose first step fails is undone.

    Args:
      run: changed.
      rows: int32 [steps, batch], indices of the examples.

    Returns:
      Whether the steps were made; if not, the network is the one before.
    """
    try:
      self._programs.train(run, rows)
      if self._before is not None:
        jax.block_until_ready(run.state.step)
    except jax.errors.JaxRuntimeError as error:
      if self._before is None:
        raise
      self._undo(run, self._before, error)
      return False
    finally:
      self._before = None
    return True

  def _undo(self, run: Run, before: _Before, error: Exception) -> None:
    run.state = jax.device_put(before.state)
    run.slots, run.signals = before.slots, before.signals
    run.keys, run.changed = before.keys, before.changed
    run.germinated = before.germinated
    run.before_growth = before.before_growth
    why = f"its first step failed: {first_line(error)}"
    self._cancel(run, before.planted, why, late=False)
    self.carry_out(run, {})
    run.sums = empty_sums(run.state)
    self._programs.begin(run)

  def warm(self, row: int, blueprint: str, initializer: str) -> None:
    """Has the small operations compiled that make a newborn.

    They run one by one: a compiled whole would round some weights otherwise.

    Args:
      row: of the newborn.
      blueprint: of it.
      initializer: of it; "gradient" is not warmed, it needs a signal.
    """
    o = self.options
    spec = o.slots[o.path(row)]

    def work() -> None:
      seed = surgery.make_seed(
        spec,
        blueprint,
        key=boundary_key(o.seed, 0, 0, 1 + row),
        initializer=initializer,
        blend=o.blend,
        proximal=o.proximal,
      )
      o.optimizer.init(seed.params)

    if initializer != "gradient":
      name = f"{blueprint}:{initializer}:{spec.form}"
      self._programs.forge.warm(name, work)

  def _failure(self, run: Run, planted: Any) -> tuple[str, bool]:
    """(why a change cannot have its programs, whether they are only late).

    The text is "" if it can. Only a planting is late; a removal waits.
    """
    o, rows = self.options, np.flatnonzero(planted)
    timeout = o.timeout if len(rows) else 0.0
    for row in map(int, rows):
      at = run.governor.attempt, run.epoch, o.path(row), row % o.lanes
      if at in self.outcomes:
        if self.outcomes[at]:
          return self.outcomes[at], True
        timeout = 0.0
    why = "", False
    try:
      for state in foresight.at_once(o, run, self._call):
        self._programs.obtain(state, timeout)
    except CompileError as error:
      why = str(error), error.timed_out
    return max(processes.gather(why))  # what one process lacks, none has

  def _cancel(self, run: Run, rows: Any, why: str, *, late: bool) -> None:
    moved = self._call("cancel", run.slots, rows, np.int32(run.epoch))
    said: dict[str, Any] = {"reason": why}
    self._move(run, moved, said | {"late": True} if late else said)

  def _plant(
    self,
    run: Run,
    row: int,
    slots: lifecycle.SlotState,
    signal: Signal | None,
  ) -> None:
    o = self.options
    path, column = o.path(row), int(slots.blueprint[row])
    key = boundary_key(o.seed, run.governor.attempt, run.epoch, 1 + row)
    if not run.epoch:  # a row may get several seeds at once
      key = jax.random.fold_in(key, run.germinated)
    elif not run.germinated:
      run.before_growth = float(run.history.val_accuracy[-1])
    run.state, run.keys[row] = surgery.germinate(
      run.state,
      o.slots[path],
      o.blueprints[column],
      key=key,
      optimizer=o.optimizer,
      initializer=run.births[row],
      blend=o.blend,
      proximal=o.proximal,
      newborn=o.newborn,
      signal=signal,
      permanent=foresight.permanent(
        o, run.keys, run.state, np.asarray(run.slots.stage), row
      ),
    )
    run.germinated += 1
    run.changed[path] = run.epoch
    run.signals = forget(run.signals, row)
    self._tell(
      run,
      "germinated",
      row=row,
      blueprint=o.blueprints[column],
      key=run.keys[row],
      initializer=run.births[row],
      parameters=int(o.cost[row, column]),
      stage=Stage.TRAINING.name,
    )

  def set_leaves(self, run: Run, leaves: tuple[jax.Array, ...]) -> None:
    """Lets the seeds' leaves say what the lifecycle says."""
    alpha, isolation, updates = (np.asarray(part) for part in leaves)
    for row, key in enumerate(run.keys):
      if key is not None:
        run.state = surgery.set_leaves(
          run.state,
          self.options.path(row),
          key,
          alpha=float(alpha[row]),
          isolation=float(isolation[row]),
          updates=float(updates[row]),
        )
