"""Rules that say where and when to germinate; all but `never` share the rest.

A rule is a few array functions (see `Rule`). It scores germination only;
`shepherd` moves the seeds that live and `select` makes the choice, so a rule
is short. No function here branches on a value: all run eager, jitted and
vmapped alike.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo.observation import Decisions, Observation
from esper_jax.types import Action, InputError, Path, PyTree, counted


class Settings(NamedTuple):
  """Numbers of the rules; every rule reads those it needs.

  Attributes:
    max_adaptations_per_epoch: most germinations decided at one boundary.
      Moves of seeds that live (advance, cull, fossilize) are not capped.
    adaptation_frequency: epochs between two boundaries at which the policy is
      asked: the multiples of it.
    warmup_epochs: only `schedule` germinates before so many epochs are over.
    plateau_epochs: look-back of `heuristic`, epochs.
    plateau_delta: relative fall of the validation loss over plateau_epochs
      below which `heuristic` sees a plateau.
    period_epochs: of `periodic`, epochs.
    probability: of `random`: chance that it takes each of its
      max_adaptations_per_epoch chances to germinate.
    schedule: of `schedule`: (epoch, slot index, blueprint index) triples, see
      `policy.resolve_schedule`. Asked for when so many epochs are over, or at
      the first boundary after it at which the policy is asked.
    sequential: whether `heuristic` germinates one seed at a time, and none
      while another is GERMINATED or TRAINING.
    lookahead: whether `heuristic` asks for germination scores already at the
      boundary before a likely plateau, so that `rank` can use them.
    seeds_per_slot: rows of one slot.
    max_training_epochs: patience with a seed in TRAINING, epochs.
    max_holding_epochs: patience with a seed in HOLDING, epochs.
    gain_sigmas: standard errors below zero at which a contribution measured
      in HOLDING counts as harm.
    policy_path: file of a learned policy; none of the rules here has one.
    max_growths: germinations in the whole run.
    temperature: of `learned`: 0 takes the likeliest, 1 draws, as likely as
      the network says; between, likelier ones oftener.
  """

  max_adaptations_per_epoch: int = 2
  adaptation_frequency: int = 1
  warmup_epochs: int = 2
  plateau_epochs: int = 2
  plateau_delta: float = 0.01
  period_epochs: int = 3
  probability: float = 0.3
  schedule: tuple[tuple[int, int, int], ...] = ()
  sequential: bool = True
  lookahead: bool = False
  seeds_per_slot: int = 1
  max_training_epochs: int = 8
  max_holding_epochs: int = 4
  gain_sigmas: float = 2.0
  policy_path: str = ""
  max_growths: int = 8
  temperature: float = 0.0


class Wish(NamedTuple):
  """Germinations that a rule would like at one boundary.

  Attributes:
    scores: float32 [rows, blueprints]. Preference; 0 or less = not wanted.
    shares: float32 [rows, blueprints]. Probability that the pair is the first
      choice, given that the rule germinates; sums to 1, or 0 if none can.
    count: int32 []. Germinations wanted.
    chance: float32 []. Probability that any is wanted: 0 or 1 in `propose`.
  """

  scores: jax.Array
  shares: jax.Array
  count: jax.Array
  chance: jax.Array


class Words(NamedTuple):
  """What a sentence about a germination may quote (host side)."""

  observation: Observation
  decisions: Decisions
  row: int
  slots: Sequence[Path]  # name of each row's slot
  blueprints: Sequence[str]


def _no_state(key: jax.Array) -> PyTree:
  del key
  return ()


def _same_state(
  state: PyTree, observation: Observation, decisions: Decisions
) -> PyTree:
  del observation, decisions
  return state


def _weight_sentence(words: Words) -> str:
  weight = float(words.decisions.weight[words.row])
  return f"the rule asks for it with weight {weight:.2f}"


class Rule(NamedTuple):
  """When and where to germinate; `policy.from_rule` makes a policy of it.

  Attributes:
    propose: (state, observation, key) -> Wish. The wish of this boundary.
    forecast: (state, observation) -> Wish. The expected wish at a boundary
      that is imagined; None = propose with a fixed key.
    init: key -> state, any PyTree of arrays.
    update: (state, observation, decisions) -> state.
    wants_scores: (state, observation) -> bool []. Whether germination scores
      should be measured before `propose` is asked; None = never.
    reason: bit of REASONS for a germination.
    sentence: Words -> str. Why the row germinates; host side.
    insists: None, or observation -> bool [slots]. Slots that are to grow now;
      the user is told where one does not.
  """

  propose: Callable[[PyTree, Observation, jax.Array], Wish]
  forecast: Callable[[PyTree, Observation], Wish] | None = None
  init: Callable[[jax.Array], PyTree] = _no_state
  update: Callable[[PyTree, Observation, Decisions], PyTree] = _same_state
  wants_scores: Callable[[PyTree, Observation], jax.Array] | None = None
  reason: int = obs.OWN_RULE
  sentence: Callable[[Words], str] = _weight_sentence
  insists: Callable[[Observation], jax.Array] | None = None


def wish(
  observation: Observation,
  scores: jax.Array,
  *,
  count: Any,
  chance: Any = True,
  likelihood: jax.Array | None = None,
  seeds_per_slot: int = 1,
) -> Wish:
  """Makes a Wish: drops what is not legal and works out the shares.

  Of the rows of one slot only the first legal one is kept per blueprint.

  Args:
    observation: see `Observation`.
    scores: float32 [rows, blueprints], 0 or less = not wanted.
    count: int or int32 []. Germinations wanted.
    chance: bool, or float32 [] probability, that any is wanted.
    likelihood: float32 [rows, blueprints], at least 0. What the shares are
      proportional to; the scores themselves if None.
    seeds_per_slot: rows of one slot.
  """
  rows, blueprints = scores.shape
  keep = observation.legal[:, int(Action.GERMINATE), :] & (scores > 0)
  lanes = keep.reshape(-1, seeds_per_slot, blueprints)
  keep = lanes & (lanes.cumsum(axis=1) == 1)
  keep = keep.reshape(rows, blueprints)
  if likelihood is None:
    likelihood = scores
  shares = jnp.where(keep, likelihood, 0.0)
  largest = jnp.maximum(shares.max(), jnp.finfo(jnp.float32).tiny)
  shares = shares / largest  # scores may be too small to sum or square
  total = shares.sum()
  possible = total > 0
  shares = jnp.where(possible, shares / jnp.where(possible, total, 1.0), 0.0)
  chance = jnp.where(possible, jnp.asarray(chance).astype(jnp.float32), 0.0)
  return Wish(
    scores=jnp.where(keep, scores, 0.0),
    shares=shares,
    count=jnp.where(chance > 0, jnp.asarray(count, jnp.int32), 0),
    chance=chance,
  )


def _warm(observation: Observation, settings: Settings) -> jax.Array:
  return observation.epoch >= settings.warmup_epochs


def periodic(settings: Settings) -> Rule:
  """Germinates once a period, taking slots and blueprints in turn.

  Slots go round; each pass over them starts one blueprint further. Where the
  one in turn is not legal the next one is taken. A period in which nothing is
  legal passes without growth. Source: AutoGrow (Wen et al., KDD 2020,
  arXiv:1906.02909), whose sub-networks grow round-robin every K epochs.
  """

  def init(key):
    del key
    return {
      "cursor": jnp.zeros((), jnp.int32),  # places in turn that have been
      "period": jnp.zeros((), jnp.int32),  # periods that have ended
    }

  def ended(observation):
    return observation.epoch // settings.period_epochs

  def distance(cursor, rows):
    slots = rows // settings.seeds_per_slot
    slot = jnp.arange(rows, dtype=jnp.int32) // settings.seeds_per_slot
    return slot, (slot - cursor) % slots, slots

  def propose(state, observation, key):
    del key
    rows, blueprints = observation.scores.shape
    slot, away, slots = distance(state["cursor"], rows)
    lap = (state["cursor"] + away) // slots
    turn = jnp.arange(blueprints, dtype=jnp.int32).reshape(1, -1)
    turn = (turn - (slot + lap).reshape(-1, 1)) % blueprints
    order = away.reshape(-1, 1) * blueprints + turn
    legal = observation.legal[:, int(Action.GERMINATE), :]
    scores = 1.0 / (1 + order).astype(jnp.float32)
    first = (order == jnp.where(legal, order, order.size).min()) & legal
    return wish(
      observation,
      scores,
      count=1,
      chance=(ended(observation) > state["period"])
      & _warm(observation, settings),
      likelihood=first.astype(jnp.float32),
      seeds_per_slot=settings.seeds_per_slot,
    )

  def update(state, observation, decisions):
    rows = decisions.action.shape[0]
    _, away, slots = distance(state["cursor"], rows)
    grown = decisions.action == int(Action.GERMINATE)
    step = jnp.where(grown, away, slots).min()
    moved = jnp.where(grown.any(), step + 1, 0)
    return {
      "cursor": (state["cursor"] + moved).astype(jnp.int32),
      "period": ended(observation).astype(jnp.int32),
    }

  def sentence(words):
    epoch = int(words.observation.epoch)
    period = counted(settings.period_epochs, "epoch")
    return (
      f"after epoch {epoch} a period of {period} is over;"
      f" {words.slots[words.row]} is next in turn"
    )

  return Rule(
    propose=propose,
    init=init,
    update=update,
    reason=obs.PERIOD,
    sentence=sentence,
  )


def schedule(settings: Settings) -> Rule:
  """Germinates what `Settings.schedule` lists, after those epochs.

  Raises:
    InputError: two entries for one slot, or more than
      max_adaptations_per_epoch entries, fall on one boundary.
  """
  entries = settings.schedule
  _check_schedule(settings)
  epochs = jnp.asarray([e for e, _, _ in entries], jnp.int32)
  slots = jnp.asarray([s for _, s, _ in entries], jnp.int32)
  kinds = jnp.asarray([b for _, _, b in entries], jnp.int32)

  def due(epoch):
    return (epochs <= epoch) & (epochs > epoch - settings.adaptation_frequency)

  def table(observation):
    rows, blueprints = observation.scores.shape
    asked = jnp.zeros((rows // settings.seeds_per_slot, blueprints))
    now = due(observation.epoch).astype(jnp.float32)
    return asked.at[slots, kinds].max(now)

  def propose(state, observation, key):
    del state, key
    asked = table(observation)
    return wish(
      observation,
      jnp.repeat(asked, settings.seeds_per_slot, axis=0),
      count=asked.sum().astype(jnp.int32),
      seeds_per_slot=settings.seeds_per_slot,
    )

  def sentence(words):
    slot = words.row // settings.seeds_per_slot
    now = due(words.observation.epoch)
    epoch, kind = next(
      (e, b)
      for (e, s, b), on in zip(entries, now, strict=True)
      if on and s == slot
    )
    return (
      f"the schedule asks for {words.blueprints[kind]} at"
      f" {words.slots[words.row]} after epoch {epoch}"
    )

  return Rule(
    propose=propose,
    reason=obs.SCHEDULED,
    sentence=sentence,
    insists=lambda observation: (table(observation) > 0).any(axis=1),
  )


def _check_schedule(settings: Settings) -> None:
  by_boundary: dict[int, list[int]] = {}
  for epoch, slot, _ in settings.schedule:
    boundary = -(-epoch // settings.adaptation_frequency)
    by_boundary.setdefault(boundary, []).append(slot)
    asked = by_boundary[boundary]
    cap = settings.max_adaptations_per_epoch
    if len(asked) != len(set(asked)):
      raise InputError(
        f"schedule asks twice for slot number {slot} at epoch {epoch}; a slot"
        " germinates once a boundary: move one entry to a later epoch"
      )
    if len(asked) > cap:
      raise InputError(
        f"schedule asks for {len(asked)} germinations at epoch {epoch}, but"
        f" max_adaptations_per_epoch is {cap}: raise it or spread the entries"
      )


def random(settings: Settings) -> Rule:
  """Germinates at random: a control for where, what and when.

  Each of max_adaptations_per_epoch chances is taken with `probability`; the
  place and blueprint of each are uniform over what is legal.
  """
  cap = settings.max_adaptations_per_epoch
  chance = settings.probability
  if not isinstance(chance, jax.Array):  # one in a program may be its argument
    chance = float(chance)

  def propose(state, observation, key):
    del state
    when, where = jax.random.split(key)
    count = jax.random.bernoulli(when, chance, (cap,)).sum()
    noise = jax.random.uniform(where, observation.scores.shape, minval=0.5)
    return wish(
      observation,
      noise,
      count=count,
      chance=(count > 0) & _warm(observation, settings),
      likelihood=jnp.ones_like(noise),
      seeds_per_slot=settings.seeds_per_slot,
    )

  def forecast(state, observation):
    del state
    warm = _warm(observation, settings).astype(jnp.float32)
    return wish(
      observation,
      jnp.ones_like(observation.scores),
      count=1,
      chance=warm * (1.0 - (1.0 - chance) ** cap),
      seeds_per_slot=settings.seeds_per_slot,
    )

  def sentence(words):
    legal = words.observation.legal[:, int(Action.GERMINATE), :]
    return (
      f"drawn with probability {chance:g} a chance, from"
      f" {int(legal.sum())} legal pairs of slot and blueprint"
    )

  return Rule(
    propose=propose, forecast=forecast, reason=obs.DRAWN, sentence=sentence
  )
