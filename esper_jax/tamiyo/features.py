"""What a learned policy's network sees of an observation.

Numbers without a scale, so that one policy serves many hosts: ratios, slopes,
ranks and shares, all in [-1, 1]. What is not known is 0 and has the flag of
its name with a question mark down. Nothing else than finite numbers comes out,
whatever the observation holds.

Multiplying all losses, or all counts of parameters, changes nothing. Slots and
blueprints have no number: permute them, and the rows here are permuted.
"""

import hashlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from esper_jax.kasmina.records import Reason
from esper_jax.tamiyo.observation import Observation, open_pairs, trend
from esper_jax.tamiyo.traits import TRAITS
from esper_jax.types import Action, Stage

VERSION = 1  # of the formulas below; a change makes old policies unreadable
_FALLS = (1, 2, 4)  # epochs
_GATED = (
  Reason.TOO_YOUNG,
  Reason.EXPLODING,
  Reason.CONTRIBUTION_UNKNOWN,
  Reason.CONTRIBUTION_STALE,
  Reason.NO_GAIN,
  Reason.STILL_BLENDING,
)
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
  "val_accuracy?",
  "train_accuracy?",
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
  *(f"gate_{reason.name.lower()}" for reason in _GATED if reason.name),
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

_Columns = dict[str, tuple[jax.Array, jax.Array]]  # name -> (value, known)


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
  limits: Limits = Limits(),
) -> Inputs:
  """Turns an observation into the network's inputs; jit and vmap as you like.

  Args:
    observation: see `Observation`.
    blueprint_features: float32 [rows, blueprints, traits]; see `traits`.
    limits: see `Limits`.
  """
  o = observation
  fits = jnp.isfinite(o.cost) & (o.cost > 0)
  present = fits.any(axis=1) | (o.blueprint >= 0)
  opens = open_pairs(o, limits.seeds_per_slot)
  described = jnp.asarray(blueprint_features, jnp.float32)
  pairs = jnp.concatenate(
    [_stack(BLUEPRINT, _blueprints(o, fits, opens)), _clean(described)], axis=-1
  )
  return Inputs(
    run=_stack(RUN, _run(o, present, opens, limits)),
    slots=_stack(SLOT, _slots(o, present, opens, limits)),
    blueprints=pairs,
    present=present,
    fits=fits,
    open=opens,
  )


def _run(
  o: Observation, present: jax.Array, opens: jax.Array, limits: Limits
) -> _Columns:
  num = jnp.maximum(_number(present.sum()), 1.0)
  out: _Columns = {}
  _put(out, "fraction", o.fraction)
  _put(out, "epochs_left", _saturating(o.epochs_left, 16.0))
  left = _number(o.growths_left)
  _put(out, "growths_left", left / max(limits.max_growths, 1))
  _put(out, "may_grow", _number((o.growths_left > 0) & opens.any()))
  _put(out, "num_slots", jnp.log1p(num) / jnp.log(101.0))
  _put(out, "open_share", _number(opens.any(axis=1).sum()) / num)
  for stage in Stage:
    share = ((o.stage == int(stage)) & present).sum()
    _put(out, f"share_{stage.name.lower()}", _number(share) / num)
  history = o.history_known
  for split, loss in (("val", o.val_loss), ("train", o.train_loss)):
    for n in _FALLS:
      fall = (loss[-1 - n] - loss[-1]) / jnp.abs(loss[-1 - n])
      known = history[-1] & history[-1 - n]
      _put(out, f"{split}_fall_{n}", _squash(fall, 0.01), known)
  slope, noise = trend(o)
  _put(out, "trend", _squash(slope, 0.01), history[-1] & history[-2])
  _put(out, "noise", _squash(noise, 0.01), history[-1] & history[-3])
  best = jnp.where(history, o.val_loss, jnp.inf).min()
  above = (o.val_loss[-1] - best) / jnp.abs(best)
  _put(out, "above_best", _squash(above, 0.01), history[-1])
  ratio = _decades(o.val_loss[-1], o.train_loss[-1])
  _put(out, "val_over_train", ratio / 2, history[-1])
  for split, hits in (("val", o.val_accuracy), ("train", o.train_accuracy)):
    known = history[-1] & history[-3]
    _put(out, f"{split}_accuracy", hits[-1], history[-1])
    gain = _squash(hits[-1] - hits[-3], 0.01)
    _put(out, f"{split}_accuracy_gain", gain, known)
  planted = jnp.where(o.blueprint >= 0, _of_own(o, o.cost), 0.0).sum()
  share = planted / o.parameters
  _put(out, "seeds_share", _squash(share, 0.01), o.parameters > 0)
  known = opens & o.expansion_known.reshape(-1, 1)
  largest = jnp.where(known, o.expansion, 0.0).max()
  _put(out, "best_expansion", _decades(largest, 1.0) / 2, known.any())
  return out


def _slots(
  o: Observation, present: jax.Array, opens: jax.Array, limits: Limits
) -> _Columns:
  out: _Columns = {}
  for name, stage in zip(_STAGES, Stage, strict=True):
    _put(out, name, _number(o.stage == int(stage)))
  seeded = o.blueprint >= 0
  training = o.stage == int(Stage.TRAINING)
  holding = o.stage == int(Stage.HOLDING)
  age = _number(jnp.maximum(o.age, 0))
  patience = jnp.where(
    training,
    age / limits.max_training_epochs,
    jnp.where(holding, age / limits.max_holding_epochs, 0.0),
  )
  total = _number(jnp.maximum(o.epoch + o.epochs_left, 1))
  _put(out, "has_seed", _number(seeded))
  _put(out, "age", _saturating(o.age, 4.0))
  _put(out, "patience", patience)
  _put(out, "life", _number(o.life) / total)
  _put(out, "alpha", o.alpha)
  _put(out, "gate_passes", _number(o.gate == 0))
  for reason in _GATED:
    bit = (o.gate & int(reason)) != 0
    _put(out, f"gate_{str(reason.name).lower()}", _number(bit))
  _put(out, "finite", _number(o.finite))
  here = o.contribution_known & (o.contribution_stage == o.stage)
  here &= o.contribution_age < o.age
  _put(out, "measured_here", _number(here))
  aged = jnp.where(o.contribution_known, o.contribution_age, 0)
  _put(out, "contribution_age", _saturating(aged, 4.0))
  _put(out, "may_germinate", _number(opens.any(axis=1)))
  for action in (Action.ADVANCE, Action.CULL, Action.FOSSILIZE):
    may = o.legal[:, int(action), :].any(axis=1)
    _put(out, f"may_{action.name.lower()}", _number(may))

  known = o.contribution_known
  sigmas = o.contribution / o.contribution_se
  _put(out, "contribution_sigmas", _squash(sigmas, 1.0, 20.0), known)
  relative = o.contribution / jnp.abs(o.val_loss[-1])
  judged = known & o.history_known[-1]
  _put(out, "contribution", _squash(relative, 1e-3), judged)
  own_cost = _of_own(o, o.cost)
  sized = seeded & (own_cost > 0) & (o.parameters > 0)
  worth = relative * (o.parameters / own_cost)
  _put(
    out,
    "contribution_per_parameter",
    _squash(worth, 1e-2, 10.0),
    judged & sized,
  )
  _put_rank(out, "contribution_rank", o.contribution, known)
  _put(out, "parity", _decades(o.parity, 1.0) / 3, o.parity_known)
  signal = o.signal_known & present
  for name, size in (
    ("activation", o.activation_ms),
    ("cotangent", o.cotangent_ms),
  ):
    _put(out, name, _decades(size, _mean(size, signal)) / 4, signal)
  _put_rank(out, "cotangent_rank", o.cotangent_ms, signal)
  cost = _decades(own_cost, o.parameters) / 4
  _put(out, "seed_cost", cost, sized)
  scored = opens & o.scores_known.reshape(-1, 1)
  best = jnp.where(scored, o.scores, -jnp.inf).max(axis=1)
  _put_rank(out, "best_score_rank", best, scored.any(axis=1))
  grown = opens & o.expansion_known.reshape(-1, 1)
  best = jnp.where(grown, o.expansion, -jnp.inf).max(axis=1)
  _put(out, "best_expansion", _decades(best, 1.0) / 2, grown.any(axis=1))
  _put_rank(out, "best_expansion_rank", best, grown.any(axis=1))
  return out


def _blueprints(o: Observation, fits: jax.Array, opens: jax.Array) -> _Columns:
  out: _Columns = {}
  columns = jnp.arange(fits.shape[1], dtype=jnp.int32).reshape(1, -1)
  _put(out, "fits", _number(fits))
  _put(out, "may_germinate", _number(opens))
  _put(out, "is_own", _number(o.blueprint.reshape(-1, 1) == columns))
  _put(out, "cost", _decades(o.cost, o.parameters) / 4, fits)
  cheapest = jnp.where(fits, o.cost, jnp.inf).min(axis=1, keepdims=True)
  _put(out, "cost_in_slot", _decades(o.cost, cheapest) / 4, fits)
  scored = opens & o.scores_known.reshape(-1, 1)
  scored &= jnp.isfinite(o.scores)
  largest = jnp.where(scored, o.scores, 0.0).max()
  _put(out, "score", _decades(o.scores, largest) / 8, scored)
  grown = opens & o.expansion_known.reshape(-1, 1)
  grown &= jnp.isfinite(o.expansion)
  for name, value, known in (
    ("score", o.scores, scored),
    ("expansion", o.expansion, grown),
  ):
    rank = _rank(value.ravel(), known.ravel()).reshape(value.shape)
    _put(out, f"{name}_rank", rank, known)
    _put(out, f"{name}_rank_in_slot", jax.vmap(_rank)(value, known), known)
  _put(out, "expansion", _decades(o.expansion, 1.0) / 2, grown)
  return out


def _put(columns: _Columns, name: str, value: Any, known: Any = True) -> None:
  """Adds a feature; `known` only where it is not always so."""
  value = jnp.asarray(value)
  columns[name] = (value.astype(jnp.float32), jnp.asarray(known))


def _put_rank(
  columns: _Columns, name: str, value: jax.Array, known: jax.Array
) -> None:
  known = known & jnp.isfinite(value)
  _put(columns, name, _rank(value, known), known)


def _stack(names: tuple[str, ...], columns: _Columns) -> jax.Array:
  """The features in the order of their names, made finite, and their flags."""
  plain = [name for name in names if not name.endswith("?")]
  value = jnp.stack([columns[name][0] for name in plain], axis=-1)
  shape = value.shape[:-1]
  known = [jnp.broadcast_to(columns[name][1], shape) for name in plain]
  good = jnp.stack(known, axis=-1) & jnp.isfinite(value)
  value = jnp.where(good, jnp.clip(value, -1.0, 1.0), 0.0)
  flagged = [plain.index(name[:-1]) for name in names if name.endswith("?")]
  flags = good[..., np.asarray(flagged, np.int32)]
  return jnp.concatenate([value, _number(flags)], axis=-1)


def _clean(value: jax.Array) -> jax.Array:
  return jnp.where(jnp.isfinite(value), jnp.clip(value, -1.0, 1.0), 0.0)


def _number(value: jax.Array) -> jax.Array:
  return value.astype(jnp.float32)


def _saturating(count: jax.Array, half: float) -> jax.Array:
  """0 for 0, 1/2 at `half`, below 1 for any count."""
  count = _number(jnp.maximum(count, 0))
  return count / (count + half)


def _squash(value: jax.Array, small: float, large: float = 1.0) -> jax.Array:
  """Logarithmic on both sides of 0, so that `small` and `large`, 1, show."""
  sized = jnp.log1p(jnp.abs(value) / small)
  return jnp.sign(value) * sized / jnp.log1p(large / small)


def _decades(a: jax.Array, b: Any) -> jax.Array:
  """log10 of a / b; not finite where either is not positive."""
  return (jnp.log(a) - jnp.log(b)) / jnp.log(10.0)


def _mean(value: jax.Array, known: jax.Array) -> jax.Array:
  """Geometric mean of what is known and positive."""
  good = known & (value > 0) & jnp.isfinite(value)
  logs = jnp.where(good, jnp.log(jnp.where(good, value, 1.0)), 0.0)
  return jnp.exp(logs.sum() / jnp.maximum(_number(good.sum()), 1.0))


def _rank(value: jax.Array, known: jax.Array) -> jax.Array:
  """Share of the other known values that are below, ties half; 1 if alone.

  Args:
    value: float32 [n].
    known: bool [n].
  """
  value = jnp.where(known, value, 0.0)
  others = known.reshape(1, -1)
  below = ((value.reshape(-1, 1) > value.reshape(1, -1)) & others).sum(axis=1)
  equal = ((value.reshape(-1, 1) == value.reshape(1, -1)) & others).sum(axis=1)
  rivals = _number(known.sum()) - 1.0
  share = _number(below) + 0.5 * (_number(equal) - 1.0)
  return jnp.where(rivals > 0, share / jnp.maximum(rivals, 1.0), 1.0)


def _of_own(o: Observation, table: jax.Array) -> jax.Array:
  """float32 [rows]: the entry of each row's own blueprint; 0 without seed."""
  columns = jnp.arange(table.shape[1], dtype=jnp.int32).reshape(1, -1)
  own = o.blueprint.reshape(-1, 1) == columns
  return jnp.where(own, table, 0.0).sum(axis=1)
