"""A run's compiled programs, called with a run and charged to its ledger."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.data.pipeline import permutation
from esper_jax.kasmina import blueprints, initializers, surgery
from esper_jax.tezzeret.forge import Forge, Program
from esper_jax.tolaria import accounting, measure, steps
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.growth import Signal
from esper_jax.tolaria.measure import EvalBatch
from esper_jax.tolaria.run import Run
from esper_jax.tolaria.state import TrainState, evaluation_view
from esper_jax.types import Path

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
    on_compile: Callable[[str, float], None],
  ):
    """Makes the programs known; each is compiled when first needed.

    Args:
      parts: of the run.
      batch_size: examples per training step.
      probe_examples: training examples per probe.
      seed: of the choice of those examples.
      on_compile: called with (name, seconds) after each compilation.
    """
    self.forge = Forge(
      cost=accounting.flops,
      on_compile=on_compile,
      options=parts.compiler_options,
    )
    self._parts = parts
    self._seed = seed
    self._batch = batch_size
    train = steps.make_train_step(parts.host, parts.steps)
    preprocess = parts.steps.preprocess
    self.forge.add("train", train, donate=(0, 1))
    self.forge.add("chunk", steps.make_chunk(train), donate=(0, 1))
    self.forge.add("evaluate", steps.make_evaluate(parts.host, preprocess))
    self.forge.add(
      "probe",
      steps.make_probe(parts.host, preprocess, parts.growth.slots),
      rare=True,
    )
    self._images = jax.device_put(parts.data.train_images)
    self._labels = jax.device_put(parts.data.train_labels)
    self._probe_examples = min(probe_examples, len(parts.data.train_labels))

  def begin(self, run: Run) -> None:
    """Takes up the training programs of the run's present topology."""
    index = jax.ShapeDtypeStruct((self._batch,), jnp.int32)
    self._train = self._training_program(run, "train", index)
    self.step_flops = int(self._train.flops)

  def train(self, run: Run, indices: np.ndarray) -> None:
    """One training step per row of indices int32 [steps, batch]."""
    program, rows = self._train, indices[0]
    if len(indices) > 1:
      program, rows = self._training_program(run, "chunk", indices), indices
    run.state, run.sums = program.call(
      run.state, run.sums, self._images, self._labels, rows
    )
    run.next_batch += len(indices)
    run.ledger = run.ledger.charge("train", self.step_flops, len(indices))

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
      lambda b: program.call(*view, b.images, b.labels, b.mask), batches
    )

  def evaluate_flops(self, run: Run, batch: EvalBatch) -> float:
    """FLOPs of one evaluation batch of the present topology."""
    view = evaluation_view(run.state)
    return self.forge.program(
      "evaluate", *view, batch.images, batch.labels, batch.mask
    ).flops

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
    return program.call(*args)

  def score(
    self, run: Run, blueprint: str, path: Path, signal: Signal
  ) -> tuple[float, float]:
    """The germination score and the first gain of a blueprint at a slot."""
    spec = self._parts.growth.slots[path]
    name = f"score:{blueprint}:{spec.form}"
    self.forge.add(name, _score_function(blueprint, spec), rare=True)
    key = jax.random.fold_in(jax.random.key(self._seed), run.epoch)
    program = self.forge.program(name, key, *signal)
    run.ledger = run.ledger.charge("probe", int(program.flops))
    score, gain = program.call(key, *signal)
    return float(score), float(gain)

  def check_consumed(self, state: TrainState) -> None:
    """Refuses a state with a seed that the host's program never reads."""
    surgery.check_consumed(
      lambda: self._parts.host.apply(
        state.params,
        state.collections,
        state.seeds,
        self._parts.example,
        train=False,
        key=None,
      ),
      state.seeds,
    )

  def _training_program(self, run: Run, name: str, indices: Any) -> Program:
    return self.forge.program(
      name, run.state, run.sums, self._images, self._labels, indices
    )


def _score_function(
  blueprint: str, spec: Any
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  def score(key, x, g):
    branch = blueprints.get(blueprint)
    params, state = initializers.initialize("zero_out", branch, key, spec)
    dtype = jnp.dtype(spec.dtype)
    args = branch, params, state, x.astype(dtype), g.astype(dtype)
    return (
      initializers.germination_score(*args),
      initializers.first_gain(*args),
    )

  return score
