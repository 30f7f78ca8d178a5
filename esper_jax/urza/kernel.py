"""What a kernel is to the rest of the project: a record of plain functions.

A call of a kernel is described by its arguments alone, arrays or their
shapes: the same arguments go to `reference` and, through `form` and `plan`,
to the machine code. How many rows there are is an argument of the machine
code; how many channels is a constant of it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from esper_jax.urza.language import Source

# Names as Triton writes them in a signature.
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

Tiles = Mapping[str, int]
"""One way to cut the work: the tunable constants of the source, and
`num_warps` and `num_stages`."""

Arguments = tuple[Any, ...]
"""Arrays, tracers or `jax.ShapeDtypeStruct`s."""


class Unsuitable(Exception):
  """These arguments have no kernel; the text says why, in a few words."""


class Form(NamedTuple):
  """What of a call decides the machine code, apart from tiles and target.

  Attributes:
    dtype: of the activations: "float32", "bfloat16" or "float16".
    signature: (parameter, type) of all pointers and scalars in order; a type
      is "*fp32", "*bf16", "*fp16" or "i32".
    constants: (parameter, value), in order of the names.
  """

  dtype: str
  signature: tuple[tuple[str, str], ...]
  constants: tuple[tuple[str, int], ...]


class Plan(NamedTuple):
  """How the machine code is launched.

  Attributes:
    grid: number of programs along each of three axes.
    scalars: values of the i32 parameters, in order.
    outputs: what the code writes, in the order of its parameters, which come
      after the inputs and before the scalars.
  """

  grid: tuple[int, int, int]
  scalars: tuple[int, ...]
  outputs: tuple[jax.ShapeDtypeStruct, ...]


class Cost(NamedTuple):
  """What a call must at least do.

  Attributes:
    bytes: read and written, each array once.
    flops: floating point operations; a multiply-add counts two.
  """

  bytes: int
  flops: int


class Kernel(NamedTuple):
  """One kernel and everything that is checked against it.

  Attributes:
    name: as in the registry.
    source: the Triton function; its parameters are the inputs, the outputs,
      the i32 scalars, and the constants, in this order.
    form: arguments -> Form. Raises Unsuitable.
    tiles: Form -> the ways to cut the work that are worth trying; the first is
      the one that is built where nothing was measured.
    plan: (arguments, tiles) -> Plan.
    finish: (outputs of the code, arguments) -> what `reference` returns; sums
      up what the programs left in parts.
    reference: arguments -> tuple of arrays, in jax.numpy; the truth.
    arguments: (dtype, constants, batch, height, width) -> shapes of the
      arguments of a call whose form has this dtype and these constants.
    shipped: the constants that are built for the package.
    cost: arguments -> Cost.
    tolerance: dtype -> largest error of an element, as a share of
      (1 + its size), that the kernel is allowed against a float32 reference.
    note: where the idea is from, and what it saves.
  """

  name: str
  source: Source
  form: Callable[..., Form]
  tiles: Callable[[Form], tuple[Tiles, ...]]
  plan: Callable[[Arguments, Tiles], Plan]
  finish: Callable[[tuple[Any, ...], Arguments], tuple[Any, ...]]
  reference: Callable[..., tuple[Any, ...]]
  arguments: Callable[
    [str, Mapping[str, int], int, int, int], tuple[jax.ShapeDtypeStruct, ...]
  ]
  shipped: tuple[Mapping[str, int], ...]
  cost: Callable[..., Cost]
  tolerance: Mapping[str, float]
  note: str


def handle_of(kernel: Kernel, form: Form) -> str:
  """What artefacts are looked up by: equal for all tiles and targets.

  SHA-256 of the kernel's name, the text of its source, and the form. Needs no
  Triton.
  """
  return digest_of(
    {
      "kernel": kernel.name,
      "source": kernel.source.digest,
      "signature": form.signature,
      "constants": form.constants,
    }
  )


def digest_of(document: Any) -> str:
  """SHA-256 of a document's canonical JSON text."""
  return hashlib.sha256(canonical(document)).hexdigest()


def canonical(document: Any) -> bytes:
  """A document as JSON with sorted keys, no spaces and no NaN."""
  text = json.dumps(
    document, sort_keys=True, separators=(",", ":"), allow_nan=False
  )
  return text.encode()
