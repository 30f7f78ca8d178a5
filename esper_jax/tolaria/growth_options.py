"""What a run fixes about growth."""

import importlib
from typing import Any, NamedTuple

import numpy as np
import optax
from ml_collections import ConfigDict

from esper_jax.config import flatten
from esper_jax.kasmina import blueprints, lifecycle, rules
from esper_jax.tamiyo.replay import Plan
from esper_jax.types import InputError, Path, SlotSpec, SlotTable


class GrowthOptions(NamedTuple):
  """What a run fixes about growth.

  Attributes:
    slots: the host's slot table.
    lanes: live seeds that a slot may hold; row r belongs to slot r // lanes.
    blueprints: names, in the order of every blueprint axis.
    fits: bool [rows, blueprints].
    cost: float32 [rows, blueprints], parameters of a newborn.
    rules: lifecycle numbers.
    initializer, blend, proximal, newborn: see `surgery.germinate`.
    optimizer: the chain of one group.
    seed: of policy draws and newborn parameters.
    frequency: epochs between two decisions.
    guesses: likely decisions to prepare for before they are taken.
    timeout: seconds to wait for a newborn's programs; 0 waits.
    replay: what happens in place of a policy's decisions; None asks it.
    warmup: steps of a newborn's warm-up; what is there from the start of a
      replay is past it.
    stop_on_policy_error: whether a learned policy that cannot be used ends the
      run; else the heuristic goes on.
  """

  slots: SlotTable
  lanes: int
  blueprints: tuple[str, ...]
  fits: np.ndarray
  cost: np.ndarray
  rules: lifecycle.Rules
  initializer: str
  blend: str
  proximal: float
  newborn: str
  optimizer: optax.GradientTransformation
  seed: int
  frequency: int
  guesses: int
  timeout: float
  replay: Plan | None = None
  warmup: int = 0
  stop_on_policy_error: bool = False

  @property
  def rows(self) -> int:
    return len(self.fits)

  def path(self, row: int) -> Path:
    """The slot of a row."""
    return list(self.slots)[row // self.lanes]


def make_growth(
  config: ConfigDict,
  slots: SlotTable,
  chain: optax.GradientTransformation,
  *,
  epochs: int,
) -> GrowthOptions:
  """What a config says of growth, for these slots.

  Args:
    config: validated.
    slots: of the host.
    chain: the optimizer of one group.
    epochs: of the run.

  Raises:
    InputError: a blueprint is unknown or fits nowhere, or a module of
      urza.modules cannot be imported.
  """
  k = config.kasmina
  for module in config.urza.modules:
    _import_blueprints(module)
  names = _blueprint_names(tuple(k.blueprints), slots)
  lanes = k.seeds_per_slot
  fits = np.zeros((len(slots) * lanes, len(names)), bool)
  cost = np.zeros((len(slots) * lanes, len(names)), np.float32)
  by_form: dict[Any, dict[str, int]] = {}
  for n, spec in enumerate(slots.values()):
    if spec.form not in by_form:
      by_form[spec.form] = _parameters(spec)
    for column, name in enumerate(names):
      if name in by_form[spec.form]:
        rows = slice(n * lanes, (n + 1) * lanes)
        fits[rows, column] = True
        cost[rows, column] = by_form[spec.form][name]
  return GrowthOptions(
    slots=slots,
    lanes=lanes,
    blueprints=names,
    fits=fits,
    cost=cost,
    rules=make_rules(config, epochs),
    initializer=k.initializer,
    blend=k.blend,
    proximal=k.proximal,
    newborn=config.optimizer.newborn,
    optimizer=chain,
    seed=config.seed,
    frequency=config.tamiyo.adaptation_frequency,
    guesses=config.tezzeret.guesses,
    timeout=config.tezzeret.timeout_seconds,
    stop_on_policy_error=config.tamiyo.on_policy_error == "stop",
  )


def make_rules(config: ConfigDict, epochs: int) -> lifecycle.Rules:
  """What a config says of the lifecycle, for a run of so many epochs."""
  return rules.of_config(flatten(config), epochs)


def _parameters(spec: SlotSpec) -> dict[str, int]:
  """Parameters of every blueprint that fits a spec."""
  return {
    name: blueprints.count(
      blueprints.abstract_init(blueprints.get(name), spec)[0]
    )
    for name in blueprints.fitting(spec)
  }


def _blueprint_names(
  chosen: tuple[str, ...], slots: SlotTable
) -> tuple[str, ...]:
  for name in chosen:
    blueprints.get(name)  # raises on an unknown one
  fitting = {n for spec in slots.values() for n in blueprints.fitting(spec)}
  useless = [name for name in chosen if name not in fitting]
  if useless and slots:  # a host without slots is a plain network
    raise InputError(
      f"kasmina.blueprints: '{useless[0]}' fits no slot of the host; those"
      f" that do: {', '.join(sorted(fitting))}"
    )
  return chosen or tuple(n for n in blueprints.names() if n in fitting)


def _import_blueprints(module: str) -> None:
  try:
    importlib.import_module(module)
  except InputError as error:
    raise InputError(f"urza.modules: '{module}': {error}") from error
  except (Exception, SystemExit) as error:  # a module may raise anything
    reason = " ".join(str(error).split())
    raise InputError(
      f"urza.modules: '{module}' cannot be imported ({type(error).__name__}:"
      f" {reason}); give modules on Python's path that register blueprints"
    ) from error
