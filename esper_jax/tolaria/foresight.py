"""Which topologies come next, so that their programs are there in time.

What was decided comes for sure, at a boundary that is known. What Tamiyo will
decide at the next boundary is a guess: its own ranking says which decisions are
likely. Only shapes are computed here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from esper_jax.kasmina import lifecycle, surgery
from esper_jax.kasmina.slot import seeds_at
from esper_jax.tezzeret.lowering import abstract
from esper_jax.tolaria.growth_options import GrowthOptions
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.state import TrainState
from esper_jax.types import Path, Stage

Call = Callable[..., Any]  # (name, *args): one of `growth_programs`


def permanent(
  options: GrowthOptions,
  keys: Sequence[str | None],
  state: TrainState,
  stages: np.ndarray,
  row: int,
) -> list[str]:
  """Keys of a row's slot's seeds that no living lane owns.

  Args:
    options: of the run.
    keys: row -> key of its seed.
    state: holds the seeds.
    stages: int [rows].
    row: of the newborn.
  """
  first = row // options.lanes * options.lanes
  living = {
    keys[r]
    for r in range(first, first + options.lanes)
    if stages[r] != Stage.FOSSILIZED
  }
  own = seeds_at(state.seeds, options.path(row))
  return [key for key in own if key not in living]


def expected_births(options: GrowthOptions, run: Run) -> list[tuple[int, str]]:
  """(row, blueprint) of what was decided and is not yet planted."""
  waiting = np.asarray(run.slots.stage) == Stage.GERMINATED
  return [
    (int(row), options.blueprints[int(run.slots.blueprint[row])])
    for row in np.flatnonzero(waiting)
  ]


def decided(options: GrowthOptions, run: Run, call: Call) -> list[TrainState]:
  """The states to come, as shapes, in order, if nothing else is decided.

  Args:
    options: of the run.
    run: after a boundary.
    call: runs a growth program.
  """
  lead = options.rules.lead_epochs
  return list(_coming(options, run, run.slots, run.epoch + 1, lead, call))


def at_once(options: GrowthOptions, run: Run, call: Call) -> list[TrainState]:
  """The state, as shapes, that this boundary's own changes lead to, if any."""
  return list(_coming(options, run, run.slots, run.epoch, 1, call))


def guessed(
  options: GrowthOptions,
  run: Run,
  ranked: Iterable[tuple[Any, Any]],
  *,
  until: int,
  call: Call,
) -> list[TrainState]:
  """The states, as shapes, that the likeliest decisions would lead to.

  Args:
    options: of the run.
    run: after a boundary.
    ranked: (decisions, weight), the likeliest first; see `Policy.rank`.
    until: epochs to the next decision.
    call: runs a growth program.
  """
  epoch = run.epoch + until
  slots = run.slots
  for _ in range(until):
    slots = call("tick", slots)
  out = []
  for decisions, weight in ranked:
    if float(weight) > 0:
      moved = call("act", slots, decisions, run.signals, np.int32(epoch))
      out += _coming(
        options, run, moved, epoch, options.rules.lead_epochs + 1, call
      )
  return out


def _coming(
  options: GrowthOptions,
  run: Run,
  slots: lifecycle.SlotState,
  first: int,
  count: int,
  call: Call,
) -> Iterator[TrainState]:
  """States after those of `count` boundaries that change the tree."""
  state, keys = abstract(run.state), list(run.keys)
  for epoch in range(first, first + count):
    slots, planted, removed, _ = call("enact", slots, np.int32(epoch))
    rows = [np.flatnonzero(np.asarray(part)) for part in (planted, removed)]
    for row in map(int, rows[1]):
      key = keys[row]
      assert key is not None  # what was culled was planted
      state, keys[row] = surgery.cull(state, options.path(row), key), None
    for row in map(int, rows[0]):
      state, keys[row] = _planted(options, keys, state, slots, row)
    if len(rows[0]) or len(rows[1]):
      yield state


def _planted(
  options: GrowthOptions,
  keys: Sequence[str | None],
  state: TrainState,
  slots: lifecycle.SlotState,
  row: int,
) -> tuple[TrainState, str]:
  path: Path = options.path(row)
  old = permanent(options, keys, state, np.asarray(slots.stage), row)
  blueprint = options.blueprints[int(slots.blueprint[row])]
  names = []

  def plant(state: TrainState) -> TrainState:
    state, name = surgery.germinate(
      state,
      options.slots[path],
      blueprint,
      key=jax.random.key(0),
      optimizer=options.optimizer,
      blend=options.blend,
      proximal=options.proximal,
      permanent=old,
    )
    names.append(name)
    return state

  return jax.eval_shape(plant, state), names[0]
