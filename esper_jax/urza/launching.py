"""Artefacts that are chosen by hand, to be judged beside their references."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from esper_jax.urza import dispatch
from esper_jax.urza.artefact import Artefact
from esper_jax.urza.device import Device
from esper_jax.urza.kernel import Kernel
from esper_jax.urza.kernels.catalogue import KERNELS

Launch = Callable[..., tuple[Any, ...]]
"""Takes a kernel's arguments and returns what its reference returns."""


class NotLaunched(Exception):
  """The machine code did not get into the program; the text says why."""


class Loaded(NamedTuple):
  """An artefact with the bytes of its files, as `Registry.load` returns it."""

  artefact: Artefact
  files: Mapping[str, bytes]


class Chosen:
  """A store that holds what is chosen and no evidence: see `dispatch.Store`."""

  def __init__(self, chosen: Iterable[Loaded]):
    self._by_handle = {c.artefact.spec.handle: c for c in chosen}

  def find(self, handle: str, /) -> tuple[tuple[Artefact, ...], tuple[()]]:
    """The one artefact of a handle, or none."""
    found = self._by_handle.get(handle)
    return ((found.artefact,) if found else ()), ()

  def record(self, key: str, /) -> "_Plain":
    """The artefact, without evidence."""
    return _Plain(self._of(key).artefact, ())

  def load(self, key: str, /) -> tuple[Artefact, Mapping[str, bytes]]:
    """The artefact and its files. KeyError where it was not chosen."""
    return self._of(key)

  def _of(self, key: str) -> Loaded:
    for loaded in self._by_handle.values():
      if loaded.artefact.key == key:
        return loaded
    raise KeyError(key)


class _Plain(NamedTuple):
  artefact: Artefact
  evidence: tuple[()]


def dispatcher(chosen: Iterable[Loaded], device: Device) -> dispatch.Dispatcher:
  """A dispatcher that runs these artefacts whatever is known about them."""
  return dispatch.Dispatcher(Chosen(chosen), device, require="nothing")


def launcher(kernel: Kernel, loaded: Loaded, device: Device) -> Launch:
  """The kernel's machine code as a function of the kernel's arguments.

  Compiles anew for every shape, and runs on the default device.

  Raises, when it is called:
    NotLaunched: the arguments do not suit the artefact.
  """

  def launch(*args: jax.Array) -> tuple[Any, ...]:
    own = dispatcher([loaded], device)
    with dispatch.using(own):
      # A new function each time: what is traced depends on the dispatcher.
      program = jax.jit(lambda *a: dispatch.call(kernel, *a))
      out = program(*args)
    require_all(own)
    return out

  return launch


def require_all(own: dispatch.Dispatcher) -> None:
  """Checks that no reference took a kernel's place.

  Raises:
    NotLaunched: one did.
  """
  fallbacks = own.fallbacks()
  if fallbacks:
    raise NotLaunched(f"{fallbacks[0].kernel}: {fallbacks[0].reason}")


def kernel_of(artefact: Artefact) -> Kernel:
  """The kernel that an artefact was compiled from.

  Raises:
    KeyError: none of this name, or its text has changed since.
  """
  kernel = KERNELS[artefact.spec.kernel]
  if kernel.source.digest != artefact.spec.source:
    raise KeyError(f"{kernel.name} has another text than the artefact's")
  return kernel
