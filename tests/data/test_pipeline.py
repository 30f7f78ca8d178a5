"""The order of batches is a function of (seed, attempt, epoch, step)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_jax.data import pipeline
from esper_jax.types import InputError


def test_permutation_is_fixed_for_good():
  # Written down once: a run made with one numpy continues with another.
  drawn = pipeline.permutation(8, seed=1, stream=(2, 3))
  assert drawn.tolist() == [2, 4, 0, 3, 7, 1, 5, 6]
  assert drawn.dtype == np.int64


def test_streams_and_seeds_differ():
  seen = {
    tuple(pipeline.permutation(20, seed=seed, stream=stream))
    for seed in (0, 1, -1, 2**32, 2**63)
    for stream in ((0,), (1,), (0, 0), (0, 1), (1, 0))
  }
  assert len(seen) == 25


@given(
  st.integers(1, 50), st.integers(1, 50), st.integers(0, 9), st.integers(0, 3)
)
def test_every_epoch_is_a_permutation(n, batch, seed, attempt):
  batch = min(batch, n)
  order = pipeline.BatchOrder(
    n, batch, num_epochs=3, seed=seed, attempt=attempt
  )
  assert len(order) == 3 * order.steps_per_epoch == 3 * (n // batch)
  for epoch in range(3):
    steps = range(order.steps_per_epoch)
    batches = [order[epoch * order.steps_per_epoch + s] for s in steps]
    assert all(b.dtype == np.int32 and b.shape == (batch,) for b in batches)
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen) == n - n % batch
    assert seen.min() >= 0 and seen.max() < n


def test_order_depends_on_index_alone():
  order = pipeline.BatchOrder(40, 8, num_epochs=4, seed=5)
  forward = [order[i].tolist() for i in range(len(order))]
  other = pipeline.BatchOrder(40, 8, num_epochs=4, seed=5)
  backward = [other[i].tolist() for i in reversed(range(len(order)))]
  assert forward == backward[::-1]
  assert len({tuple(b) for b in forward}) == len(forward)


@pytest.mark.parametrize("changed", [{"seed": 6}, {"attempt": 1}])
def test_another_seed_or_attempt_is_another_order(changed):
  known = {"num_epochs": 1, "seed": 5, "attempt": 0}
  a = pipeline.BatchOrder(40, 8, **known)
  b = pipeline.BatchOrder(40, 8, **{**known, **changed})
  assert a[0].tolist() != b[0].tolist()


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_an_error(index):
  with pytest.raises(IndexError, match="of 5"):
    pipeline.BatchOrder(40, 8, num_epochs=1, seed=0)[index]


@pytest.mark.parametrize("batch", [-1, 0, 41])
def test_a_batch_that_cannot_be_filled_is_refused(batch):
  with pytest.raises(InputError, match=f"is {batch}, valid is 1 to 40"):
    pipeline.BatchOrder(40, batch, num_epochs=1, seed=0)


def test_iterator_resumes_where_its_state_says():
  order = pipeline.BatchOrder(40, 8, num_epochs=3, seed=0)
  iterator = pipeline.make_iterator(order)
  assert iterator.get_state() == {"next_index": 0}
  all_batches = [batch.tolist() for batch in iterator]
  assert all_batches == [order[i].tolist() for i in range(15)]
  assert iterator.get_state() == {"next_index": 15}
  resumed = pipeline.make_iterator(order)
  resumed.set_state({"next_index": 7})
  assert [batch.tolist() for batch in resumed] == all_batches[7:]


@given(st.integers(1, 40), st.integers(1, 50))
def test_evaluation_sees_every_example_once(n, batch):
  batches = pipeline.eval_batches(n, batch)
  seen = np.concatenate([b.indices[b.mask] for b in batches])
  assert seen.tolist() == list(range(n))
  for indices, mask in batches:
    assert indices.shape == mask.shape == (batch,)
    assert indices.dtype == np.int32 and mask.dtype == np.bool_
    assert indices.min() >= 0 and indices.max() < n
