"""A learned policy on the disk: one .safetensors file.

Its metadata, texts of JSON: `schema` of the file, `observation_schema` (of the
features, see `features.SCHEMA`), `network` (its sizes), `blueprint_features`
(their names), `provenance` (where it comes from), and `sha256` of all of that
and of the weights, so that damage shows. Its tensors: float32, "module/leaf".
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from esper_jax.tamiyo import features, network
from esper_jax.tamiyo.network import DEFAULT, Sizes
from esper_jax.tamiyo.traits import TRAITS
from esper_jax.types import InputError, PyTree

SCHEMA = 1
FOLDER = Path(__file__).parent / "policies"  # that the package brings
SHIPPED = FOLDER / "learned.safetensors"
_LARGEST = 1 << 24  # bytes; a file beyond it is no policy of ours
_MOST = 1024  # of any size of a network


class PolicyFile(NamedTuple):
  """What a file holds.

  Attributes:
    params: of the network; float32, finite.
    sizes: of the network.
    provenance: JSON values; who trained it, on what, with which scores.
    sha256: of the content, hexadecimal.
  """

  params: PyTree
  sizes: Sizes
  provenance: dict[str, Any]
  sha256: str


def save(
  path: str | os.PathLike[str],
  params: PyTree,
  *,
  sizes: Sizes = DEFAULT,
  provenance: Mapping[str, Any] | None = None,
) -> str:
  """Writes a policy; readers see all of it or what was there before.

  Args:
    path: of the file; one that is there is replaced.
    params: see `network.init`.
    sizes: of the network.
    provenance: what JSON can hold.

  Returns:
    The SHA-256 of the content.

  Raises:
    InputError: it cannot be written, or `from_bytes` would refuse it.
  """
  data = to_bytes(params, sizes=sizes, provenance=provenance)
  sha256 = from_bytes(data, str(path)).sha256
  place = Path(path)
  temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("xb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(place)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise InputError(f"cannot write {path}: {error.strerror}") from error
  return sha256


def load(path: str | os.PathLike[str]) -> PolicyFile:
  """Reads a policy.

  Raises:
    InputError: it is missing or what `from_bytes` refuses.
  """
  try:
    with Path(path).open("rb") as file:
      data = file.read(_LARGEST + 1)
  except FileNotFoundError:
    raise InputError(f"{path}: no such policy file") from None
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  return from_bytes(data, str(path))


def to_bytes(
  params: PyTree,
  *,
  sizes: Sizes = DEFAULT,
  provenance: Mapping[str, Any] | None = None,
) -> bytes:
  """A policy as it is stored; see `save`."""
  arrays = {
    name: np.ascontiguousarray(leaf, np.float32)
    for name, leaf in _named(params).items()
  }
  metadata = {
    "schema": json.dumps(SCHEMA),
    "observation_schema": json.dumps(features.SCHEMA),
    "network": json.dumps(sizes._asdict()),
    "blueprint_features": json.dumps([*features.BLUEPRINT, *TRAITS]),
    "provenance": json.dumps(dict(provenance or {}), sort_keys=True),
  }
  sha256 = _hash(arrays, metadata)
  data = safetensors.save(arrays, {**metadata, "sha256": json.dumps(sha256)})
  return _ordered(data)


def from_bytes(data: bytes, source: str) -> PolicyFile:
  """Reads a policy from the content of its file.

  Args:
    data: the content.
    source: what to call it in an error.

  Raises:
    InputError: it is damaged, of another schema or for other features, does
      not fit its network, or has weights that are not finite.
  """
  arrays, texts, sha256 = _parsed(data, source)
  metadata = {name: json.loads(text) for name, text in texts.items()}
  schema = metadata.get("schema")
  if schema != SCHEMA:
    raise InputError(
      f"{source} has policy schema {schema!r}, this version reads {SCHEMA};"
      " train it again, or use the version that wrote it"
    )
  if sha256 != _hash(arrays, texts):
    raise InputError(
      f"{source} is damaged: its SHA-256 is not that of its content; copy it"
      " again"
    )
  found = metadata.get("observation_schema")
  if found != features.SCHEMA:
    raise InputError(
      f"{source} was trained on other features (observation schema"
      f" {str(found)[:12]}, here {features.SCHEMA[:12]}); train it again, or"
      " use the version that wrote it"
    )
  sizes = _sizes(metadata.get("network"), source)
  expected = jax.eval_shape(lambda: network.init(jax.random.key(0), sizes))
  _check_shapes(arrays, _named(expected), source)
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise InputError(
        f"{source} has weights that are not finite ({name}); train it again"
      )
  leaves, structure = jax.tree_util.tree_flatten_with_path(expected)
  params = structure.unflatten([arrays[_name(path)] for path, _ in leaves])
  provenance = metadata.get("provenance")
  known = provenance if isinstance(provenance, dict) else {}
  return PolicyFile(params, sizes, known, sha256)


def _ordered(data: bytes) -> bytes:
  """The file with its header in order: the library's differs each time."""
  end = 8 + int.from_bytes(data[:8], "little")
  header = json.loads(data[8:end])
  text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
  return len(text).to_bytes(8, "little") + text + data[end:]


def _parsed(
  data: bytes, source: str
) -> tuple[dict[str, np.ndarray], dict[str, str], str]:
  """(arrays, metadata as JSON texts, SHA-256 that they are said to have)."""
  try:
    if len(data) > _LARGEST:
      raise ValueError(f"it has more than {_LARGEST:,} bytes")
    arrays = safetensors.load(data)
    length = int.from_bytes(data[:8], "little")
    texts = json.loads(data[8 : 8 + length])["__metadata__"]
    for text in texts.values():
      json.loads(text)
    sha256 = json.loads(texts.pop("sha256"))
  except (
    SafetensorError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
  ) as error:
    reason = (str(error).splitlines() or [""])[0]
    raise InputError(
      f"{source} is not a policy file, or damaged ({reason}); copy it again"
    ) from error
  return arrays, texts, sha256


def _sizes(found: Any, source: str) -> Sizes:
  good = isinstance(found, dict) and found.keys() == set(Sizes._fields)
  if good:
    good = all(type(n) is int and 1 <= n <= _MOST for n in found.values())
  if not good or found["width"] % found["heads"]:
    raise InputError(
      f"{source} names a network that cannot be: {json.dumps(found)}; train it"
      " again"
    )
  return Sizes(**found)


def _check_shapes(
  arrays: Mapping[str, np.ndarray], expected: Mapping[str, Any], source: str
) -> None:
  wrong = [
    name
    for name in sorted({*arrays, *expected})
    if name not in arrays
    or name not in expected
    or arrays[name].shape != expected[name].shape
    or arrays[name].dtype != np.float32
  ]
  if wrong:
    raise InputError(
      f"{source} does not fit the network that it names: {', '.join(wrong[:3])}"
      " is missing, not expected, or of another shape or type; train it again"
    )


def _hash(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> str:
  found = hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode())
  for name in sorted(arrays):
    array = arrays[name]
    found.update(f"{name} {array.dtype} {array.shape}\n".encode())
    found.update(array.tobytes())
  return found.hexdigest()


def _named(params: PyTree) -> dict[str, Any]:
  paths = jax.tree_util.tree_leaves_with_path(params)
  return {_name(path): leaf for path, leaf in paths}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
