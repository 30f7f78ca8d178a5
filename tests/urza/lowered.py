"""What a program looks like when it is lowered for a GPU that is not here."""

import zlib
from collections.abc import Callable
from typing import Any

import jax

from esper_jax.urza import wire


def for_cuda(function: Callable[..., Any], *args: Any) -> jax.stages.Lowered:
  """A function, jitted or not, lowered for CUDA; nothing is compiled."""
  return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",))


def launches(lowered: jax.stages.Lowered) -> list[bytes]:
  """The launch messages in a lowered program, in order."""
  found = []

  def walk(operation: Any) -> None:
    if operation.name == "stablehlo.custom_call":
      attributes = operation.attributes
      if attributes["call_target_name"].value == wire.CALL_TARGET:
        config = attributes["mhlo.backend_config"]
        found.append(zlib.decompress(config["opaque"].value_bytes))
    for region in operation.regions:
      for block in region:
        for inner in block:
          walk(inner.operation)

  module: Any = lowered.compiler_ir("stablehlo")
  walk(module.operation)
  return found
