"""What the registry keeps beside kernels: blueprints' costs, and policies.

A kept document is a JSON object with a name. "blueprints" say what a blueprint
costs: {"spec": {...}, "costs": [{"shape": [32, 32, 64], "parameters": 1024,
"flops": 2097152, "latency_us": 12.5, "device_kind": "..."}]}; one that was not
timed has None for both of the last. "policies" say where a policy comes from,
and come with a blob.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from esper_jax.oona.jsonl import plain
from esper_jax.types import InputError
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.folder import SHA256
from esper_jax.urza.kernel import canonical, digest_of

KINDS = ("blueprints", "policies")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FIELDS = {"kind", "name", "document", "blob", "sha256"}


class Kept(NamedTuple):
  """A kept document.

  Attributes:
    document: JSON values.
    blob: bytes that it came with, or None.
  """

  document: dict[str, Any]
  blob: bytes | None


def check_name(kind: str, name: str) -> None:
  """Raises InputError unless such a document can be kept."""
  if kind not in KINDS:
    raise InputError(f"'{kind}' is none of what is kept: {', '.join(KINDS)}")
  if not NAME.fullmatch(name):
    raise InputError(
      f"'{name}' cannot be a name: up to 100 letters, digits, '.', '_', '-'"
    )


def to_bytes(
  kind: str, name: str, document: Mapping[str, Any], blob: str | None
) -> bytes:
  """A document as it is stored, with its own SHA-256.

  Args:
    kind: one of KINDS.
    name: of the document.
    document: what `plain` can convert.
    blob: SHA-256 of its blob.

  Raises:
    InputError: it lacks something, or has no JSON form.
  """
  check_name(kind, name)
  try:
    body = {
      "kind": kind,
      "name": name,
      "document": plain(document),
      "blob": blob,
    }
    _check(body)
  except (TypeError, ValueError) as error:
    raise InputError(f"{kind}/{name} cannot be kept: {error}") from error
  return canonical(body | {"sha256": digest_of(body)})


def from_bytes(
  data: bytes, kind: str, name: str
) -> tuple[dict[str, Any], str | None]:
  """Reads a stored document: its values, and the SHA-256 of its blob.

  Raises:
    Damaged: it is not what `to_bytes` made for this kind and name.
  """
  try:
    body = json.loads(data)
    if set(body) != _FIELDS or canonical(body) != data:
      raise ValueError("not as it was stored")
    if body.pop("sha256") != digest_of(body):
      raise ValueError("its own SHA-256 does not fit")
    if (body["kind"], body["name"]) != (kind, name):
      raise ValueError("it is another's")
    _check(body)
  except (TypeError, ValueError, AttributeError, RecursionError) as error:
    raise Damaged(f"kept/{kind}/{name}.json: {error}") from error
  return body["document"], body["blob"]


def _check(body: Mapping[str, Any]) -> None:
  kind, document, blob = body["kind"], body["document"], body["blob"]
  if not isinstance(document, dict):
    raise ValueError("a document is a mapping")
  if blob is not None and not SHA256.fullmatch(blob):
    raise ValueError("its blob has no SHA-256")
  if kind == "policies" and blob is None:
    raise ValueError("a policy comes with a blob")
  if kind == "blueprints":
    costs = document.get("costs")
    good = isinstance(document.get("spec"), dict) and isinstance(costs, list)
    if not good or not all(map(_is_cost, costs)):
      raise ValueError(
        "a blueprint needs spec, a mapping, and costs, a list of shape,"
        " parameters, flops, latency_us and device_kind"
      )


def _is_cost(cost: Any) -> bool:
  if not isinstance(cost, dict):
    return False
  shape, time = cost.get("shape"), cost.get("latency_us")
  device = cost.get("device_kind")
  counts = (cost.get("parameters"), cost.get("flops"))
  timed = (
    isinstance(time, int | float)
    and not isinstance(time, bool)
    and math.isfinite(time)
    and time > 0
  )
  return (
    isinstance(shape, list)
    and all(type(n) is int and n >= 0 for n in (*shape, *counts))
    and (timed and isinstance(device, str) or time is None and device is None)
  )
