"""Claims that a suite makes before its first run, and what became of them.

A verdict is "supported", "refuted" or "undecided", which is a valid outcome
and comes with the number of seeds that would decide; "no verdict" where an
arm of the claim has no rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.evidence import statistics

Kind = Literal["identical", "better", "matches", "cheaper"]
Row = Mapping[str, Any]
ByArm = Mapping[str, Mapping[int, Row]]  # arm -> seed -> row


class Claim(NamedTuple):
  """One pre-registered claim.

  Attributes:
    name: short, unique in the suite.
    kind: what supports it:
      identical: both arms end in the same state, bit for bit, at every seed;
      better: the 95 % interval of arm - control in test accuracy is above
        `bound` points; below it altogether refutes;
      matches: arm - control is within +-`bound` points by TOST at 5 %; a 95 %
        interval outside the margin refutes;
      cheaper: the 95 % interval of the ratio of total FLOPs (geometric mean)
        is below `bound`; above it altogether refutes.
    arm, control: letters of the arms.
    bound: points, or a ratio; see kind.
    says: one sentence for people.
  """

  name: str
  kind: Kind
  arm: str
  control: str
  bound: float
  says: str


class Verdict(NamedTuple):
  """What the rows say of a claim.

  Attributes:
    claim: the claim.
    outcome: "supported", "refuted", "undecided" or "no verdict".
    because: the figures, or what is missing.
    n: pairs looked at.
    needed: seeds that would decide with 80 % power if what was seen is true;
      None where decided, or where no such number exists.
    p: two-sided sign-flip p-value of "better"; the caller corrects it.
  """

  claim: Claim
  outcome: str
  because: str
  n: int = 0
  needed: int | None = None
  p: float | None = None

  def line(self) -> str:
    """The verdict in one line."""
    return f"{self.outcome}: {self.because}"


def judge(claim: Claim, arms: ByArm) -> Verdict:
  """Judges one claim.

  Args:
    claim: see `Claim`.
    arms: rows by arm and seed; seeds that only one arm has are left out.
  """
  for role, name in (("arm", claim.arm), ("control", claim.control)):
    if not arms.get(name):
      return Verdict(claim, "no verdict", f"{role} missing ({name})")
  seeds = sorted(set(arms[claim.arm]) & set(arms[claim.control]))
  if not seeds:
    return Verdict(claim, "no verdict", "control missing (no seed in common)")
  pairs = [(arms[claim.arm][s], arms[claim.control][s]) for s in seeds]
  if claim.kind == "identical":
    return _identical(claim, seeds, pairs)
  if len(pairs) < 2:
    return Verdict(claim, "undecided", "one pair has no interval", n=1)
  judges = {"better": _better, "matches": _matches, "cheaper": _cheaper}
  return judges[claim.kind](claim, pairs)


def points(pairs: Sequence[tuple[Row, Row]]) -> list[float]:
  """Differences in accuracy, first less second, in points."""
  return [100 * (accuracy(a) - accuracy(b)) for a, b in pairs]


def accuracy(row: Row) -> float:
  """Test accuracy, 0 to 1; validation accuracy where test was not read."""
  test = row["result"]["test_accuracy"]
  return row["result"]["val_accuracy"] if test is None else test


def text(estimate: statistics.Estimate) -> str:
  """A paired difference in points for people."""
  if estimate.identical:
    return f"identical, n = {estimate.n}"
  if estimate.n == 1:
    return f"{estimate.mean:+.2f} points, n = 1"
  return (
    f"{estimate.mean:+.2f} points [{estimate.low:+.2f}, {estimate.high:+.2f}],"
    f" n = {estimate.n}"
  )


def _identical(
  claim: Claim, seeds: Sequence[int], pairs: Sequence[tuple[Row, Row]]
) -> Verdict:
  differ = [
    str(seed)
    for seed, (a, b) in zip(seeds, pairs, strict=True)
    if a["state_sha256"] != b["state_sha256"]
    or a["result"]["test_accuracy"] != b["result"]["test_accuracy"]
  ]
  if differ:
    because = f"the final states differ at seed {', '.join(differ)}"
    return Verdict(claim, "refuted", because, n=len(pairs))
  because = f"the final states are equal bit for bit, n = {len(pairs)}"
  return Verdict(claim, "supported", because, n=len(pairs))


def _better(claim: Claim, pairs: Sequence[tuple[Row, Row]]) -> Verdict:
  found = statistics.estimate(points(pairs))
  outcome = _side(found.low, found.high, claim.bound)
  needed = None
  if outcome == "undecided":
    needed = statistics.required_n(found.mean - claim.bound, found.sd)
  return Verdict(
    claim, outcome, _with_need(text(found), outcome, needed), found.n, needed,
    found.p,
  )  # fmt: skip


def _matches(claim: Claim, pairs: Sequence[tuple[Row, Row]]) -> Verdict:
  differences, margin = points(pairs), claim.bound
  found = statistics.estimate(differences)
  p = statistics.tost(differences, margin)
  needed = None
  if p < 1 - statistics.CONFIDENCE:
    outcome = "supported"
  elif found.low > margin or found.high < -margin:
    outcome = "refuted"
  else:
    outcome = "undecided"
    needed = statistics.required_n_tost(found.mean, found.sd, margin)
    if needed is None:  # what was seen lies outside: show that it does
      outside = abs(found.mean) - margin
      needed = statistics.required_n(outside, found.sd)
  because = f"{text(found)}, margin {margin:g}, TOST p = {p:.3g}"
  return Verdict(
    claim, outcome, _with_need(because, outcome, needed), found.n, needed
  )


def _cheaper(claim: Claim, pairs: Sequence[tuple[Row, Row]]) -> Verdict:
  key = "total_flops"
  logs = [math.log(total(a, key) / total(b, key)) for a, b in pairs]
  found = statistics.estimate(logs)
  bound = math.log(claim.bound)
  # Cheaper is below: the sides are swapped.
  outcome = _side(-found.high, -found.low, -bound)
  needed = None
  if outcome == "undecided":
    needed = statistics.required_n(found.mean - bound, found.sd)
  mean, low, high = map(math.exp, (found.mean, found.low, found.high))
  because = (
    f"{mean:.3f} times the FLOPs [{low:.3f}, {high:.3f}], bound"
    f" {claim.bound:g}, n = {found.n}"
  )
  return Verdict(
    claim, outcome, _with_need(because, outcome, needed), found.n, needed
  )


def total(row: Row, key: str = "total_flops") -> float:
  """FLOPs of a run and of what had to be run to decide it (look-ahead)."""
  return row["result"][key] + row["extra"].get("lookahead_flops", 0)


def _side(low: float, high: float, bound: float) -> str:
  if low > bound:
    return "supported"
  return "refuted" if high < bound else "undecided"


def _with_need(because: str, outcome: str, needed: int | None) -> str:
  if outcome != "undecided":
    return because
  if needed is None:
    return f"{because}; no number of seeds up to 10,000 would decide"
  return f"{because}; {needed} seeds would decide"
