"""What a trainer tells whoever watches; `nissa.console` is the one people see.

A display never changes a run: it is told, and returns nothing.
"""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class TrainingMetrics(NamedTuple):
  """What an epoch came to.

  Attributes:
    epoch: epochs done.
    step: steps done.
    train_loss, val_loss: nats per example.
    train_accuracy, val_accuracy: 0 to 1.
    seconds: of the epoch, evaluation included.
  """

  epoch: int
  step: int
  train_loss: float
  train_accuracy: float
  val_loss: float
  val_accuracy: float
  seconds: float


class Display(Protocol):
  """The moments at which a trainer reports."""

  def part(self, name: str, text: str) -> None:
    """One part of the system is ready; `text` says how."""

  def begin(self, *, epoch: int, epochs: int, steps_per_epoch: int) -> None:
    """Training starts or goes on after `epoch` epochs."""

  def pace(self, step: int, seconds_per_step: float) -> None:
    """How fast the first steps of this process were, compilation apart."""

  def steps(self, step: int, loss: float, images_per_second: float) -> None:
    """A logging interval is over."""

  def epoch(self, metrics: TrainingMetrics, slots: dict[str, Any]) -> None:
    """An epoch boundary was passed; `slots` as in result.json."""

  def event(self, event: Mapping[str, Any]) -> None:
    """An event of the bus, see oona/record.py."""

  def finish(self, result: dict[str, Any], workdir: Path) -> None:
    """The run ended; `result` is what result.json holds."""

  def close(self) -> None:
    """Nothing more will come."""


class Silent:
  """A display that shows nothing."""

  def part(self, name, text): ...
  def begin(self, *, epoch, epochs, steps_per_epoch): ...
  def pace(self, step, seconds_per_step): ...
  def steps(self, step, loss, images_per_second): ...
  def epoch(self, metrics, slots): ...
  def event(self, event): ...
  def finish(self, result, workdir): ...
  def close(self): ...


class Forwarding(abc.ABC):
  """A display that passes every moment on, as its `pass_on` says."""

  @abc.abstractmethod
  def pass_on(self, moment: str, *args: Any, **named: Any) -> None:
    """Takes the name of a method of `Display` and its arguments."""

  def part(self, name: str, text: str) -> None:
    self.pass_on("part", name, text)

  def begin(self, *, epoch: int, epochs: int, steps_per_epoch: int) -> None:
    self.pass_on(
      "begin", epoch=epoch, epochs=epochs, steps_per_epoch=steps_per_epoch
    )

  def pace(self, step: int, seconds_per_step: float) -> None:
    self.pass_on("pace", step, seconds_per_step)

  def steps(self, step: int, loss: float, images_per_second: float) -> None:
    self.pass_on("steps", step, loss, images_per_second)

  def epoch(self, metrics: TrainingMetrics, slots: dict[str, Any]) -> None:
    self.pass_on("epoch", metrics, slots)

  def event(self, event: Mapping[str, Any]) -> None:
    self.pass_on("event", event)

  def finish(self, result: dict[str, Any], workdir: Path) -> None:
    self.pass_on("finish", result, workdir)

  def close(self) -> None:
    self.pass_on("close")
