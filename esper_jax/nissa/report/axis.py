"""Axes: values to pixels, and ticks at round values."""

import math
from typing import NamedTuple

from esper_jax.nissa.table import engineering


class Axis(NamedTuple):
  """Values along a line of pixels.

  Attributes:
    low, high: ends, in values; low < high.
    start, end: ends, in pixels.
    logarithmic: whether equal ratios take equal lengths.
  """

  low: float
  high: float
  start: float
  end: float
  logarithmic: bool = False

  def __call__(self, value: float) -> float:
    """The pixel of a value."""
    share = (self._scale(value) - self._scale(self.low)) / (
      self._scale(self.high) - self._scale(self.low)
    )
    return self.start + share * (self.end - self.start)

  def ticks(self, number: int = 5) -> list[float]:
    """About so many round values within the ends."""
    if self.logarithmic:
      return self._round_powers(number)
    rough = (self.high - self.low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(self.low / step - 1e-9)
    last = math.floor(self.high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]

  def whole_ticks(self, number: int) -> list[int]:
    """As `ticks`, of them the whole numbers."""
    found = self.ticks(number)
    return [round(v) for v in found if math.isclose(v, round(v), abs_tol=1e-6)]

  def _round_powers(self, number: int) -> list[float]:
    low = math.floor(math.log10(self.low))
    powers = range(low, math.ceil(math.log10(self.high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
      found = [f * 10.0**p for p in powers for f in factors]
      kept = [v for v in found if self.low <= v * 1.001 <= self.high * 1.002]
      if len(kept) <= number + 2:
        break
    return kept

  def _scale(self, value: float) -> float:
    return math.log10(value) if self.logarithmic else value


def short(value: float) -> str:
  """A tick's label: 0.05, 1,200, 3.5 M."""
  return engineering(value) if value >= 1e6 else f"{value:,.10g}"
