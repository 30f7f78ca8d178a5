"""The default rule: grow on a plateau, where the gradient asks for it most."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo.observation import Observation, improvement
from esper_jax.tamiyo.rules import Rule, Settings, Wish, Words, wish
from esper_jax.types import Action, Stage, counted

# How sharply the forecast trusts the order of the scores: a pair with twice
# the score is taken to be four times as likely to lead at the next boundary.
_SHARPNESS = 2.0


def heuristic(settings: Settings) -> Rule:
  """Germinates on a plateau, where a newborn does most for its parameters.

  A plateau: over plateau_epochs the validation loss fell by less than
  plateau_delta of its value.

  What: at each slot, the blueprint with the largest squared gradient norm of
  the factor that is zero at birth: how fast the loss would fall at first (the
  criterion of GradMax, Evci et al., ICLR 2022, arXiv:2201.05125). Not per
  parameter: that asks for the smallest blueprint wherever there is one.

  Where: the slot at which that norm is largest per parameter of the seed, the
  germination score. Pairs without a measured, positive score are never chosen.
  benchmarks/README.md compares this with other criteria.
  """
  count = 1 if settings.sequential else settings.max_adaptations_per_epoch

  def ready(observation: Observation) -> jax.Array:
    stage = observation.stage
    busy = (stage == int(Stage.GERMINATED)) | (stage == int(Stage.TRAINING))
    free = ~(busy.any() & settings.sequential)
    warm = observation.epoch >= settings.warmup_epochs
    return free & warm & (observation.growths_left > 0)

  def plateau(observation: Observation) -> jax.Array:
    fall, known = improvement(observation, settings.plateau_epochs)
    return known & (fall < settings.plateau_delta)

  def plateau_ahead(observation: Observation) -> jax.Array:
    """Probability of a plateau, from the trend and the noise around it."""
    fall, known = improvement(observation, settings.plateau_epochs)
    _, noise = obs.trend(observation)
    delta = settings.plateau_delta
    spread = jnp.maximum(noise, max(0.1 * abs(delta), 1e-6))
    chance = jax.nn.sigmoid(1.7 * (delta - fall) / spread)  # close to a probit
    return jnp.where(known & jnp.isfinite(chance), chance, 0.0)

  def measured(observation: Observation) -> jax.Array:
    known = observation.scores_known.reshape(-1, 1)
    finite = jnp.isfinite(observation.scores)
    return _contenders(
      observation, jnp.where(known & finite, observation.scores, 0.0)
    )

  def propose(state, observation, key) -> Wish:
    del state, key
    scores = measured(observation)
    return wish(
      observation,
      scores,
      count=count,
      chance=ready(observation) & plateau(observation),
      likelihood=_sharpen(scores),
      seeds_per_slot=settings.seeds_per_slot,
    )

  def forecast(state, observation) -> Wish:
    del state
    scores = measured(observation)
    # A row without scores is as likely as the average of those that have some.
    known = observation.scores_known.reshape(-1, 1) & (scores > 0)
    mean = scores.sum() / jnp.maximum(known.sum().astype(jnp.float32), 1.0)
    filler = jnp.where(known.any(), mean, 1.0)
    unseen = ~observation.scores_known.reshape(-1, 1)
    scores = jnp.where(unseen, filler, scores)
    chance = plateau_ahead(observation)
    return wish(
      observation,
      scores,
      count=count,
      chance=jnp.where(ready(observation), chance, 0.0),
      likelihood=_sharpen(scores),
      seeds_per_slot=settings.seeds_per_slot,
    )

  def wants_scores(state, observation) -> jax.Array:
    del state
    legal = observation.legal[:, int(Action.GERMINATE), :].any(axis=1)
    missing = (legal & ~observation.scores_known).any()
    now = plateau(observation)
    ahead = obs.imagine(observation, settings.adaptation_frequency)
    soon = (plateau_ahead(ahead) >= 0.5) & ready(ahead) & settings.lookahead
    return missing & ((now & ready(observation)) | soon)

  def sentence(words: Words) -> str:
    return f"{_loss(words, settings)}; {_place(words)}"

  return Rule(
    propose=propose,
    forecast=forecast,
    wants_scores=wants_scores,
    reason=obs.BEST_SCORE,
    sentence=sentence,
  )


def _contenders(observation: Observation, scores: jax.Array) -> jax.Array:
  """Keeps the score of each row's best blueprint, 0 for the others.

  Args:
    observation: see `Observation`.
    scores: float32 [rows, blueprints], 0 where not measured.
  """
  legal = observation.legal[:, int(Action.GERMINATE), :]
  gain = jnp.where(legal, scores * observation.cost, 0.0)
  best = (gain > 0) & (gain == gain.max(axis=1, keepdims=True))
  return jnp.where(best, scores, 0.0)


def _sharpen(scores: jax.Array) -> jax.Array:
  largest = jnp.maximum(scores.max(), jnp.finfo(jnp.float32).tiny)
  return (scores / largest) ** _SHARPNESS


def _loss(words: Words, settings: Settings) -> str:
  epochs = settings.plateau_epochs
  fall = 100 * float(improvement(words.observation, epochs)[0])
  verb = "improved" if fall >= 0 else "worsened"
  span = counted(epochs, "epoch")
  return (
    f"validation loss {verb} {abs(fall):.2g} % over {span} (plateau below"
    f" {100 * settings.plateau_delta:g} %)"
  )


def _place(words: Words) -> str:
  """Compares the value that decided with the best that another slot offers."""
  o, row = words.observation, words.row
  kind = int(words.decisions.blueprint[row])
  scores = jnp.where(jnp.isfinite(o.scores), o.scores, 0.0)
  value = np.asarray(_contenders(o, scores))
  own = float(value[row, kind])
  grown = words.decisions.action == int(Action.GERMINATE)
  elsewhere = np.asarray([name != words.slots[row] for name in words.slots])
  rival = np.asarray(elsewhere & ~grown & o.scores_known).reshape(-1, 1)
  others = np.where(rival, value, 0.0)
  best = float(others.max())
  above = (value[grown, words.decisions.blueprint[grown]] > own).any()
  text = (
    f"{words.slots[row]} has the {'next ' * bool(above)}highest germination"
    f" score, {own:.1e} per parameter of {words.blueprints[kind]}"
  )
  if best <= 0:
    return f"{text}; no other slot has a legal one above zero"
  other_row, other_kind = divmod(int(others.argmax()), others.shape[1])
  return (
    f"{text}, {own / best:.1f} times the runner-up's"
    f" ({words.slots[other_row]} with {words.blueprints[other_kind]})"
  )
