"""What growth is worth: final accuracy over the twin's, less what it cost.

The whole reward is `standing`; `rewards` only says when it is paid.

  standing(e) = accuracy(e) - twin's accuracy(e)
                - parameters * log2(size(e) / twin's size(e))
                - flops * (spent(e) - twin's spent(e)) / twin's spent at the end

The *twin* is the same environment, stepped with the same keys, in which nobody
ever decides anything; as it depends on no policy it is run once, beforehand. An
episode's return is the standing at its end. Paid densely, an epoch gets the
change of the standing; the sum telescopes to the same return, whatever the
policy did in between, so dense credit is a potential (Ng, Harada and Russell,
ICML 1999, theorem 1, discount 1, the standing as potential) and cannot be
farmed. A twin that restarts from every state does not have that property: a
policy could be paid for each of two moves that undo one another.

No part reads a seed's contribution, its gradients, its stage or a count of
events: those are signals for the policy, and what is paid for them is farmed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Prices(NamedTuple):
  """What growth costs, in validation accuracy (0.01 = one point).

  Attributes:
    parameters: for each doubling of the network.
    flops: for spending the FLOPs of a whole never-grown run once more.
  """

  parameters: float = 0.002
  flops: float = 0.002


def standing(outcome: Any, still: Any, prices: Prices) -> jax.Array:
  """Says how far a run is ahead of its twin after each epoch.

  Args:
    outcome: `Outcome`, arrays [..., epochs].
    still: of the twin, likewise.
    prices: see `Prices`.

  Returns:
    float32 [..., epochs], in accuracy; 0 where nothing was grown.
  """
  gain = outcome.val_accuracy - still.val_accuracy
  size = jnp.log2(outcome.parameters / still.parameters)
  spent = jnp.cumsum(outcome.flops - still.flops, axis=-1)
  whole = still.flops.sum(axis=-1, keepdims=True)
  return gain - prices.parameters * size - prices.flops * spent / whole


def rewards(
  outcome: Any, still: Any, prices: Prices, *, dense: bool
) -> jax.Array:
  """Pays the standing at the end, or its change after each epoch.

  Args:
    outcome: see `standing`.
    still: see `standing`.
    prices: see `standing`.
    dense: whether credit is given epoch by epoch.

  Returns:
    float32 [..., epochs]. Its sum over an episode is the same either way.
  """
  ahead = standing(outcome, still, prices)
  if dense:
    start = jnp.zeros_like(ahead[..., :1])
    return jnp.diff(ahead, axis=-1, prepend=start)
  last = jnp.zeros_like(ahead).at[..., -1].set(1.0)
  return ahead * last


def coming(outcome: Any, still: Any, prices: Prices) -> jax.Array:
  """Gives what each epoch's decision has still to earn of the return.

  Args:
    outcome: see `standing`.
    still: see `standing`.
    prices: see `standing`.

  Returns:
    float32 [..., epochs]: the return, less the standing before that epoch.
  """
  ahead = standing(outcome, still, prices)
  start = jnp.zeros_like(ahead[..., :1])
  before = jnp.concatenate([start, ahead[..., :-1]], axis=-1)
  return ahead[..., -1:] - before


def returns(outcome: Any, still: Any, prices: Prices) -> jax.Array:
  """Gives each episode's return, float32 [...]: the standing at its end."""
  return standing(outcome, still, prices)[..., -1]
