"""What a learned policy may do at one boundary, as one distribution.

First growth, one draw after the other from one categorical over "no more" and
the legal pairs of row and blueprint: "no more" ends it, and a pair takes the
others of its slot away. So the cap on germinations is exact, and is 1 with one
draw. Given growth, each row moves by its own categorical over those of MOVES
that are legal; a row that germinates waits, and nothing in its slot is culled.

Every probability is exact; without a legal move gradients are finite. `lanes`
is the number of rows of a slot.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo.observation import Decisions, Observation, open_pairs
from esper_jax.types import Action

MOVES = (Action.WAIT, Action.ADVANCE, Action.CULL, Action.FOSSILIZE)
_WAIT, _CULL = MOVES.index(Action.WAIT), MOVES.index(Action.CULL)
_CODES = tuple(int(action) for action in MOVES)
_NEVER = -1e9  # logit of what is not legal; finite, and so are its gradients


class Logits(struct.PyTreeNode):
  """Preferences, before legality.

  Attributes:
    germinate: float32 [rows, blueprints].
    stay: float32 []. Of no growth, against those above.
    moves: float32 [rows, len(MOVES)].
  """

  germinate: jax.Array
  stay: jax.Array
  moves: jax.Array


class Choice(struct.PyTreeNode):
  """One draw.

  Attributes:
    growth: int32 [draws]. row * blueprints + blueprint of each germination in
      the order drawn, then -1.
    moves: int32 [rows]. Index into MOVES.
  """

  growth: jax.Array
  moves: jax.Array


def sample(
  logits: Logits,
  observation: Observation,
  key: jax.Array,
  *,
  draws: int = 1,
  lanes: int = 1,
) -> Choice:
  """Draws a choice.

  Args:
    logits: see `Logits`.
    observation: its `legal` and `growths_left` are read.
    key: of the draw.
    draws: germinations at most, at least 1.
    lanes: rows of one slot.
  """
  where, what = jax.random.split(key)
  keys = jax.random.split(where, draws)

  def pick(step: int, masked: jax.Array) -> jax.Array:
    return jax.random.categorical(keys[step], masked)

  return _choose(
    logits,
    observation,
    draws,
    lanes,
    pick,
    lambda masked: jax.random.categorical(what, masked),
  )


def mode(
  logits: Logits, observation: Observation, *, draws: int = 1, lanes: int = 1
) -> Choice:
  """Chooses without chance: whether to grow first, then what.

  It grows where growing at all is likelier than not, however many pairs share
  that probability; the likeliest pair then, and of each row the likeliest move.

  Args:
    logits, observation, draws, lanes: see `sample`.
  """

  def pick(step: int, masked: jax.Array) -> jax.Array:
    del step
    grows = jax.nn.logsumexp(masked[:-1]) > masked[-1]
    best = masked[:-1].argmax()
    return jnp.where(grows, best, masked.size - 1)

  return _choose(
    logits, observation, draws, lanes, pick, lambda m: m.argmax(axis=-1)
  )


def log_prob(
  logits: Logits, observation: Observation, choice: Choice, *, lanes: int = 1
) -> jax.Array:
  """Computes the log-probability of a choice, its order of growth included.

  Args:
    logits, observation, lanes: see `sample`.
    choice: its draws are those of the distribution.

  Returns:
    float32 []; about -1e9 or less where the choice is not legal.
  """
  total = jnp.zeros((), jnp.float32)
  rivals, mask = _rivals(observation, lanes), _open(observation, lanes)
  ended = jnp.zeros((), jnp.bool_)
  for step in range(choice.growth.shape[0]):
    growth = choice.growth[step]
    log_p = _log_softmax(_flat(logits), _allowed(mask, observation, step))
    index = jnp.where(growth < 0, log_p.size - 1, growth)
    # Beyond the end nothing is drawn; a pair there cannot come out.
    over = jnp.where(growth < 0, 0.0, _NEVER)
    total += jnp.where(ended, over, log_p[index])
    ended |= growth < 0
    mask &= ~rivals[index]
  return total + log_prob_moves(logits, observation, choice, lanes=lanes)


def log_prob_moves(
  logits: Logits, observation: Observation, choice: Choice, *, lanes: int = 1
) -> jax.Array:
  """Computes the log-probability of the moves, given growth; see `log_prob`."""
  log_p = _log_softmax(logits.moves, _moves_given(observation, choice, lanes))
  rows = jnp.arange(choice.moves.shape[0])
  return log_p[rows, choice.moves].sum()


def advantage(
  logits: Logits, observation: Observation, choice: Choice, *, lanes: int = 1
) -> jax.Array:
  """Sums what speaks for each germination, against staying.

  Of a pair: its logit, less that of staying, and the logarithm of how many
  pairs are open. So where this is 0 for all of them, to grow is as likely as
  to stay, however many pairs share that probability.

  Returns:
    float32 []; 0 where nothing germinates.
  """
  count = jnp.maximum(open_pairs(observation, lanes).sum(), 1)
  own = logits.germinate.ravel()[jnp.maximum(choice.growth, 0)]
  own = own - logits.stay + jnp.log(count.astype(jnp.float32))
  return jnp.where(choice.growth >= 0, own, 0.0).sum()


def entropy(
  logits: Logits, observation: Observation, *, draws: int = 1, lanes: int = 1
) -> jax.Array:
  """Computes the entropy of the choice.

  Exact for any number of draws; its cost is the number of pairs to that power.

  Returns:
    float32 [], nats.
  """
  rivals = _rivals(observation, lanes)
  rows, blueprints = logits.germinate.shape

  def term(log_p: jax.Array) -> jax.Array:
    return -(jnp.exp(log_p) * log_p).sum(axis=-1)

  def walk(mask: jax.Array, step: int) -> tuple[jax.Array, jax.Array]:
    """(sum of the terms, who is drawn how often), from this draw on."""
    log_p = _log_softmax(_flat(logits), _allowed(mask, observation, step))
    own, p = term(log_p), jnp.exp(log_p)[:-1]
    if step + 1 == draws:
      return own, p
    later, drawn = jax.vmap(lambda taken: walk(mask & ~taken, step + 1))(
      rivals[:-1]
    )
    return own + p @ later, p + p @ drawn

  total, drawn = walk(_open(observation, lanes), 0)
  by_row = drawn.reshape(rows, blueprints).sum(axis=1)
  by_slot = jnp.repeat(by_row.reshape(-1, lanes).sum(axis=1), lanes)
  legal = _legal_moves(observation)
  no = jnp.zeros((rows,), jnp.bool_)
  free = term(_log_softmax(logits.moves, _narrowed(legal, no, no)))
  spared = term(_log_softmax(logits.moves, _narrowed(legal, no, ~no)))
  # A row that germinates waits: nothing is left open there.
  shares = (1.0 - by_slot) * free + (by_slot - by_row) * spared
  return total + shares.sum()


def growth_probability(
  logits: Logits, observation: Observation, *, lanes: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Computes how likely the first draw is each pair.

  Returns:
    (float32 [] that any is drawn, float32 [rows, blueprints]).
  """
  mask = _allowed(_open(observation, lanes), observation, 0)
  p = jnp.exp(_log_softmax(_flat(logits), mask))
  return 1.0 - p[-1], p[:-1].reshape(logits.germinate.shape)


def starting_with(
  logits: Logits,
  observation: Observation,
  first: jax.Array,
  *,
  draws: int = 1,
  lanes: int = 1,
) -> Choice:
  """The `mode`, given what the first draw of growth is.

  Args:
    logits, observation, draws, lanes: see `sample`.
    first: int32 []. As in `Choice.growth`.
  """
  size = logits.germinate.size

  def pick(step: int, masked: jax.Array) -> jax.Array:
    grows = jax.nn.logsumexp(masked[:-1]) > masked[-1]
    likeliest = jnp.where(grows, masked[:-1].argmax(), size)
    return likeliest if step else jnp.where(first < 0, size, first)

  return _choose(
    logits, observation, draws, lanes, pick, lambda m: m.argmax(axis=-1)
  )


def to_decisions(
  choice: Choice,
  observation: Observation,
  logits: Logits | None = None,
  *,
  lanes: int = 1,
) -> Decisions:
  """Turns a choice into decisions.

  Args:
    choice: legal.
    observation: that it was made for.
    logits: they give the weights: of a germination the probability that it is
      drawn first, of a move that of its row; without them, 1.
    lanes: rows of one slot.
  """
  rows, blueprints = observation.scores.shape
  grown, column = _grown(choice, rows, blueprints)
  action = jnp.asarray(_CODES, jnp.int32)[choice.moves]
  action = jnp.where(grown, int(Action.GERMINATE), action)
  moves = action != int(Action.WAIT)
  weight = jnp.ones((rows,), jnp.float32)
  if logits is not None:
    row = jnp.arange(rows)
    pairs = growth_probability(logits, observation, lanes=lanes)[1]
    log_p = _log_softmax(logits.moves, _legal_moves(observation))
    own = jnp.exp(log_p[row, choice.moves])
    weight = jnp.where(grown, pairs[row, jnp.maximum(column, 0)], own)
  own_column = jnp.where(grown, column, observation.blueprint)
  return Decisions(
    action=action.astype(jnp.int32),
    blueprint=jnp.where(moves, own_column, -1).astype(jnp.int32),
    initializer=jnp.zeros((rows,), jnp.int32),
    weight=jnp.where(moves, weight, 0.0),
    reason=jnp.where(moves, obs.LEARNED, 0).astype(jnp.int32),
  )


def _choose(
  logits: Logits,
  observation: Observation,
  draws: int,
  lanes: int,
  pick: Callable[[int, jax.Array], jax.Array],
  move: Callable[[jax.Array], jax.Array],
) -> Choice:
  """Draws growth, then moves; `pick` and `move` take masked logits."""
  rivals, mask = _rivals(observation, lanes), _open(observation, lanes)
  ended = jnp.zeros((), jnp.bool_)
  growth = []
  for step in range(draws):
    allowed = _allowed(mask, observation, step)
    index = pick(step, jnp.where(allowed, _flat(logits), _NEVER))
    ended |= index == allowed.size - 1
    growth.append(jnp.where(ended, -1, index).astype(jnp.int32))
    mask &= ~rivals[index]
  choice = Choice(jnp.stack(growth), jnp.zeros(0, jnp.int32))
  legal = _moves_given(observation, choice, lanes)
  masked = jnp.where(legal, logits.moves, _NEVER)
  return choice.replace(moves=move(masked).astype(jnp.int32))


def _flat(logits: Logits) -> jax.Array:
  """float32 [pairs + 1]: the pairs, then staying."""
  return jnp.append(logits.germinate.ravel(), logits.stay)


def _open(observation: Observation, lanes: int) -> jax.Array:
  """bool [pairs + 1]: what a first draw may be; staying always."""
  return jnp.append(open_pairs(observation, lanes).ravel(), True)


def _allowed(mask: jax.Array, observation: Observation, step: int) -> jax.Array:
  """The mask where the run allows so many germinations, else staying alone."""
  pairs = mask[:-1] & (observation.growths_left > step)
  return jnp.append(pairs, True)


def _rivals(observation: Observation, lanes: int) -> jax.Array:
  """bool [pairs + 1, pairs + 1]: what a drawn pair takes away: its slot's."""
  rows, blueprints = observation.scores.shape
  slot = jnp.arange(rows * blueprints) // (blueprints * lanes)
  same = slot.reshape(-1, 1) == slot.reshape(1, -1)
  return jnp.pad(same, ((0, 1), (0, 1)))


def _legal_moves(observation: Observation) -> jax.Array:
  """bool [rows, len(MOVES)]."""
  may = observation.legal.any(axis=-1)
  legal = jnp.stack([may[:, code] for code in _CODES], axis=1)
  return legal.at[:, _WAIT].set(True)


def _moves_given(
  observation: Observation, choice: Choice, lanes: int
) -> jax.Array:
  """bool [rows, len(MOVES)], given growth."""
  rows, blueprints = observation.scores.shape
  grown, _ = _grown(choice, rows, blueprints)
  slots = grown.reshape(-1, lanes).any(axis=1)
  near = jnp.repeat(slots, lanes)
  return _narrowed(_legal_moves(observation), grown, near)


def _narrowed(legal: jax.Array, grown: jax.Array, near: jax.Array) -> jax.Array:
  """Takes culls away in slots that grow, all but waiting in rows that do."""
  index = jnp.arange(len(MOVES)).reshape(1, -1)
  spared = near.reshape(-1, 1) & (index == _CULL)
  return legal & ~spared & ((index == _WAIT) | ~grown.reshape(-1, 1))


def _grown(
  choice: Choice, rows: int, blueprints: int
) -> tuple[jax.Array, jax.Array]:
  """(bool [rows] that germinate, int32 [rows] their blueprints, else -1)."""
  drawn = choice.growth >= 0
  at = jnp.where(drawn, choice.growth // blueprints, rows)
  row = jnp.arange(rows).reshape(-1, 1)
  hit = row == at.reshape(1, -1)
  column = jnp.where(hit, (choice.growth % blueprints).reshape(1, -1), -1)
  return hit.any(axis=1), column.max(axis=1)


def _log_softmax(logits: jax.Array, mask: Any) -> jax.Array:
  return jax.nn.log_softmax(jnp.where(mask, logits, _NEVER), axis=-1)
