"""A run's figures on their way to metrics.jsonl and to whoever watches."""

import math
import time

import jax
import numpy as np

from esper_jax.tolaria import result
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.display import Display, TrainingMetrics
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.steps import empty_sums
from esper_jax.tolaria.store import Store

PACE_STEPS = 20  # steps after which the display is told how fast they were
PACE_SECONDS = 20.0  # or less, where so many seconds have passed
# JAX runs ahead of slow steps, and a signal would wait for all of them: calls
# that take longer than this are waited for one by one.
SLOW_CALL = 0.2


class Logbook:
  """Reads a run's sums off the device and reports them.

  Attributes:
    under_way: whether this process has made a step.
  """

  def __init__(
    self, store: Store, display: Display, parts: Parts, *, batch_size: int
  ):
    """Makes a logbook for one process.

    Args:
      store: its metrics log is written.
      display: told of everything.
      parts: of the run.
      batch_size: examples per step.
    """
    self.under_way = False
    self._store = store
    self._display = display
    self._parts = parts
    self._batch_size = batch_size
    self._learning_rate = jax.jit(parts.steps.learning_rate)
    self._pace_from = (0, 0.0)
    self._paced = False
    self._wait_for_steps = True  # until their pace is known
    self._last_step: float | None = None  # when the last epoch's steps ended
    self._boundary: float | None = None  # seconds from then to the next step
    self.begin_epoch(0)

  def begin_epoch(self, step: int) -> None:
    """Starts the clock of an epoch, or of what is left of it after a step."""
    self._epoch_from = (step, time.monotonic())
    self._boundary = None

  def end_steps(self, run: Run) -> None:
    """Notes when the last step of an epoch has ended."""
    jax.block_until_ready(run.state.step)
    self._last_step = time.monotonic()

  def pace(self, run: Run, count: int) -> None:
    """Tells, once, how fast the first steps were; called after each call.

    Args:
      run: after the call.
      count: steps that the call made.
    """
    if self._wait_for_steps or self._last_step is not None:
      jax.block_until_ready(run.state.step)
    if self._last_step is not None:  # this is an epoch's first step
      self._boundary = time.monotonic() - self._last_step
      self._last_step = None
    if not self.under_way:  # this step waited for its compilation
      self.under_way = True
      self._pace_from = (run.next_batch, time.monotonic())
    if self._paced:
      return
    steps = run.next_batch - self._pace_from[0]
    seconds = time.monotonic() - self._pace_from[1]
    if steps >= PACE_STEPS or (steps and seconds >= PACE_SECONDS):
      self._paced = True
      self._wait_for_steps = seconds / steps * count > SLOW_CALL
      self._display.pace(run.next_batch, seconds / steps)

  def steps(self, run: Run) -> float:
    """Logs what is new since the last call; returns its mean loss."""
    sums = jax.device_get(run.sums)
    total, examples = float(sums.loss), float(sums.examples)
    loss = (total - run.logged_loss) / (examples - run.logged_examples)
    run.logged_loss, run.logged_examples = total, examples
    first, started = self._epoch_from
    seconds = max(time.monotonic() - started, 1e-9)
    rate = (run.next_batch - first) * self._batch_size / seconds
    rate_now = self._learning_rate(np.int32(run.next_batch - 1))
    self._store.log(
      result.step_line(
        run,
        loss=loss,
        accuracy=float(sums.correct) / examples,
        learning_rate=float(rate_now * run.state.lr_factor),
        rate=rate,
        now=time.time(),
      )
    )
    self._display.steps(run.next_batch, loss, rate)
    return loss

  def metrics(
    self,
    run: Run,
    losses: np.ndarray | None = None,
    hits: np.ndarray | None = None,
  ) -> TrainingMetrics:
    """What the epoch came to so far.

    Args:
      run: in or after an epoch; before its first step all is NaN.
      losses, hits: validation, by example; None where it was not read.
    """
    sums = jax.device_get(run.sums)
    examples = sums.examples if sums.examples else np.float32(np.nan)
    return TrainingMetrics(
      epoch=run.epoch,
      step=run.next_batch,
      train_loss=float(sums.loss / examples),
      train_accuracy=float(sums.correct / examples),
      val_loss=math.nan if losses is None else float(losses.mean()),
      val_accuracy=math.nan if hits is None else float(hits.mean()),
      seconds=time.monotonic() - self._epoch_from[1],
    )

  def epoch(self, run: Run, metrics: TrainingMetrics) -> None:
    """Logs an epoch and empties the sums for the next one."""
    slots = result.slot_lines(run, self._parts.growth)
    line = result.epoch_line(run, metrics, slots, now=time.time())
    if self._boundary is not None:
      line["time/boundary"] = self._boundary
    self._store.log(line)
    self._display.epoch(metrics, slots)
    run.sums = empty_sums(run.state)
    run.logged_loss = run.logged_examples = 0.0
