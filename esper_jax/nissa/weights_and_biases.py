"""A run as Weights & Biases shows it; needs the extra [wandb]."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper_jax import commands
from esper_jax.nissa import figures
from esper_jax.nissa.console import describe
from esper_jax.tezzeret.program import first_line
from esper_jax.tolaria.display import TrainingMetrics
from esper_jax.types import InputError


class WeightsAndBiases:
  """A `tolaria.display.Display` that logs to a project of wandb.

  Where to, and whether online, wandb's own environment says (WANDB_MODE,
  WANDB_ENTITY ...). A run that is resumed goes on under its old id.
  """

  def __init__(self, folder: Path, config: Mapping[str, Any], *, project: str):
    """Begins a run there.

    Args:
      folder: the run directory; its name is the run's.
      config: "section.name" -> value.
      project: name of the project.

    Raises:
      InputError: the extra is not installed, or wandb cannot begin.
    """
    try:
      wandb: Any = importlib.import_module("wandb")
    except ImportError as error:
      raise InputError(
        f"--config.nissa.wandb={project} needs wandb; in the repository:"
        f" {commands.pip()} install -e '.[wandb]'; or leave it out"
      ) from error
    try:
      self._run: Any = wandb.init(
        project=project,
        name=folder.name,
        id=folder.name,
        resume="allow",
        dir=str(folder),
        config=dict(config),
        settings=wandb.Settings(silent=True),
      )
    except Exception as error:  # wandb has many kinds
      raise InputError(
        f"--config.nissa.wandb={project}: wandb cannot begin"
        f" ({first_line(error)}); log in, set WANDB_MODE=offline, or leave it"
        " out"
      ) from error
    self._status = "failed"  # until the run says otherwise
    self._step = 0

  def part(self, name: str, text: str) -> None:
    """Notes each part of the system with the config."""
    self._run.config.update({f"parts.{name}": text}, allow_val_change=True)

  def begin(self, *, epoch: int, epochs: int, steps_per_epoch: int) -> None:
    """Notes from where the run goes on."""
    self._step = epoch * steps_per_epoch

  def pace(self, step: int, seconds_per_step: float) -> None:
    """How fast the first steps were."""
    self._run.log({"time/step": seconds_per_step}, step=step)

  def steps(self, step: int, loss: float, images_per_second: float) -> None:
    """The figures of a logging interval."""
    self._step = step
    rate = {"train/loss": loss, "time/images_per_second": images_per_second}
    self._run.log(rate, step=step)

  def epoch(self, metrics: TrainingMetrics, slots: dict[str, Any]) -> None:
    """The figures of an epoch."""
    self._step = metrics.step
    self._run.log(figures.of_epoch(metrics, slots), step=metrics.step)

  def event(self, event: Mapping[str, Any]) -> None:
    """An event of growth, in words."""
    if "slot" in event:
      self._run.log(
        {f"events/{event['type']}": describe(event)}, step=self._step
      )

  def finish(self, result: dict[str, Any], workdir: Path) -> None:
    """The summary."""
    self._status = result["status"]
    self._run.summary.update(figures.of_result(result))

  def close(self) -> None:
    """Ends the run; wandb then sends what is left."""
    self._run.finish(exit_code=1 if self._status == "failed" else 0)
