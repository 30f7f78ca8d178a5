"""Several displays as one: what fails among them stops nothing."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esper_jax.nissa.behind import Behind
from esper_jax.nissa.console import Console
from esper_jax.nissa.live_report import LiveReport
from esper_jax.nissa.tensorboard import FOLDER, TensorBoard, weights
from esper_jax.nissa.weights_and_biases import WeightsAndBiases
from esper_jax.oona.health import Health, State
from esper_jax.tolaria.display import Display, TrainingMetrics


class Displays:
  """A `tolaria.display.Display` that tells others, one after the other.

  The first failure of each is told to the others as a line of its own.

  Attributes:
    failures: name of a display -> how many times it failed.
    callbacks: of a trainer, for what a display is not told.
  """

  def __init__(
    self,
    displays: Mapping[str, Display],
    *,
    callbacks: Sequence[Callable[..., None]] = (),
  ):
    """Makes one display out of several.

    Args:
      displays: by name, in the order in which they are told.
      callbacks: see the attribute.
    """
    self.failures: Counter[str] = Counter()
    self.callbacks = tuple(callbacks)
    self._last_error = ""
    self._displays = dict(displays)

  def part(self, name: str, text: str) -> None:
    """Passes it on."""
    self._tell("part", name, text)

  def begin(self, *, epoch: int, epochs: int, steps_per_epoch: int) -> None:
    """Passes it on."""
    self._tell(
      "begin", epoch=epoch, epochs=epochs, steps_per_epoch=steps_per_epoch
    )

  def pace(self, step: int, seconds_per_step: float) -> None:
    """Passes it on."""
    self._tell("pace", step, seconds_per_step)

  def steps(self, step: int, loss: float, images_per_second: float) -> None:
    """Passes it on."""
    self._tell("steps", step, loss, images_per_second)

  def epoch(self, metrics: TrainingMetrics, slots: dict[str, Any]) -> None:
    """Passes it on."""
    self._tell("epoch", metrics, slots)

  def event(self, event: Mapping[str, Any]) -> None:
    """Passes it on."""
    self._tell("event", event)

  def finish(self, result: dict[str, Any], workdir: Path) -> None:
    """Passes it on."""
    self._tell("finish", result, workdir)

  def close(self) -> None:
    """Passes it on, and says what was dropped."""
    self._tell("close")
    for name, display in self._displays.items():
      if isinstance(display, Behind) and display.dropped:
        why = display.last_error or "it was too slow"
        self._tell(
          "part", name, f"dropped {display.dropped} of its calls: {why}"
        )

  def health(self) -> Health:
    """Says what waits, what was dropped or failed, and why."""
    behind = [d for d in self._displays.values() if isinstance(d, Behind)]
    dropped = sum(self.failures.values()) + sum(d.dropped for d in behind)
    errors = [d.last_error for d in behind if d.last_error]
    return Health(
      State.DEGRADED if dropped else State.READY,
      queued=sum(d.waiting for d in behind),
      dropped=dropped,
      error=self._last_error or "".join(errors[:1]),
    )

  def _tell(self, moment: str, *args: Any, **named: Any) -> None:
    for name, display in self._displays.items():
      try:
        getattr(display, moment)(*args, **named)
      except Exception as error:
        self.failures[name] += 1
        words = " ".join(str(error).split()) or repr(error)
        self._last_error = f"{name}: {words}"
        if self.failures[name] == 1:
          self._tell("part", name, f"failed: {words}; the run goes on")


def of_run(
  workdir: str | Path,
  *,
  verbosity: int,
  report: bool,
  tensorboard: bool = False,
  wandb: str = "",
  settings: Mapping[str, Any] | None = None,
  hint: str = "",
) -> Displays:
  """Makes what shows a run.

  Args:
    workdir: the run directory.
    verbosity: of the console.
    report: whether report.html is kept there.
    tensorboard: whether event files are.
    wandb: project at Weights & Biases; "" is none.
    settings: "section.name" -> value, for these two.
    hint: as `Console` takes it.

  Raises:
    InputError: what is asked for is not installed.
  """
  folder, settings = Path(workdir), settings or {}
  shown: dict[str, Display] = {}
  callbacks = []
  if report:
    shown["report"] = LiveReport(workdir)
  if tensorboard:
    board = TensorBoard(folder / FOLDER, settings)
    behind = shown["tensorboard"] = Behind(board)
    callbacks.append(
      lambda trainer, metrics: behind.tell(
        board.histograms, weights(trainer.run.state.seeds), metrics.step
      )
    )
  if wandb:
    shown["wandb"] = Behind(WeightsAndBiases(folder, settings, project=wandb))
  # Last, so that it can name the files that the others leave behind.
  shown["console"] = Console(verbosity, hint=hint)
  return Displays(shown, callbacks=callbacks)
