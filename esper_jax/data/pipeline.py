"""The order of examples: which ones make up batch i, and where a run stands."""

import operator
from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import grain
import numpy as np

from esper_jax.types import InputError


def permutation(n: int, *, seed: int, stream: Sequence[int]) -> np.ndarray:
  """Draw a permutation that every numpy version draws alike.

  It sorts raw 64-bit words: numpy keeps those of a bit generator fixed for
  good, but not what `Generator.permutation` makes of them.

  Args:
    n: number of elements.
    seed: any int.
    stream: non-negative ints; different streams of one seed are independent.

  Returns:
    int64 [n], a permutation of 0..n-1.
  """
  entropy = np.random.SeedSequence(seed % 2**64, spawn_key=tuple(stream))
  words = np.random.Philox(entropy).random_raw(n)
  return np.argsort(words, kind="stable")


class BatchOrder:
  """Random-access source: element i is the index vector of training batch i.

  Each epoch is one permutation, drawn from (seed, attempt, epoch) alone, of
  which the last num_examples % batch_size examples are left out. So i is the
  whole position in the data, and nothing else needs to be saved.

  Attributes:
    num_examples: size of the training set.
    batch_size: examples per batch.
    num_epochs: how many epochs the source holds.
    seed: any int.
    attempt: how often the run was rolled back; another attempt, another order.
    steps_per_epoch: batches per epoch.
  """

  def __init__(
    self,
    num_examples: int,
    batch_size: int,
    *,
    num_epochs: int,
    seed: int,
    attempt: int = 0,
  ):
    """Raise InputError unless 1 <= batch_size <= num_examples."""
    if not 1 <= batch_size <= num_examples:
      raise InputError(
        f"data.batch_size is {batch_size}, valid is 1 to {num_examples}, the"
        " number of training examples: set --config.data.batch_size"
      )
    self.num_examples = num_examples
    self.batch_size = batch_size
    self.num_epochs = num_epochs
    self.seed = seed
    self.attempt = attempt
    self.steps_per_epoch = num_examples // batch_size
    # One tuple, so that a reading thread never sees half of a new epoch.
    self._drawn: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int32))

  def __len__(self) -> int:
    """Number of batches in all epochs together."""
    return self.num_epochs * self.steps_per_epoch

  def __getitem__(self, index: SupportsIndex) -> np.ndarray:
    """Return int32 [batch_size], the examples of one batch."""
    i = operator.index(index)
    if not 0 <= i < len(self):
      raise IndexError(f"batch {i} of {len(self)}")
    epoch, step = divmod(i, self.steps_per_epoch)
    drawn, order = self._drawn
    if drawn != epoch:
      stream = (self.attempt, epoch)
      order = permutation(self.num_examples, seed=self.seed, stream=stream)
      order = order.astype(np.int32)
      self._drawn = (epoch, order)
    return order[step * self.batch_size : (step + 1) * self.batch_size]


def make_iterator(order: BatchOrder) -> grain.DatasetIterator[np.ndarray]:
  """Iterate over the batches of `order` through Grain.

  Args:
    order: the source.

  Returns:
    An iterator of int32 [batch_size] that ends after the last epoch.
    `get_state()` is {"next_index": i}, the batch that comes next;
    `set_state` takes it back.
  """
  # Reading is a slice of an array in memory: threads would only add latency.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(grain.MapDataset.source(order).to_iter_dataset(options))


class EvalBatch(NamedTuple):
  """One batch of an evaluation.

  Attributes:
    indices: int32 [batch]. Padded with the last example.
    mask: bool [batch]. False where padded.
  """

  indices: np.ndarray
  mask: np.ndarray


def eval_batches(num_examples: int, batch_size: int) -> list[EvalBatch]:
  """Cut a split into batches of one size, so that one program serves all.

  Args:
    num_examples: size of the split, at least 1.
    batch_size: examples per batch, at least 1.

  Returns:
    The batches in order; every example has its mask set exactly once.
  """
  batches = []
  for start in range(0, num_examples, batch_size):
    positions = np.arange(start, start + batch_size, dtype=np.int32)
    mask = positions < num_examples
    batches.append(EvalBatch(np.minimum(positions, num_examples - 1), mask))
  return batches
