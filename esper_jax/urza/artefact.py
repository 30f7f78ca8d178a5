"""A compiled kernel as the registry keeps it: plain records and their JSON."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from esper_jax.urza.kernel import TYPES, digest_of

SCHEMA = 1
FILES = ("ptx", "ttir")  # of every artefact
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Damaged(Exception):
  """Something in a registry is not what was put there; the text says what."""


@dataclasses.dataclass(frozen=True)
class Spec:
  """Everything that decides the bytes of an artefact.

  Attributes:
    kernel: name of the kernel.
    source: SHA-256 of the kernel's text and its helpers'.
    signature: (parameter, type), in order; see `kernel.Form`.
    constants: (parameter, value) that the call fixes, in order of the names.
    tiles: (parameter, value) that were free to choose, in order of the names;
      num_warps and num_stages among them.
    options: (name, value) given to the compiler, the same for all kernels.
    target: compute capability that it was compiled for, e.g. 80.
    triton: version of Triton.
  """

  kernel: str
  source: str
  signature: tuple[tuple[str, str], ...]
  constants: tuple[tuple[str, int], ...]
  tiles: tuple[tuple[str, int], ...]
  options: tuple[tuple[str, int | bool], ...]
  target: int
  triton: str

  @property
  def dtype(self) -> str:
    """The dtype of its activations, as in `kernel.Form`."""
    named = {kind.removeprefix("*") for _, kind in self.signature}
    # Parameters and sums are float32 whatever the activations are.
    for dtype, name in TYPES.items():
      if dtype != "float32" and name in named:
        return dtype
    return "float32"

  @property
  def handle(self) -> str:
    """What it is looked up by; see `kernel.handle_of`."""
    names = ("kernel", "source", "signature", "constants")
    return digest_of({name: getattr(self, name) for name in names})

  @property
  def key(self) -> str:
    """Its identity: SHA-256 of the spec."""
    return digest_of(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Launch:
  """What a launch needs beside the arguments.

  Attributes:
    entry: name of the function in the PTX.
    num_warps: per program.
    shared: bytes of shared memory per program.
  """

  entry: str
  num_warps: int
  shared: int


@dataclasses.dataclass(frozen=True)
class File:
  """A blob: its SHA-256 and its size in bytes."""

  sha256: str
  size: int


@dataclasses.dataclass(frozen=True)
class Artefact:
  """A compiled kernel.

  Attributes:
    spec: what it was made of.
    launch: see `Launch`.
    files: one of each of FILES. "ptx" is what runs, "ttir" what it came from.
  """

  spec: Spec
  launch: Launch
  files: Mapping[str, File]

  @property
  def key(self) -> str:
    """Its identity."""
    return self.spec.key


def to_document(artefact: Artefact) -> dict[str, Any]:
  """The manifest as JSON values."""
  document = {"schema": SCHEMA, **dataclasses.asdict(artefact)}
  return document | {"sha256": digest_of(document)}


def from_document(document: Any) -> Artefact:
  """Reads a manifest.

  Raises:
    Damaged: it is not one that `to_document` made.
  """
  try:
    body = {name: document[name] for name in document if name != "sha256"}
    intact = digest_of(body) == document["sha256"]
    artefact = _parse(body) if intact else None
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    reason = f"it is not a manifest ({type(error).__name__}: {error})"
    raise Damaged(reason) from error
  if artefact is None:
    raise Damaged("its own SHA-256 does not fit")
  return artefact


def _parse(body: dict[str, Any]) -> Artefact:
  if body.pop("schema") != SCHEMA:
    raise ValueError("unknown schema")
  spec, launch, files = (body.pop(n) for n in ("spec", "launch", "files"))
  if body:
    raise ValueError(f"unknown fields {sorted(body)}")
  pairs = {
    name: tuple((str(k), v) for k, v in spec.pop(name))
    for name in ("signature", "constants", "tiles", "options")
  }
  fields: dict[str, Any] = {**spec, **pairs}
  artefact = Artefact(
    Spec(**fields),
    Launch(**launch),
    {name: File(**file) for name, file in files.items()},
  )
  whole = (
    _NAME.fullmatch(artefact.spec.kernel)
    and _NAME.fullmatch(artefact.launch.entry)
    and _SHA256.fullmatch(artefact.spec.source)
    and set(artefact.files) == set(FILES)
    and all(_SHA256.fullmatch(f.sha256) for f in artefact.files.values())
    and all(_is_count(f.size) for f in artefact.files.values())
    and all(map(_is_count, (artefact.spec.target, artefact.launch.shared)))
    and _is_count(artefact.launch.num_warps)
    and all(isinstance(t, str) for _, t in artefact.spec.signature)
    and all(_is_count(v) for _, v in artefact.spec.constants)
    and all(_is_count(v) for _, v in artefact.spec.tiles)
  )
  if not whole:
    raise ValueError("a field has a value that no manifest has")
  return artefact


def _is_count(value: Any) -> bool:
  return type(value) is int and value >= 0
