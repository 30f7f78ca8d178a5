"""A dispatcher asked for the sample kernel, and what it answers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esper_jax.urza import dispatch
from esper_jax.urza.device import Device
from esper_jax.urza.dispatch import Dispatcher
from esper_jax.urza.kernel import handle_of
from esper_jax.urza.registry import Registry
from tests.urza import handmade
from tests.urza.sample_kernel import KERNEL

ARGS = (
  jax.ShapeDtypeStruct((4, 6, 16), jnp.float32),
  jax.ShapeDtypeStruct((16,), jnp.float32),
)
HANDLE = handle_of(KERNEL, KERNEL.form(*ARGS))


def put(registry: Registry, *evidence: dict[str, Any], **options: Any) -> str:
  key = registry.put(*handmade.artefact(KERNEL, *ARGS, **options))
  for record in evidence:
    registry.append(key, record)
  return key


def chosen(dispatcher: Dispatcher) -> str | None:
  choice = dispatcher.choose(KERNEL, ARGS)
  return choice.artefact.key if choice else None


def why(dispatcher: Dispatcher) -> str:
  """The reason of the one fallback."""
  assert chosen(dispatcher) is None
  (fallback,) = dispatcher.fallbacks()
  assert fallback[:2] == ("scale_rows", HANDLE)
  assert chosen(dispatcher) is None  # and once more, in silence
  assert dispatcher.fallbacks() == []
  assert dispatcher.choices == {HANDLE: dispatch.REFERENCE}
  return fallback.reason


class Verdict(NamedTuple):
  ok: bool
  reason: str = ""


class Probe:
  """Notes what it is asked."""

  def __init__(self, *verdicts: Verdict):
    self.verdicts = list(verdicts)
    self.asked: list[tuple[str, Device]] = []

  def __call__(self, key: str, device: Device) -> Verdict:
    self.asked.append((key, device))
    return self.verdicts.pop(0)
