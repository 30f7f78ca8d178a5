"""The training loop: steps, epoch boundaries, faults, the end.

Read top to bottom: `Trainer.train` is a run, `train_epoch` an epoch. What
happens between two epochs is a list of hooks, in order: govern, measure, grow
(Tamiyo), record, save, then the user's callbacks.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from esper_jax import config as config_lib
from esper_jax.data.pipeline import make_iterator
from esper_jax.kasmina import lifecycle
from esper_jax.oona.bus import Bus
from esper_jax.tolaria import (
  assembly,
  checkpoints,
  governor,
  measure,
  recovery,
  result,
)
from esper_jax.tolaria.display import Display, Silent, TrainingMetrics
from esper_jax.tolaria.growth import Growth
from esper_jax.tolaria.programs import Programs
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.state import count_parameters
from esper_jax.tolaria.steps import empty_sums
from esper_jax.tolaria.stopping import Stopping
from esper_jax.tolaria.store import Store, environment
from esper_jax.types import RunFailedError, Stage

PACE_STEPS = 20  # steps after which the display is told how fast they were

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


class _Fault(Exception):
  """Raised where the governor finds a fault; never leaves this file."""

  def __init__(self, fault: governor.Fault):
    super().__init__(fault.reason)
    self.fault = fault


class Trainer:
  """One run of one config in one directory.

  Attributes:
    config: validated.
    parts: what the run is made of.
    run: the record of the run.
    bus: events; subscribe to it before `train`.
    callbacks: called after each epoch's own hooks, in order.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: str | Path,
    *,
    display: Display | None = None,
    callbacks: Sequence[Callback] = (),
  ):
    """Loads the data, takes the directory, and resumes what is in it.

    Args:
      config: see configs/base.py.
      workdir: the run directory; created where it is missing.
      display: what shows the run; None shows nothing.
      callbacks: see the attribute.

    Raises:
      InputError: the config, the data or the directory is not usable.
    """
    self.config = config_lib.validate(config)
    self.bus = Bus()
    self.callbacks = list(callbacks)
    self._display: Display = display or Silent()
    self._stopping = Stopping()
    self._pace_from: tuple[int, float] | None = None
    self._paced = 0
    self._hooks: tuple[Callable[[_Boundary], None], ...] = (
      self._govern,
      self._measure,
      self._grow,
      self._record,
      self._save,
    )
    data = assembly.load_data(self.config)
    self.parts = assembly.assemble(self.config, data)
    self._programs = Programs(
      self.parts,
      batch_size=self.config.data.batch_size,
      probe_examples=self.config.tamiyo.probe_examples,
      seed=self.config.seed,
      on_compile=self._on_compile,
    )
    self._growth = Growth(
      self.parts.growth,
      self.parts.policy,
      self.bus,
      probe=self._programs.probe,
      score=self._programs.score,
      check=self._programs.check_consumed,
    )
    state = assembly.new_state(self.config, self.parts)
    self._initial_parameters = count_parameters(state)
    self._fresh = recovery.new_run(
      self.parts, state, seed=self.config.seed
    )
    self._store = Store(workdir, self.config)
    try:
      self._begin()
    except BaseException:
      self._store.close()
      raise

  def train(self) -> dict[str, Any]:
    """Trains to the end, or until a signal; returns what result.json holds.

    Raises:
      RunFailedError: the run cannot go on; result.json says "failed".
    """
    try:
      with self._stopping.signals():
        while self.run.epoch < self.parts.timetable.epochs:
          try:
            self.train_epoch()
          except _Fault as found:
            self._roll_back(found.fault)
          if self._stopping.requested:
            return self._interrupt()
        return self._complete()
    except RunFailedError as error:
      self._finish("failed", reason=str(error))
      raise
    finally:
      self.shutdown()

  def train_epoch(self) -> TrainingMetrics:
    """Trains to the next epoch boundary and passes it.

    A signal stops it after the step under way, the boundary not passed; the
    validation figures are then NaN.
    """
    run, timetable = self.run, self.parts.timetable
    started, first = time.monotonic(), run.next_batch
    log_every, chunk = self.config.train.log_every, self.parts.chunk
    self._programs.begin(run)
    end = run.epoch * timetable.steps_per_epoch + timetable.steps_in(run.epoch)
    while run.next_batch < end:
      before = run.next_batch
      count = chunk if end - before >= chunk else 1
      rows = [next(self._batches) for _ in range(count)]
      self._programs.train(run, np.stack(rows))
      self._pace(run)
      if run.next_batch // log_every != before // log_every:
        self._log_steps(time.monotonic() - started, run.next_batch - first)
      if self._stopping.requested and run.next_batch < end:
        return self._metrics(None, None, started)
    losses, hits = self._programs.evaluate(run, self.parts.validation)
    run.epoch += 1
    metrics = self._metrics(losses, hits, started)
    last = run.epoch == timetable.epochs
    for hook in self._hooks:
      hook(_Boundary(metrics, losses, last))
    for callback in self.callbacks:
      callback(self, metrics)
    return metrics

  def shutdown(self) -> None:
    """Finishes what is being written, lets the directory go; idempotent."""
    self._display.close()
    self._store.close()

  # --- Epoch boundary ------------------------------------------------------

  def _govern(self, boundary: _Boundary) -> None:
    run, m = self.run, boundary.metrics
    if not np.isfinite(m.val_loss):
      reason = f"the validation loss is {m.val_loss}"
      raise _Fault(governor.Fault("non_finite_loss", reason))
    self._judge(accuracy=m.val_accuracy)
    run.history = run.history.append(
      train_loss=m.train_loss,
      val_loss=m.val_loss,
      train_accuracy=m.train_accuracy,
      val_accuracy=m.val_accuracy,
    )

  def _measure(self, boundary: _Boundary) -> None:
    """Brings the signals of every row up to this boundary."""
    run, growth, k = self.run, self.parts.growth, self.config.kasmina
    measure.note_gradients(run, [growth.path(r) for r in range(growth.rows)])
    since = run.signals.contribution_age + 1
    run.signals = run.signals.replace(contribution_age=since)
    planted = np.array([key is not None for key in run.keys], bool)
    stages = np.where(planted, np.asarray(run.slots.stage), Stage.DORMANT)
    batches = self.parts.validation
    cost = self._programs.evaluate_flops(run, batches[0])
    plan = measure.plan(
      stages,
      np.asarray(run.slots.age) + 1,
      np.asarray(since),
      min_training=k.min_training_epochs,
      budget=k.measure_budget * run.ledger.train
      - run.ledger.ablation
      - run.ledger.probe,
      cost=cost / len(batches[0].mask),
      limit=min(k.measure_examples, len(boundary.losses)),
    )
    batches = batches[: -(-plan.examples // len(batches[0].mask))]
    baseline = boundary.losses[: sum(b.count for b in batches)]
    for row in plan.rows:
      isolated = stages[row] == Stage.TRAINING
      path, key = growth.path(row), str(run.keys[row])
      changed = measure.ablate(run.state, path, key, isolated=isolated)
      losses, _ = self._programs.evaluate(
        run, batches, state=changed, account="ablation"
      )
      pair = (losses, baseline) if isolated else (baseline, losses)
      worth = measure.contribution(*pair)
      measure.note_contribution(run, row, worth, Stage(int(stages[row])))

  def _grow(self, boundary: _Boundary) -> None:
    if self.parts.growth.slots:
      self._growth.boundary(
        self.run,
        step_flops=self._programs.step_flops,
        decide=self.run.epoch % self.config.tamiyo.adaptation_frequency == 0,
        last=boundary.last,
      )

  def _record(self, boundary: _Boundary) -> None:
    run = self.run
    slots = result.slot_lines(run, self.parts.growth)
    self._store.log(
      result.epoch_line(run, boundary.metrics, slots, now=time.time())
    )
    self._display.epoch(boundary.metrics, slots)
    run.sums = empty_sums(run.state)
    run.logged_loss = run.logged_examples = 0.0

  def _save(self, boundary: _Boundary) -> None:
    every = self.config.checkpoint.every_epochs
    if boundary.last or self.run.epoch % every == 0:
      self._checkpoint(checkpoints.SCHEDULED, boundary.metrics.val_accuracy)

  # --- Beginning and end ---------------------------------------------------

  def _begin(self) -> None:
    """Starts a new run or takes up the one in the directory."""
    store = self._store
    store.attach(self.bus)
    self.bus.subscribe(self._display.event, name="display")
    resumed = store.resume(self._fresh, self.parts)
    self.run = resumed or self._fresh
    self._booked = time.monotonic()
    self._present()
    for item in store.damaged:
      self._report_damage(item)
    if resumed:
      self._publish("resumed")
    else:
      self._publish("run_started", policy=self.parts.policy.name)
      self._checkpoint(checkpoints.SCHEDULED)
    self._follow_order()

  def _present(self) -> None:
    """One line per part."""
    parts, growth, show = self.parts, self.parts.growth, self._display.part
    d, t = parts.data, parts.timetable
    show(
      "data",
      f"{d.source}: {len(d.train_labels)} train, {len(d.validation_labels)}"
      f" validation, {len(d.test_labels)} test, {d.num_classes} classes",
    )
    show("oona", f"events to {self._store.path / 'events.jsonl'}")
    show(
      "tamiyo",
      f"policy {parts.policy.name}, asked every"
      f" {self.config.tamiyo.adaptation_frequency} epochs, at most"
      f" {growth.rules.max_growths} growths",
    )
    show(
      "kasmina",
      f"{self.config.host.name}, {self._initial_parameters:,} parameters,"
      f" {len(growth.slots)} slots ({', '.join(growth.slots) or 'none'}),"
      f" {len(growth.blueprints)} blueprints",
    )
    show(
      "tolaria",
      f"{t.epochs} epochs of {t.steps_per_epoch} steps, batch"
      f" {self.config.data.batch_size}, {self.config.optimizer.name} at"
      f" {self.config.optimizer.learning_rate:g}, run in {self._store.path}",
    )
    show("device", f"{environment()['device']}, jax {jax.__version__}")
    self._display.begin(
      epoch=self.run.epoch, epochs=t.epochs, steps_per_epoch=t.steps_per_epoch
    )

  def _complete(self) -> dict[str, Any]:
    """Reads the test set, for the first and only time, and reports."""
    run, d = self.run, self.parts.data
    losses, hits = self._programs.evaluate(run, self.parts.validation)
    batch = len(self.parts.validation[0].mask)
    test = measure.device_batches(d.test_images, d.test_labels, batch)
    _, test_hits = self._programs.evaluate(run, test)
    figures = {
      "val_loss": float(losses.mean()),
      "val_accuracy": float(hits.mean()),
      "test_accuracy": float(test_hits.mean()),
    }
    self._publish("run_finished", status="completed", **figures)
    return self._finish("completed", **figures)

  def _interrupt(self) -> dict[str, Any]:
    self._publish("interrupted", signal=self._stopping.name)
    self._checkpoint("interrupt")
    return self._finish("interrupted")

  def _finish(self, status: str, **fields: Any) -> dict[str, Any]:
    self._book_time()
    document = result.make(
      self.run,
      self.parts,
      status=status,
      config_hash=self._store.hash,
      initial_parameters=self._initial_parameters,
      **fields,
    )
    self._store.write_result(document)
    self._display.finish(document, self._store.path)
    return document

  # --- Faults --------------------------------------------------------------

  def _judge(
    self, *, loss: float | None = None, accuracy: float | None = None
  ) -> None:
    self.run.governor, fault = governor.observe(
      self.run.governor, self.parts.governor, loss=loss, accuracy=accuracy
    )
    if fault:
      raise _Fault(fault)

  def _roll_back(self, fault: governor.Fault) -> None:
    """Goes back to the last scheduled checkpoint and changes something."""
    failed, growth = self.run, self.parts.growth
    self._publish("fault", kind=fault.kind, reason=fault.reason)
    kept, response = governor.respond(
      failed.governor,
      fault,
      self.parts.governor,
      epoch=failed.epoch,
      last_changed=failed.changed,
    )
    if response.give_up:
      raise RunFailedError(response.reason)
    loaded, damaged = self._store.last_scheduled()
    for item in damaged:
      self._report_damage(item)
    if loaded is None:
      raise RunFailedError(f"{response.reason}; no checkpoint to go back to")
    run = recovery.from_checkpoint(loaded, self._fresh, self.parts)
    run.governor = governor.after_rollback(kept, run.governor)
    run.ledger = failed.ledger.rewind(run.ledger)
    run.rolled_back = failed.rolled_back + 1
    # A deterministic run that only went back would do the same again.
    run.state = run.state.replace(
      lr_factor=jnp.asarray(response.lr_factor, jnp.float32),
      key=jax.random.fold_in(run.state.key, response.attempt),
    )
    guilty = [growth.path(r) in kept.quarantined for r in range(growth.rows)]
    run.slots = lifecycle.quarantine(
      run.slots, jnp.asarray(guilty, bool), growth.rules, run.epoch
    )
    self.run = run
    self._growth.set_leaves(run)
    self._follow_order()
    self._publish(
      "rolled_back", reason=response.reason, attempt=response.attempt
    )
    if response.quarantine:
      self._publish("quarantined", slot=response.quarantine)

  def _report_damage(self, item: checkpoints.Damage) -> None:
    self._publish(
      "fault",
      kind="damaged_checkpoint",
      reason=f"checkpoint {item.checkpoint.path.name} is damaged"
      f" ({item.reason}); the one before is used",
    )

  # --- Small print ---------------------------------------------------------

  def _follow_order(self) -> None:
    """Puts the data iterator where the run stands."""
    order = assembly.make_order(
      self.config, self.parts, self.run.governor.attempt
    )
    self._batches = make_iterator(order)
    self._batches.set_state({"next_index": self.run.next_batch})

  def _checkpoint(self, kind: str, metric: float | None = None) -> None:
    self._book_time()
    self._publish("checkpoint", kind=kind)
    self._store.save(self.run, self.bus.next_id, kind=kind, metric=metric)

  def _metrics(
    self,
    losses: np.ndarray | None,
    hits: np.ndarray | None,
    started: float,
  ) -> TrainingMetrics:
    sums = jax.device_get(self.run.sums)
    return TrainingMetrics(
      epoch=self.run.epoch,
      step=self.run.next_batch,
      train_loss=float(sums.loss / sums.examples),
      train_accuracy=float(sums.correct / sums.examples),
      val_loss=float("nan") if losses is None else float(losses.mean()),
      val_accuracy=float("nan") if hits is None else float(hits.mean()),
      seconds=time.monotonic() - started,
    )

  def _log_steps(self, seconds: float, steps: int) -> None:
    run = self.run
    sums = jax.device_get(run.sums)
    total, examples = float(sums.loss), float(sums.examples)
    loss = (total - run.logged_loss) / (examples - run.logged_examples)
    run.logged_loss, run.logged_examples = total, examples
    rate = steps * self.config.data.batch_size / max(seconds, 1e-9)
    step = jnp.asarray(run.next_batch - 1, jnp.int32)
    learning_rate = self.parts.steps.learning_rate(step) * run.state.lr_factor
    self._store.log(
      {
        "epoch": run.epoch,
        "step": run.next_batch,
        "attempt": run.governor.attempt,
        "train/loss": loss,
        "train/accuracy": float(sums.correct) / examples,
        "learning_rate": float(learning_rate),
        "time": time.time(),
        "time/images_per_second": rate,
      }
    )
    self._display.steps(run.next_batch, loss, rate)
    self._judge(loss=loss)

  def _pace(self, run: Run) -> None:
    """Reports, once, how fast the first PACE_STEPS steps were."""
    if self._pace_from is None:
      jax.block_until_ready(run.state.step)
      self._pace_from = (run.next_batch, time.monotonic())
    elif run.next_batch - self._pace_from[0] >= PACE_STEPS > self._paced:
      jax.block_until_ready(run.state.step)
      steps = run.next_batch - self._pace_from[0]
      seconds = time.monotonic() - self._pace_from[1]
      self._paced = steps
      self._display.pace(run.next_batch, seconds / steps)

  def _publish(self, event: str, **fields: Any) -> None:
    self.bus.publish(
      event, epoch=self.run.epoch, step=self.run.next_batch, **fields
    )

  def _on_compile(self, name: str, seconds: float) -> None:
    """Books a compilation; while training is under way it is a stall."""
    stall = seconds if name.startswith("train") and self.run.epoch else 0.0
    self.run.ledger = self.run.ledger.spend(compiling=seconds, stall=stall)
    self._publish("compile", program=name, seconds=seconds)

  def _book_time(self) -> None:
    now = time.monotonic()
    self.run.ledger = self.run.ledger.spend(wall=now - self._booked)
    self._booked = now
