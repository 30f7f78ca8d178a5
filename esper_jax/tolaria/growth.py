"""Tamiyo's place in the loop: observe, decide, and let the network change.

At each epoch boundary, in this order: the epoch is counted in every slot's
life; Tamiyo decides; moves between stages take effect through leaves; what is
due at this boundary enters or leaves the tree.
"""

from collections.abc import Callable
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
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.state import TrainState, count_parameters
from esper_jax.types import Action, Path, SlotTable, Stage

Signal = tuple[jax.Array, jax.Array]  # activations, cotangents of one slot


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

  def row_names(self) -> list[str]:
    """Slot names by row; lanes beyond the first are numbered."""
    return [
      name if lane == 0 else f"{name}#{lane + 1}"
      for name in self.slots
      for lane in range(self.lanes)
    ]


class Growth:
  """Carries out a policy's decisions on a run."""

  def __init__(
    self,
    options: GrowthOptions,
    policy: Policy,
    bus: Bus,
    *,
    probe: Callable[[Run], dict[Path, Signal]],
    score: Callable[[Run, str, Path, Signal], float],
    check: Callable[[TrainState], None],
  ):
    """Binds a policy to a run's parts.

    Args:
      options: what the run fixes.
      policy: Tamiyo.
      bus: where events go.
      probe: runs the probe: slot path -> what it carries and feels.
      score: germination score of (blueprint, path, signal).
      check: refuses a state with a seed that the host never reads.
    """
    self.options = options
    self.policy = policy
    self._bus = bus
    self._probe = probe
    self._score = score
    self._check = check
    self._decide = jax.jit(policy.decide)
    self._wants_scores = jax.jit(policy.wants_scores)
    self._tick = jax.jit(lambda s: lifecycle.tick(s, options.rules))

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
    run.slots = self._tick(run.slots)
    self._announce_rest(run, before)
    signals: dict[Path, Signal] = {}
    if last:
      self._move(
        run,
        lifecycle.finish(run.slots, run.signals, self.options.rules),
      )
    elif decide:
      observation = self.observe(run, step_flops)
      if bool(self._wants_scores(run.policy, observation)):
        signals = self._probe(run)
        observation = self._with_scores(run, observation, signals)
      self._ask(run, observation)
    self._enact(run, signals)

  def observe(self, run: Run, step_flops: float) -> Observation:
    """What Tamiyo may know: never anything of the test set."""
    o, rows = self.options, self.options.rows
    rules = o.rules
    legal = lifecycle.legal(
      run.slots, run.signals, rules, jnp.asarray(o.fits), run.epoch
    )
    zeros = jnp.zeros(rows, jnp.float32)
    history = run.history
    return Observation(
      epoch=jnp.asarray(run.epoch, jnp.int32),
      fraction=jnp.asarray(run.epoch / rules.epochs, jnp.float32),
      train_loss=jnp.asarray(history.train_loss),
      val_loss=jnp.asarray(history.val_loss),
      train_accuracy=jnp.asarray(history.train_accuracy),
      val_accuracy=jnp.asarray(history.val_accuracy),
      history_known=jnp.asarray(history.known),
      parameters=jnp.asarray(count_parameters(run.state), jnp.float32),
      flops=jnp.asarray(step_flops, jnp.float32),
      growths_left=jnp.asarray(
        rules.max_growths - int(run.slots.growths), jnp.int32
      ),
      epochs_left=jnp.asarray(rules.epochs - run.epoch, jnp.int32),
      stage=run.slots.stage,
      age=run.slots.age,
      life=run.slots.life,
      blueprint=run.slots.blueprint,
      alpha=run.slots.alpha,
      contribution=run.signals.contribution,
      contribution_se=run.signals.contribution_se,
      contribution_known=run.signals.contribution_known,
      contribution_age=run.signals.contribution_age,
      contribution_stage=run.signals.contribution_stage,
      activation_ms=zeros,
      cotangent_ms=zeros,
      signal_known=jnp.zeros(rows, jnp.bool_),
      parity=run.signals.parity,
      parity_known=run.signals.parity_known,
      finite=run.signals.finite,
      scores=jnp.zeros((rows, len(o.blueprints)), jnp.float32),
      scores_known=jnp.zeros(rows, jnp.bool_),
      gate=lifecycle.gate(run.slots, run.signals, rules),
      legal=legal,
      cost=jnp.asarray(o.cost),
    )

  def _with_scores(
    self, run: Run, observation: Observation, signals: dict[Path, Signal]
  ) -> Observation:
    o, rows = self.options, self.options.rows
    open_rows = np.asarray(observation.legal)[:, Action.GERMINATE].any(-1)
    scores = np.zeros((rows, len(o.blueprints)), np.float32)
    squares = np.zeros((2, rows), np.float32)
    for row in range(rows):
      signal = signals[o.path(row)]
      squares[:, row] = [float(jnp.mean(jnp.square(part))) for part in signal]
      if open_rows[row]:
        for column, name in enumerate(o.blueprints):
          if o.fits[row, column]:
            scores[row, column] = self._score(run, name, o.path(row), signal)
    return observation.replace(
      activation_ms=jnp.asarray(squares[0]),
      cotangent_ms=jnp.asarray(squares[1]),
      signal_known=jnp.ones(rows, jnp.bool_),
      scores=jnp.asarray(scores),
      scores_known=jnp.asarray(open_rows),
    )

  def _ask(self, run: Run, observation: Observation) -> None:
    o = self.options
    key = self._key(run, 0)
    run.policy, decisions = self._decide(run.policy, observation, key)
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
    moved, refused = lifecycle.act(
      run.slots,
      decisions.action,
      decisions.blueprint,
      run.signals,
      o.rules,
      jnp.asarray(o.fits),
      run.epoch,
    )
    for row in np.flatnonzero(np.asarray(refused)):
      self._publish(
        run,
        "gate_refused",
        row=int(row),
        action=Action(int(decisions.action[row])).name.lower(),
        reason="; ".join(lifecycle.texts(int(refused[row]))),
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
      elif now is Stage.FOSSILIZED:
        run.fossilized += 1
        self._publish(run, "fossilized", row=row, **self._worth(run, row))
      elif now in (Stage.CULLED, Stage.EMBARGOED):
        run.culled += 1
        reason = "; ".join(lifecycle.texts(int(moved.reason[row])))
        self._publish(
          run,
          "culled",
          row=row,
          was=was.name,
          reason=reason,
          **self._worth(run, row),
        )
      else:
        self._publish(
          run, "stage_changed", row=row, was=was.name, now=now.name
        )

  def _enact(self, run: Run, signals: dict[Path, Signal]) -> None:
    """Carries out what is due: surgery on the tree, then the leaves."""
    o = self.options
    moved, planted, removed = lifecycle.enact(run.slots, o.rules, run.epoch)
    for row in np.flatnonzero(np.asarray(removed)):
      key = run.keys[row]
      if key is None:
        raise RuntimeError(f"row {row} was culled but holds no seed")
      run.state = surgery.cull(run.state, o.path(int(row)), key)
      run.keys[row] = None
    newborn = [int(row) for row in np.flatnonzero(np.asarray(planted))]
    if newborn and o.initializer == "gradient" and not signals:
      signals = self._probe(run)
    for row in newborn:
      self._plant(run, row, moved, signals.get(o.path(row)))
    run.slots = moved
    self.set_leaves(run)

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
      key=self._key(run, 1 + row),
      optimizer=o.optimizer,
      initializer=o.initializer,
      blend=o.blend,
      proximal=o.proximal,
      newborn=o.newborn,
      signal=signal,
      permanent=self._permanent(run, row),
    )
    self._check(run.state)
    run.germinated += 1
    run.changed[path] = run.epoch
    run.signals = forget(run.signals, row)
    self._publish(
      run,
      "germinated",
      row=row,
      blueprint=o.blueprints[column],
      key=run.keys[row],
      initializer=o.initializer,
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

  def set_leaves(self, run: Run) -> None:
    """Lets the seeds' leaves say what the lifecycle says."""
    leaves = lifecycle.leaves(run.slots)
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

  def _key(self, run: Run, purpose: int) -> jax.Array:
    """A key of this boundary; a second attempt after a rollback differs."""
    key = jax.random.key(self.options.seed)
    for n in (run.governor.attempt, run.epoch, purpose):
      key = jax.random.fold_in(key, n)
    return key

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


def forget(signals: lifecycle.Signals, row: int) -> lifecycle.Signals:
  """Nothing is known of a row whose seed is new or gone."""
  return signals.replace(
    contribution_known=signals.contribution_known.at[row].set(False),
    parity_known=signals.parity_known.at[row].set(False),
    finite=signals.finite.at[row].set(True),
  )
