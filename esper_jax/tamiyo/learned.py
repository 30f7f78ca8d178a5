"""The learned policy: a network decides, and a rule where it cannot.

The network's output is looked at in the program itself: at the first boundary
at which it is not finite the fallback decides, and goes on until the run ends.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from esper_jax.tamiyo import distribution, features, network, shepherd
from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo.distribution import Logits
from esper_jax.tamiyo.observation import (
  Decision,
  Decisions,
  Observation,
  improvement,
)
from esper_jax.tamiyo.policy import LEARNED, Policy, record
from esper_jax.tamiyo.policy_file import PolicyFile
from esper_jax.tamiyo.rules import Settings, Words
from esper_jax.types import Action, Path, PyTree, Stage, counted


class State(struct.PyTreeNode):
  """What a run keeps of a learned policy.

  Attributes:
    failed: int32 []. Boundary from which the fallback decides; -1 = never.
    digest: uint32 [8]. SHA-256 of the policy that the run began with; 0
      without one.
    fallback: the fallback's own state.
  """

  failed: jax.Array
  digest: jax.Array
  fallback: PyTree


def digest_of(file: PolicyFile | None) -> np.ndarray:
  """uint32 [8]: see `State`."""
  if file is None:
    return np.zeros(8, np.uint32)
  return np.frombuffer(bytes.fromhex(file.sha256), ">u4").astype(np.uint32)


def limits_of(settings: Settings) -> features.Limits:
  """The settings that features are relative to."""
  fields = features.Limits._fields
  return features.Limits(**{name: getattr(settings, name) for name in fields})


def make(
  file: PolicyFile | None,
  blueprint_features: np.ndarray,
  settings: Settings,
  fallback: Policy,
) -> Policy:
  """Makes the policy; its state is a `State`.

  Args:
    file: the network's weights; None asks the fallback at every boundary.
    blueprint_features: float32 [rows, blueprints, traits]; see `traits`.
    settings: max_adaptations_per_epoch, warmup_epochs, seeds_per_slot,
      temperature, adaptation_frequency, the limits of patience and growth, and
      plateau_epochs, over which `explain` quotes the loss, are read.
    fallback: decides where the network cannot.
  """
  lanes = settings.seeds_per_slot
  shape = {"draws": settings.max_adaptations_per_epoch, "lanes": lanes}
  limits = limits_of(settings)
  patience = {
    "max_training_epochs": settings.max_training_epochs,
    "max_holding_epochs": settings.max_holding_epochs,
    "gain_sigmas": settings.gain_sigmas,
  }

  def init(key):
    return State(
      failed=jnp.full((), -1, jnp.int32),
      digest=jnp.asarray(digest_of(file)),
      fallback=fallback.init(key),
    )

  if file is None:

    def decide_without(state, observation, key):
      kept, decisions = fallback.decide(state.fallback, observation, key)
      return state.replace(fallback=kept), decisions

    asks = fallback.wants_scores
    return fallback._replace(
      name=LEARNED,
      init=init,
      decide=decide_without,
      rank=lambda state, observation, k: fallback.rank(
        state.fallback, observation, k
      ),
      wants_scores=None
      if asks is None
      else lambda state, observation: asks(state.fallback, observation),
    )

  def think(observation: Observation) -> tuple[Observation, Logits, jax.Array]:
    """(what was legal, the logits, whether they are all finite)."""
    seen = _warmed(observation, settings.warmup_epochs)
    inputs = features.encode(seen, blueprint_features, limits=limits)
    logits, _ = network.apply(file.params, inputs, file.sizes)
    if settings.temperature > 0:
      logits = jax.tree.map(lambda x: x / settings.temperature, logits)
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(logits)]
    return seen, logits, jnp.stack(finite).all()

  def decide(state, observation, key):
    seen, logits, finite = think(observation)
    if settings.temperature > 0:
      choice = distribution.sample(logits, seen, key, **shape)
    else:
      choice = distribution.mode(logits, seen, **shape)
    own = distribution.to_decisions(choice, seen, logits, lanes=lanes)
    kept, theirs = fallback.decide(state.fallback, observation, key)
    fails = jnp.where(finite, -1, observation.epoch).astype(jnp.int32)
    failed = jnp.where(state.failed >= 0, state.failed, fails)
    state = state.replace(failed=failed, fallback=kept)
    return state, _either(failed < 0, own, theirs)

  def rank(state, observation, k):
    future = obs.imagine(observation, settings.adaptation_frequency)
    seen, logits, finite = think(future)
    firsts = jnp.arange(-1, logits.germinate.size, dtype=jnp.int32)

    def with_first(first):
      choice = distribution.starting_with(logits, seen, first, **shape)
      log_p = distribution.log_prob(logits, seen, choice, lanes=lanes)
      decisions = distribution.to_decisions(choice, seen, logits, lanes=lanes)
      return decisions, jnp.exp(log_p)

    sets, weights = jax.vmap(with_first)(firsts)
    weights, index = jax.lax.top_k(weights, min(k, firsts.size))
    theirs = fallback.rank(state.fallback, observation, k)
    own = finite & (state.failed < 0)
    return [
      _either(
        own,
        (jax.tree.map(lambda x, n=n: x[index[n]], sets), weights[n]),
        theirs[n],
      )
      for n in range(len(theirs))
    ]

  def asks_for_scores(state, observation):
    # Wherever a seed may be planted: so it is while the policy is taught.
    seen = _warmed(observation, settings.warmup_epochs)
    open_rows = obs.open_pairs(seen, lanes).any(axis=1)
    own = (open_rows & ~seen.scores_known).any()
    no = jnp.zeros((), jnp.bool_)
    asks = fallback.wants_scores
    theirs = no if asks is None else asks(state.fallback, observation)
    return jnp.where(state.failed < 0, own, theirs)

  def explain(
    decisions: Decisions,
    observation: Observation,
    slot_names: Sequence[Path],
    blueprint_names: Sequence[str],
  ) -> list[Decision]:
    decisions, observation = jax.device_get((decisions, observation))
    if not (decisions.reason & obs.LEARNED).any():  # what moves is not ours
      return fallback.explain(
        decisions, observation, slot_names, blueprint_names
      )
    rows = decisions.action.shape[0]
    slots = [slot_names[r * len(slot_names) // rows] for r in range(rows)]
    out = []
    for row in map(int, np.flatnonzero(decisions.action != Action.WAIT)):
      words = Words(observation, decisions, row, slots, blueprint_names)
      action = int(decisions.action[row])
      if action == Action.GERMINATE:
        why = _growth_text(words, settings.plateau_epochs)
      elif action == Action.CULL:
        why = _cull_text(words)
      else:
        why = shepherd.sentence(observation, row, obs.GATE_PASSED, **patience)
      chance = f"probability {float(decisions.weight[row]):.2f}"
      text = f"the learned policy gives it {chance}; {why}"
      out.append(record(words, action, text))
    return out

  return Policy(
    name=LEARNED,
    init=init,
    decide=decide,
    rank=rank,
    wants_scores=asks_for_scores,
    explain=explain,
  )


def _warmed(observation: Observation, warmup_epochs: int) -> Observation:
  """The observation, in which nothing germinates before the warm-up is over."""
  legal = observation.legal
  warm = observation.epoch >= warmup_epochs
  grows = legal[:, int(Action.GERMINATE), :] & warm
  return observation.replace(
    legal=legal.at[:, int(Action.GERMINATE), :].set(grows)
  )


def _either(first: jax.Array, a: PyTree, b: PyTree) -> Any:
  return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)


def _growth_text(words: Words, epochs: int) -> str:
  o, row = words.observation, words.row
  kind = int(words.decisions.blueprint[row])
  parts = []
  fall, known = improvement(o, epochs)
  if bool(known):
    span = counted(epochs, "epoch")
    verb = "improved" if fall >= 0 else "worsened"
    change = f"{abs(100 * float(fall)):.2g} % over {span}"
    parts.append(f"validation loss {verb} {change}")
  if bool(o.scores_known[row]):
    score = float(o.scores[row, kind])
    parts.append(f"germination score {score:.1e} per parameter")
  if bool(o.expansion_known[row]):
    parts.append(f"expansion {float(o.expansion[row, kind]):.2g}")
  if not bool(o.scores_known[row]):
    parts.append("germination score not measured")
  name, slot = words.blueprints[kind], words.slots[row]
  return f"{name} at {slot}: {', '.join(parts)}"


def _cull_text(words: Words) -> str:
  o, row = words.observation, words.row
  age, stage = int(o.age[row]), Stage(int(o.stage[row])).name
  spent = f"{counted(age, 'epoch')} in {stage}"
  sick = "" if bool(o.finite[row]) else "; not finite"
  return f"{shepherd.contribution_text(o, row)} after {spent}{sick}"
