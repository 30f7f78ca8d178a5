"""What a learned policy's network sees of an observation.

Numbers without a scale, so that one policy serves many hosts: ratios, slopes,
ranks and shares, all in [-1, 1]. What is not known is 0 and has the flag of
its name with a question mark down. Nothing else than finite numbers comes out,
whatever the observation holds.

Multiplying all losses, or all counts of parameters, changes nothing, nor does
adding a constant to all accuracies: in small worlds accuracy tells the size of
a network, elsewhere it says more of the data. Slots and blueprints have no
number: permute them, and the rows here are permuted.
"""

import hashlib
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from esper_jax.kasmina.records import Reason
from esper_jax.tamiyo.columns import (
  Columns,
  clean,
  geometric_mean,
  number,
  rank,
  saturating,
)
from esper_jax.tamiyo.observation import Observation, open_pairs, trend
from esper_jax.tamiyo.traits import TRAITS
from esper_jax.types import Action, Stage

VERSION = 1  # of the formulas below; a change makes old policies unreadable
_FALLS = (1, 2, 4)  # epochs
_GATED = {
  "gate_too_young": Reason.TOO_YOUNG,
  "gate_exploding": Reason.EXPLODING,
  "gate_unmeasured": Reason.CONTRIBUTION_UNKNOWN,
  "gate_stale": Reason.CONTRIBUTION_STALE,
  "gate_no_gain": Reason.NO_GAIN,
  "gate_still_blending": Reason.STILL_BLENDING,
}
_STAGES = tuple(f"is_{stage.name.lower()}" for stage in Stage)


def _with_flags(*names: str) -> tuple[str, ...]:
  """The names, those that end in "?" without it, then their flags."""
  flags = tuple(name for name in names if name.endswith("?"))
  return tuple(name.removesuffix("?") for name in names) + flags


RUN = _with_flags(
  "fraction",
  "epochs_left",
  "growths_left",
  "may_grow",
  "num_slots",
  "open_share",
  *(f"share_{stage.name.lower()}" for stage in Stage),
  *(f"{split}_fall_{n}?" for split in ("val", "train") for n in _FALLS),
  "trend?",
  "noise?",
  "above_best?",
  "val_over_train?",
  "val_accuracy_gain?",
  "train_accuracy_gain?",
  "seeds_share?",
  "best_expansion?",
)
SLOT = _with_flags(
  *_STAGES,
  "has_seed",
  "age",
  "patience",
  "life",
  "alpha",
  "gate_passes",
  *_GATED,
  "finite",
  "measured_here",
  "contribution_age",
  "may_germinate",
  "may_advance",
  "may_cull",
  "may_fossilize",
  "contribution_sigmas?",
  "contribution?",
  "contribution_per_parameter?",
  "contribution_rank?",
  "parity?",
  "activation?",
  "cotangent?",
  "cotangent_rank?",
  "seed_cost?",
  "best_score_rank?",
  "best_expansion?",
  "best_expansion_rank?",
)
BLUEPRINT = _with_flags(
  "fits",
  "may_germinate",
  "is_own",
  "cost?",
  "cost_in_slot?",
  "score?",
  "score_rank?",
  "score_rank_in_slot?",
  "expansion?",
  "expansion_rank?",
  "expansion_rank_in_slot?",
)
# Of the names and their order: a policy file that has another is refused.
SCHEMA = hashlib.sha256(
  json.dumps([VERSION, RUN, SLOT, BLUEPRINT, TRAITS]).encode()
).hexdigest()


class Limits(NamedTuple):
  """Numbers of the lifecycle that features are relative to; static.

  Attributes:
    max_training_epochs, max_holding_epochs: patience with a seed there.
    max_growths: germinations in the whole run.
    seeds_per_slot: rows of one slot.
  """

  max_training_epochs: int = 8
  max_holding_epochs: int = 4
  max_growths: int = 8
  seeds_per_slot: int = 1


class Inputs(struct.PyTreeNode):
  """What the network takes of one observation.

  Attributes:
    run: float32 [len(RUN)]. The network's global token.
    slots: float32 [rows, len(SLOT)].
    blueprints: float32 [rows, blueprints, len(BLUEPRINT) + traits].
    present: bool [rows]. Rows that any blueprint fits or a seed is in; the
      others are not attended to.
    fits: bool [rows, blueprints].
    open: bool [rows, blueprints]. Where a germination is legal; of the lanes
      of a slot the first.
  """

  run: jax.Array
  slots: jax.Array
  blueprints: jax.Array
  present: jax.Array
  fits: jax.Array
  open: jax.Array


def encode(
  observation: Observation,
  blueprint_features: Any,
  *,
  limits: Limits | None = None,
) -> Inputs:
  """Turns an observation into the network's inputs; jit and vmap as you like.

  Args:
    observation: see `Observation`.
    blueprint_features: float32 [rows, blueprints, traits]; see `traits`.
    limits: None takes the defaults.
  """
  o, limits = observation, limits or Limits()
  fits = jnp.isfinite(o.cost) & (o.cost > 0)
  present = fits.any(axis=1) | (o.blueprint >= 0)
  opens = open_pairs(o, limits.seeds_per_slot)
  described = clean(jnp.asarray(blueprint_features, jnp.float32))
  pairs = _blueprints(o, fits, opens).stack(BLUEPRINT)
  return Inputs(
    run=_run(o, present, opens, limits).stack(RUN),
    slots=_slots(o, present, opens, limits).stack(SLOT),
    blueprints=jnp.concatenate([pairs, described], axis=-1),
    present=present,
    fits=fits,
    open=opens,
  )


def _run(
  o: Observation, present: jax.Array, opens: jax.Array, limits: Limits
) -> Columns:
  out = Columns()
  num = jnp.maximum(number(present.sum()), 1.0)
  out.put("fraction", o.fraction)
  out.put("epochs_left", saturating(o.epochs_left, 16.0))
  left = number(o.growths_left)
  out.put("growths_left", left / max(limits.max_growths, 1))
  out.put("may_grow", (o.growths_left > 0) & opens.any())
  out.put("num_slots", jnp.log1p(num) / math.log(101.0))
  out.put("open_share", number(opens.any(axis=1).sum()) / num)
  for stage in Stage:
    share = ((o.stage == int(stage)) & present).sum()
    out.put(f"share_{stage.name.lower()}", number(share) / num)
  known = o.history_known
  now, two = known[-1], known[-1] & known[-3]
  for split, loss in (("val", o.val_loss), ("train", o.train_loss)):
    for n in _FALLS:
      fall = (loss[-1 - n] - loss[-1]) / jnp.abs(loss[-1 - n])
      both = now & known[-1 - n]
      out.squash(f"{split}_fall_{n}", fall, small=0.01, known=both)
  slope, noise = trend(o)
  out.squash("trend", slope, small=0.01, known=now & known[-2])
  out.squash("noise", noise, small=0.01, known=two)
  best = jnp.where(known, o.val_loss, jnp.inf).min()
  above = (o.val_loss[-1] - best) / jnp.abs(best)
  out.squash("above_best", above, small=0.01, known=now)
  out.ratio(
    "val_over_train", o.val_loss[-1], o.train_loss[-1], decades=2.0, known=now
  )
  for split, hits in (("val", o.val_accuracy), ("train", o.train_accuracy)):
    gain = hits[-1] - hits[-3]
    out.squash(f"{split}_accuracy_gain", gain, small=0.01, known=two)
  planted = jnp.where(o.blueprint >= 0, _own_cost(o), 0.0).sum()
  share = planted / o.parameters
  out.squash("seeds_share", share, small=0.01, known=o.parameters > 0)
  measured = opens & o.expansion_known.reshape(-1, 1)
  largest = jnp.where(measured, o.expansion, 0.0).max()
  out.ratio("best_expansion", largest, 1.0, decades=2.0, known=measured.any())
  return out


def _slots(
  o: Observation, present: jax.Array, opens: jax.Array, limits: Limits
) -> Columns:
  out = Columns()
  for name, stage in zip(_STAGES, Stage, strict=True):
    out.put(name, o.stage == int(stage))
  seeded = o.blueprint >= 0
  age = number(jnp.maximum(o.age, 0))
  in_training = age / limits.max_training_epochs
  in_holding = age / limits.max_holding_epochs
  patience = jnp.where(o.stage == int(Stage.HOLDING), in_holding, 0.0)
  patience = jnp.where(o.stage == int(Stage.TRAINING), in_training, patience)
  total = number(jnp.maximum(o.epoch + o.epochs_left, 1))
  out.put("has_seed", seeded)
  out.put("age", saturating(o.age, 4.0))
  out.put("patience", patience)
  out.put("life", number(o.life) / total)
  out.put("alpha", o.alpha)
  out.put("gate_passes", o.gate == 0)
  for name, reason in _GATED.items():
    out.put(name, (o.gate & int(reason)) != 0)
  out.put("finite", o.finite)
  known = o.contribution_known
  here = known & (o.contribution_stage == o.stage)
  out.put("measured_here", here & (o.contribution_age < o.age))
  since = jnp.where(known, o.contribution_age, 0)
  out.put("contribution_age", saturating(since, 4.0))
  out.put("may_germinate", opens.any(axis=1))
  for action in (Action.ADVANCE, Action.CULL, Action.FOSSILIZE):
    may = o.legal[:, int(action), :].any(axis=1)
    out.put(f"may_{action.name.lower()}", may)

  gain, error = o.contribution, o.contribution_se
  out.squash(
    "contribution_sigmas", gain / error, small=1.0, large=20.0, known=known
  )
  relative = gain / jnp.abs(o.val_loss[-1])
  judged = known & o.history_known[-1]
  out.squash("contribution", relative, small=1e-3, known=judged)
  cost = _own_cost(o)
  sized = seeded & (cost > 0) & (o.parameters > 0)
  out.squash(
    "contribution_per_parameter",
    relative * (o.parameters / cost),
    small=1e-2,
    large=10.0,
    known=judged & sized,
  )
  _put_rank(out, "contribution_rank", gain, known)
  out.ratio("parity", o.parity, 1.0, decades=3.0, known=o.parity_known)
  signal = o.signal_known & present
  for name, size in (
    ("activation", o.activation_ms),
    ("cotangent", o.cotangent_ms),
  ):
    usual = geometric_mean(size, signal)
    out.ratio(name, size, usual, decades=4.0, known=signal)
  _put_rank(out, "cotangent_rank", o.cotangent_ms, signal)
  out.ratio("seed_cost", cost, o.parameters, decades=4.0, known=sized)
  scored = opens & o.scores_known.reshape(-1, 1)
  best = jnp.where(scored, o.scores, -jnp.inf).max(axis=1)
  _put_rank(out, "best_score_rank", best, scored.any(axis=1))
  measured = opens & o.expansion_known.reshape(-1, 1)
  some = measured.any(axis=1)
  best = jnp.where(measured, o.expansion, -jnp.inf).max(axis=1)
  out.ratio("best_expansion", best, 1.0, decades=2.0, known=some)
  _put_rank(out, "best_expansion_rank", best, some)
  return out


def _blueprints(o: Observation, fits: jax.Array, opens: jax.Array) -> Columns:
  out = Columns()
  columns = jnp.arange(fits.shape[1], dtype=jnp.int32).reshape(1, -1)
  out.put("fits", fits)
  out.put("may_germinate", opens)
  out.put("is_own", o.blueprint.reshape(-1, 1) == columns)
  out.ratio("cost", o.cost, o.parameters, decades=4.0, known=fits)
  cheapest = jnp.where(fits, o.cost, jnp.inf).min(axis=1, keepdims=True)
  out.ratio("cost_in_slot", o.cost, cheapest, decades=4.0, known=fits)
  scored = opens & o.scores_known.reshape(-1, 1) & jnp.isfinite(o.scores)
  largest = jnp.where(scored, o.scores, 0.0).max()
  out.ratio("score", o.scores, largest, decades=8.0, known=scored)
  grown = opens & o.expansion_known.reshape(-1, 1) & jnp.isfinite(o.expansion)
  out.ratio("expansion", o.expansion, 1.0, decades=2.0, known=grown)
  for name, value, known in (
    ("score", o.scores, scored),
    ("expansion", o.expansion, grown),
  ):
    place = rank(value.ravel(), known.ravel()).reshape(value.shape)
    out.put(f"{name}_rank", place, known)
    out.put(f"{name}_rank_in_slot", jax.vmap(rank)(value, known), known)
  return out


def _put_rank(
  out: Columns, name: str, value: jax.Array, known: jax.Array
) -> None:
  known = known & jnp.isfinite(value)
  out.put(name, rank(value, known), known)


def _own_cost(o: Observation) -> jax.Array:
  """float32 [rows]: parameters of each row's seed; 0 without one."""
  columns = jnp.arange(o.cost.shape[1], dtype=jnp.int32).reshape(1, -1)
  own = o.blueprint.reshape(-1, 1) == columns
  return jnp.where(own, o.cost, 0.0).sum(axis=1)
