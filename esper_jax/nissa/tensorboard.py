"""A run as TensorBoard shows it; needs the extra [tensorboard]."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from esper_jax import commands
from esper_jax.kasmina.slot import all_seeds
from esper_jax.nissa import figures
from esper_jax.nissa.console import describe
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.types import InputError, Stage

FOLDER = "tensorboard"  # in the run directory
_SIDE = 8  # pixels of the timeline per epoch and slot
# Red, green and blue of a stage; told apart by colour-blind eyes too (Okabe and
# Ito, 2008: Color Universal Design).
_COLOURS = {
  Stage.DORMANT: (240, 240, 240),
  Stage.GERMINATED: (240, 228, 66),
  Stage.TRAINING: (86, 180, 233),
  Stage.BLENDING: (230, 159, 0),
  Stage.HOLDING: (204, 121, 167),
  Stage.FOSSILIZED: (0, 114, 178),
  Stage.CULLED: (213, 94, 0),
  Stage.EMBARGOED: (150, 150, 150),
}


class TensorBoard:
  """A `tolaria.display.Display` that writes event files.

  Scalars of steps and epochs, growth events as text, the weights of living
  seeds as histograms (`histograms`), slots by epochs coloured by stage as an
  image (from the epoch at which this process began), and at the end the config
  with the result as hyperparameters.
  """

  def __init__(self, folder: Path, config: Mapping[str, Any], *, step: int = 0):
    """Opens the event files.

    Args:
      folder: where to; files of an earlier part of the run stay.
      config: "section.name" -> value.
      step: from which the run goes on: what was shown beyond is taken back.

    Raises:
      InputError: the extra is not installed.
    """
    try:
      from tensorboardX import SummaryWriter
    except ImportError as error:
      raise InputError(
        "--config.nissa.tensorboard=True needs tensorboardX; in the repository:"
        f" {commands.pip()} install -e '.[tensorboard]'; or leave it out"
      ) from error
    self._open: Any = functools.partial(SummaryWriter, str(folder))
    self._writer: Any = None
    self._config = config
    self._parts: dict[str, str] = {}
    self._step = 0
    self._stages: list[list[Stage]] = []  # by epoch, then by slot

  def part(self, name: str, text: str) -> None:
    """Notes a part of the system, to be shown as text."""
    self._parts[name] = text

  def begin(self, *, epoch: int, epochs: int, steps_per_epoch: int) -> None:
    """Opens the event files; what was shown of later steps is taken back."""
    self._step = epoch * steps_per_epoch
    self._writer = self._open(purge_step=self._step)
    for name, text in self._parts.items():
      self._writer.add_text(f"parts/{name}", text, self._step)

  def pace(self, step: int, seconds_per_step: float) -> None:
    """How fast the first steps were."""
    self._writer.add_scalar("time/step", seconds_per_step, step)

  def steps(self, step: int, loss: float, images_per_second: float) -> None:
    """The figures of a logging interval."""
    self._step = step
    self._writer.add_scalar("train/loss", loss, step)
    self._writer.add_scalar("time/images_per_second", images_per_second, step)

  def epoch(self, metrics: TrainingMetrics, slots: dict[str, Any]) -> None:
    """The figures of an epoch, and the slots' history so far."""
    self._step = metrics.step
    for name, value in figures.of_epoch(metrics, slots).items():
      self._writer.add_scalar(name, value, metrics.step)
    if not slots:
      return
    self._stages.append([Stage[row["stage"]] for row in slots.values()])
    if self._stages[-1] != self._stages[-2:][0]:
      self._draw()

  def event(self, event: Mapping[str, Any]) -> None:
    """An event of growth, in words."""
    if "slot" in event:
      self._writer.add_text(event["type"], describe(event), event["step"])

  def histograms(self, seeds: Mapping[str, np.ndarray], step: int) -> None:
    """The weights of the living seeds.

    Args:
      seeds: "slot/key" -> all weights of a seed, float32 [n].
      step: steps done.
    """
    for name, weights in seeds.items():
      if np.isfinite(weights).all():  # a histogram holds no NaN
        self._writer.add_histogram(f"seeds/{name}", weights, step)

  def _draw(self) -> None:
    image = timeline(self._stages)
    self._writer.add_image(
      "slots/timeline", image, self._step, dataformats="HWC"
    )

  def finish(self, result: dict[str, Any], workdir: Path) -> None:
    """The config and the result, so that runs can be compared."""
    from tensorboardX.summary import hparams

    values = {
      key: value if isinstance(value, bool | int | float | str) else str(value)
      for key, value in self._config.items()
    }
    if self._stages:
      self._draw()
    found = figures.of_result(result)
    for summary in hparams(values, {f"result/{k}": 0 for k in found}):
      self._writer.file_writer.add_summary(summary)
    for name, value in found.items():
      self._writer.add_scalar(f"result/{name}", value, self._step)

  def close(self) -> None:
    """Writes what is left and closes the files."""
    if self._writer is not None:
      self._writer.close()


def timeline(stages: list[list[Stage]]) -> np.ndarray:
  """Draws slots (rows) by epochs (columns), uint8 [height, width, 3].

  Args:
    stages: by epoch, then by slot.
  """
  cells = np.array(
    [[_COLOURS[stage] for stage in epoch] for epoch in stages], np.uint8
  )
  cells = cells.transpose(1, 0, 2)
  return cells.repeat(_SIDE, axis=0).repeat(_SIDE, axis=1)


def weights(seeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """ "slot/key" -> all weights of a seed, float32 [n].

  Args:
    seeds: the tree of a run's seeds.
  """
  found = {}
  for (slot, key), seed in all_seeds(seeds).items():
    leaves = jax.tree.leaves(jax.device_get(seed.params))
    found[f"{slot}/{key}"] = np.concatenate([leaf.ravel() for leaf in leaves])
  return found
