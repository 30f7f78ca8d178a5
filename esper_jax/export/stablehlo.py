"""The network as one StableHLO program, weights included."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax import export

from esper_jax.export.network import GrownNetwork
from esper_jax.knobs import GIVEN
from esper_jax.oona.lineage import PROGRAM
from esper_jax.types import InputError
from esper_jax.urza import dispatch

PLATFORMS = ("cpu", "cuda")
# Largest difference of an output, relative to the largest one (or to 1): what
# another order of the same sums may come to, in the dtype of the computation.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2**-4}
_EXAMPLES = 8  # on which a model is compared with its program


def serialize(network: GrownNetwork) -> bytes:
  """Lowers a network for any batch size (and time) and for `PLATFORMS`.

  References stand in place of kernels, so the program needs no code of ours:
  `jax.export.deserialize(data).call(images)`.

  Raises:
    InputError: a user's model cannot be lowered so.
  """
  reads = network.topology["input"]
  limits = [f"time <= {reads['context']}"] if "context" in reads else []
  shape = export.symbolic_shape(
    ", ".join(map(str, reads["shape"])), constraints=limits
  )
  inputs = jax.ShapeDtypeStruct(shape, reads["dtype"])
  constants = jax.device_get(network.variables)
  try:
    with dispatch.using(None), _no_locations():
      program = export.export(
        jax.jit(lambda inputs: network.apply(constants, inputs)),
        platforms=PLATFORMS,
      )(inputs)
  except Exception as error:  # a user's code raises anything
    if network.topology["host"]["name"] != GIVEN:
      raise
    reason = (str(error).splitlines() or [""])[0]
    raise InputError(
      f"no {PROGRAM}: the model cannot be lowered for any batch size on"
      f" {' and '.join(PLATFORMS)} ({type(error).__name__}: {reason}); write"
      " shapes by x.shape[0], and export again"
    ) from error
  return bytes(program.serialize())


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
  """Keeps the paths of this machine's files out of a program."""
  name = "jax_traceback_in_locations_limit"
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def run(data: bytes, inputs: jax.Array) -> jax.Array:
  """Runs a serialized program on what its network reads."""
  return export.deserialize(bytearray(data)).call(inputs)


def tolerance(network: GrownNetwork, largest: float) -> float:
  """How far an output may be from training's, the largest of which is given."""
  return TOLERANCE[network.topology["host"]["dtype"]] * max(1.0, largest)


def check_model(network: GrownNetwork) -> None:
  """Refuses a user's model that computes something else than what grew.

  It runs beside the exported program, on the CPU, on drawn examples (whole
  numbers: zeros). Where there is no program, or no CPU, nothing is compared.

  Raises:
    InputError: an output differs.
  """
  assert network.folder is not None
  path, form = network.folder / PROGRAM, network.topology["input"]
  try:
    cpu = jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return
  if not path.exists():
    return
  drawn = np.random.default_rng(0).normal(
    64.0, 64.0, (_EXAMPLES, *form["shape"][1:])
  )
  if form["dtype"] == "uint8":
    drawn = drawn.clip(0, 255)
  elif form["dtype"] == "int32":
    drawn = np.zeros_like(drawn)
  else:
    drawn = drawn / 64 - 1
  with jax.default_device(cpu), dispatch.using(None):
    inputs = jax.numpy.asarray(drawn.astype(form["dtype"]))
    expected = np.asarray(run(path.read_bytes(), inputs), np.float32)
    found = np.asarray(jax.jit(network.__call__)(inputs), np.float32)
  known = np.isfinite(expected)
  largest = np.abs(expected[known]).max(initial=0.0)
  bound = tolerance(network, float(largest))
  difference = float(np.abs(found - expected)[known].max(initial=0.0))
  if not difference <= bound:
    raise InputError(
      "the model is not the one that grew: an output differs by"
      f" {difference:.2g} from {path} on drawn examples, more than {bound:.2g};"
      " give the same class and blueprints"
    )
