"""The network as one StableHLO program, weights included."""

import contextlib
from collections.abc import Iterator

import jax
from jax import export

from esper_jax.export.network import GrownNetwork
from esper_jax.urza import dispatch

PLATFORMS = ("cpu", "cuda")


def serialize(network: GrownNetwork) -> bytes:
  """Lowers a network for any batch size and for `PLATFORMS`.

  References stand in place of kernels, so the program needs no code of ours:
  `jax.export.deserialize(data).call(images)`.
  """
  (batch,) = export.symbolic_shape("batch")
  shape = network.topology["input"]["shape"][1:]
  images = jax.ShapeDtypeStruct((batch, *shape), "uint8")
  constants = jax.device_get(network.variables)
  with dispatch.using(None), _no_locations():
    program = export.export(
      jax.jit(lambda images: network.apply(constants, images)),
      platforms=PLATFORMS,
    )(images)
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


def run(data: bytes, images: jax.Array) -> jax.Array:
  """Runs a serialized program on images uint8 [batch, ...]."""
  return export.deserialize(bytearray(data)).call(images)
