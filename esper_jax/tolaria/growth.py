"""Tamiyo's place in the loop: observe, decide, and let the network change.

At each epoch boundary, in this order: the epoch is counted in every slot's
life; Tamiyo decides; moves between stages take effect through leaves; what is
due at this boundary enters or leaves the tree.
"""

import functools
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from esper_jax.kasmina import lifecycle
from esper_jax.oona.bus import Bus
from esper_jax.tamiyo.observation import Observation
from esper_jax.tamiyo.policy import Policy
from esper_jax.tamiyo.replay import Imposed, Plan
from esper_jax.tezzeret.forge import Forge
from esper_jax.tolaria import foresight, policy_fallback, processes
from esper_jax.tolaria.growth_options import GrowthOptions
from esper_jax.tolaria.growth_programs import make_programs
from esper_jax.tolaria.planting import Planting
from esper_jax.tolaria.programs import Programs, Signal
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.state import count_parameters
from esper_jax.tolaria.steps import Probed, empty_sums
from esper_jax.types import HOST_GROUP, Action, Path, Stage

_TINY = float(np.finfo(np.float32).tiny)


class Growth:
  """Carries out a policy's decisions on a run."""

  def __init__(
    self,
    options: GrowthOptions,
    policy: Policy,
    bus: Bus,
    programs: Programs,
    forge: Forge,
  ):
    """Binds a policy to a run's parts.

    Args:
      options: what the run fixes.
      policy: Tamiyo.
      bus: where events go.
      programs: of the network.
      forge: compiles what the lifecycle and the policy compute.
    """
    self.options = options
    self.policy = policy
    self._bus = bus
    self._programs = programs
    self.planting = Planting(
      options,
      call=self._call,
      programs=programs,
      move=self._move,
      tell=self._publish,
    )
    self._forge = forge
    for name, function in make_programs(
      policy,
      rules=options.rules,
      fits=options.fits,
      cost=options.cost,
      seed=options.seed,
      guesses=options.guesses,
    ).items():
      forge.add(name, function, rare=True, keep=True)
    self._ahead = bool(options.rows and forge.limits.threads)
    self._scored: Observation | None = None  # the last with scores
    self._for_guesses: tuple[Hashable, ...] = ()  # keys of programs

  def begin(self, run: Run) -> None:
    """Plants what a replay has from the start; before the first step."""
    rounds = (self.options.replay or {}).get(0)
    if run.epoch or not rounds or int(run.slots.growths):
      return
    for moves in rounds:
      self._impose(run, moves)
      self.planting.carry_out(run, {}, last=True)
    # It is no newborn to spare, nor suspect of what goes wrong later.
    warm, run.changed = self.options.warmup, {}
    ages = {
      group: age if group == HOST_GROUP else jnp.full_like(age, warm)
      for group, age in run.state.age.items()
    }
    run.state = run.state.replace(age=ages)
    run.sums = empty_sums(run.state)

  def boundary(self, run: Run, *, last: bool) -> None:
    """Everything that growth does between two epochs; changes the run.

    Args:
      run: after its epoch was validated and its seeds measured.
      last: whether training ends here: what is not permanent goes.
    """
    if not self.options.rows:
      return
    before = np.asarray(run.slots.stage)
    run.slots = self._call("tick", run.slots)
    self._announce_rest(run, before)
    signals: dict[Path, Signal] = {}
    if self.options.replay is not None:
      self._replay(run, self.options.replay)
    if last:
      self._move(run, self._call("finish", run.slots, run.signals))
    elif (
      self.options.replay is None and run.epoch % self.options.frequency == 0
    ):
      observation, wants_scores = self._observe(run)
      if wants_scores:
        probed = self._programs.probe(run)
        signals = probed.signals
        observation = self._with_scores(run, observation, probed)
        self._scored = observation
      self._ask(run, observation)
    self.planting.carry_out(run, signals, last=last)

  def prepare(self, run: Run) -> None:
    """Has what every boundary needs compiled, beside the first steps.

    Args:
      run: any; its shapes are those of the whole run.
    """
    if not self._ahead:
      return
    prepare, slots, signals = self._forge.prepare, run.slots, run.signals
    number, row = np.int32(0), np.zeros(self.options.rows, np.int32)
    if self.options.replay is not None:
      prepare("impose", slots, row, row, row)
      prepare("enact", slots, number)
      prepare("tick", slots)
      prepare("finish", slots, signals, likely=True)
      return
    look = (*self._looked_at(run), number, np.float32(0), np.float32(0))
    observation, _ = self._forge.shapes("observe", *look)
    asked = (run.policy, observation, slots, signals, number, number)
    _, decisions, *_ = self._forge.shapes("decide", *asked)
    prepare("enact", slots, number)
    prepare("observe", *look)
    prepare("tick", slots)
    prepare("decide", *asked)
    prepare("leaves", slots)
    prepare("finish", slots, signals, likely=True)
    if self.options.guesses:
      self._for_guesses = (
        prepare("rank", run.policy, observation, likely=True),
        prepare("act", slots, decisions, signals, number, likely=True),
      )
    if self.policy.wants_scores is not None:
      self._programs.prepare_scores()

  def look_ahead(self, run: Run) -> None:
    """Has the programs compiled that the coming boundaries need.

    Args:
      run: after a boundary.
    """
    if not self._ahead:
      return
    o, prepare = self.options, self._programs.prepare
    coming = foresight.decided(o, run, self._call)
    self._forge.pin("decided", [key for s in coming for key in prepare(s)])
    for row, blueprint in foresight.expected_births(o, run):
      self.planting.warm(row, blueprint, run.births[row])
    until = o.frequency - run.epoch % o.frequency
    forge = self._forge
    may_guess = forge.may_guess and forge.ready(self._for_guesses)
    if o.guesses and may_guess and run.epoch + until < o.rules.epochs:
      observation, _ = self._observe(run)
      if self._scored is not None:
        observation = _with_scores_of(observation, self._scored)
      ranked = self._call("rank", run.policy, observation)
      for n, state in enumerate(
        foresight.guessed(o, run, ranked, until=until, call=self._call)
      ):
        prepare(state, guess=n)

  def quarantine(self, run: Run, paths: Collection[Path]) -> None:
    """Bars slots from growing until the run ends; what lives there goes."""
    o = self.options
    guilty = np.array([o.path(row) in paths for row in range(o.rows)], bool)
    self._move(
      run, self._call("quarantine", run.slots, guilty, np.int32(run.epoch))
    )
    self.planting.set_leaves(run, self._call("leaves", run.slots))

  def _replay(self, run: Run, plan: Plan) -> None:
    """Has happen what a record says of this boundary."""
    *rounds, final = plan.get(run.epoch, ({},))
    for moves in rounds:
      self._impose(run, moves)
      self.planting.carry_out(run, {}, last=True)
    self._impose(run, final)

  def _impose(self, run: Run, moves: Mapping[int, Imposed]) -> None:
    asked = np.zeros((3, self.options.rows), np.int32)
    for row, move in moves.items():
      asked[:, row] = move.stage, move.blueprint, move.due
      if move.stage is Stage.GERMINATED:
        run.births[row] = move.initializer or self.options.initializer
    moved, refused = self._call("impose", run.slots, *asked)
    for row in map(int, np.flatnonzero(np.asarray(refused))):
      why, stage = _because(refused[row]), moves[row].stage
      self._publish(
        run, "gate_refused", row=row, action=stage.name.lower(), reason=why
      )
    self._move(run, moved)

  def _observe(self, run: Run) -> tuple[Observation, Any]:
    return self._call(
      "observe",
      *self._looked_at(run),
      np.int32(run.epoch),
      np.float32(count_parameters(run.state)),
      np.float32(self._programs.step_flops),
    )

  def _looked_at(self, run: Run) -> tuple[Any, ...]:
    return run.policy, run.slots, run.signals, run.history

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
            score, gain = self._programs.score(run, name, path, signal)
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
    """Says why a gate holds a seed back: in each stage, and what is new."""
    bits = np.asarray(observation.gate)
    known = np.asarray(run.slots.reason).copy()
    for row, stage in enumerate(np.asarray(observation.stage)):
      gated = stage in (Stage.TRAINING, Stage.HOLDING)
      if not gated or bits[row] in (known[row], lifecycle.Reason.TOO_YOUNG):
        continue
      known[row] = why = bits[row]
      if why:
        self._publish(run, "gate_refused", row=row, reason=_because(why))
    run.slots = run.slots.replace(reason=jnp.asarray(known))

  def _ask(self, run: Run, observation: Observation) -> None:
    o = self.options
    self._tell_refusals(run, observation)
    before = run.policy
    run.policy, decisions, moved, refused = self._call(
      "decide",
      run.policy,
      observation,
      run.slots,
      run.signals,
      np.int32(run.governor.attempt),
      np.int32(run.epoch),
    )
    decisions, moved, refused = processes.agree_on((decisions, moved, refused))
    policy_fallback.check(
      before,
      run.policy,
      functools.partial(
        self._bus.publish, epoch=run.epoch, step=run.next_batch
      ),
      stop=o.stop_on_policy_error,
    )
    told = {}
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
      told[decision.row] = decision.reason
      if decision.action is Action.GERMINATE:
        run.births[decision.row] = decision.initializer or o.initializer
    for row in map(int, np.flatnonzero(np.asarray(refused))):
      action = Action(int(decisions.action[row])).name.lower()
      why = _because(refused[row])
      self._publish(run, "gate_refused", row=row, action=action, reason=why)
    self._move(run, moved, told=told)

  def _move(
    self,
    run: Run,
    moved: lifecycle.SlotState,
    cancelled: Mapping[str, Any] | None = None,
    told: Mapping[int, str] | None = None,
  ) -> None:
    """Takes over new stages and tells of them.

    Args:
      run: changed.
      moved: the slots after it.
      cancelled: what is told of seeds that are not planted; None, why the
        lifecycle withdrew them.
      told: row -> why the policy decided so; None, as the lifecycle says.
    """
    before, after = np.asarray(run.slots.stage), np.asarray(moved.stage)
    run.slots = moved
    for row in map(int, np.flatnonzero(before != after)):
      run.changed[self.options.path(row)] = run.epoch
      was, now = Stage(int(before[row])), Stage(int(after[row]))
      if now is Stage.GERMINATED:
        run.keys[row] = None  # a permanent seed stays, but not as this row's
      elif was is Stage.GERMINATED:  # withdrawn before it was planted
        why = cancelled or {"reason": _because(moved.reason[row])}
        self._publish(run, "growth_cancelled", row=row, **why)
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
          reason=(told or {}).get(row) or _because(moved.reason[row]),
          **self._worth(run, row),
        )
      else:
        self._publish(run, "stage_changed", row=row, was=was.name, now=now.name)

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


def _with_scores_of(now: Observation, then: Observation) -> Observation:
  """An observation as the last probe had it: good enough for guesses."""
  names = (
    "activation_ms",
    "cotangent_ms",
    "signal_known",
    "scores",
    "scores_known",
    "expansion",
    "expansion_known",
  )
  return now.replace(**{name: getattr(then, name) for name in names})


def _because(bits: Any) -> str:
  return "; ".join(lifecycle.texts(int(bits)))
