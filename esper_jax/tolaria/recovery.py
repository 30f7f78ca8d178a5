"""A run to and from a checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from esper_jax.kasmina import lifecycle, surgery
from esper_jax.tolaria import arrays as arrays_lib
from esper_jax.tolaria import steps
from esper_jax.tolaria.accounting import Ledger
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.checkpoints import Loaded
from esper_jax.tolaria.governor import GovernorState
from esper_jax.tolaria.run import FACTS, History, Run, unknown_signals
from esper_jax.tolaria.state import TrainState
from esper_jax.types import InputError


def new_run(parts: Parts, state: TrainState, *, seed: int) -> Run:
  """A run before its first step."""
  rows = len(parts.growth.fits)
  return Run(
    state=state,
    sums=steps.empty_sums(state),
    slots=lifecycle.initial(rows),
    signals=unknown_signals(rows),
    keys=[None] * rows,
    births=[""] * rows,
    culls=[0] * rows,
    history=History.empty(),
    policy=parts.policy.init(jax.random.key(seed)),
    governor=GovernorState(),
    ledger=Ledger(),
  )


def to_arrays(run: Run) -> dict[str, Any]:
  """The run's arrays under the names that a checkpoint gives them."""
  return arrays_lib.flatten(run.arrays())


def from_checkpoint(loaded: Loaded, fresh: Run, parts: Parts) -> Run:
  """Rebuilds a run.

  Args:
    loaded: a verified checkpoint.
    fresh: a new run of the same config; it says what is expected.
    parts: of the run.

  Raises:
    InputError: the checkpoint's network is not one that this config grows.
  """
  facts = loaded.meta["run"]
  name = str(loaded.checkpoint.path)
  expected = _expected(fresh, facts, parts, name)
  arrays = arrays_lib.restore_into(expected, loaded.arrays, source=name)
  return Run(
    **arrays,
    keys=list(facts["keys"]),
    births=list(facts["births"]),
    culls=list(facts["culls"]),
    governor=GovernorState.from_dict(facts["governor"]),
    ledger=Ledger.from_dict(facts["ledger"]),
    **{field: facts[field] for field in FACTS},
  )


def state_from_checkpoint(
  loaded: Loaded, fresh: Callable[[], TrainState], parts: Parts
) -> TrainState:
  """Rebuilds the training state alone, whatever policy the run has.

  Args:
    loaded: a verified checkpoint.
    fresh: makes the state before the first step; only its shapes are used.
    parts: of the run.

  Raises:
    InputError: the checkpoint's network is not one that this config grows.
  """
  facts = loaded.meta["run"]
  name = str(loaded.checkpoint.path)
  _check_slots(facts, parts, name)
  prefix = "state/"
  arrays = {k: v for k, v in loaded.arrays.items() if k.startswith(prefix)}
  expected = jax.eval_shape(lambda: {"state": _planted(fresh(), facts, parts)})
  return arrays_lib.restore_into(expected, arrays, source=name)["state"]


def _expected(
  fresh: Run, facts: Mapping[str, Any], parts: Parts, name: str
) -> dict[str, Any]:
  """The tree that the checkpoint's topology gives, as shapes."""
  _check_slots(facts, parts, name)

  def build() -> dict[str, Any]:
    state = _planted(fresh.state, facts, parts)
    return {
      **fresh.arrays(),
      "state": state,
      "sums": steps.empty_sums(state),
    }

  return jax.eval_shape(build)


def _check_slots(facts: Mapping[str, Any], parts: Parts, name: str) -> None:
  slots = parts.growth.slots
  for record in facts["topology"]:
    if record["slot"] not in slots:
      raise InputError(
        f"{name} holds a seed in slot '{record['slot']}', which this host"
        f" lacks (it has {', '.join(slots) or 'none'}); resume with the"
        " config it was made with"
      )


def _planted(
  state: TrainState, facts: Mapping[str, Any], parts: Parts
) -> TrainState:
  """A state with the seeds that the checkpoint's topology lists."""
  growth = parts.growth
  for record in facts["topology"]:
    seed = surgery.make_seed(
      growth.slots[record["slot"]],
      record["blueprint"],
      key=jax.random.key(0),
      blend=record["blend"],
      depth=record["depth"],
    )
    born = growth.optimizer.init(seed.params)
    state = surgery.plant(state, record["slot"], record["key"], seed, born)
  return state
