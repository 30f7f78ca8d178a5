"""What a run is made of, in a line per part."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from esper_jax.data.splits import Dataset
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.rules import Rules, earliest_fossil, last_planting
from esper_jax.knobs import GIVEN
from esper_jax.tolaria import assembly, kernels, layout, replaying
from esper_jax.tolaria.assembly import Parts, Timetable
from esper_jax.tolaria.display import Display
from esper_jax.tolaria.store import Store, environment
from esper_jax.types import counted


def show(
  display: Display,
  config: ConfigDict,
  parts: Parts,
  store: Store,
  *,
  parameters: int,
  epoch: int,
) -> None:
  """Tells a display of every part, and how long the run is.

  Args:
    display: told.
    config: validated.
    parts: of the run.
    store: of the run.
    parameters: of the host alone.
    epoch: epochs done.
  """
  data, growth, timetable = parts.data, parts.growth, parts.timetable
  lines = {
    "data": f"{data.source}: {len(data.train_labels)} train,"
    f" {len(data.validation_labels)} validation, {len(data.test_labels)}"
    f" test{_classes(data)}",
    "oona": f"events to {store.path / 'events.jsonl'}"
    + (f", and to {store.redis.describe()}" if store.redis else ""),
    "tamiyo": replaying.describe(config)
    if growth.replay is not None
    else _policy(parts.policy.name, growth.rules),
    "kasmina": f"{parts.title or config.host.name},"
    f" {counted(parameters, 'parameter')},"
    f" {counted(len(growth.slots), 'slot')}"
    f" ({', '.join(growth.slots) or _no_slot(config)}),"
    f" {counted(len(growth.blueprints), 'blueprint')}",
    "tolaria": f"{_length(timetable)}, batch {config.data.batch_size},"
    f" {config.optimizer.name} at {config.optimizer.learning_rate:g},"
    f" run in {store.path}",
    "device": "{device}, {cores} cores, jax {jax}".format(**environment())
    + layout.describe(config),
    "urza": kernels.describe(config),
  }
  for name, text in lines.items():
    display.part(name, text)
  for text in parts.warnings:
    display.part("warning", text)
  display.begin(
    epoch=epoch,
    epochs=timetable.epochs,
    steps_per_epoch=timetable.steps_per_epoch,
  )


def slot_table(config: ConfigDict) -> list[dict[str, Any]]:
  """What could grow where, for people: see `--dry_run`.

  Returns:
    A record per slot: name, shape, kind, blueprints: [(name, parameters,
    FLOPs of a forward pass of one example)].

  Raises:
    InputError: the config cannot be used for a run.
  """
  kernels.check(config)
  data = assembly.load_data(config)
  parts = assembly.assemble(config, data)
  growth = parts.growth
  table = []
  for n, (path, spec) in enumerate(growth.slots.items()):
    rows = []
    for column in np.flatnonzero(growth.fits[n * growth.lanes]):
      name = growth.blueprints[int(column)]
      rows.append((name, *blueprints.cost(name, spec)))
    facts = {"name": path, "shape": spec.shape, "kind": spec.kind}
    table.append({**facts, "blueprints": rows})
  return table


def _classes(data: Dataset) -> str:
  """How many there are, where the source does not say so."""
  classes = f"{data.num_classes} classes"
  told = not data.num_classes or classes in data.source
  return "" if told else f", {classes}"


def _no_slot(config: ConfigDict) -> str:
  """Says that a host cannot grow, and what a place to grow is."""
  if config.host.name == GIVEN:
    return (
      "none: it cannot grow; a place to grow is"
      " x = esper_jax.Slot(name='middle')(x, train=train)"
    )
  return "none: it cannot grow; host.slots=all has every place"


def _length(timetable: Timetable) -> str:
  whole = timetable.epochs * timetable.steps_per_epoch
  if timetable.total_steps < whole:  # train.max_steps
    return counted(timetable.total_steps, "step")
  steps = counted(timetable.steps_per_epoch, "step")
  return f"{counted(timetable.epochs, 'epoch')} of {steps}"


def _policy(name: str, rules: Rules) -> str:
  """Who decides on growth, how often, and how much of it there may be."""
  if name == "never":
    return f"policy {name}: nothing will be planted"
  every = counted(rules.adaptation_frequency, "epoch")
  most = counted(rules.max_growths, "growth")
  return f"policy {name}, asked every {every}, at most {most}{_deadline(rules)}"


def _deadline(rules: Rules) -> str:
  """Until when a seed may be planted, so that its whole life fits."""
  last = last_planting(rules)
  if last:
    return f", the last by epoch {last}"
  shortest = earliest_fossil(rules.adaptation_frequency, rules)
  return (
    f"; none, as a seed's life needs {shortest} epochs, and the run has"
    f" {rules.epochs}: raise train.epochs"
  )
