"""Programs take turns; what an operation takes is what the step takes more."""

import math

import jax
import numpy as np
import pytest

from esper_jax.urza import timing


def test_a_block_returns_the_seconds_of_one_call():
  calls = []
  run = timing.block(lambda x: calls.append(x), (7,), 5)
  assert 0 < run() < 1
  assert calls == [7] * 5


def test_calls_with_the_same_arguments_stay_calls_of_their_own():
  a = np.arange(64.0, dtype=np.float32).reshape(8, 8)
  tuples = [(a, a)] * 3
  own = timing.each_of(lambda a, b: (a @ b, a))
  program = jax.jit(own).lower(*tuples).compile()
  once = jax.jit(lambda a, b: (a @ b, a)).lower(a, a).compile()
  flops = [p.cost_analysis()["flops"] for p in (program, once)]
  assert flops[0] == 3 * flops[1] > 0
  results = program(*tuples)
  assert len(results) == 3
  for product, same in results:
    np.testing.assert_allclose(product, a @ a)
    np.testing.assert_array_equal(same, a)


def test_programs_take_turns():
  order = []

  def block(name):
    def run():
      order.append(name)
      return float(len(order))

    return run

  seconds = timing.in_turn({name: block(name) for name in "abc"}, 6)
  assert "".join(order[:3]) == "abc"  # to warm up; counts nothing
  turns = "".join(order[3:])
  assert turns == "abccbabcaacbcabbac"
  assert seconds["a"] == [4, 9, 12, 13, 17, 20]
  assert {len(values) for values in seconds.values()} == {6}


def test_a_share_is_the_time_beyond_that_of_the_bare_step():
  ratios = timing.share_ratios([3.0, 5.0], [2.0, 3.0], [1.0, 1.0])
  assert ratios == [2.0, 2.0]


@pytest.mark.parametrize("reference, kernel", [(1.0, 2.0), (2.0, 0.9)])
def test_what_is_no_slower_than_the_bare_step_is_noise(reference, kernel):
  with pytest.raises(timing.Noise, match="took as long as one with it"):
    timing.share_ratios([3.0, reference], [2.0, kernel], [1.0, 1.0])


def test_a_copy_has_a_bandwidth():
  speed = timing.copy_bandwidth(2**20, rounds=3, calls=3)
  assert 1e6 < speed < 1e13 and math.isfinite(speed)


class Counting:
  """A device that counts its memory; that of a CPU does not."""

  def memory_stats(self):
    return {"peak_bytes_in_use": 1234, "bytes_in_use": 9}


def test_the_peak_is_the_devices_count_or_the_compilers_plan():
  x = np.zeros(1000, np.float32)
  program = jax.jit(lambda x: x * 2).lower(x).compile()
  assert timing.peak_bytes(Counting(), program) == 1234
  assert 8000 <= timing.peak_bytes(jax.local_devices()[0], program) < 20_000
