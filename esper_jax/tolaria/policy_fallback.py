"""What happens where a run's learned policy fails: the heuristic goes on.

A file that cannot be used, or an output that is not finite: one event says why
and result.json from when; or the run stops, as `tamiyo.on_policy_error` says.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from esper_jax.oona.health import Health, State
from esper_jax.tamiyo import learned
from esper_jax.tamiyo.policy import Policy
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.learned_policy import FALLBACK
from esper_jax.tolaria.run import Run
from esper_jax.types import InputError, PyTree, RunFailedError


def take_up(
  run: Run, fresh: Run, parts: Parts, publish: Callable[..., Any]
) -> None:
  """Lets the heuristic go on where the policy of a run cannot be used.

  Args:
    run: at its start or resumed; its policy's state is changed.
    fresh: a new run of the same config.
    parts: of the run.
    publish: takes the event's type and fields.

  Raises:
    InputError: the run is to stop instead.
  """
  state = run.policy
  if not isinstance(state, learned.State) or since(state) >= 0:
    return  # what fell back before was told of then
  error = parts.policy_error
  if not error and (state.digest != fresh.policy.digest).any():
    error = (
      "--config.tamiyo.policy_path names another policy than the one that this"
      " run began with; put that one back"
    )
  if not error:
    return
  if parts.growth.stop_on_policy_error:
    raise InputError(error)
  run.policy = state.replace(failed=jnp.asarray(run.epoch, jnp.int32))
  publish("policy_fallback", policy=FALLBACK, reason=error)


def check(
  before: PyTree, after: PyTree, publish: Callable[..., Any], *, stop: bool
) -> None:
  """Tells of a network that gave numbers which are not finite.

  Args:
    before, after: the policy's state before and after a decision.
    publish: see `take_up`.
    stop: see `GrowthOptions`.

  Raises:
    RunFailedError: the run is to stop.
  """
  if since(before) == since(after):
    return
  reason = "the output of the learned policy's network is not finite"
  if stop:
    raise RunFailedError(
      f"{reason}; another policy, or --config.tamiyo.on_policy_error=fallback,"
      " lets the run go on"
    )
  publish("policy_fallback", policy=FALLBACK, reason=reason)


def kept(failed: PyTree, restored: PyTree) -> PyTree:
  """The policy's state after a rollback: what fell back stays so."""
  if since(failed) < 0 or since(restored) >= 0:
    return restored
  return restored.replace(failed=failed.failed)


def used(policy: Policy, state: PyTree) -> str:
  """Says who decided: the policy's name, and from when the heuristic did."""
  epoch = since(state)
  if epoch < 0:
    return policy.name
  if epoch == 0:
    return FALLBACK
  return f"{policy.name}, {FALLBACK} from epoch {epoch}"


def health(state: PyTree) -> Health:
  """Says whether the policy that the run began with decides."""
  epoch = since(state)
  if epoch < 0:
    return Health()
  return Health(State.DEGRADED, error=f"{FALLBACK} decides, from epoch {epoch}")


def sha256(state: PyTree) -> str | None:
  """The hash, in hex, of the learned policy a run began with; None without."""
  if not isinstance(state, learned.State):
    return None
  digest = np.asarray(state.digest)
  return digest.astype(">u4").tobytes().hex() if digest.any() else None


def since(state: PyTree) -> int:
  """The boundary from which the fallback decides; -1 where it does not."""
  return (
    int(np.asarray(state.failed)) if isinstance(state, learned.State) else -1
  )
