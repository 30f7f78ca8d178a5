"""A status follows from evidence alone, and evidence says what it must."""

import hashlib
import math

import numpy as np
import pytest
from scipy import stats

from esper_jax.types import InputError
from esper_jax.urza import evidence
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.evidence import Status, status
from tests.urza import making
from tests.urza.making import DEVICE, OTHER, gpu, interpret, probe, static

EARLY = [making.interpret(), making.static(), making.xla_aot()]
LATER = {"made": "2026-11-25T08:00:00.5Z"}


def test_nothing_but_a_run_on_the_very_device_validates():
  assert status([], DEVICE) == Status.PENDING
  assert status([*EARLY, probe()], DEVICE) == Status.PENDING
  assert status([*EARLY, gpu()], OTHER) == Status.PENDING
  assert status([*EARLY, gpu()], DEVICE) == Status.VALIDATED


@pytest.mark.parametrize(
  "record",
  [
    interpret(error=1.0),
    interpret(error=math.nan),
    static(ok=False),
    making.xla_aot(ok=False),
  ],
)
def test_a_failed_check_rejects_on_every_device(record):
  good = [*EARLY, gpu()]
  for records in ([*good, record], [record, *good]):
    assert status(records, DEVICE) == Status.REJECTED
    assert status(records, OTHER) == Status.REJECTED


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"max_error": 1e-4}, Status.REJECTED),
    ({"max_error": math.nan}, Status.REJECTED),
    ({"deterministic": False}, Status.REJECTED),
    ({"step_ratios": [1.19] * 5}, Status.REJECTED),
    ({"step_ratios": [1.2] * 5}, Status.VALIDATED),
    # Fast in the middle, but its interval is not above 1.
    ({"step_ratios": [0.3, 0.4, 1.3, 1.4, 1.5]}, Status.PENDING),
  ],
)
def test_a_run_must_be_right_and_fast(fields, expected):
  assert status([*EARLY, gpu(**fields)], DEVICE) == expected
  assert status([*EARLY, gpu(**fields)], OTHER) == Status.PENDING


def test_the_newest_run_counts():
  bad = gpu(deterministic=False, **LATER)
  assert status([bad, gpu()], DEVICE) == Status.REJECTED
  good, bad = gpu(**LATER), gpu(deterministic=False)
  assert status([good, bad], DEVICE) == Status.VALIDATED


def test_a_verdict_holds_for_one_driver_and_one_jaxlib():
  records = [probe(), probe(ok=False, **LATER), probe(driver="580")]
  assert evidence.probed(records, DEVICE, "570.1", "0.10.2") is False
  assert evidence.probed(records, DEVICE, "580", "0.10.2") is True
  assert evidence.probed(records, DEVICE, "570.1", "0.11.2") is None
  assert evidence.probed(records, OTHER, "570.1", "0.10.2") is None


def test_the_interval_is_students_t_of_the_logarithms():
  """n = 5: t = 2.7764; and turning the ratios over turns it over."""
  ratios = [1.1, 1.3, 1.2, 1.5, 1.4]
  logs = np.log(ratios)
  half = 2.776445 * logs.std(ddof=1) / 5**0.5
  median, low, high = evidence.interval(ratios)
  assert median == 1.3
  np.testing.assert_allclose(
    [low, high], np.exp([logs.mean() - half, logs.mean() + half]), rtol=1e-6
  )
  turned = evidence.interval([1 / ratio for ratio in ratios])
  np.testing.assert_allclose(turned[1:], [1 / high, 1 / low])
  assert evidence.speedup([gpu(step_ratios=ratios)], DEVICE) == (
    median,
    low,
    high,
  )
  assert evidence.speedup([gpu()], OTHER) is None


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 99, 1000])
def test_students_t_is_that_of_the_tables(degrees):
  expected = stats.t.ppf(0.975, degrees)
  assert evidence._students_t(degrees) == pytest.approx(expected, rel=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(0)
  drawn = np.exp(rng.normal(0.3, 0.1, (2000, 5)))
  ends = np.array([evidence.interval(list(row))[1:] for row in drawn])
  inside = (ends[:, 0] < math.exp(0.3)) & (math.exp(0.3) < ends[:, 1])
  assert 0.935 < inside.mean() < 0.965  # 3 standard errors around 0.95


def test_tags_come_from_figures():
  small, _ = making.artefact(shared=16384)
  large, _ = making.artefact(shared=16385)
  assert evidence.tags(small, []) == ()
  assert evidence.tags(small, [static()]) == ("low_memory", "no_spills")
  assert evidence.tags(large, [static()]) == ("no_spills",)
  assert evidence.tags(small, [static(spills=8)]) == ()
  fast = gpu(step_ratios=[1.5] * 5)
  assert evidence.tags(small, [fast]) == ("high_speed",)
  assert evidence.tags(small, [gpu(step_ratios=[1.49] * 5)]) == ()


def test_latency_is_that_of_the_newest_run():
  records = [
    gpu(kernel_us=5.0, device_kind=OTHER, **LATER),
    gpu(kernel_us=20.0),
  ]
  assert evidence.latency(records) == 5.0
  assert evidence.latency(records, DEVICE) == 20.0
  assert evidence.latency([], DEVICE) is None
  assert evidence.device_kinds(records) == (OTHER, DEVICE)


@pytest.mark.parametrize("make", making.ALL, ids=lambda f: f.__name__)
def test_evidence_without_one_of_its_figures_is_refused(make):
  assert evidence.validated(make()) == make()
  for name in make():
    record = make()
    del record[name]
    with pytest.raises(InputError, match=name):
      evidence.validated(record)
    with pytest.raises(InputError, match=name):
      evidence.validated(make() | {name: [[]]})
    with pytest.raises(InputError, match=name):
      evidence.validated(make() | {name: None})


@pytest.mark.parametrize(
  "record, words",
  [
    ([], "mapping"),
    ({}, "kind None is none of interpret, static"),
    (gpu(kind="verified"), "'verified' is none of"),
    (gpu(step_ratios=[1.5] * 4), "at least 5 ratios"),
    (gpu(step_ratios=[1.5] * 4 + [0]), "at least 5 ratios above 0"),
    (gpu(step_ratios=[1.5] * 4 + [math.inf]), "at least 5"),
    (gpu(tolerance=1), "tolerance must be from 0 to 1"),
    (gpu(tolerance=math.nan), "tolerance"),
    (gpu(max_error=-1.0), "max_error"),
    (gpu(deterministic=1), "true or false"),
    (gpu(kernel_us=0), "microseconds above 0"),
    (gpu(bytes=True), "whole number"),
    (gpu(table="fast"), "table"),
    (gpu(made="yesterday"), "a time like"),
    (gpu(made="2026-13-25T08:00:00Z"), "a time like"),
    (gpu(made="2026-11-25T08:00:00+01:00"), "a time like"),
    (gpu(by={"python": 3}), "names to versions"),
    (interpret(ok=False), "ok is not what its cases say"),
    (interpret(error=1.0, ok=True), "ok is not what its cases say"),
    (interpret(error=math.nan, ok=True), "ok is not what its cases say"),
    (interpret(cases=[], ok=True), "a list of cases"),
    (static(assembled_for=[]), "assembled for nothing"),
    (static(ptx_version=8.7), "a version"),
    (making.xla_aot(by={}), "jaxlib"),
  ],
)
def test_what_breaks_a_rule_is_refused_in_one_line(record, words):
  with pytest.raises(InputError, match=words) as caught:
    evidence.validated(record)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "record",
  [
    *(make() for make in making.ALL),
    interpret(error=math.inf),
    gpu(table=[{"BLOCK": 64, "us": 3.5}]),
    static(assembled_for=(), ok=False),
  ],
)
def test_what_is_stored_is_read_back(record):
  record = evidence.validated(record)
  data = evidence.to_bytes(record, key="a", ptx="b")
  sha256 = hashlib.sha256(data).hexdigest()
  assert evidence.from_bytes(data, key="a", sha256=sha256) == (record, "b")


def test_what_is_read_is_held_to_the_same_rules():
  """A file may be whole and still claim what it has no figures for."""
  for record in (gpu(step_ratios=[]), gpu(kind="verified")):
    data = evidence.to_bytes(record, key="a", ptx="b")
    sha256 = hashlib.sha256(data).hexdigest()
    with pytest.raises(Damaged, match="it is no evidence"):
      evidence.from_bytes(data, key="a", sha256=sha256)


def test_evidence_about_another_artefact_is_damage():
  data = evidence.to_bytes(gpu(), key="a", ptx="b")
  sha256 = hashlib.sha256(data).hexdigest()
  with pytest.raises(Damaged, match="another artefact"):
    evidence.from_bytes(data, key="b", sha256=sha256)


def test_now_is_a_time_that_records_may_have():
  record = gpu(made=evidence.now())
  assert evidence.validated(record)["made"] == record["made"]
  assert evidence.in_order([record, gpu()])[1] == record
