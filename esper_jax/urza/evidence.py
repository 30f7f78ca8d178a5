"""Evidence: what was found out about an artefact, and what follows from it.

A record is a JSON object with its `kind`, when it was `made` (UTC,
"2026-11-25T08:00:00Z"), `by` which versions, and figures. Records are only
ever added. What an artefact may be used for is computed from them each time:
nothing stores a status, so nothing can claim one.

Kinds, and what each must have:
  interpret: cases (dtype, shapes, error, tolerance), ok
  static: registers, spills (bytes), shared (bytes), ptx_version,
    assembled_for, ok
  xla_aot: target, ok, and jaxlib in `by`
  probe: device_kind, driver, jaxlib, ok, reason
  gpu: device_kind, driver, jaxlib, max_error, tolerance, deterministic,
    step_ratios, kernel_us, reference_us, peak_bytes, bytes; table if tuned
"""

import datetime
import enum
import functools
import hashlib
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from esper_jax.oona.jsonl import plain
from esper_jax.types import InputError
from esper_jax.urza.artefact import Artefact, Damaged
from esper_jax.urza.kernel import canonical

Record = Mapping[str, Any]

LEAST_SPEEDUP = 1.2  # in the step; below it a kernel is not worth its risk
CONFIDENCE = 0.95  # of the interval of the speedup
LEAST_PAIRS = 5  # of step times, or an interval says nothing
HIGH_SPEED = 1.5  # median speedup from which the tag is given
LOW_MEMORY = 16 * 1024  # bytes of shared memory up to which the tag is given
TAGS = ("high_speed", "low_memory", "no_spills")  # see `tags`
_BEFORE_A_GPU = ("interpret", "static", "xla_aot")
_MADE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
_NOT_FINITE = ("NaN", "Infinity")  # as oona.jsonl writes them


class Status(enum.StrEnum):
  """What an artefact may be used for on one kind of device."""

  PENDING = "PENDING"
  VALIDATED = "VALIDATED"
  REJECTED = "REJECTED"


def now() -> str:
  """The time as records have it, to the microsecond."""
  time = datetime.datetime.now(datetime.UTC)
  return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: Any) -> bool:
  return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


def _is_error(value: Any) -> bool:
  """A kernel that gives NaN has an error too, and it must be recorded."""
  return type(value) in (int, float) and not value < 0


def _is_moment(value: Any) -> bool:
  try:
    return bool(_MADE.fullmatch(value)) and _moment(value) is not None
  except (TypeError, ValueError):
    return False


def _is_case(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and _is_text(value.get("dtype"))
    and isinstance(value.get("shapes"), list)
    and all(
      isinstance(shape, list) and all(map(_is_count, shape))
      for shape in value["shapes"]
    )
    and _is_error(value.get("error"))
    and _TOLERANCE[0](value.get("tolerance"))
  )


_Rule = tuple[Callable[[Any], Any], str]  # does it fit?, what it must be
_BOOL: _Rule = (lambda v: isinstance(v, bool), "true or false")
_TEXT: _Rule = (_is_text, "text")
_COUNT: _Rule = (_is_count, "a whole number from 0 on")
_TIME: _Rule = (lambda v: _is_number(v) and v > 0, "microseconds above 0")
_TOLERANCE: _Rule = (lambda v: _is_number(v) and 0 <= v < 1, "from 0 to 1")
_ANY_TEXT: _Rule = (lambda v: isinstance(v, str), "text")
_DEVICE = {"device_kind": _TEXT, "driver": _ANY_TEXT, "jaxlib": _TEXT}

_ALWAYS: dict[str, _Rule] = {
  "made": (_is_moment, 'a time like "2026-11-25T08:00:00Z"'),
  "by": (
    lambda v: (
      isinstance(v, dict) and all(isinstance(text, str) for text in v.values())
    ),
    "a mapping of names to versions",
  ),
}
_FIGURES: dict[str, dict[str, _Rule]] = {
  "interpret": {
    "cases": (
      lambda v: isinstance(v, list) and v and all(map(_is_case, v)),
      "a list of cases with dtype, shapes, error and tolerance",
    ),
    "ok": _BOOL,
  },
  "static": {
    "registers": _COUNT,
    "spills": _COUNT,
    "shared": _COUNT,
    "ptx_version": (
      lambda v: isinstance(v, str) and re.fullmatch(r"\d+\.\d+", v),
      'a version like "8.7"',
    ),
    "assembled_for": (
      lambda v: isinstance(v, list) and all(map(_is_count, v)),
      "a list of compute capabilities like 80",
    ),
    "ok": _BOOL,
  },
  "xla_aot": {"target": _TEXT, "ok": _BOOL},
  "probe": {**_DEVICE, "ok": _BOOL, "reason": _ANY_TEXT},
  "gpu": {
    **_DEVICE,
    "max_error": (_is_error, "a number from 0 on, or NaN"),
    "tolerance": _TOLERANCE,
    "deterministic": _BOOL,
    "step_ratios": (
      lambda v: (
        isinstance(v, list)
        and len(v) >= LEAST_PAIRS
        and all(_is_number(ratio) and ratio > 0 for ratio in v)
      ),
      f"at least {LEAST_PAIRS} ratios above 0",
    ),
    "kernel_us": _TIME,
    "reference_us": _TIME,
    "peak_bytes": _COUNT,
    "bytes": _COUNT,
  },
}
KINDS = tuple(_FIGURES)


def validated(record: Record) -> dict[str, Any]:
  """Checks a record and returns it as plain values.

  Raises:
    InputError: it lacks a figure, has one of the wrong type, or claims what
      its own figures deny.
  """
  try:
    return _checked(plain(record))
  except (TypeError, ValueError) as error:
    raise InputError(f"evidence is refused: {error}") from error


def to_bytes(record: Record, *, key: str, ptx: str) -> bytes:
  """A record as it is stored, with what it is about.

  Args:
    record: `validated`.
    key: of the artefact.
    ptx: SHA-256 of the code that was looked at.
  """
  return canonical({**plain(record), "key": key, "ptx": ptx})


def from_bytes(data: bytes, *, key: str, sha256: str) -> tuple[Record, str]:
  """Reads a stored record.

  Args:
    data: what `to_bytes` made.
    key: of the artefact that its name says it is about.
    sha256: of the data, as its name says.

  Returns:
    The record, and the SHA-256 of the code that was looked at.

  Raises:
    Damaged: it is another's, was changed, or breaks a rule.
  """
  if hashlib.sha256(data).hexdigest() != sha256:
    raise Damaged("its SHA-256 is not that of its name")
  try:
    document = json.loads(data)
    about, ptx = document.pop("key"), document.pop("ptx")
    if about != key or not isinstance(ptx, str):
      raise ValueError("it is about another artefact")
    return _checked(document), ptx
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise Damaged(f"it is no evidence ({error})") from error


def _checked(document: Any) -> dict[str, Any]:
  if not isinstance(document, dict):
    raise ValueError("a record is a mapping")
  _make_numbers(document)
  kind = document.get("kind")
  if kind not in KINDS:
    raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
  for name, (fits, what) in (_ALWAYS | _FIGURES[kind]).items():
    if name not in document:
      raise ValueError(f"{kind} needs {name}: {what}")
    if not fits(document[name]):
      raise ValueError(f"{kind}: {name} must be {what}")
  if kind == "interpret":
    good = all(c["error"] <= c["tolerance"] for c in document["cases"])
    if document["ok"] != good:
      raise ValueError("interpret: ok is not what its cases say")
  if kind == "static" and document["ok"] and not document["assembled_for"]:
    raise ValueError("static: ok, but assembled for nothing")
  if kind == "xla_aot" and not _is_text(document["by"].get("jaxlib")):
    raise ValueError("xla_aot needs jaxlib in by")
  if not isinstance(document.get("table", []), list | dict):
    raise ValueError("gpu: table must be a list or a mapping")
  return document


def _make_numbers(record: dict[str, Any]) -> None:
  """Makes errors that are not finite numbers again, in place."""
  cases = record.get("cases")
  for part in (record, *(cases if isinstance(cases, list) else ())):
    for name in ("error", "max_error"):
      if isinstance(part, dict) and part.get(name) in _NOT_FINITE:
        part[name] = float(part[name])


def _moment(made: str) -> datetime.datetime:
  return datetime.datetime.fromisoformat(made)


def in_order(records: Iterable[Record]) -> list[Record]:
  """Sorts by when they were made; of equals, as given."""
  return sorted(records, key=lambda record: _moment(record["made"]))


def _newest(
  records: Iterable[Record], kind: str, **fields: str
) -> Record | None:
  fitting = [
    record
    for record in records
    if record["kind"] == kind
    and all(record[name] == value for name, value in fields.items())
  ]
  return in_order(fitting)[-1] if fitting else None


def status(records: Sequence[Record], device_kind: str) -> Status:
  """What an artefact may be used for on a kind of device.

  REJECTED: a check that needs no GPU failed, or the newest run on such a
  device gave a wrong or changing result, or a median speedup below
  LEAST_SPEEDUP. VALIDATED: that run was right, fast enough, and the interval
  of its speedup lies above 1. PENDING: everything else; runs on other kinds of
  devices, and checks without one, never validate.
  """
  early = (r for r in records if r["kind"] in _BEFORE_A_GPU)
  if not all(record["ok"] for record in early):
    return Status.REJECTED
  run = _newest(records, "gpu", device_kind=device_kind)
  if run is None:
    return Status.PENDING
  median, low, _ = interval(run["step_ratios"])
  right = run["max_error"] <= run["tolerance"] and run["deterministic"]
  if not right or median < LEAST_SPEEDUP:
    return Status.REJECTED
  return Status.VALIDATED if low > 1 else Status.PENDING


def probed(
  records: Sequence[Record], device_kind: str, driver: str, jaxlib: str
) -> bool | None:
  """Newest verdict of the probe on exactly this; None where there is none."""
  found = _newest(
    records, "probe", device_kind=device_kind, driver=driver, jaxlib=jaxlib
  )
  return None if found is None else found["ok"]


def speedup(
  records: Sequence[Record], device_kind: str
) -> tuple[float, float, float] | None:
  """Median, low and high of the newest speedup on a kind of device.

  Reference time / kernel time inside the step; see `interval`.
  """
  run = _newest(records, "gpu", device_kind=device_kind)
  return None if run is None else interval(run["step_ratios"])


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
  """Median of paired ratios, and an interval of their geometric mean.

  Student's t at CONFIDENCE on the logarithms of the ratios, which are taken to
  be independent: a ratio and its inverse then weigh the same.

  Args:
    ratios: at least two, above 0.
  """
  logs = [math.log(ratio) for ratio in ratios]
  half = (
    _students_t(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
  )
  mean = statistics.fmean(logs)
  return (
    statistics.median(ratios),
    math.exp(mean - half),
    math.exp(mean + half),
  )


@functools.cache
def _students_t(degrees: int) -> float:
  """What |t| stays below with probability CONFIDENCE.

  By bisection of the finite sum for whole degrees of freedom: Abramowitz and
  Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4. SciPy
  would take longer to import than a registry takes to answer.
  """

  def probability(t: float) -> float:
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees + odd, 2):
      total += term
      term *= cosine**2 * k / (k + 1)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total

  low, high = 0.0, 100.0
  for _ in range(60):
    middle = (low + high) / 2
    if probability(middle) < CONFIDENCE:
      low = middle
    else:
      high = middle
  return high


def device_kinds(records: Iterable[Record]) -> tuple[str, ...]:
  """The kinds of devices that the artefact was measured on, in order."""
  kinds = {r["device_kind"] for r in records if r["kind"] == "gpu"}
  return tuple(sorted(kinds))


def latency(
  records: Sequence[Record], device_kind: str | None = None
) -> float | None:
  """Microseconds of the newest run, on a kind of device or on any."""
  fields = {} if device_kind is None else {"device_kind": device_kind}
  run = _newest(records, "gpu", **fields)
  return None if run is None else run["kernel_us"]


def tags(artefact: Artefact, records: Sequence[Record]) -> tuple[str, ...]:
  """Words for what the figures show, in alphabetical order.

  no_spills: the newest static record says so. low_memory: that, and at most
  LOW_MEMORY bytes of shared memory. high_speed: on some kind of device the
  newest run has a median speedup of at least HIGH_SPEED.
  """
  found = set()
  static = _newest(records, "static")
  if static is not None and not static["spills"]:
    found.add("no_spills")
    if max(static["shared"], artefact.launch.shared) <= LOW_MEMORY:
      found.add("low_memory")
  for kind in device_kinds(records):
    measured = speedup(records, kind)
    if measured is not None and measured[0] >= HIGH_SPEED:
      found.add("high_speed")
  return tuple(sorted(found))
