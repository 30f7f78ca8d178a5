"""A run's compiled programs, called with a run and charged to its ledger."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.data.pipeline import permutation
from esper_jax.oona.health import Health
from esper_jax.tezzeret.forge import Forge
from esper_jax.tezzeret.lowering import abstract
from esper_jax.tezzeret.program import Compiled, Limits, Program
from esper_jax.tolaria import accounting, measure, steps
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.measure import EvalBatch
from esper_jax.tolaria.profile import Profile
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.state import TrainState, evaluation_view
from esper_jax.types import Path, SlotSpec

Signal = tuple[jax.Array, jax.Array]  # activations, cotangents of one slot
PROBE_STREAM = 1  # of the data order's seed, apart from the batches' stream


class Programs:
  """Runs the programs that fit the present topology of a run.

  Attributes:
    forge: holds them.
    step_flops: of one training step, once `begin` was called.
  """

  def __init__(
    self,
    parts: Parts,
    *,
    batch_size: int,
    probe_examples: int,
    seed: int,
    limits: Limits,
    stopping: Callable[[], bool],
    on_compile: Callable[[Compiled], None],
    on_use: Callable[[float], None],
    profile: Profile,
  ):
    """Makes the programs known; each is compiled when first needed.

    Args:
      parts: of the run.
      batch_size: examples per training step.
      probe_examples: training examples per probe.
      seed: of the choice of those examples.
      limits: of the forge.
      stopping: whether the run was asked to stop.
      on_compile: told of each compilation.
      on_use: told when a guess came true, with its compile seconds.
      profile: traces training steps.
    """
    self.forge = Forge(
      cost=accounting.flops,
      on_compile=on_compile,
      on_use=on_use,
      options=parts.compiler_options,
      limits=limits,
      stopping=stopping,
      place=parts.layout.place if parts.layout else None,
    )
    self._parts = parts
    self._layout = parts.layout
    self._profile = profile
    self._seed = seed
    self._batch = batch_size
    host, slots = parts.host, parts.growth.slots
    preprocess, objective = parts.steps.preprocess, parts.steps.objective
    train = steps.make_train_step(host, parts.steps)
    probe = steps.make_probe(host, preprocess, slots, objective)
    self._add("train", train, donate=(0, 1))
    self._add("chunk", steps.make_chunk(train), donate=(0, 1))
    self._add("evaluate", steps.make_evaluate(host, preprocess, objective))
    self._add("probe", probe, rare=True)
    self._add("metrics", steps.make_metrics(host, preprocess, objective))
    self._train: Program | None = None
    self._met: set[Callable[..., Any]] = set()  # training programs used so far
    put = self._layout.everywhere if self._layout else jax.device_put
    self._images = put(parts.data.train_images)
    self._labels = put(parts.data.train_labels)
    self._probe_examples = min(probe_examples, len(parts.data.train_labels))

  def health(self) -> Health:
    """Says how many programs are being made."""
    return Health(queued=self.forge.making)

  def _add(self, name: str, function: Callable[..., Any], **how: Any) -> None:
    if self._layout:
      function = self._layout.whole(function)
    self.forge.add(name, function, **how)

  def _call(self, program: Program, name: str, *args: Any) -> Any:
    """Runs a program that reads examples."""
    if self._layout:
      args = self._layout.bring(name, args)
    return program.call(*args)

  def settle(self, run: Run) -> None:
    """Makes what the last step left this process's own, to be changed."""
    if self._layout:
      run.state, run.sums = self._layout.home((run.state, run.sums))

  def begin(self, run: Run) -> None:
    """Takes up the training programs of the run's present topology."""
    program = self._training_program(run, "train", self._index())
    if program is self._train:
      return
    self._train = program
    self.step_flops = int(program.flops)
    run.ledger = run.ledger.book(memory_hits=program.call in self._met)
    self._met.add(program.call)
    self.pin("current", run.state)

  def prepare(
    self, state: TrainState, *, guess: int | None = None
  ) -> list[Hashable]:
    """Has the programs of a topology compiled in the background.

    Args:
      state: arrays or shapes.
      guess: see `Forge.prepare`.

    Returns:
      Their keys.
    """
    state = abstract(state)
    keys = [
      self.forge.prepare(name, *args, guess=guess)
      for name, args in self._of_topology(state)
    ]
    if guess is None and self._parts.policy.wants_scores is not None:
      probed = self._probed(state)
      keys.append(self.forge.prepare("probe", *probed, likely=True))
    return keys

  def pin(self, owner: str, state: TrainState) -> None:
    """Keeps the programs of a topology, in place of the owner's before."""
    self.forge.pin(owner, self.prepare(state))

  def obtain(self, state: TrainState, timeout: float) -> None:
    """Waits for the programs of a topology.

    Args:
      state: arrays or shapes.
      timeout: seconds to wait for each; 0 waits as long as it takes.

    Raises:
      CompileError: one cannot be had.
      Interrupted: the run was asked to stop.
    """
    for name, args in self._of_topology(abstract(state)):
      self.forge.program(name, *args, timeout=timeout)

  def prepare_scores(self) -> None:
    """Has the programs compiled that score blueprints at slots."""
    growth, key = self._parts.growth, jax.random.key(0)
    for row in range(0, growth.rows, growth.lanes):
      spec = growth.slots[growth.path(row)]
      shape = (self._probe_examples, *spec.shape)
      signal = jax.ShapeDtypeStruct(shape, jnp.float32)
      for column in np.flatnonzero(growth.fits[row]):
        name = self._add_score(growth.blueprints[column], spec)
        self.forge.prepare(name, key, signal, signal, likely=True)

  def _index(self, *leading: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*leading, self._batch), jnp.int32)

  def _of_topology(self, state: TrainState) -> list[tuple[str, Any]]:
    sums = jax.eval_shape(steps.empty_sums, state)
    data = (state, sums, self._images, self._labels)
    first = self._parts.validation[0]
    view = jax.eval_shape(evaluation_view, state)
    programs: list[tuple[str, Any]] = [("train", (*data, self._index()))]
    if self._parts.chunk > 1:
      programs.append(("chunk", (*data, self._index(self._parts.chunk))))
    evaluated = (*view, first.images, first.labels, first.mask)
    return [*programs, ("evaluate", evaluated)]

  def _probed(self, state: TrainState) -> tuple[Any, ...]:
    count = self._probe_examples
    data = [
      jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
      for x in (self._images, self._labels)
    ]
    return (state.params, state.collections, state.seeds, *data)

  def train(self, run: Run, indices: np.ndarray) -> None:
    """One training step per row of indices int32 [steps, batch]."""
    assert self._train is not None  # `begin` was called
    beside = len(indices) if self.forge.making else 0
    program, name, rows = self._train, "train", indices[0]
    if len(indices) > 1:
      name, rows = "chunk", indices
      program = self._training_program(run, name, indices)
    args = run.state, run.sums, self._images, self._labels, rows
    run.state, run.sums = self._profile.steps(
      run.next_batch, len(indices), lambda: self._call(program, name, *args)
    )
    run.next_batch += len(indices)
    run.ledger = run.ledger.charge("train", self.step_flops, len(indices))
    if beside:
      run.ledger = run.ledger.book(overlapped_steps=beside)

  def evaluate(
    self,
    run: Run,
    batches: Sequence[EvalBatch],
    *,
    state: TrainState | None = None,
    account: accounting.Kind = "evaluation",
  ) -> tuple[np.ndarray, np.ndarray]:
    """Per-example losses and hits of a split, float32 [examples].

    Args:
      run: charged for it.
      batches: the split.
      state: evaluated instead of the run's own, e.g. with a seed ablated.
      account: the ledger's.
    """
    view = evaluation_view(run.state if state is None else state)
    first = batches[0]
    program = self.forge.program(
      "evaluate", *view, first.images, first.labels, first.mask
    )
    run.ledger = run.ledger.charge(account, int(program.flops), len(batches))
    return measure.losses(
      lambda b: self._call(
        program, "evaluate", *view, b.images, b.labels, b.mask
      ),
      batches,
    )

  def final_figures(self, run: Run, *, test: bool) -> dict[str, Any]:
    """Validation and test: the test set is read here and nowhere else.

    The objective's metrics, where it has any, are {split: {name: mean}}.

    Args:
      run: after its last step.
      test: whether to read it.
    """
    validation, data = self._parts.validation, self._parts.data
    losses, hits = self.evaluate(run, validation)
    figures: dict[str, Any] = {
      "val_loss": float(losses.mean()),
      "val_accuracy": float(hits.mean()),
    }
    read = {"validation": validation}
    if test:
      batches = measure.device_batches(
        data.test_images, data.test_labels, len(validation[0].mask)
      )
      _, hits = self.evaluate(run, batches)
      figures["test_accuracy"] = float(hits.mean())
      read["test"] = batches
    if self._parts.steps.objective.metrics:
      figures["metrics"] = {k: self._metrics(run, b) for k, b in read.items()}
    return figures

  def _metrics(
    self, run: Run, batches: Sequence[EvalBatch]
  ) -> dict[str, float]:
    view = evaluation_view(run.state)
    sums: dict[str, float] = {}
    for batch in batches:
      args = (*view, batch.images, batch.labels)
      program = self.forge.program("metrics", *args)
      run.ledger = run.ledger.charge("evaluation", int(program.flops))
      for name, values in self._call(program, "metrics", *args).items():
        real = np.asarray(values)[: batch.count]  # what follows is padding
        sums[name] = sums.get(name, 0.0) + float(real.sum(dtype=np.float64))
    examples = sum(batch.count for batch in batches)
    return {name: total / examples for name, total in sums.items()}

  def evaluate_flops(self, run: Run, batch: EvalBatch) -> float:
    """FLOPs of one evaluation batch of the present topology."""
    view = evaluation_view(run.state)
    return self.forge.program(
      "evaluate", *view, batch.images, batch.labels, batch.mask
    ).flops

  def measure(
    self, run: Run, baseline: np.ndarray, limits: measure.Limits
  ) -> None:
    """Measures what the seeds contribute; see `measure.update`.

    Args:
      run: at a boundary; changed.
      baseline: float32 [examples], its losses on the validation split.
      limits: of the measurement.
    """
    growth, validation = self._parts.growth, self._parts.validation
    measure.update(
      run,
      [growth.path(row) for row in range(growth.rows)],
      batches=validation,
      baseline=baseline,
      limits=limits,
      cost=self.evaluate_flops(run, validation[0]),
      evaluate=lambda state, batches: self.evaluate(
        run, batches, state=state, account="ablation"
      )[0],
    )

  def probe(self, run: Run) -> steps.Probed:
    """What every slot carries and feels, on training examples."""
    data = self._parts.data
    order = permutation(
      len(data.train_labels),
      seed=self._seed,
      stream=(PROBE_STREAM, run.governor.attempt, run.epoch),
    )
    chosen = order[: self._probe_examples]
    args = (
      run.state.params,
      run.state.collections,
      run.state.seeds,
      data.train_images[chosen],
      data.train_labels[chosen],
    )
    program = self.forge.program("probe", *args)
    run.ledger = run.ledger.charge("probe", int(program.flops))
    probed = self._call(program, "probe", *args)
    return self._layout.home(probed) if self._layout else probed

  def score(
    self, run: Run, blueprint: str, path: Path, signal: Signal
  ) -> tuple[float, float]:
    """The germination score and the first gain of a blueprint at a slot."""
    name = self._add_score(blueprint, self._parts.growth.slots[path])
    key = jax.random.fold_in(jax.random.key(self._seed), run.epoch)
    program = self.forge.program(name, key, *signal)
    run.ledger = run.ledger.charge("probe", int(program.flops))
    score, gain = program.call(key, *signal)
    return float(score), float(gain)

  def _add_score(self, blueprint: str, spec: SlotSpec) -> str:
    name = f"score:{blueprint}:{spec.form}"
    function = steps.make_score(blueprint, spec)
    self.forge.add(name, function, rare=True, keep=True)
    return name

  def _training_program(self, run: Run, name: str, indices: Any) -> Program:
    return self.forge.program(
      name, run.state, run.sums, self._images, self._labels, indices
    )
