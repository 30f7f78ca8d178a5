"""Tamiyo's place in the loop: observe, decide, and let the network change.

At each epoch boundary, in this order: the epoch is counted in every slot's
life; Tamiyo decides; moves between stages take effect through leaves; what is
due at this boundary enters or leaves the tree.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from esper_jax.kasmina import lifecycle, surgery
from esper_jax.kasmina.slot import seeds_at
from esper_jax.oona.bus import Bus
from esper_jax.tamiyo.observation import Observation
from esper_jax.tamiyo.policy import Policy
from esper_jax.tezzeret.forge import Forge
from esper_jax.tolaria.growth_programs import boundary_key, make_programs
from esper_jax.tolaria.run import Run, forget
from esper_jax.tolaria.state import TrainState, count_parameters
from esper_jax.tolaria.steps import Probed
from esper_jax.types import Action, Path, SlotTable, Stage

Signal = tuple[jax.Array, jax.Array]  # activations, cotangents of one slot
_TINY = float(np.finfo(np.float32).tiny)


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

  @property
  def rows(self) -> int:
    return len(self.fits)

  def path(self, row: int) -> Path:
    """The slot of a row."""
    return list(self.slots)[row // self.lanes]


class Growth:
  """Carries out a policy's decisions on a run."""

  def __init__(
    self,
    options: GrowthOptions,
    policy: Policy,
    bus: Bus,
    *,
    forge: Forge,
    probe: Callable[[Run], Probed],
    score: Callable[[Run, str, Path, Signal], tuple[float, float]],
    check: Callable[[TrainState], None],
  ):
    """Binds a policy to a run's parts.

    Args:
      options: what the run fixes.
      policy: Tamiyo.
      bus: where events go.
      forge: compiles what the lifecycle and the policy compute.
      probe: runs the probe.
      score: germination score and first gain of (blueprint, path, signal).
      check: refuses a state with a seed that the host never reads.
    """
    self.options = options
    self.policy = policy
    self._bus = bus
    self._probe = probe
    self._score = score
    self._check = check
    self._consumed: set[Path] = set()  # slots that the host was seen to read
    self._forge = forge
    for name, function in make_programs(
      policy,
      rules=options.rules,
      fits=options.fits,
      cost=options.cost,
      seed=options.seed,
    ).items():
      forge.add(name, function, rare=True)

  def boundary(
    self, run: Run, *, step_flops: float, decide: bool, last: bool
  ) -> None:
    """Everything that growth does between two epochs; changes the run.

    Args:
      run: after its epoch was validated and its seeds measured.
      step_flops: of the present topology's training step.
      decide: whether the policy is asked at this boundary.
      last: whether training ends here: what is not permanent goes.
    """
    before = np.asarray(run.slots.stage)
    run.slots = self._call("tick", run.slots)
    self._announce_rest(run, before)
    signals: dict[Path, Signal] = {}
    if last:
      self._move(run, self._call("finish", run.slots, run.signals))
    elif decide:
      observation, wants_scores = self._call(
        "observe",
        run.policy,
        run.slots,
        run.signals,
        run.history,
        np.int32(run.epoch),
        np.float32(count_parameters(run.state)),
        np.float32(step_flops),
      )
      if wants_scores:
        probed = self._probe(run)
        signals = probed.signals
        observation = self._with_scores(run, observation, probed)
      self._ask(run, observation)
    self._carry_out(run, signals)

  def quarantine(self, run: Run, paths: Collection[Path]) -> None:
    """Bars slots from growing until the run ends; what lives there goes."""
    o = self.options
    guilty = np.array([o.path(row) in paths for row in range(o.rows)], bool)
    self._move(
      run, self._call("quarantine", run.slots, guilty, np.int32(run.epoch))
    )
    self._set_leaves(run, self._call("leaves", run.slots))

  def _with_scores(
    self, run: Run, observation: Observation, probed: Probed
  ) -> Observation:
    o, rows = self.options, self.options.rows
    open_rows = np.asarray(observation.legal[:, Action.GERMINATE].any(-1))
    scores = np.zeros((rows, len(o.blueprints)), np.float32)
    expansion = np.zeros_like(scores)
    squares = np.zeros((2, rows), np.float32)
    for row in range(rows):
      path = o.path(row)
      signal, supply = probed.signals[path], float(probed.supply[path])
      squares[:, row] = [np.mean(np.square(part)) for part in signal]
      if open_rows[row]:
        for column, name in enumerate(o.blueprints):
          if o.fits[row, column]:
            score, gain = self._score(run, name, path, signal)
            scores[row, column] = score
            expansion[row, column] = gain / max(supply, _TINY)
    return observation.replace(
      activation_ms=squares[0],
      cotangent_ms=squares[1],
      signal_known=np.ones(rows, bool),
      scores=scores,
      scores_known=open_rows,
      expansion=expansion,
      expansion_known=open_rows,
    )

  def _tell_refusals(self, run: Run, observation: Observation) -> None:
    """Says why a gate holds a seed back, whenever the reasons change."""
    bits = np.asarray(observation.gate)
    known = np.asarray(run.slots.reason).copy()
    for row, stage in enumerate(np.asarray(observation.stage)):
      gated = stage in (Stage.TRAINING, Stage.HOLDING)
      if not gated or bits[row] in (0, known[row], lifecycle.Reason.TOO_YOUNG):
        continue
      known[row] = bits[row]
      self._publish(run, "gate_refused", row=row, reason=_because(bits[row]))
    run.slots = run.slots.replace(reason=jnp.asarray(known))

  def _ask(self, run: Run, observation: Observation) -> None:
    o = self.options
    self._tell_refusals(run, observation)
    run.policy, decisions, moved, refused = self._call(
      "decide",
      run.policy,
      observation,
      run.slots,
      run.signals,
      np.int32(run.governor.attempt),
      np.int32(run.epoch),
    )
    for decision in self.policy.explain(
      decisions, observation, list(o.slots), list(o.blueprints)
    ):
      self._publish(
        run,
        "decision",
        row=decision.row,
        action=decision.action.name.lower(),
        blueprint=decision.blueprint,
        reason=decision.reason,
      )
      if decision.action is Action.GERMINATE:
        run.births[decision.row] = decision.initializer or o.initializer
    for row in np.flatnonzero(np.asarray(refused)):
      self._publish(
        run,
        "gate_refused",
        row=int(row),
        action=Action(int(decisions.action[row])).name.lower(),
        reason=_because(refused[row]),
      )
    self._move(run, moved)

  def _move(self, run: Run, moved: lifecycle.SlotState) -> None:
    """Takes over new stages, tells of them and sets the leaves."""
    before, after = np.asarray(run.slots.stage), np.asarray(moved.stage)
    run.slots = moved
    for row in map(int, np.flatnonzero(before != after)):
      run.changed[self.options.path(row)] = run.epoch
      was, now = Stage(int(before[row])), Stage(int(after[row]))
      if now is Stage.GERMINATED:
        run.keys[row] = None  # a permanent seed stays, but not as this row's
      elif was is Stage.GERMINATED:  # withdrawn before it was planted
        reason = _because(moved.reason[row])
        self._publish(run, "growth_cancelled", row=row, reason=reason)
      elif now is Stage.FOSSILIZED:
        run.fossilized += 1
        self._publish(run, "fossilized", row=row, **self._worth(run, row))
      elif now is Stage.CULLED:
        run.culls[row] += 1
        self._publish(
          run,
          "culled",
          row=row,
          was=was.name,
          reason=_because(moved.reason[row]),
          **self._worth(run, row),
        )
      else:
        self._publish(run, "stage_changed", row=row, was=was.name, now=now.name)

  def _carry_out(self, run: Run, signals: dict[Path, Signal]) -> None:
    """Carries out what is due: surgery on the tree, then the leaves."""
    o = self.options
    moved, planted, removed, leaves = self._call(
      "enact", run.slots, np.int32(run.epoch)
    )
    for row in np.flatnonzero(np.asarray(removed)):
      key = run.keys[row]
      assert key is not None  # what was culled was planted
      run.state = surgery.cull(run.state, o.path(int(row)), key)
      run.keys[row] = None
    newborn = [int(row) for row in np.flatnonzero(np.asarray(planted))]
    if not signals and any(run.births[row] == "gradient" for row in newborn):
      signals = self._probe(run).signals
    for row in newborn:
      self._plant(run, row, moved, signals.get(o.path(row)))
    run.slots = moved
    self._set_leaves(run, leaves)

  def _plant(
    self,
    run: Run,
    row: int,
    slots: lifecycle.SlotState,
    signal: Signal | None,
  ) -> None:
    o = self.options
    path, column = o.path(row), int(slots.blueprint[row])
    if run.before_growth is None:
      run.before_growth = float(run.history.val_accuracy[-1])
    run.state, run.keys[row] = surgery.germinate(
      run.state,
      o.slots[path],
      o.blueprints[column],
      key=boundary_key(o.seed, run.governor.attempt, run.epoch, 1 + row),
      optimizer=o.optimizer,
      initializer=run.births[row],
      blend=o.blend,
      proximal=o.proximal,
      newborn=o.newborn,
      signal=signal,
      permanent=self._permanent(run, row),
    )
    if path not in self._consumed:
      self._check(run.state)
      self._consumed.add(path)
    run.germinated += 1
    run.changed[path] = run.epoch
    run.signals = forget(run.signals, row)
    self._publish(
      run,
      "germinated",
      row=row,
      blueprint=o.blueprints[column],
      key=run.keys[row],
      initializer=run.births[row],
      parameters=int(o.cost[row, column]),
      stage=Stage.TRAINING.name,
    )

  def _permanent(self, run: Run, row: int) -> list[str]:
    """Keys of the slot's seeds that no living lane owns."""
    lanes = self.options.lanes
    first = row // lanes * lanes
    stages = np.asarray(run.slots.stage)
    living = {
      run.keys[r]
      for r in range(first, first + lanes)
      if stages[r] != Stage.FOSSILIZED
    }
    own = seeds_at(run.state.seeds, self.options.path(row))
    return [key for key in own if key not in living]

  def _set_leaves(self, run: Run, leaves: tuple[jax.Array, ...]) -> None:
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

  def _announce_rest(self, run: Run, before: np.ndarray) -> None:
    after = np.asarray(run.slots.stage)
    ended = (before == Stage.EMBARGOED) & (after != Stage.EMBARGOED)
    for row in np.flatnonzero(ended):
      self._publish(run, "embargo_ended", row=int(row))

  def _worth(self, run: Run, row: int) -> dict[str, float | None]:
    """The last measured contribution, for an event."""
    s = run.signals
    known = bool(s.contribution_known[row])
    return {
      "contribution": float(s.contribution[row]) if known else None,
      "contribution_se": float(s.contribution_se[row]) if known else None,
    }

  def _call(self, name: str, *args: Any) -> Any:
    return self._forge.program(name, *args).call(*args)

  def _publish(self, run: Run, event: str, *, row: int, **fields: Any) -> None:
    if self.options.lanes > 1:
      fields["lane"] = row % self.options.lanes
    self._bus.publish(
      event,
      epoch=run.epoch,
      step=run.next_batch,
      slot=self.options.path(row),
      **fields,
    )


def _because(bits: Any) -> str:
  return "; ".join(lifecycle.texts(int(bits)))
