"""Statistics of paired differences; every function takes plain numbers.

A difference is arm less control for one seed. Seeds are independent; what
two arms of a seed share (data order, initial weights) is why they are paired.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks._common import CONFIDENCE, interval

EXACT_UP_TO = 16  # pairs for which all 2**n sign assignments are looked at
BCA_FROM = 20  # pairs; with few the bootstrap's intervals are too narrow
MOST_SEEDS = 10_000  # more are not asked for
_ALPHA = 1 - CONFIDENCE
_POWER = 0.8
_DRAWS = 100_000
_RESAMPLES = 10_000
_SLACK = 1e-12  # relative; sums in another order may differ by rounding


class Estimate(NamedTuple):
  """Paired differences in short.

  Attributes:
    n: number of pairs.
    mean, sd: of the differences; sd with n - 1, NaN for fewer than two.
    low, high: Student-t interval at 95 %; NaN for fewer than two.
    p: two-sided sign-flip p-value.
    exact: whether p comes from all sign assignments.
    bca: BCa bootstrap interval at 95 %, None below `BCA_FROM` pairs.
    identical: whether every difference is exactly 0.
  """

  n: int
  mean: float
  sd: float
  low: float
  high: float
  p: float
  exact: bool
  bca: tuple[float, float] | None
  identical: bool


def estimate(differences: Sequence[float]) -> Estimate:
  """Summarizes paired differences.

  Args:
    differences: at least one.
  """
  x = np.asarray(differences, np.float64)
  n, mean, same = len(x), float(x.mean()), bool((x == 0).all())
  about = interval(x.tolist())
  sd = float(x.std(ddof=1)) if n > 1 else math.nan
  p, exact = sign_flip(x.tolist())
  return Estimate(
    n=n,
    mean=mean,
    sd=sd,
    low=about.low,
    high=about.high,
    p=p,
    exact=exact,
    bca=bca(x.tolist()),
    identical=same,
  )


def sign_flip(
  differences: Sequence[float], *, draws: int = _DRAWS, seed: int = 0
) -> tuple[float, bool]:
  """Tests whether differences are symmetric about 0, two-sided.

  The statistic is the absolute mean. Up to `EXACT_UP_TO` pairs all sign
  assignments are counted, so p is exact and at least 2 / 2**n; beyond, as
  many random ones as `draws`, the observed one counted with them.

  Args:
    differences: at least one.
    draws: of the Monte Carlo test.
    seed: of its signs.

  Returns:
    (p, whether it is exact).
  """
  x = np.asarray(differences, np.float64)
  n = len(x)
  least = abs(x.sum()) * (1 - _SLACK)
  if n <= EXACT_UP_TO:
    numbers = np.arange(2**n, dtype=np.int64).reshape(-1, 1)
    signs = 1.0 - 2.0 * ((numbers >> np.arange(n)) & 1)
    return float((np.abs(signs @ x) >= least).mean()), True
  rng = np.random.default_rng(seed)
  signs = rng.choice((-1.0, 1.0), (draws, n))
  hits = int((np.abs(signs @ x) >= least).sum())
  return (hits + 1) / (draws + 1), False


def holm(p_values: Sequence[float]) -> list[float]:
  """Corrects p-values for their number (Holm 1979), in their order."""
  order = np.argsort(p_values, kind="stable")
  corrected = [0.0] * len(order)
  largest = 0.0
  for rank, index in enumerate(order):
    scaled = (len(order) - rank) * float(p_values[index])
    largest = max(largest, min(1.0, scaled))
    corrected[index] = largest
  return corrected


def bca(
  differences: Sequence[float], *, seed: int = 0
) -> tuple[float, float] | None:
  """The BCa bootstrap interval of the mean at 95 % (Efron 1987).

  Returns:
    (low, high); None for fewer than `BCA_FROM` or all equal differences.
  """
  x = np.asarray(differences, np.float64)
  if len(x) < BCA_FROM or np.ptp(x) == 0:
    return None
  found = stats.bootstrap(
    (x,),
    np.mean,
    confidence_level=CONFIDENCE,
    n_resamples=_RESAMPLES,
    method="BCa",
    rng=np.random.default_rng(seed),
  ).confidence_interval
  return float(found.low), float(found.high)


def tost(differences: Sequence[float], margin: float) -> float:
  """Tests equivalence: the p-value of "the mean is not within the margin".

  Two one-sided t tests (Schuirmann 1987); the larger p-value counts.

  Args:
    differences: at least two.
    margin: above 0, in the unit of the differences.
  """
  x = np.asarray(differences, np.float64)
  error = float(x.std(ddof=1)) / math.sqrt(len(x))
  if error == 0:
    return 0.0 if abs(float(x[0])) < margin else 1.0
  freedom, mean = len(x) - 1, float(x.mean())
  above = float(stats.t.sf((mean + margin) / error, freedom))
  below = float(stats.t.cdf((mean - margin) / error, freedom))
  return max(above, below)


def power(effect: float, sd: float, n: int) -> float:
  """The power of the two-sided paired t test at 5 %.

  Args:
    effect: true mean of the differences.
    sd: true standard deviation of the differences, above 0.
    n: pairs, at least 2.
  """
  limit = float(stats.t.isf(_ALPHA / 2, n - 1))
  shift = abs(effect) / sd * math.sqrt(n)
  found = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(
    -limit, n - 1, shift
  )
  return _number(found)


def tost_power(mean: float, sd: float, margin: float, n: int) -> float:
  """The power of `tost` at 5 %, a lower bound where it is small.

  Args:
    mean: true mean of the differences.
    sd: their true standard deviation, above 0.
    margin: of equivalence.
    n: pairs, at least 2.
  """
  limit = float(stats.t.isf(_ALPHA, n - 1))
  root = math.sqrt(n) / sd
  above = stats.nct.sf(limit, n - 1, (mean + margin) * root)
  below = stats.nct.cdf(-limit, n - 1, (mean - margin) * root)
  return max(0.0, _number(above) + _number(below) - 1)


def required_n(effect: float, sd: float) -> int | None:
  """Fewest pairs that show an effect with 80 % power, two-sided 5 %.

  Returns:
    At least 2; None where it would be more than `MOST_SEEDS`.
  """
  if effect == 0:
    return None
  return 2 if sd == 0 else _fewest(lambda n: power(effect, sd, n))


def required_n_tost(mean: float, sd: float, margin: float) -> int | None:
  """Fewest pairs that show equivalence with 80 % power; see `required_n`."""
  if abs(mean) >= margin:
    return None
  return 2 if sd == 0 else _fewest(lambda n: tost_power(mean, sd, margin, n))


def _fewest(reached: Callable[[int], float]) -> int | None:
  """The first n with enough power: power grows with n, so halve."""
  low, high = 1, 2
  while reached(high) < _POWER:
    low, high = high, 2 * high
    if low >= MOST_SEEDS:
      return None
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if reached(middle) >= _POWER else (middle, high)
  return high if high <= MOST_SEEDS else None


def _number(value: npt.ArrayLike) -> float:
  """The noncentral t far out in its tail is NaN in SciPy where it is 0."""
  return float(np.nan_to_num(value, nan=0.0))
