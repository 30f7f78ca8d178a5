"""What a run is made of, in a line per part."""

from ml_collections import ConfigDict

from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.display import Display
from esper_jax.tolaria.store import Store, environment


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
    f" test, {data.num_classes} classes",
    "oona": f"events to {store.path / 'events.jsonl'}",
    "tamiyo": f"policy {parts.policy.name}, asked every"
    f" {config.tamiyo.adaptation_frequency} epochs, at most"
    f" {growth.rules.max_growths} growths",
    "kasmina": f"{config.host.name}, {parameters:,} parameters,"
    f" {len(growth.slots)} slots ({', '.join(growth.slots) or 'none'}),"
    f" {len(growth.blueprints)} blueprints",
    "tolaria": f"{timetable.epochs} epochs of {timetable.steps_per_epoch}"
    f" steps, batch {config.data.batch_size}, {config.optimizer.name} at"
    f" {config.optimizer.learning_rate:g}, run in {store.path}",
    "device": "{device}, {cores} cores, jax {jax}".format(**environment()),
  }
  for name, text in lines.items():
    display.part(name, text)
  display.begin(
    epoch=epoch,
    epochs=timetable.epochs,
    steps_per_epoch=timetable.steps_per_epoch,
  )
