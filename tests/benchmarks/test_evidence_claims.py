"""Verdicts and figures, from rows written by hand."""

import pytest

from benchmarks.evidence import claims, metrics
from benchmarks.evidence.claims import Claim


def make_row(accuracy, *, flops=100, state="a", extra=None):
  result = {"test_accuracy": accuracy, "total_flops": flops}
  result["val_accuracy"] = 0.5
  return {"result": result, "state_sha256": state, "extra": extra or {}}


def make_arms(arm, control, **options):
  """Rows of B4 and A2, from accuracies in points."""
  return {
    name: {n: make_row(x / 100, **options) for n, x in enumerate(values)}
    for name, values in (("B4", arm), ("A2", control))
  }


def make_claim(kind, bound=0.0):
  return Claim("name", kind, "B4", "A2", bound, "words")


def test_better_is_supported_refuted_or_undecided():
  claim = make_claim("better")
  good = claims.judge(claim, make_arms([91, 92, 93.5], [90, 91, 92]))
  bad = claims.judge(claim, make_arms([90, 91, 92], [91, 92, 93.5]))
  open_ = claims.judge(claim, make_arms([90, 92, 93], [91, 91, 92]))
  assert (good.outcome, bad.outcome) == ("supported", "refuted")
  assert good.p == bad.p == 0.25
  assert open_.outcome == "undecided" and open_.needed
  assert f"{open_.needed} seeds would decide" in open_.because
  assert "+0.33 points [" in open_.because


def test_validation_stands_in_where_test_was_not_read():
  assert claims.accuracy(make_row(0.9)) == 0.9
  assert claims.accuracy(make_row(None)) == 0.5


def test_better_by_a_bound():
  arms = make_arms([91, 92, 93.5], [90, 91, 92])
  assert claims.judge(make_claim("better", 3.0), arms).outcome == "refuted"


def test_identical_arms_are_neither():
  verdict = claims.judge(make_claim("better"), make_arms([90, 91], [90, 91]))
  assert (
    verdict.outcome == "undecided" and "identical, n = 2" in verdict.because
  )
  assert "no number of seeds" in verdict.because


def test_matches_needs_equivalence_not_a_missing_difference():
  claim = make_claim("matches", 1.0)
  close = make_arms([90.1, 91, 92, 93.1], [90, 91.1, 92, 93])
  apart = make_arms([93, 94.2, 95, 96], [90, 91, 92, 93])
  loose = make_arms([90, 95, 92, 90], [92, 91, 94, 93])
  far = make_arms([92, 95, 96], [90, 95, 92])
  assert claims.judge(claim, close).outcome == "supported"
  assert claims.judge(claim, apart).outcome == "refuted"
  verdict = claims.judge(claim, loose)
  assert verdict.outcome == "undecided" and "TOST p" in verdict.because
  verdict = claims.judge(claim, far)  # 2 points off: whether it is outside
  assert verdict.outcome == "undecided" and verdict.needed


def test_cheaper_counts_all_flops():
  claim = make_claim("cheaper", 0.6)

  def judge(flops, ahead=0):
    extra = {"lookahead_flops": ahead}
    cheap = [make_row(0.9, flops=f, extra=extra) for f in flops]
    arms = {
      "B4": dict(enumerate(cheap)),
      "A2": {n: make_row(0.9, flops=100) for n in range(len(flops))},
    }
    return claims.judge(claim, arms)

  assert judge([50, 51, 52]).outcome == "supported"
  assert judge([50, 51, 52], ahead=30).outcome == "refuted"
  verdict = judge([50, 60, 65])
  assert verdict.outcome == "undecided" and "times the FLOPs" in verdict.because
  assert "0.580 times" in verdict.because  # the cube root of 50 * 60 * 65


def test_identical_is_about_states():
  claim = make_claim("identical")
  same = make_arms([90, 91], [90, 91])
  assert claims.judge(claim, same).outcome == "supported"
  same["A2"][1]["state_sha256"] = "b"
  verdict = claims.judge(claim, same)
  assert verdict.outcome == "refuted" and "seed 1" in verdict.because


def test_a_missing_arm_gives_no_verdict():
  claim = make_claim("better")
  arms = make_arms([90, 91], [90, 91])
  without = {"B4": arms["B4"]}
  assert claims.judge(claim, without).line() == (
    "no verdict: control missing (A2)"
  )
  verdict = claims.judge(claim, {"A2": arms["A2"]})
  assert verdict.line() == "no verdict: arm missing (B4)"
  other = {"B4": arms["B4"], "A2": {7: arms["A2"][0]}}
  assert "no seed in common" in claims.judge(claim, other).because
  one = make_arms([90], [91])
  assert claims.judge(claim, one).because == "one pair has no interval"


def make_curve(*accuracies, cost=10.0):
  return [
    {
      "epoch": n + 1,
      "step": 2 * (n + 1),
      "flops": cost * (n + 1),
      "train_flops": cost * (n + 1),
      "seconds": n + 1.0,
      "epoch_seconds": 0.5,
      "val_accuracy": accuracy,
      "val_loss": 1 - accuracy,
      "parameters": 5,
    }
    for n, accuracy in enumerate(accuracies)
  ]


def test_the_average_over_cost():
  curve = make_curve(0.5, 0.8)
  average = metrics.trajectory_average
  # 0 up to 10, 0.5 up to 20, 0.8 from there.
  assert average(curve, against="flops", up_to=20) == pytest.approx(0.25)
  assert average(curve, against="flops", up_to=30) == pytest.approx(13 / 30)
  assert average(curve, against="flops", up_to=15) == pytest.approx(2.5 / 15)


def test_costs_to_a_target_may_be_censored():
  curve = make_curve(0.5, 0.8, 0.7)
  cost = metrics.cost_to_target
  assert cost(curve, against="flops", target=0.8) == 20
  assert cost(curve, against="seconds", target=0.5) == 1
  assert cost(curve, against="flops", target=0.9) is None
  median = metrics.median_with_censored
  assert median([3.0, 1.0, 2.0]) == 2 and median([1.0, 3.0]) == 2
  assert median([1.0, None, 2.0]) == 2 and median([1.0, None]) is None


def germinated(epoch, slot="a", parameters=2):
  return {
    "type": "germinated",
    "epoch": epoch,
    "slot": slot,
    "parameters": parameters,
  }


def culled(epoch, slot="a", **fields):
  return {"type": "culled", "epoch": epoch, "slot": slot, **fields}


def test_waste_is_what_culled_seeds_cost():
  flops = [10, 20, 34, 48, 58]  # an epoch costs 4 more in the third and fourth
  curve = make_curve(*[0.5] * 5)
  for point, total in zip(curve, flops, strict=True):
    point["train_flops"] = total
  timeline = [germinated(2), culled(4)]
  row = {"curve": curve, "timeline": timeline, "life_epochs": 1}
  assert metrics.wasted_flops(row) == 8
  timeline[1]["type"] = "fossilized"
  assert metrics.wasted_flops(row) == 0
  row["timeline"] = [germinated(2, parameters=3), germinated(2, "b", 1)]
  row["timeline"].append(culled(4, "b"))
  assert metrics.wasted_flops(row) == 2  # a quarter of the parameters


def test_the_cost_of_growing():
  curve = make_curve(*[0.5] * 4)
  for point, total in zip(curve, [10, 20, 60, 100], strict=True):
    point["train_flops"] = total
  row = {"curve": curve, "timeline": [germinated(2)], "life_epochs": 1}
  cost = metrics.growth_cost(row)
  assert cost is not None
  assert (cost.r, cost.t, cost.realised) == (4.0, 0.5, 100 / 160)
  assert cost.realised == 1 - cost.t * (1 - 1 / cost.r)
  assert cost.lowest == pytest.approx(1 - 0.75 * 0.75)
  assert metrics.growth_cost({**row, "timeline": []}) is None


def test_a_seed_from_the_start_is_no_growth():
  assert metrics.has_grown({"timeline": [germinated(0), germinated(1)]})
  assert not metrics.has_grown({"timeline": [germinated(0), culled(1)]})


def test_thrash_and_shock():
  timeline = [
    germinated(1),
    germinated(1, "b"),
    culled(2, contribution=-0.25),
    germinated(3),
    culled(4),
  ]
  assert metrics.thrash(timeline) == 1
  assert metrics.culling_shock(timeline) == [-0.25]
  row = {"curve": make_curve(0.5, 0.4, 0.6, 0.7), "timeline": timeline}
  assert metrics.shock_after_events(row) == pytest.approx(0.1)
  assert metrics.shock_after_events({**row, "timeline": []}) is None


def test_parity_is_that_of_newborns():
  parity = [
    {"epoch": 2, "slot": "a", "parity": 0.5},
    {"epoch": 3, "slot": "a", "parity": 0.9},
  ]
  row = {"parity": parity, "timeline": [germinated(1), germinated(1, "b")]}
  assert metrics.newborn_parity(row) == [0.5]


def test_images_a_second():
  row = {"curve": make_curve(0.5, 0.6, 0.7), "batch_size": 32}
  assert metrics.images_per_second(row) == 2 * 32 / 0.5
  assert metrics.images_per_second({**row, "curve": []}) is None
