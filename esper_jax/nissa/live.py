"""What stands at the foot of a terminal while a run trains.

Progress with the time to go, the latest figures, and a row for each slot that
is awake. Lines that stay are printed above it.
"""

import contextlib
import time
from typing import Any, TextIO, cast

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esper_jax.nissa.table import duration
from esper_jax.tolaria.display import TrainingMetrics

REFRESH = 2.0  # times a second
_BAR = 24  # columns of the progress bar
_SMALL = 10  # of a slot's bars
_STYLES = {
  "GERMINATED": "yellow",
  "TRAINING": "cyan",
  "BLENDING": "dark_orange",
  "HOLDING": "magenta",
  "FOSSILIZED": "blue",
  "CULLED": "red",
  "EMBARGOED": "bright_black",
}


class _Lenient:
  """A stream that may be gone: what is written then is dropped."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with contextlib.suppress(OSError):
      self._stream.flush()


class Panel:
  """The live part of a terminal.

  What it shows is set by the caller's thread and drawn by one of its own.
  """

  def __init__(self, stream: TextIO, *, clock: Any = time.monotonic):
    """Makes a panel that is not shown yet.

    Args:
      stream: a terminal.
      clock: seconds.
    """
    file = cast(TextIO, _Lenient(stream))
    self._console = Console(file=file, highlight=False, markup=False)
    self._clock = clock
    self._live: Live | None = None
    self._epochs = self._per_epoch = self._step = self._first = 0
    self._began = 0.0
    self._rate = self._loss = 0.0
    self._metrics: TrainingMetrics | None = None
    self._slots: dict[str, Any] = {}

  def begin(self, *, epoch: int, epochs: int, steps_per_epoch: int) -> None:
    """Notes how long the run is, and where it starts."""
    self._epochs, self._per_epoch = epochs, steps_per_epoch
    self._step = self._first = epoch * steps_per_epoch
    self._began, self._metrics, self._slots = 0.0, None, {}

  def steps(self, step: int, loss: float, images_per_second: float) -> None:
    """Shows where the epoch stands."""
    if not self._began:  # the first steps waited for their compilation
      self._began, self._first = self._clock(), step
    self._step, self._loss, self._rate = step, loss, images_per_second
    if self._live is None:
      self._live = Live(
        console=self._console,
        refresh_per_second=REFRESH,
        transient=True,
        get_renderable=self.render,
      )
      self._live.start()

  def epoch(self, metrics: TrainingMetrics, slots: dict[str, Any]) -> None:
    """Shows the figures of an epoch."""
    self._step, self._metrics, self._slots = metrics.step, metrics, slots

  def line(self, text: str) -> None:
    """Prints a line that stays, above the rest."""
    self._console.print(text, soft_wrap=True)

  def close(self) -> None:
    """Takes the panel off the terminal; idempotent."""
    live, self._live = self._live, None
    if live is not None:
      live.stop()

  def render(self) -> Group:
    """What is shown now."""
    parts: list[Any] = [self._progress()]
    if self._metrics is not None:
      parts.append(self._figures(self._metrics))
    awake = {n: r for n, r in self._slots.items() if r["stage"] != "DORMANT"}
    shown = dict(list(awake.items())[: max(1, self._console.height - 8)])
    if shown:
      parts.append(_slot_table(shown))
      counts = {
        "more awake": len(awake) - len(shown),
        "dormant": len(self._slots) - len(awake),
      }
      rest = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
      parts.append(Text(rest, "bright_black"))
    return Group(*parts)

  def _progress(self) -> Table:
    total = self._epochs * self._per_epoch
    done = self._step % self._per_epoch or self._per_epoch
    epoch = -(-self._step // self._per_epoch)
    row = Table.grid(padding=(0, 1))
    row.add_row(
      f"epoch {epoch}/{self._epochs}",
      ProgressBar(self._per_epoch, done, width=_BAR),
      f"step {self._step:,}/{total:,}",
      f"{self._rate:,.0f} images/s",
      f"loss {self._loss:.4f}",
      self._to_go(total),
    )
    return row

  def _to_go(self, total: int) -> str:
    made = self._step - self._first
    if not made:
      return ""
    seconds = (self._clock() - self._began) / made * (total - self._step)
    return f"about {duration(seconds)} to go"

  @staticmethod
  def _figures(m: TrainingMetrics) -> Text:
    return Text(
      f"epoch {m.epoch}: train loss {m.train_loss:.4f} acc"
      f" {m.train_accuracy:.4f}, val loss {m.val_loss:.4f} acc"
      f" {m.val_accuracy:.4f}"
    )


def _slot_table(slots: dict[str, Any]) -> Table:
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
  for heading in ("slot", "stage", "alpha", "", "contribution (nats)", ""):
    table.add_column(heading, justify="left", no_wrap=True)
  known = [abs(r["contribution"] or 0.0) for r in slots.values()]
  largest = max(known) or 1.0
  for name, row in slots.items():
    worth = row["contribution"]
    table.add_row(
      name,
      Text(row["stage"].lower(), _STYLES.get(row["stage"], "")),
      ProgressBar(1.0, row["alpha"], width=_SMALL),
      f"{row['alpha']:.2f}",
      _worth_bar(0.0 if worth is None else worth / largest),
      "" if worth is None else f"{worth:+.4f}",
    )
  return table


def _worth_bar(share: float) -> Text:
  """A bar of -1 to 1; what harms is hatched, not only red."""
  count = round(abs(share) * _SMALL)
  if share < 0:
    return Text("▒" * max(1, count), "red")
  return Text("█" * count, "green")
