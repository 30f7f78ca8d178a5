"""The statistics of paired differences, against values found otherwise."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.evidence import statistics

# Pairs for 80 % power by the exact t test: effect, then sd of differences
# 0.1, 0.15, 0.2 and 0.3; from an independent table.
POWER_TABLE = {
  0.1: (10, 20, 34, 73),
  0.2: (5, 7, 10, 20),
  0.3: (4, 5, 6, 10),
  0.5: (3, 3, 4, 6),
}


def test_an_estimate_is_students():
  values = [1.0, 2.0, 4.0, 9.0]
  found = statistics.estimate(values)
  ci = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  assert (found.n, found.mean) == (4, 4.0)
  assert found.sd == pytest.approx(np.std(values, ddof=1))
  assert (found.low, found.high) == pytest.approx((ci.low, ci.high))
  assert found.bca is None and not found.identical


def test_one_pair_has_no_interval():
  found = statistics.estimate([0.5])
  assert math.isnan(found.low) and math.isnan(found.sd)
  assert found.p == 1.0


def test_identical_arms_are_told():
  assert statistics.estimate([0.0, 0.0, 0.0]).identical
  assert not statistics.estimate([0.0, 1e-9, 0.0]).identical
  assert statistics.estimate([0.0] * 25).bca is None


@pytest.mark.parametrize(
  "values", ([1.0, 2.0, 3.0], [1.0, -2.0, 0.5, 3.0], [0.1] * 5, [0.0, 1.0])
)
def test_sign_flips_are_counted(values):
  p, exact = statistics.sign_flip(values)
  flips = itertools.product((1, -1), repeat=len(values))
  sums = [
    abs(sum(s * v for s, v in zip(f, values, strict=True))) for f in flips
  ]
  least = abs(sum(values)) - 1e-9
  assert exact
  assert p == sum(total >= least for total in sums) / len(sums)


def test_the_smallest_exact_p():
  assert statistics.sign_flip([0.3] * 5) == (2 / 2**5, True)
  assert statistics.sign_flip([0.3] * 16) == (2 / 2**16, True)


def test_many_pairs_are_flipped_at_random():
  values = np.random.default_rng(1).normal(0.3, 1.0, 17)
  p, exact = statistics.sign_flip(values.tolist())
  again = statistics.sign_flip(values.tolist())
  about = stats.ttest_1samp(values, 0).pvalue
  assert not exact and again == (p, False)
  assert p == pytest.approx(about, abs=0.03)
  assert statistics.sign_flip([1.0] * 40, draws=999)[0] == 1 / 1000


def test_sign_flips_hold_their_level():
  rng = np.random.default_rng(2)
  p = [statistics.sign_flip(rng.normal(size=8))[0] for _ in range(500)]
  assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.08


def test_holm_by_hand():
  assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
    [0.03, 0.06, 0.06, 0.02]
  )
  assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
  assert statistics.holm([]) == []


def test_equivalence_is_two_t_tests():
  values, margin = [0.1, -0.2, 0.3, 0.05, 0.0], 0.4
  shifted = np.array(values)
  above = stats.ttest_1samp(shifted, -margin, alternative="greater").pvalue
  below = stats.ttest_1samp(shifted, margin, alternative="less").pvalue
  assert statistics.tost(values, margin) == pytest.approx(max(above, below))
  assert statistics.tost([0.1, 0.1], 0.2) == 0.0
  assert statistics.tost([0.3, 0.3], 0.2) == 1.0


def test_equivalence_holds_its_level_at_the_margin():
  rng = np.random.default_rng(3)
  p = [statistics.tost(rng.normal(1.0, 1.0, 10), 1.0) for _ in range(2000)]
  assert 0.035 < np.mean(np.array(p) < 0.05) < 0.065


def test_intervals_cover():
  rng = np.random.default_rng(4)
  inside = []
  for _ in range(2000):
    low, high = statistics.estimate(rng.normal(0.7, 2.0, 5))[3:5]
    inside.append(low <= 0.7 <= high)
  assert 0.935 < np.mean(inside) < 0.965


def test_the_bootstrap_comes_with_enough_pairs():
  rng = np.random.default_rng(5)
  assert statistics.bca(rng.normal(size=19)) is None
  inside = []
  for _ in range(60):
    interval = statistics.bca(rng.normal(0.7, 2.0, 25))
    assert interval is not None
    inside.append(interval[0] <= 0.7 <= interval[1])
  assert np.mean(inside) >= 0.85  # 0.93 is expected: 4 sd below


def test_the_number_of_pairs_for_a_difference():
  for effect, row in POWER_TABLE.items():
    found = [statistics.required_n(effect, sd) for sd in (0.1, 0.15, 0.2, 0.3)]
    assert tuple(found) == row
  assert statistics.required_n(0.0, 1.0) is None
  assert statistics.required_n(1e-3, 5.0) is None
  assert statistics.required_n(-0.1, 0.1) == 10
  assert statistics.required_n(0.1, 0.0) == 2


def test_the_power_is_what_a_simulation_finds():
  draws = np.random.default_rng(6).normal(0.2, 0.2, (1500, 10))
  hits = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
  assert statistics.power(0.2, 0.2, 10) == pytest.approx(hits.mean(), abs=0.04)
  near = [statistics.tost(x, 0.3) < 0.05 for x in draws - 0.2]
  found = statistics.tost_power(0.0, 0.2, 0.3, 10)
  assert found == pytest.approx(np.mean(near), abs=0.04)


def test_the_number_of_pairs_for_equivalence():
  n = statistics.required_n_tost(0.05, 0.3, 0.2)
  assert n is not None
  powers = [statistics.tost_power(0.05, 0.3, 0.2, m) for m in (n - 1, n)]
  assert powers[0] < 0.8 <= powers[1]
  assert statistics.required_n_tost(0.2, 0.3, 0.2) is None
  assert statistics.required_n_tost(0.0, 0.0, 0.2) == 2
