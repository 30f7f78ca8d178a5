"""What the end of a run changed once its last epoch had been validated."""

from esper_jax.nissa.report import growth
from esper_jax.nissa.report.record import Run
from esper_jax.nissa.table import percent
from esper_jax.types import counted


def sentence(run: Run) -> str:
  """Says what validation accuracy became where the end culled seeds.

  Returns:
    A line; "" where it culled none, and as long as the run is not completed.
  """
  known = run.result or {}
  gone = [
    seed
    for seed in run.growth.seeds
    if seed.fate == growth.CULLED and seed.ended == run.epochs
  ]
  before = run.series("val/accuracy")[-1] if run.lines else None
  after = known.get("val_accuracy")
  if run.status != "completed" or not gone or None in (before, after):
    return ""
  were = "was" if len(gone) == 1 else "were"
  return (
    f"after the last epoch {counted(len(gone), 'seed')} that {were} not"
    f" permanent {were} culled: validation accuracy was {percent(before)}"
    f" before that, and is {percent(after)} now"
  )
