"""Growth that another run recorded, enacted again, and its random controls.

What is replayed is a list of lives (`oona.growth_log`). They may be placed or
timed at random, or all be there from the start; `make_plan` then says what
happens to every row at every boundary.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from esper_jax.kasmina.lifecycle import Rules
from esper_jax.oona.growth_log import Life, Move, numbered
from esper_jax.types import InputError, Path, Stage, counted

_DRAWS = 100_000  # until the rules are taken to allow nothing
_SLOTS, _TIMES = 0, 1  # streams of the draws


class Imposed(NamedTuple):
  """What happens to a row; see `lifecycle.impose`.

  Attributes:
    stage: that it comes to.
    blueprint: index of it where the row germinates, else -1.
    due: boundary at which the tree changes, -1 where it does not.
    initializer: of the newborn; "" is the one that the config names.
  """

  stage: Stage
  blueprint: int = -1
  due: int = -1
  initializer: str = ""


# Boundary -> rounds in order; what a round plants is there in the next one.
# More than one is needed only where a seed moves on as soon as it is planted.
Plan = Mapping[int, Sequence[Mapping[int, Imposed]]]


class Places(NamedTuple):
  """Where a host can grow what.

  Attributes:
    slots: paths in the order of the slot table.
    blueprints: names in the order of the blueprint axis.
    fits: bool [rows, blueprints].
    rules: of the lifecycle; row r belongs to slot r // seeds_per_slot.
  """

  slots: Sequence[Path]
  blueprints: Sequence[str]
  fits: np.ndarray
  rules: Rules

  def row(self, slot: Path, lane: int) -> int:
    """The row of a slot's lane."""
    return self.slots.index(slot) * self.rules.seeds_per_slot + lane

  def fitting(self, blueprint: str) -> list[Path]:
    """The slots that a blueprint fits."""
    column = self.blueprints.index(blueprint)
    return [s for s in self.slots if self.fits[self.row(s, 0), column]]


def check(lives: Iterable[Life], places: Places) -> None:
  """Refuses lives that a host has no place for.

  Raises:
    InputError: names the slot, lane or blueprint and what the host has.
  """
  for life in lives:
    planted = f"'{life.blueprint}' in slot '{life.slot}' is recorded"
    if life.slot not in places.slots:
      raise InputError(
        f"{planted}, but the host lacks that slot (it has"
        f" {', '.join(places.slots) or 'none'}); replay it in the same host"
      )
    if life.blueprint not in places.blueprints:
      raise InputError(
        f"{planted}, but that blueprint is not among those of the run"
        f" ({', '.join(places.blueprints)}); add it with"
        " --config.kasmina.blueprints or --config.urza.modules"
      )
    if life.slot not in places.fitting(life.blueprint):
      fitting = ", ".join(places.fitting(life.blueprint))
      raise InputError(
        f"{planted}, but it does not fit there in this host (it fits"
        f" {fitting}); replay it in the same host"
      )
    lanes = places.rules.seeds_per_slot
    if life.lane >= lanes:
      raise InputError(
        f"{planted} in lane {life.lane}, but slots have {lanes} here; give"
        f" --config.kasmina.seeds_per_slot={life.lane + 1}"
      )


def check_epochs(lives: Iterable[Life], epochs: int) -> None:
  """Refuses lives that end after the last boundary of a run.

  Raises:
    InputError: says how many epochs are needed.
  """
  needed = max((life.ended for life in lives), default=0)
  if needed > epochs:
    raise InputError(
      f"growth is recorded up to epoch {needed}, but this run has {epochs}"
      f" epochs; give --config.train.epochs={needed} or more"
    )


def place_at_random(
  lives: Sequence[Life], places: Places, *, seed: int
) -> tuple[Life, ...]:
  """Gives every seed a slot at random; blueprints and times stay.

  Every assignment of slots that the rules allow is equally likely, the
  recorded one included: the blueprint fits; as many seeds live in a slot as it
  has lanes, and it holds no more than `max_per_slot`; it rests after a cull.

  Args:
    lives: see `growth_log.read_lives`.
    places: of the host; its rules are the run's.
    seed: of the draw; non-negative.

  Raises:
    InputError: the rules seem to allow none.
  """
  below = _dice(seed, _SLOTS)
  fitting = [places.fitting(life.blueprint) for life in lives]
  # When they germinate is the record's affair.
  rules = places.rules._replace(max_adaptations_per_epoch=len(lives))

  def propose() -> list[Life]:
    return [
      life._replace(slot=slots[below(len(slots))])
      for life, slots in zip(lives, fitting, strict=True)
    ]

  return _first_allowed(propose, rules)


def time_at_random(
  lives: Sequence[Life], rules: Rules, *, warmup: int, seed: int
) -> tuple[Life, ...]:
  """Gives every seed a time at random; places and blueprints stay.

  A life is moved as a whole. Every combination of times that the rules allow
  is equally likely, the recorded one included: a germination is decided at a
  multiple of `adaptation_frequency`, not before the warm-up (or the first of
  the record, if that was earlier), at most `max_adaptations_per_epoch` at
  once, so that the life ends within the run; slots as in `place_at_random`.

  Args:
    lives: see `growth_log.read_lives`.
    rules: of the run.
    warmup: epochs before the first germination may be decided.
    seed: of the draw; non-negative.

  Raises:
    InputError: the rules seem to allow none.
  """
  below = _dice(seed, _TIMES)
  lead, every = rules.lead_epochs, rules.adaptation_frequency
  first = min([warmup, *(life.planted - lead for life in lives)])
  times = [
    [
      epoch + lead
      for epoch in range(max(first, 1), rules.epochs)
      if epoch % every == 0
      and epoch + lead < rules.epochs
      and epoch + lead + life.ended - life.planted <= rules.epochs
    ]
    for life in lives
  ]
  if not all(times):
    raise InputError(
      "a life that was recorded fits in nowhere between the first and the last"
      f" of {counted(rules.epochs, 'epoch')}; give more with"
      " --config.train.epochs"
    )
  born = 1 + max((m.order for life in lives for m in life.moves), default=0)

  def propose() -> list[Life]:
    out = []
    for life, choice in zip(lives, times, strict=True):
      shift = choice[below(len(choice))] - life.planted
      # At one boundary living seeds move before others are planted.
      moves = tuple(
        Move(
          m.order + born * (m.epoch == life.planted), m.epoch + shift, m.stage
        )
        for m in life.moves
      )
      out.append(life._replace(moves=moves))
    return sorted(out, key=lambda life: life.moves[0][1::-1])

  return numbered(_first_allowed(propose, rules))


def from_the_start(lives: Iterable[Life]) -> tuple[Life, ...]:
  """Has every seed that became permanent be so before the first step.

  Those that stood in parallel do so again, and those that read others'
  outputs do. They are born as the config says, not as recorded.
  """
  lives = [life for life in lives if not life.culled]
  depths: list[int] = []
  for life in lives:
    below = [
      depth
      for other, depth in zip(lives, depths, strict=False)
      if other.slot == life.slot and other.moves[-1].order < life.moves[0].order
    ]
    depths.append(1 + max(below, default=-1))
  out = []
  for n, (life, depth) in enumerate(zip(lives, depths, strict=True)):
    born = 2 * depth * len(lives) + n
    moves = (
      Move(born, 0, Stage.TRAINING),
      Move(born + len(lives), 0, Stage.FOSSILIZED),
    )
    out.append(life._replace(initializer="", moves=moves))
  return numbered(out)


def make_plan(lives: Iterable[Life], places: Places) -> Plan:
  """Says what happens to every row at every boundary.

  A seed is decided `lead_epochs` before it is planted, where its row is free
  by then, and leaves the tree as long after its cull, or at once where the
  next seed of the row would wait: so the networks are those of the record.

  Args:
    lives: checked against `places`.
    places: of the host; its rules are the run's.
  """
  rules = places.rules
  by_row: dict[int, list[Life]] = {}
  for life in lives:
    by_row.setdefault(places.row(life.slot, life.lane), []).append(life)
  moves: list[tuple[int, int, int, Imposed | None]] = []
  for row, own in by_row.items():
    free = 0  # the first boundary at which the next one may be decided
    for n, life in enumerate(own):
      decided = min(life.planted, max(free, life.planted - rules.lead_epochs))
      column = places.blueprints.index(life.blueprint)
      (_, epoch, _), *later = life.moves
      order = life.moves[0].order
      born = Imposed(Stage.GERMINATED, column, epoch, life.initializer)
      moves.append((decided, order, row, born))
      if decided < epoch:
        moves.append((epoch, order, row, None))
      due = min(life.ended + rules.lead_epochs, rules.epochs)
      if n + 1 < len(own) and due >= own[n + 1].planted:
        due = life.ended
      free = 1 + (due if life.culled else life.ended)
      for move in later:
        gone = due if move.stage is Stage.CULLED else -1
        moves.append(
          (move.epoch, move.order, row, Imposed(move.stage, due=gone))
        )
  return _rounds(moves, rules.seeds_per_slot)


def _rounds(
  moves: Iterable[tuple[int, int, int, Imposed | None]], lanes: int
) -> Plan:
  """Sorts (boundary, order, row, what happens) into rounds.

  None is a planting that was decided before. A row moves once a round; what
  happens in a slot after a birth there comes a round later.
  """
  plan: dict[int, list[dict[int, Imposed]]] = {}
  slots: dict[tuple[int, int], list[dict[int, bool]]] = {}
  for epoch, _, row, move in sorted(moves, key=lambda m: m[:2]):
    own = slots.setdefault((epoch, row // lanes), [{}])
    birth = move is None or move.stage is Stage.GERMINATED
    if row in own[-1] or (any(own[-1].values()) and not birth):
      own.append({})
    own[-1][row] = birth
    rounds = plan.setdefault(epoch, [])
    rounds += [{} for _ in range(len(own) - len(rounds))]
    if move is not None:
      rounds[len(own) - 1][row] = move
  return plan


def _dice(seed: int, stream: int) -> Callable[[int], int]:
  """Draws below n, as every numpy version does: from raw 64-bit words."""
  entropy = np.random.SeedSequence(seed, spawn_key=(stream,))
  bits = np.random.Philox(entropy)
  return lambda n: int(bits.random_raw()) % n


def _first_allowed(
  propose: Callable[[], Sequence[Life]], rules: Rules
) -> tuple[Life, ...]:
  """Draws until the rules allow it: so all that they allow is as likely.

  Args:
    propose: draws lives, in the order in which they are decided.
    rules: of the run.
  """
  for _ in range(_DRAWS):
    placed: list[Life] = []
    for life in propose():
      lane = _free_lane(life, placed, rules)
      if lane is None:
        break
      placed.append(life._replace(lane=lane))
    else:
      return tuple(placed)
  raise InputError(
    f"none of {_DRAWS:,} random assignments is one that the rules of this run"
    " allow; give a larger --config.kasmina.max_per_slot or"
    " --config.kasmina.seeds_per_slot"
  )


def _free_lane(life: Life, placed: Sequence[Life], rules: Rules) -> int | None:
  """The lane that a seed would get; None where the rules refuse it.

  Args:
    life: the seed.
    placed: those that were decided before.
    rules: of the run.
  """
  lead = rules.lead_epochs
  now = life.planted - lead
  rest = lead + max(rules.embargo_epochs, 1)
  own = [other for other in placed if other.slot == life.slot]
  crowd = sum(other.planted - lead == now for other in placed)
  resting = any(o.culled and o.ended <= now < o.ended + rest for o in own)
  held = sum(not o.culled or o.ended > now for o in own)
  if (
    resting
    or held >= rules.max_per_slot
    or crowd >= rules.max_adaptations_per_epoch
  ):
    return None
  taken = {other.lane for other in own if other.ended >= now}
  free = [n for n in range(rules.seeds_per_slot) if n not in taken]
  return free[0] if free else None
