"""The policy protocol, the policies by name, and how to add one's own.

A policy is five functions (see `Policy`). To write one, state in a `Rule`
where and when to germinate and hand it to `from_rule`, which adds the care of
living seeds, caps, ranking and words:

  def top_slot(settings):
    def propose(state, observation, key):
      scores = jnp.zeros_like(observation.scores).at[-1].set(1.0)
      return wish(
        observation, scores, count=1, chance=observation.epoch % 5 == 0
      )
    return Rule(propose=propose)

  register("top_slot", top_slot)

`--config.tamiyo.policy=top_slot` then works, if a module of
`--config.urza.modules` holds these lines. For full control fill a `Policy`
instead; nothing else looks inside it.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo import rules, shepherd
from esper_jax.tamiyo.heuristic import heuristic
from esper_jax.tamiyo.observation import Decision, Decisions, Observation
from esper_jax.tamiyo.rules import Rule, Settings, Words
from esper_jax.types import Action, InputError, Path, PyTree, Stage, counted

LEARNED = "learned"  # see `tamiyo.learned`


class Policy(NamedTuple):
  """Five functions that decide; all but `explain` can be jitted and vmapped.

  Attributes:
    name: for events and results.
    init: key -> state, a PyTree of arrays that is saved with the run.
    decide: (state, observation, key) -> (state, Decisions). Asks for at most
      max_adaptations_per_epoch germinations; moves of living seeds are not
      capped. Asks only for what `observation.legal` allows.
    rank: (state, observation, k) -> [(Decisions, float32 [] weight)]. The k
      likeliest decisions of the *next* boundary, likeliest first, given the
      newest observation with the lifecycle as it stands after this boundary's
      moves. Weights are probabilities; sets with weight 0 fill up the list.
    wants_scores: (state, observation) -> bool []. Whether `decide` would use
      germination scores that the observation lacks; None = never.
    explain: (decisions, observation, slot_names, blueprint_names) ->
      [Decision]. Host side: one record for each move and each unmet wish.
  """

  name: str
  init: Callable[[jax.Array], PyTree]
  decide: Callable[[PyTree, Observation, jax.Array], tuple[PyTree, Decisions]]
  rank: Callable[[PyTree, Observation, int], list[tuple[Decisions, jax.Array]]]
  wants_scores: Callable[[PyTree, Observation], jax.Array] | None
  explain: Callable[
    [Decisions, Observation, Sequence[Path], Sequence[str]], list[Decision]
  ]


def never(name: str = "never") -> Policy:
  """Makes the policy that asks for nothing: the static control, and replays."""

  def decide(state, observation, key):
    del key
    return state, shepherd.waiting(observation.stage.shape[0])

  def rank(state, observation, k):
    del state
    sure = (shepherd.waiting(observation.stage.shape[0]), jnp.ones(()))
    return [sure][:k]

  return Policy(
    name=name,
    init=lambda key: (),
    decide=decide,
    rank=rank,
    wants_scores=None,
    explain=lambda decisions, observation, slots, blueprints: [],
  )


def from_rule(name: str, rule: Rule, settings: Settings) -> Policy:
  """Makes a policy of a rule."""
  patience = {
    "max_training_epochs": settings.max_training_epochs,
    "max_holding_epochs": settings.max_holding_epochs,
    "gain_sigmas": settings.gain_sigmas,
  }
  lanes = settings.seeds_per_slot

  def assemble(observation, scores, shares, count) -> Decisions:
    rows, blueprints = scores.shape
    moves, reasons = shepherd.shepherd(observation, **patience)
    full = jnp.repeat(moves[:, :, None], blueprints, axis=2)
    full = full.at[:, int(Action.GERMINATE), :].set(scores)
    cap = jnp.minimum(settings.max_adaptations_per_epoch, count)
    action, blueprint = shepherd.select(
      full,
      observation.legal,
      germinations=jnp.minimum(cap, observation.growths_left),
      seeds_per_slot=lanes,
    )
    row = jnp.arange(rows)
    grows = action == int(Action.GERMINATE)
    share = shares[row, blueprint] * count.astype(jnp.float32)
    moves_on = (action != int(Action.WAIT)).astype(jnp.float32)
    reasons = reasons.at[:, int(Action.GERMINATE)].set(rule.reason)
    return Decisions(
      action=action,
      blueprint=blueprint,
      initializer=jnp.zeros((rows,), jnp.int32),
      weight=jnp.where(grows, jnp.minimum(share, 1.0), moves_on),
      reason=reasons[row, action],
    )

  def decide(state, observation, key):
    wanted = rule.propose(state, observation, key)
    decisions = assemble(
      observation, wanted.scores, wanted.shares, wanted.count
    )
    state = rule.update(state, observation, decisions)
    if rule.insists is not None:
      asked = rule.insists(observation)
      decisions = _note_unmet(decisions, asked, lanes)
    return state, decisions

  def forecast(state, observation):
    if rule.forecast is None:
      return rule.propose(state, observation, jax.random.key(0))
    return rule.forecast(state, observation)

  def rank(state, observation, k):
    future = obs.imagine(observation, settings.adaptation_frequency)
    wanted = forecast(state, future)
    flat = wanted.scores.ravel()
    ahead = 2.0 * jnp.abs(flat).max() + 1.0

    def with_first(pair):  # the set in which this pair is the first choice
      scores = flat.at[pair].set(ahead).reshape(wanted.scores.shape)
      return assemble(future, scores, wanted.shares, wanted.count)

    sets = jax.vmap(with_first)(jnp.arange(flat.size))
    none = assemble(future, wanted.scores, wanted.shares, jnp.int32(0))
    sets = jax.tree.map(lambda s, n: jnp.concatenate([s, n[None]]), sets, none)
    grown = wanted.chance * wanted.shares.ravel()
    weights = jnp.append(grown, 1.0 - wanted.chance)
    return _likeliest(sets, weights, k)

  def explain(decisions, observation, slot_names, blueprint_names):
    decisions, observation = jax.device_get((decisions, observation))
    rows = decisions.action.shape[0]
    slots = [slot_names[r * len(slot_names) // rows] for r in range(rows)]
    out = []
    for row in range(rows):
      words = Words(observation, decisions, row, slots, blueprint_names)
      reason, action = int(decisions.reason[row]), int(decisions.action[row])
      if action == int(Action.GERMINATE):
        out.append(record(words, action, rule.sentence(words)))
      elif action != int(Action.WAIT):
        text = shepherd.sentence(observation, row, reason, **patience)
        out.append(record(words, action, text))
      if reason & obs.NOT_POSSIBLE:
        text = f"{rule.sentence(words)}, but {_obstacle(words)}"
        out.append(record(words, int(Action.WAIT), text))
    return out

  return Policy(
    name=name,
    init=rule.init,
    decide=decide,
    rank=rank,
    wants_scores=rule.wants_scores,
    explain=explain,
  )


def _note_unmet(
  decisions: Decisions, asked: jax.Array, seeds_per_slot: int
) -> Decisions:
  """Marks the first row of each slot that was to grow and does not."""
  grown = (decisions.action == int(Action.GERMINATE)).reshape(
    -1, seeds_per_slot
  )
  first = jnp.arange(seeds_per_slot).reshape(1, -1) == 0
  unmet = asked.reshape(-1, 1) & ~grown.any(axis=1, keepdims=True) & first
  bit = jnp.where(unmet.reshape(-1), obs.NOT_POSSIBLE, 0).astype(jnp.int32)
  return decisions.replace(reason=decisions.reason | bit)


def _likeliest(
  sets: Decisions, weights: jax.Array, k: int
) -> list[tuple[Decisions, jax.Array]]:
  """Merges equal sets and returns the k heaviest."""

  def same(field):
    return (field[:, None] == field[None]).all(axis=-1)

  equal = same(sets.action) & same(sets.blueprint)
  first = equal.argmax(axis=1)
  weights = jnp.zeros_like(weights).at[first].add(weights)
  top, index = jax.lax.top_k(weights, min(k, weights.size))
  return [
    (jax.tree.map(lambda field, i=i: field[index[i]], sets), top[i])
    for i in range(top.size)
  ]


def record(words: Words, action: int, reason: str) -> Decision:
  """What is asked of a row, for people (host side)."""
  decisions, row = words.decisions, words.row
  kind = int(decisions.blueprint[row])
  waits = action == int(Action.WAIT)
  return Decision(
    slot=words.slots[row],
    action=Action(action),
    blueprint="" if waits or kind < 0 else words.blueprints[kind],
    initializer=obs.INITIALIZERS[int(decisions.initializer[row])],
    reason=reason,
    row=row,
    weight=0.0 if waits else float(decisions.weight[row]),
  )


def _obstacle(words: Words) -> str:
  o = words.observation
  stage = Stage(int(o.stage[words.row])).name
  return (
    f"it cannot germinate there now (stage {stage},"
    f" {counted(int(o.growths_left), 'growth')} and"
    f" {counted(int(o.epochs_left), 'epoch')} left)"
  )


_RULES: dict[str, Callable[[Settings], Rule]] = {
  "periodic": rules.periodic,
  "schedule": rules.schedule,
  "random": rules.random,
  "heuristic": heuristic,
}


def names() -> tuple[str, ...]:
  """Lists the policies by name; all but the last are made by `make`."""
  return ("never", *_RULES, "replay", LEARNED)


def register(name: str, build: Callable[[Settings], Rule]) -> None:
  """Adds a rule that `make` can build by name.

  Args:
    name: not yet taken.
    build: Settings -> Rule.

  Raises:
    InputError: the name is taken.
  """
  if name in names():
    raise InputError(
      f"policy '{name}' exists already; choose a name other than"
      f" {', '.join(names())}"
    )
  _RULES[name] = build


def unregister(name: str) -> None:
  """Forgets a registered rule, so that an edited one can take its name."""
  del _RULES[name]


def make(name: str, **settings: Any) -> Policy:
  """Makes a policy by name.

  Args:
    name: one of `names()` but "learned".
    **settings: fields of `Settings`; a rule ignores those it does not need.

  Raises:
    InputError: unknown name or setting, or a setting out of range.
  """
  if name not in names():
    raise InputError(
      f"unknown policy '{name}'; valid: {', '.join(names())}"
      " (register(...) adds your own)"
    )
  for key in settings:
    if key not in Settings._fields:
      raise InputError(
        f"unknown setting '{key}' of policy '{name}'; valid:"
        f" {', '.join(Settings._fields)}"
      )
  if name == LEARNED:
    raise InputError(
      f"policy '{name}' is made of a file of weights: use tamiyo.learned.make"
    )
  numbers = Settings(**settings)
  _check(numbers)
  if name in ("never", "replay"):
    return never(name)
  return from_rule(name, _RULES[name](numbers), numbers)


_RANGES: dict[str, tuple[float, float]] = {
  "max_adaptations_per_epoch": (0, float("inf")),
  "adaptation_frequency": (1, obs.HISTORY),
  "warmup_epochs": (0, float("inf")),
  "plateau_epochs": (1, obs.HISTORY - 1),
  "period_epochs": (1, float("inf")),
  "probability": (0, 1),
  "seeds_per_slot": (1, float("inf")),
  "max_training_epochs": (1, float("inf")),
  "max_holding_epochs": (1, float("inf")),
  "gain_sigmas": (0, float("inf")),
  "temperature": (0, float("inf")),
}


def _check(settings: Settings) -> None:
  for key, (low, high) in _RANGES.items():
    value = getattr(settings, key)
    if not low <= value <= high:
      raise InputError(
        f"policy setting {key}={value} is out of range; valid: {low:g} to"
        f" {high:g}"
      )


def resolve_schedule(
  schedule: Sequence[tuple[int, Path, str]],
  slot_names: Sequence[Path],
  blueprint_names: Sequence[str],
  fits: Sequence[Sequence[bool]] | None = None,
) -> tuple[tuple[int, int, int], ...]:
  """Turns names in a schedule into the indices that `Settings` takes.

  Args:
    schedule: (epoch, slot, blueprint) triples; epoch = how many are over, at
      least 1.
    slot_names: in the order of the slot table.
    blueprint_names: in the order of the blueprint axis.
    fits: bool [slots, blueprints]; None: every blueprint fits everywhere.

  Raises:
    InputError: an entry that is no triple, an epoch below 1, a slot or
      blueprint that does not exist, or a blueprint that does not fit the slot.
  """
  out = []
  for entry in schedule:
    if len(entry) != 3:
      raise InputError(
        f"schedule entry {entry!r} is not a triple; write"
        " (epoch, slot, blueprint)"
      )
    epoch, slot, blueprint = entry
    if not isinstance(epoch, int) or epoch < 1:
      raise InputError(
        f"schedule entry {entry!r}: epoch {epoch!r} must be a whole number"
        " of at least 1"
      )
    for kind, value, valid in (
      ("slot", slot, slot_names),
      ("blueprint", blueprint, blueprint_names),
    ):
      if value not in valid:
        raise InputError(
          f"schedule entry {entry!r}: {kind} '{value}' does not exist;"
          f" valid: {', '.join(valid)}"
        )
    place, kind = slot_names.index(slot), blueprint_names.index(blueprint)
    if fits is not None and not fits[place][kind]:
      fitting = itertools.compress(blueprint_names, fits[place])
      raise InputError(
        f"schedule entry {entry!r}: blueprint '{blueprint}' does not fit slot"
        f" '{slot}'; those that do: {', '.join(fitting) or 'none'}"
      )
    out.append((epoch, place, kind))
  return tuple(out)
