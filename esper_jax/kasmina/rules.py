"""The numbers of a seed's life, and how long one takes; needs no JAX.

See `kasmina.lifecycle` for what rows, boundaries and epochs mean.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

_SECTIONS = ("tamiyo", "kasmina", "tezzeret")  # of a config: they have rules
CURVES = ("linear", "cosine", "sigmoid")


class Rules(NamedTuple):
  """The numbers of the lifecycle; Python values, static under jit.

  Attributes:
    epochs: boundaries in the run; the last one is boundary `epochs`.
    lead_epochs: boundaries from a decision to its change of the tree, >= 0.
    adaptation_frequency: the policy acts at multiples of this boundary, >= 1.
    max_adaptations_per_epoch: germinations at one boundary, >= 1.
    max_growths: germinations in the run; cancelled ones count.
    seeds_per_slot: lanes of a slot, >= 1.
    max_per_slot: live and fossilized seeds of a slot together.
    alpha_curve: one of CURVES.
    blend_epochs: length of BLENDING, >= 1.
    min_training_epochs: earliest ADVANCE out of TRAINING; 0 acts as 1.
    max_training_epochs: after it Tamiyo's rules cull a seed in TRAINING.
    min_holding_epochs: earliest FOSSILIZE out of HOLDING; 0 acts as 1.
    max_holding_epochs: after it Tamiyo's rules cull a seed in HOLDING.
    embargo_epochs: rest after a removal or a cancelled germination, >= 0.
    training_gain_sigmas: standard errors that the contribution of a seed in
      TRAINING must exceed.
    gain_sigmas: the same in HOLDING; there it must exceed 0 as well.
    max_gradient_ratio: largest healthy `Signals.parity`.
  """

  epochs: int
  lead_epochs: int
  adaptation_frequency: int
  max_adaptations_per_epoch: int
  max_growths: int
  seeds_per_slot: int
  max_per_slot: int
  alpha_curve: str
  blend_epochs: int
  min_training_epochs: int
  max_training_epochs: int
  min_holding_epochs: int
  max_holding_epochs: int
  embargo_epochs: int
  training_gain_sigmas: float
  gain_sigmas: float
  max_gradient_ratio: float


def of_config(flat: Mapping[str, Any], epochs: int) -> Rules:
  """What a config says of the lifecycle.

  Args:
    flat: "section.key" -> value.
    epochs: of the run.
  """
  fields = {
    name: flat[f"{section}.{name}"]
    for section in _SECTIONS
    for name in Rules._fields
    if f"{section}.{name}" in flat
  }
  return Rules(**fields, epochs=epochs)


def earliest_fossil(epoch: Any, rules: Rules) -> Any:
  """Computes when a germination decided at boundary `epoch` can be permanent.

  Every upward move waits for a multiple of `adaptation_frequency`, except the
  last: a seed in HOLDING is also judged by `finish`.

  Args:
    epoch: int or int32 [].
    rules: see `Rules`.

  Returns:
    The boundary, of epoch's type.
  """
  every = rules.adaptation_frequency

  def next_decision(boundary):
    return (boundary + every - 1) // every * every

  training = epoch + rules.lead_epochs + max(rules.min_training_epochs, 1)
  blended = next_decision(training) + rules.blend_epochs
  return next_decision(blended) + max(rules.min_holding_epochs, 1)


def last_planting(rules: Rules) -> int:
  """The last boundary at which a germination may be decided; 0: there is none.

  Args:
    rules: see `Rules`.
  """
  every = rules.adaptation_frequency
  fits = (
    epoch
    for epoch in range(every, rules.epochs, every)
    if earliest_fossil(epoch, rules) <= rules.epochs
  )
  return max(fits, default=0)
