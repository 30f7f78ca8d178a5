"""The training loop: steps, epoch boundaries, faults, the end.

Read top to bottom: `Trainer.train` is a run, `train_epoch` an epoch. Between
two epochs: govern, measure, grow (Tamiyo), record, save, the user's callbacks.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from esper_jax import config as config_lib
from esper_jax.data.pipeline import make_iterator
from esper_jax.oona.bus import Bus, Sink
from esper_jax.tezzeret.program import Compiled, Interrupted
from esper_jax.tolaria import (
  assembly,
  checkpoints,
  faults,
  governor,
  measure,
  overview,
  policy_fallback,
  processes,
  result,
  starting,
  status,
)
from esper_jax.tolaria.display import Display, Silent, TrainingMetrics
from esper_jax.tolaria.faults import FaultFound
from esper_jax.tolaria.given import NOTHING, Given
from esper_jax.tolaria.kernels import Kernels
from esper_jax.tolaria.logbook import Logbook
from esper_jax.tolaria.roster import Roster
from esper_jax.tolaria.state import count_parameters
from esper_jax.tolaria.stopping import Stopping
from esper_jax.types import RunFailedError

Callback = Callable[["Trainer", TrainingMetrics], None]


class _Boundary(NamedTuple):
  """What the hooks of one epoch boundary share.

  Attributes:
    metrics: of the epoch.
    losses: float32 [examples], the validation losses in order.
    last: whether the run ends here.
  """

  metrics: TrainingMetrics
  losses: np.ndarray
  last: bool


class Trainer:
  """One run of one config in one directory.

  Attributes:
    config: validated.
    parts: what the run is made of.
    run: the record of the run.
    bus: events; subscribe to it before `train`.
    roster: the parts, started; add yours before `train`, see `Roster.start`.
    callbacks: called with the trainer and the epoch's metrics after each
      epoch's own hooks, in order.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: str | Path,
    *,
    display: Display | None = None,
    callbacks: Sequence[Callback] = (),
    stopping: Stopping | None = None,
    kernels: Kernels | None = None,
    given: Given = NOTHING,
    sinks: Sequence[Sink] = (),
  ):
    """Loads the data, takes the directory, and resumes what is in it.

    Args:
      config: see esper_jax/defaults.py.
      workdir: the run directory; created where it is missing.
      display: what shows the run; None shows nothing.
      callbacks: see the attribute.
      stopping: says when to stop; may listen to signals. None: one of its own.
      kernels: what may run in place of references; None: as the config says.
      given: in place of what the config names.
      sinks: of every event, the first included; the run needs them.

    Raises:
      InputError: the config, the data or the directory is not usable.
    """
    self.config = config_lib.validate(config)
    self.bus = Bus()
    self.callbacks = list(callbacks)
    self._display: Display = display or Silent()
    self._stopping = stopping or Stopping()
    self._hooks: tuple[Callable[[_Boundary], None], ...] = (
      self._govern,
      self._measure,
      self._grow,
      self._record,
      self._save,
    )
    self.roster = Roster()
    self._ending = status.RUNNING, ""
    started = starting.start(
      self.roster,
      self.config,
      workdir,
      bus=self.bus,
      kernels=kernels,
      given=given,
      run=lambda: self.run,
      stopping=lambda: self._stopping.requested,
      on_compile=self._on_compile,
      on_use=lambda s: self._book(guesses_used=1, guess_seconds_used=s),
    )
    self.parts, self._store = started.parts, started.store
    self._kernels, self._programs = started.kernels, started.programs
    self._growth, self._fresh = started.growth, started.fresh
    self._initial_parameters = count_parameters(self._fresh.state)
    self._logbook = Logbook(
      self._store,
      self._display,
      self.parts,
      batch_size=self.config.data.batch_size,
    )
    self.roster.start("nissa", lambda: self._display, stop=lambda d: d.close())
    self.roster.start("tolaria", lambda: self._begin(sinks))
    if processes.leads() and not self._store.finished:
      status.keep(self.roster, self._store.path, self._look)

  def train(self) -> dict[str, Any]:
    """Trains to the end, or until a signal; returns what result.json holds.

    A run that has completed is not touched: its result is shown again.

    Raises:
      RunFailedError: the run cannot go on; result.json says "failed".
    """
    try:
      if self._store.finished:
        self._display.part("tolaria", "this run was completed before")
        self._display.finish(self._store.finished, self._store.path)
        return self._store.finished
      with self._stopping.signals():
        while self.run.epoch < self.parts.timetable.epochs:
          self._stopping.consult()
          if self._stopping.requested:
            return self._interrupt()
          self.train_epoch()
        return self._complete()
    except Interrupted:  # within a boundary: the last checkpoint is resumed
      self._publish("interrupted", signal=self._stopping.name)
      return self._finish("interrupted")
    except RunFailedError as error:
      self._fail(error)
      raise
    finally:
      self.shutdown()

  def train_epoch(self) -> TrainingMetrics:
    """Trains to the next epoch boundary and passes it.

    After a fault that is the boundary after the checkpoint that the run goes
    back to. `stop`, or a signal during `train`, ends it after the step under
    way, the boundary not passed; the validation figures are then NaN.

    Raises:
      RunFailedError: the run cannot go on.
      RuntimeError: it has ended already.
    """
    while True:
      if self.run.epoch >= self.parts.timetable.epochs:
        raise RuntimeError(f"{self._store.path}: the run has ended")
      try:
        return self._train_epoch()
      except FaultFound as found:
        self._roll_back(found.fault)

  def stop(self) -> None:
    """Asks the run to stop as a signal does: after the step under way."""
    self._stopping.request()

  def shutdown(self) -> None:
    """Finishes what is being written, lets the directory go; idempotent."""
    self._store.flush(self._display.part)
    self.roster.stop()

  def _train_epoch(self) -> TrainingMetrics:
    run, timetable = self.run, self.parts.timetable
    log_every, chunk = self.config.train.log_every, self.parts.chunk
    self._logbook.begin_epoch(run.next_batch)
    try:
      self._growth.begin(run)
      self._programs.begin(run)
    except Interrupted:
      return self._logbook.metrics(run)
    self._growth.look_ahead(run)
    end = run.epoch * timetable.steps_per_epoch + timetable.steps_in(run.epoch)
    while run.next_batch < end:
      before = run.next_batch
      count = chunk if end - before >= chunk else 1
      rows = np.stack([next(self._batches) for _ in range(count)])
      if not self._growth.planting.train(run, rows):
        # Or a resumed run would plant again what the device cannot hold.
        self._checkpoint(checkpoints.SCHEDULED)
        self._growth.planting.train(run, rows)
      self._logbook.pace(run, count)
      if run.next_batch // log_every != before // log_every:
        loss = self._logbook.steps(run)
        faults.judge(run, self.parts.governor, loss=loss)
        self._stopping.consult()
      if self._stopping.requested:
        break
    self._programs.settle(run)
    if run.next_batch < end:
      return self._logbook.metrics(run)
    self._logbook.end_steps(run)
    losses, hits = self._programs.evaluate(run, self.parts.validation)
    run.epoch += 1
    metrics = self._logbook.metrics(run, losses, hits)
    last = run.epoch == timetable.epochs
    self._programs.forge.new_epoch(metrics.seconds)
    for hook in self._hooks:
      hook(_Boundary(metrics, losses, last))
    for callback in self.callbacks:
      callback(self, metrics)
    return metrics

  # --- Epoch boundary ------------------------------------------------------

  def _govern(self, boundary: _Boundary) -> None:
    run, m = self.run, boundary.metrics
    if not np.isfinite(m.val_loss):
      reason = f"the validation loss is {m.val_loss}"
      raise FaultFound(governor.Fault("non_finite_loss", reason))
    faults.judge(run, self.parts.governor, accuracy=m.val_accuracy)
    run.history = run.history.append(
      train_loss=m.train_loss,
      val_loss=m.val_loss,
      train_accuracy=m.train_accuracy,
      val_accuracy=m.val_accuracy,
    )

  def _measure(self, boundary: _Boundary) -> None:
    limits = measure.Limits.of(self.config)
    self._programs.measure(self.run, boundary.losses, limits)

  def _grow(self, boundary: _Boundary) -> None:
    self._growth.boundary(self.run, last=boundary.last)

  def _record(self, boundary: _Boundary) -> None:
    self._kernels.report(self.run, self._publish)
    self._logbook.epoch(self.run, boundary.metrics)

  def _save(self, boundary: _Boundary) -> None:
    every = self.config.checkpoint.every_epochs
    if boundary.last or self.run.epoch % every == 0:
      if not boundary.last:  # to which no run goes back
        self._programs.pin("rollback", self.run.state)
      self._checkpoint(checkpoints.SCHEDULED, boundary.metrics.val_accuracy)

  # --- Beginning and end ---------------------------------------------------

  def _begin(self, sinks: Sequence[Sink]) -> None:
    """Starts a new run or takes up the one in the directory."""
    store = self._store
    self.run, resumed = store.resume(self._fresh, self.parts)
    self._booked = time.monotonic()
    overview.show(
      self._display,
      self.config,
      self.parts,
      store,
      parameters=self._initial_parameters,
      epoch=self.run.epoch,
    )
    if store.finished:
      return
    self._kernels.take_up(self.run.kernels)
    store.attach(self.bus, sinks)
    self.bus.subscribe(self._display.event, name="display")
    faults.report_damage(store.damaged, self._publish)
    begun = store.redone if resumed else {"policy": self.parts.policy.name}
    self._publish("resumed" if resumed else "run_started", **begun)
    policy_fallback.take_up(self.run, self._fresh, self.parts, self._publish)
    if not resumed:
      self._checkpoint(checkpoints.SCHEDULED)
    self._follow_order()
    self._growth.planting.outcomes = store.outcomes
    self._growth.prepare(self.run)

  def _complete(self) -> dict[str, Any]:
    """Reads the test set, for the first and only time, and reports."""
    figures = self._programs.final_figures(self.run, test=self.config.eval.test)
    self._store.wait()
    self._publish("run_finished", status="completed", **figures)
    return self._finish("completed", **figures)

  def _interrupt(self) -> dict[str, Any]:
    self._programs.forge.report()
    self._publish("interrupted", signal=self._stopping.name)
    self._checkpoint("interrupt")
    return self._finish("interrupted")

  def _fail(self, error: RunFailedError) -> None:
    """Leaves word of a failure, as far as the disk still takes it."""
    self._ending = "failed", str(error)
    with contextlib.suppress(RunFailedError):
      self._publish("run_finished", status="failed", reason=str(error))
    with contextlib.suppress(RunFailedError):
      self._finish("failed", reason=str(error))

  def _finish(self, status: str, **fields: Any) -> dict[str, Any]:
    self._book_time()
    document = result.make(
      self.run,
      self.parts,
      status=status,
      config_hash=self._store.hash,
      initial_parameters=self._initial_parameters,
      measure_budget=self.config.kasmina.measure_budget,
      **fields,
    )
    self._store.write_result(document)
    self._ending = status, fields.get("reason", "")
    self._display.finish(document, self._store.path)
    return document

  # --- Faults --------------------------------------------------------------

  def _roll_back(self, fault: governor.Fault) -> None:
    self._publish("fault", kind=fault.kind, reason=fault.reason)
    self.run, response = faults.roll_back(
      self.run, fault, self._fresh, self.parts, self._store, self._publish
    )
    self._follow_order()
    self._publish(
      "rolled_back", reason=response.reason, attempt=response.attempt
    )
    if response.quarantine:
      self._publish("quarantined", slot=response.quarantine)
    self._growth.quarantine(self.run, self.run.governor.quarantined)

  # --- Small print ---------------------------------------------------------

  def _look(self) -> dict[str, Any]:
    """What status.json says of the run; called in a thread of its own."""
    state, reason = self._ending
    return {
      "state": state,
      "reason": reason,
      "epoch": self.run.epoch,
      "epochs": self.parts.timetable.epochs,
      "step": self.run.next_batch,
      "steps": self.parts.timetable.total_steps,
      "parts": self.roster.health(),
      "devices": status.device_memory(),
    }

  def _follow_order(self) -> None:
    """Puts the data iterator where the run stands."""
    attempt = self.run.governor.attempt
    order = assembly.make_order(self.config, self.parts, attempt)
    self._batches = make_iterator(order)
    self._batches.set_state({"next_index": self.run.next_batch})

  def _checkpoint(self, kind: str, metric: float | None = None) -> None:
    self._book_time()
    self._kernels.report(self.run, self._publish)
    self._publish("checkpoint", kind=kind)
    self._store.save(self.run, self.bus.next_id, kind=kind, metric=metric)

  def _publish(self, event: str, **fields: Any) -> None:
    self.bus.publish(
      event, epoch=self.run.epoch, step=self.run.next_batch, **fields
    )

  def _on_compile(self, compiled: Compiled) -> None:
    """Books a compilation; once steps were made, waiting stalls training."""
    stall = compiled.waited if self._logbook.under_way else 0.0
    self.run.ledger = self.run.ledger.compiled(compiled, stall=stall)
    self._publish("compile", **compiled._asdict())

  def _book_time(self) -> None:
    now = time.monotonic()
    self._book(wall_seconds=now - self._booked)
    self._booked = now

  def _book(self, **amounts: float) -> None:
    self.run.ledger = self.run.ledger.book(**amounts)
