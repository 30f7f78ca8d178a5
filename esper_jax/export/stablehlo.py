"""The network as one StableHLO program, weights included."""

import contextlib
from collections.abc import Iterator

import jax
from jax import export

from esper_jax.export.network import GrownNetwork
from esper_jax.knobs import GIVEN
from esper_jax.oona.lineage import PROGRAM
from esper_jax.types import InputError
from esper_jax.urza import dispatch

PLATFORMS = ("cpu", "cuda")


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
