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
from esper_jax.tolaria.display import Display, Forwarding


class Displays(Forwarding):
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

  def close(self) -> None:
    """Passes it on, and says what was dropped."""
    super().close()
    for name, display in self._displays.items():
      if isinstance(display, Behind) and display.dropped:
        why = display.last_error or "it was too slow"
        self.part(name, f"dropped {display.dropped} of its calls: {why}")

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

  def pass_on(self, moment: str, *args: Any, **named: Any) -> None:
    """Tells every display; what fails is counted, and told of once."""
    for name, display in self._displays.items():
      try:
        getattr(display, moment)(*args, **named)
      except Exception as error:
        self.failures[name] += 1
        words = " ".join(str(error).split()) or repr(error)
        self._last_error = f"{name}: {words}"
        if self.failures[name] == 1:
          self.part(name, f"failed: {words}; the run goes on")


def of_run(
  workdir: str | Path,
  *,
  verbosity: int,
  report: bool,
  tensorboard: bool = False,
  wandb: str = "",
  settings: Mapping[str, Any] | None = None,
  hint: str = "",
  command: str = "",
) -> Displays:
  """Makes what shows a run.

  Args:
    workdir: the run directory.
    verbosity: of the console.
    report: whether report.html is kept there.
    tensorboard: whether event files are.
    wandb: project at Weights & Biases; "" is none.
    settings: "section.name" -> value, for these two.
    hint, command: as `Console` takes them.

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
  shown["console"] = Console(verbosity, hint=hint, command=command)
  return Displays(shown, callbacks=callbacks)
