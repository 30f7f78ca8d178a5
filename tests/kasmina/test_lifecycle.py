"""Moves, caps and time, against an independent model of one row at a time."""

import copy
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_jax.kasmina import lifecycle
from esper_jax.kasmina.lifecycle import Reason, Rules, Signals, SlotState
from esper_jax.types import Action, Stage

RULES = Rules(
  epochs=16,
  lead_epochs=1,
  adaptation_frequency=1,
  max_adaptations_per_epoch=2,
  max_growths=6,
  seeds_per_slot=1,
  max_per_slot=2,
  alpha_curve="linear",
  blend_epochs=2,
  min_training_epochs=1,
  max_training_epochs=8,
  min_holding_epochs=1,
  max_holding_epochs=4,
  embargo_epochs=2,
  training_gain_sigmas=0.0,
  gain_sigmas=2.0,
  max_gradient_ratio=100.0,
)
LONG = RULES._replace(epochs=32, max_growths=12)
VARIANTS = (
  LONG,
  LONG._replace(seeds_per_slot=2, min_training_epochs=2, alpha_curve="cosine"),
  LONG._replace(
    lead_epochs=0,
    blend_epochs=1,
    embargo_epochs=1,
    max_growths=5,
    seeds_per_slot=2,
    max_per_slot=3,
  ),
  LONG._replace(
    lead_epochs=2,
    embargo_epochs=0,
    blend_epochs=3,
    min_training_epochs=0,
    min_holding_epochs=0,
    max_adaptations_per_epoch=1,
    adaptation_frequency=2,
    alpha_curve="sigmoid",
  ),
)
PLANTED = (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
LIVE = (Stage.GERMINATED, *PLANTED)
ROWS = 4
FITS = np.asarray([[True, True], [True, True], [True, False], [False, True]])


class Model:
  """The lifecycle, one row after the other, in plain Python."""

  def __init__(self, slots: SlotState, rules: Rules):
    self.rules = rules
    self.growths = int(slots.growths)
    fields = {
      name: np.asarray(value).tolist()
      for name, value in vars(slots).items()
      if name != "growths"
    }
    self.rows = [
      dict(zip(fields, values, strict=True))
      for values in zip(*fields.values(), strict=True)
    ]

  def _lanes(self, r):
    n = self.rules.seeds_per_slot
    return self.rows[r // n * n : r // n * n + n]

  def _rest(self, row):
    row |= {"age": 0, "life": 0, "blueprint": -1, "alpha": 0.0, "due": -1}
    row |= {"stage": Stage.EMBARGOED, "embargo": self.rules.embargo_epochs}
    self._wake(row)

  def _wake(self, row):
    if row["embargo"] == 0:
      kept = row["fossils"] > 0
      row["stage"] = Stage.FOSSILIZED if kept else Stage.DORMANT
      row["alpha"], row["age"] = float(kept), 0

  def _withdraw(self, row, due, reason):
    row["reason"] = reason
    if row["stage"] == Stage.GERMINATED:
      self._rest(row)
    else:
      row |= {"stage": Stage.CULLED, "age": 0, "alpha": 0.0, "due": due}

  def _fossilize(self, row):
    row |= {"stage": Stage.FOSSILIZED, "age": 0, "fossils": row["fossils"] + 1}

  def _germinable(self, r, epoch):
    row, why = self._at_start[r], 0
    if row["stage"] in LIVE:
      return Reason.WRONG_STAGE
    n = self.rules.seeds_per_slot
    lanes = self._at_start[r // n * n : r // n * n + n]
    if any(x["stage"] in (Stage.CULLED, Stage.EMBARGOED) for x in lanes):
      why |= Reason.RESTING
    if _held(lanes) >= self.rules.max_per_slot:
      why |= Reason.SLOT_FULL
    if self.growths >= self.rules.max_growths:
      why |= Reason.GROWTHS_SPENT
    if row["quarantined"]:
      why |= Reason.QUARANTINED
    if _walk_a_life(epoch, self.rules) > self.rules.epochs:
      why |= Reason.TOO_LATE
    return why

  def act(self, actions, blueprints, gates, epoch):
    self._at_start = [dict(row) for row in self.rows]
    due, start, accepted = epoch + self.rules.lead_epochs, self.growths, 0
    refused, culled = [], set()
    for r, row in enumerate(self._at_start):
      stage, action = row["stage"], actions[r]
      if action == Action.WAIT:
        why = 0
      elif action == Action.GERMINATE:
        why = self._germinable(r, epoch)
        column = blueprints[r]
        if not (0 <= column < FITS.shape[1] and FITS[r, column]):
          why |= Reason.UNFIT
      elif action == Action.ADVANCE:
        rises = stage in (Stage.TRAINING, Stage.BLENDING)
        why = gates[r] if rises else Reason.WRONG_STAGE
      elif action == Action.FOSSILIZE:
        why = gates[r] if stage == Stage.HOLDING else Reason.WRONG_STAGE
      elif action == Action.CULL:
        why = 0 if stage in LIVE else Reason.WRONG_STAGE
        if not why:
          culled.add(r // self.rules.seeds_per_slot)
      else:
        why = Reason.NO_SUCH_ACTION
      refused.append(int(why))
    held = {
      r: _held(self._lanes(r))
      for r in range(0, ROWS, self.rules.seeds_per_slot)
    }
    for r, action in enumerate(actions):
      if action != Action.GERMINATE or refused[r]:
        continue
      slot = r // self.rules.seeds_per_slot
      first = slot * self.rules.seeds_per_slot
      if slot in culled:
        refused[r] = int(Reason.RESTING)
      elif held[first] >= self.rules.max_per_slot:
        refused[r] = int(Reason.SLOT_FULL)
      else:
        if start + accepted >= self.rules.max_growths:
          refused[r] |= int(Reason.GROWTHS_SPENT)
        if accepted >= self.rules.max_adaptations_per_epoch:
          refused[r] |= int(Reason.EPOCH_FULL)
        if not refused[r]:
          accepted += 1
          held[first] += 1
    self.growths += accepted
    for r, row in enumerate(self.rows):
      if refused[r]:
        row["reason"] = refused[r]
      elif actions[r] == Action.GERMINATE:
        row |= {"stage": Stage.GERMINATED, "age": 0, "life": 0, "alpha": 0.0}
        row |= {"blueprint": blueprints[r], "due": due, "reason": 0}
      elif actions[r] == Action.ADVANCE and row["stage"] == Stage.TRAINING:
        row |= {"stage": Stage.BLENDING, "age": 0, "alpha": self._alpha(1)}
        row["reason"] = 0
      elif actions[r] == Action.ADVANCE:
        row |= {"stage": Stage.HOLDING, "age": 0, "reason": 0}
      elif actions[r] == Action.FOSSILIZE:
        self._fossilize(row)
      elif actions[r] == Action.CULL:
        self._withdraw(row, due, gates[r] | Reason.BY_POLICY)
    return refused

  def _alpha(self, epochs):
    n = self.rules.blend_epochs
    return float(lifecycle.alpha_at(min(epochs / n, 1), self.rules.alpha_curve))

  def enact(self, epoch):
    planted, removed = [], []
    for row in self.rows:
      due = 0 <= row["due"] <= epoch
      planted.append(due and row["stage"] == Stage.GERMINATED)
      removed.append(due and row["stage"] == Stage.CULLED)
      if planted[-1]:
        row |= {"stage": Stage.TRAINING, "age": 0, "due": -1}
      if removed[-1]:
        self._rest(row)
    return planted, removed

  def tick(self):
    for row in self.rows:
      row["age"] += 1
      row["life"] += row["stage"] in (*PLANTED, Stage.CULLED)
      if row["stage"] == Stage.BLENDING:
        row["alpha"] = self._alpha(row["age"] + 1)
      if row["stage"] == Stage.EMBARGOED:
        row["embargo"] -= 1
        self._wake(row)

  def finish(self, gates):
    for row, why in zip(self.rows, gates, strict=True):
      if row["stage"] == Stage.HOLDING and not why:
        self._fossilize(row)
      elif row["stage"] in LIVE:
        self._withdraw(row, 0, why | Reason.RUN_ENDED)
      elif row["stage"] == Stage.CULLED:
        row["due"] = 0

  def cancel(self, rows, epoch, reason, barred=False):
    for row, hit in zip(self.rows, rows, strict=True):
      row["quarantined"] |= hit and barred
      if hit and row["stage"] in LIVE:
        self._withdraw(row, epoch + self.rules.lead_epochs, reason)

  def check(self, slots: SlotState):
    other = Model(slots, self.rules)
    assert other.growths == self.growths
    for r, (mine, theirs) in enumerate(zip(self.rows, other.rows, strict=True)):
      assert mine == theirs, f"row {r}: model {mine}, lifecycle {theirs}"


def _held(lanes):
  return sum(row["fossils"] + (row["stage"] in LIVE) for row in lanes)


@functools.cache
def _walk_a_life(epoch, rules):
  """The boundary at which an always passing seed is judged permanent."""
  boundary, stage, age = epoch + rules.lead_epochs, Stage.TRAINING, 0
  while True:
    boundary, age = boundary + 1, age + 1
    asked = boundary % rules.adaptation_frequency == 0
    if stage == Stage.HOLDING and age >= rules.min_holding_epochs:
      return boundary
    if stage == Stage.BLENDING and asked and age >= rules.blend_epochs:
      stage, age = Stage.HOLDING, 0
    if stage == Stage.TRAINING and asked and age >= rules.min_training_epochs:
      stage, age = Stage.BLENDING, 0


@functools.cache
def _jitted(rules: Rules):
  return (
    jax.jit(lambda s, g: lifecycle.gate(s, g, rules)),
    jax.jit(lambda s, g, f, e: lifecycle.legal(s, g, rules, f, e)),
    jax.jit(lambda s, a, b, g, f, e: lifecycle.act(s, a, b, g, rules, f, e)),
    jax.jit(lambda s, e: lifecycle.enact(s, rules, e)),
    jax.jit(lambda s: lifecycle.tick(s, rules)),
    jax.jit(lambda s, g: lifecycle.finish(s, g, rules)),
  )


@functools.cache
def _jitted_ends(rules: Rules):
  sick = Reason.NOT_FINITE
  return (
    jax.jit(lambda s, r, e: lifecycle.cancel(s, r, rules, e, reason=sick)),
    jax.jit(lambda s, r, e: lifecycle.quarantine(s, r, rules, e)),
  )


def _signals(kinds, stage) -> Signals:
  """Signals of which one thing is wrong with each row, or nothing."""
  kinds = np.asarray(kinds)
  stage = np.asarray(stage, np.int32)
  real = functools.partial(jnp.asarray, dtype=jnp.float32)
  return Signals(
    contribution=real(np.where(kinds == "worse", -1.0, 1.0)),
    contribution_se=real(np.where(kinds == "vague", 0.5, 0.25)),
    contribution_known=jnp.asarray(kinds != "unknown"),
    contribution_age=jnp.asarray(kinds == "old", jnp.int32) * 2,
    contribution_stage=jnp.asarray(np.where(kinds == "other", 3, stage)),
    parity=real(np.where(kinds == "wild", 1e9, 1.0)),
    parity_known=jnp.asarray(kinds != "numb"),
    finite=jnp.asarray(kinds != "sick"),
  )


KINDS = ["worse", "vague", "unknown", "old", "other", "wild", "numb", "sick"]


def _i32(values):
  return jnp.asarray(values, jnp.int32)


def _states(n: int, **fields) -> SlotState:
  """n rows in legal states; alpha, due and embargo follow from the stage."""
  slots = lifecycle.initial(n)
  stage = np.asarray(fields["stage"])
  permanent = np.isin(stage, [int(Stage.HOLDING), int(Stage.FOSSILIZED)])
  alpha = np.where(stage == Stage.BLENDING, 0.5, permanent.astype(np.float32))
  coming = np.isin(stage, [int(Stage.GERMINATED), int(Stage.CULLED)])
  fields = {name: _i32(value) for name, value in fields.items()}
  return slots.replace(
    alpha=jnp.asarray(alpha, jnp.float32),
    due=_i32(np.where(coming, 5, -1)),
    embargo=_i32(2 * (stage == Stage.EMBARGOED)),
    blueprint=_i32(np.where(stage == Stage.DORMANT, -1, 0)),
  ).replace(**fields)


def _strong(tree):
  leaves = jax.tree.leaves(tree)
  assert not any(leaf.weak_type for leaf in leaves)
  assert {leaf.dtype.name for leaf in leaves} <= {"int32", "float32", "bool"}


EVENTS = [(a, b) for a in (*Action, -1, 5) for b in (-1, 0, 1, 2)]


@pytest.mark.parametrize("stage", list(Stage))
def test_every_state_under_every_action(stage):
  """Every action, signal, age, fossil count and bar; eager == jit == vmap."""
  rules = RULES._replace(max_growths=10**6, max_adaptations_per_epoch=10**6)
  states = list(
    itertools.product(["fine", *KINDS], [0, 1, 2, 3], [0, 1, 2], [False, True])
  )
  cases = [(*state, *event) for state in states for event in EVENTS]
  kinds, ages, fossils, barred, actions, columns = zip(*cases, strict=True)
  n, epoch = len(cases), 7
  slots = _states(n, stage=[stage] * n, age=ages, fossils=fossils)
  slots = slots.replace(
    alpha=jnp.where(_i32(ages) >= 2, 1.0, slots.alpha)
    if stage == Stage.BLENDING
    else slots.alpha,
    quarantined=jnp.asarray(barred),
  )
  signals = _signals(kinds, [stage] * n)
  fits = jnp.tile(jnp.asarray([[True, False]]), (n, 1))
  args = (slots, _i32(actions), _i32(columns), signals)
  act = _jitted(rules)[2]
  new, refused = lifecycle.act(*args, rules, fits, epoch)
  _strong((new, refused))
  again = act(*args, fits, epoch)
  jax.tree.map(np.testing.assert_array_equal, (new, refused), again)

  moves, sown, measured = jax.tree.map(lambda x: x.reshape(-1, 1), args[1:])
  grown = slots.growths
  rows = jax.tree.map(
    lambda x: x.reshape(-1, 1), slots.replace(growths=slots.stage)
  ).replace(growths=jnp.broadcast_to(grown, (n,)))
  each = jax.vmap(
    lambda s, a, b, g, f: lifecycle.act(s, a, b, g, rules, f, epoch)
  )
  split, why = each(rows, moves, sown, measured, fits.reshape(n, 1, 2))
  _strong((split, why))
  np.testing.assert_array_equal(why.reshape(-1), refused)
  assert int(split.growths.sum()) == int(new.growths)
  for name in set(vars(new)) - {"growths"}:
    np.testing.assert_array_equal(
      getattr(split, name).reshape(-1), getattr(new, name)
    )

  seen = np.asarray(new.stage), np.asarray(refused)
  gates = np.asarray(lifecycle.gate(slots, signals, rules))
  for r, case in enumerate(cases):
    want, allowed = _next_stage(stage, case, gates[r] == 0)
    got = (Stage(int(seen[0][r])), seen[1][r] == 0)
    assert got == (want, allowed), case
  legal = np.asarray(lifecycle.legal(slots, signals, rules, fits, epoch))
  for r, (*_, action, column) in enumerate(cases):
    if action in tuple(Action) and column in (0, 1):
      own = int(slots.blueprint[0]) == column
      if action in (Action.WAIT, Action.GERMINATE) or own:
        assert legal[r, action, column] == (seen[1][r] == 0), cases[r]


def _next_stage(stage, case, passes):
  """The table of the design: (next stage, whether the action is allowed)."""
  _, _, fossils, barred, action, column = case
  seeds = fossils + (stage in LIVE)
  free = stage in (Stage.DORMANT, Stage.FOSSILIZED)
  fit = column == 0
  room = seeds < 2 and not barred
  table = {
    (Stage.DORMANT, Action.GERMINATE): (
      free and room and fit,
      Stage.GERMINATED,
    ),
    (Stage.FOSSILIZED, Action.GERMINATE): (room and fit, Stage.GERMINATED),
    (Stage.GERMINATED, Action.CULL): (True, Stage.EMBARGOED),
    (Stage.TRAINING, Action.ADVANCE): (passes, Stage.BLENDING),
    (Stage.TRAINING, Action.CULL): (True, Stage.CULLED),
    (Stage.BLENDING, Action.ADVANCE): (passes, Stage.HOLDING),
    (Stage.BLENDING, Action.CULL): (True, Stage.CULLED),
    (Stage.HOLDING, Action.FOSSILIZE): (passes, Stage.FOSSILIZED),
    (Stage.HOLDING, Action.CULL): (True, Stage.CULLED),
  }
  allowed, after = table.get((stage, action), (action == Action.WAIT, stage))
  return (after if allowed else stage), allowed


@pytest.mark.parametrize("rules", VARIANTS)
def test_every_state_under_every_other_event(rules):
  states = list(
    itertools.product(Stage, [0, 1, 2, 3], [0, 1], [1, 2], ["fine", "worse"])
  )
  stages, ages, fossils, embargoes, kinds = zip(*states, strict=True)
  n = len(states)
  slots = _states(n, stage=stages, age=ages, fossils=fossils)
  resting = slots.stage == int(Stage.EMBARGOED)
  slots = slots.replace(embargo=jnp.where(resting, _i32(embargoes), 0))
  signals = _signals(kinds, stages)
  gates = np.asarray(lifecycle.gate(slots, signals, rules)).tolist()
  hit = np.arange(n) % 3 > 0
  sick = Reason.NOT_FINITE

  def cancel(s):
    return lifecycle.cancel(s, jnp.asarray(hit), rules, 7, reason=sick)

  def bar(s):
    return lifecycle.quarantine(s, jnp.asarray(hit), rules, 7)

  events = [
    (lambda s: lifecycle.tick(s, rules), lambda m: m.tick()),
    (lambda s: lifecycle.finish(s, signals, rules), lambda m: m.finish(gates)),
    (cancel, lambda m: m.cancel(hit.tolist(), 7, sick)),
    (bar, lambda m: m.cancel(hit.tolist(), 7, Reason.QUARANTINED, True)),
  ] + [
    (
      functools.partial(lambda e, s: lifecycle.enact(s, rules, e)[0], e),
      functools.partial(lambda e, m: m.enact(e), e),
    )
    for e in (4, 5, 6)
  ]
  for function, simulate in events:
    model = Model(slots, rules)
    simulate(model)
    new = function(slots)
    model.check(new)
    _strong(new)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(function)(slots), new)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), slots)
    for part in range(2):
      jax.tree.map(
        lambda x, y, part=part: np.testing.assert_array_equal(x[part], y),
        jax.vmap(function)(two),
        new,
      )


def test_leaves_of_every_stage():
  slots = _states(len(Stage), stage=list(Stage))
  leaves = lifecycle.leaves(slots)
  _strong(leaves)
  assert {x.dtype.name for x in leaves} == {"float32"}
  rows = np.stack(leaves, axis=1).tolist()
  table = {stage: tuple(rows[stage]) for stage in Stage}
  assert table == {
    Stage.DORMANT: (0, 0, 0),
    Stage.GERMINATED: (0, 0, 0),
    Stage.TRAINING: (0, 1, 1),
    Stage.BLENDING: (0.5, 0, 1),
    Stage.HOLDING: (1, 0, 1),
    Stage.FOSSILIZED: (1, 0, 1),
    Stage.CULLED: (0, 0, 0),
    Stage.EMBARGOED: (0, 0, 0),
  }


@pytest.mark.parametrize(
  ("lead", "least", "blend", "every"),
  [(0, 0, 1, 1), (2, 2, 3, 1), (0, 2, 1, 3), (2, 0, 3, 3), (1, 1, 2, 2)],
)
def test_germination_is_legal_exactly_where_a_full_life_fits(
  lead, least, blend, every
):
  """Walks a passing seed from every boundary to the end, legal or not."""
  rules = RULES._replace(
    epochs=12,
    lead_epochs=lead,
    min_training_epochs=least,
    min_holding_epochs=least,
    blend_epochs=blend,
    adaptation_frequency=every,
  )
  starts = [e for e in range(rules.epochs + 1) if e % every == 0]
  n, fits = len(starts), jnp.ones((len(starts), 1), jnp.bool_)
  slots = lifecycle.initial(n)
  legal = np.asarray(
    [
      lifecycle.legal(slots, _signals(["fine"] * n, [0] * n), rules, fits, e)[
        0, Action.GERMINATE, 0
      ]
      for e in starts
    ]
  )
  gate, _, act, enact, tick, finish = _jitted(
    rules._replace(epochs=99, max_growths=99)
  )
  for epoch in range(rules.epochs + 1):
    slots = tick(slots)
    signals = _signals(["fine"] * n, slots.stage)
    if epoch == rules.epochs:
      slots = finish(slots, signals)
    elif epoch % every == 0:
      up = np.where(slots.stage == int(Stage.HOLDING), 4, 2)
      wants = np.where(np.asarray(gate(slots, signals)) == 0, up, 0)
      wants = np.where(np.asarray(starts) == epoch, 1, wants)
      slots, refused = act(
        slots, _i32(wants), _i32([0] * n), signals, fits, epoch
      )
      assert not np.asarray(refused).any()
    slots, _, _ = enact(slots, epoch)
  reached = np.asarray(slots.stage) == Stage.FOSSILIZED
  np.testing.assert_array_equal(reached, legal)
  for e in starts:
    assert lifecycle.earliest_fossil(e, rules) == _walk_a_life(e, rules)


def test_alpha_runs_through_the_curve_one_step_an_epoch():
  rules = RULES._replace(blend_epochs=4)
  _, _, act, _, tick, _ = _jitted(rules)
  fits = jnp.ones((1, 1), jnp.bool_)
  slots = _states(1, stage=[Stage.TRAINING], age=[3])
  used = []
  for epoch in range(1, 7):
    signals = _signals(["fine"], slots.stage)
    slots, refused = act(
      slots, _i32([Action.ADVANCE]), _i32([0]), signals, fits, epoch
    )
    early = [int(Reason.STILL_BLENDING)] if epoch in (2, 3, 4) else [0]
    assert refused.tolist() == (early if epoch < 6 else [1])
    used.append((Stage(int(slots.stage[0])).name, float(slots.alpha[0])))
    slots = tick(slots)
  blending = [("BLENDING", k / 4) for k in (1, 2, 3, 4)]
  assert used == [*blending, ("HOLDING", 1.0), ("HOLDING", 1.0)]


AFTER = {
  Stage.DORMANT: {Stage.GERMINATED},
  Stage.GERMINATED: {Stage.TRAINING, Stage.EMBARGOED, Stage.DORMANT},
  Stage.TRAINING: {Stage.BLENDING, Stage.CULLED},
  Stage.BLENDING: {Stage.HOLDING, Stage.CULLED},
  Stage.HOLDING: {Stage.FOSSILIZED, Stage.CULLED},
  Stage.FOSSILIZED: {Stage.GERMINATED},
  Stage.CULLED: {Stage.EMBARGOED, Stage.DORMANT},
  Stage.EMBARGOED: {Stage.DORMANT},
}


def _check_step(before, after, gates, rules):
  for r, (old, new) in enumerate(zip(before.rows, after.rows, strict=True)):
    was, now = Stage(old["stage"]), Stage(new["stage"])
    back = {Stage.FOSSILIZED} if old["fossils"] else set()
    allowed = AFTER[was] | (back if Stage.DORMANT in AFTER[was] else set())
    assert now == was or now in allowed, (was, now)
    assert 0.0 <= new["alpha"] <= 1.0
    if was == now == Stage.BLENDING:
      assert new["alpha"] >= old["alpha"] > 0.0
    if now in (Stage.HOLDING, Stage.FOSSILIZED):
      assert new["alpha"] == 1.0
    if now not in (Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED):
      assert new["alpha"] == 0.0
    if new["fossils"] > old["fossils"]:
      assert was == Stage.HOLDING and gates[r] == 0
    if old["quarantined"]:
      assert new["quarantined"] and not (now == Stage.GERMINATED != was)
    assert (now == Stage.EMBARGOED) == (new["embargo"] > 0)
    assert now != Stage.EMBARGOED or new["age"] < rules.embargo_epochs
    assert (now in (Stage.GERMINATED, Stage.CULLED)) == (new["due"] >= 0)
    assert _held(after._lanes(r)) <= rules.max_per_slot
  assert before.growths <= after.growths <= rules.max_growths
  grown = after.growths - before.growths
  assert grown <= rules.max_adaptations_per_epoch


def _draw_turn(draw, stage, legal):
  """Mostly moves that are legal, some that are anything, few misfortunes."""
  hopeful = np.asarray([1, 3, 2, 2, 4, 1, 3, 1])[np.asarray(stage)]
  blind = draw.choice([0, 1, 2, 3, 4, 9, -1], ROWS)
  actions = np.where(draw.random(ROWS) < 0.7, hopeful, blind)
  columns = draw.integers(-1, 3, ROWS)
  for r in np.flatnonzero(draw.random(ROWS) < 0.7):
    forward = [Action.GERMINATE, Action.ADVANCE, Action.FOSSILIZE]
    moves = np.argwhere(legal[r, forward])
    actions[r] = 0
    if len(moves):
      move, columns[r] = draw.permutation(moves)[0]
      actions[r] = forward[move]
  event = draw.choice(["", "cancel", "quarantine"], p=[0.94, 0.05, 0.01])
  hit = np.arange(ROWS) == draw.integers(ROWS)
  return actions.tolist(), columns.tolist(), event, hit


def _walk(rules, seed):
  """One run of random moves; gives every step (before, after) of the rows."""
  draw, steps = np.random.default_rng(seed), []
  gate, legal, act, enact, tick, finish = _jitted(rules)
  cancel, bar = _jitted_ends(rules)
  fits, slots = jnp.asarray(FITS), lifecycle.initial(ROWS)
  model = Model(slots, rules)
  in_tree = np.zeros(ROWS, bool)
  gates = [0] * ROWS

  def follow(before):
    model.check(slots)
    _check_step(before, model, gates, rules)
    steps.extend(zip(before.rows, copy.deepcopy(model.rows), strict=True))
    return copy.deepcopy(model)

  before = copy.deepcopy(model)
  for epoch in range(1, rules.epochs + 1):
    slots = tick(slots)
    model.tick()
    before = follow(before)
    kinds = np.where(draw.random(ROWS) < 0.75, "fine", draw.choice(KINDS, ROWS))
    signals = _signals(kinds, slots.stage)
    gates = gate(slots, signals).tolist()
    can = np.asarray(legal(slots, signals, fits, epoch))
    actions, columns, event, hit = _draw_turn(draw, slots.stage, can)
    if epoch == rules.epochs:
      slots = finish(slots, signals)
      model.finish(gates)
    elif epoch % rules.adaptation_frequency == 0:
      args = (_i32(actions), _i32(columns), signals, fits, epoch)
      slots, refused = act(slots, *args)
      assert refused.tolist() == model.act(actions, columns, gates, epoch)
      done = [(r, a) for r, a in enumerate(actions) if not refused[r]]
      assert all(can[r, action].any() for r, action in done)
    before = follow(before)
    if event == "cancel":
      slots = cancel(slots, jnp.asarray(hit), epoch)
      model.cancel(hit.tolist(), epoch, Reason.NOT_FINITE)
    if event == "quarantine":
      slots = bar(slots, jnp.asarray(hit), epoch)
      model.cancel(hit.tolist(), epoch, Reason.QUARANTINED, True)
    before = follow(before)
    slots, planted, removed = enact(slots, epoch)
    assert (planted.tolist(), removed.tolist()) == model.enact(epoch)
    before = follow(before)
    assert not (in_tree & np.asarray(planted)).any()
    assert (in_tree | ~np.asarray(removed)).all()
    in_tree = (in_tree | np.asarray(planted)) & ~np.asarray(removed)
    in_tree &= np.asarray(slots.stage) != Stage.FOSSILIZED
    standing = np.isin(slots.stage, [*PLANTED, Stage.CULLED])
    np.testing.assert_array_equal(in_tree, standing)
  ended = {Stage(s) for s in slots.stage.tolist()}
  assert ended <= {Stage.DORMANT, Stage.FOSSILIZED, Stage.EMBARGOED}
  for _ in range(rules.embargo_epochs):
    slots = tick(slots)
  assert int(Stage.EMBARGOED) not in slots.stage.tolist()
  return steps


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(VARIANTS), st.integers(0, 2**32 - 1))
def test_random_walks_follow_the_model_and_keep_the_invariants(rules, seed):
  _walk(rules, seed)


def test_the_walks_see_every_move_and_every_reason():
  steps = [
    step
    for rules in VARIANTS
    for seed in range(5)
    for step in _walk(rules, seed)
  ]
  moves = {(Stage(a["stage"]), Stage(b["stage"])) for a, b in steps}
  allowed = {(was, now) for was, after in AFTER.items() for now in after}
  back = {(was, Stage.FOSSILIZED) for was in (Stage.CULLED, Stage.EMBARGOED)}
  assert {m for m in moves if m[0] != m[1]} >= allowed | back
  seen = functools.reduce(int.__or__, (int(b["reason"]) for _, b in steps))
  # the gates' reasons have their own exhaustive test
  # By the caller of `cancel`, for which others stand; and by `impose`.
  given = (Reason.NOT_COMPILED, Reason.REPLAYED)
  own = [r for r in Reason if r >= Reason.RESTING and r not in given]
  assert not {int(r) for r in own if not seen & r}
  assert max(b["fossils"] for _, b in steps) > 1


@pytest.mark.parametrize("barred", [False, True])
def test_a_record_is_imposed_on_every_stage(barred):
  """Every move from every stage; eager == jit == vmap."""
  moves = (
    Stage.DORMANT,
    Stage.GERMINATED,
    Stage.BLENDING,
    Stage.HOLDING,
    Stage.FOSSILIZED,
    Stage.CULLED,
  )
  cases = list(itertools.product(Stage, moves))
  stages, asked = (_i32(part) for part in zip(*cases, strict=True))
  n = len(cases)
  slots = _states(n, stage=list(stages))
  slots = slots.replace(quarantined=jnp.full(n, barred))
  args = slots, asked, _i32([1] * n), _i32([9] * n)
  new, refused = lifecycle.impose(*args, RULES)
  _strong((new, refused))
  jitted = jax.jit(lifecycle.impose, static_argnames="rules")
  again = jitted(*args, rules=RULES)
  jax.tree.map(np.testing.assert_array_equal, (new, refused), again)
  two = jax.tree.map(lambda x: jnp.stack([x, x]), args)
  both = jax.vmap(lambda *a: lifecycle.impose(*a, RULES))(*two)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x[1], y), both, (new, refused)
  )
  sown = 0
  for r, (was, move) in enumerate(cases):
    why = Reason(int(refused[r]))
    row = {k: np.asarray(v)[r] for k, v in vars(new).items() if v.ndim}
    old = {k: np.asarray(v)[r] for k, v in vars(slots).items() if v.ndim}
    if move is Stage.GERMINATED:
      fine = was in (Stage.DORMANT, Stage.FOSSILIZED, Stage.EMBARGOED)
      want = Reason(0) if fine else Reason.WRONG_STAGE
      want |= Reason.QUARANTINED if barred else Reason(0)
    else:
      fine = was in PLANTED or move is Stage.DORMANT
      want = Reason(0) if fine else Reason.WRONG_STAGE
    assert why == want, (was, move)
    if want:
      assert row == {**old, "reason": int(want)}
      continue
    expected = dict(old)
    if move is not Stage.DORMANT:
      alpha = {Stage.BLENDING: 0.5, Stage.HOLDING: 1, Stage.FOSSILIZED: 1}
      expected |= {"stage": move, "age": 0, "alpha": alpha.get(move, 0)}
      expected |= {"reason": int(Reason.REPLAYED) * (move is Stage.CULLED)}
    if move in (Stage.GERMINATED, Stage.CULLED):
      expected |= {"due": 9}
    if move is Stage.GERMINATED:
      expected |= {"life": 0, "blueprint": 1}
      sown += 1
    expected["fossils"] += move is Stage.FOSSILIZED
    assert row == expected, (was, move)
  assert int(new.growths) == int(slots.growths) + sown
