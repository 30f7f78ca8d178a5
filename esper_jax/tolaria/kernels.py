"""Urza's kernels in a run: taken up at its start, told of at its boundaries."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from esper_jax.oona.health import Health, State
from esper_jax.tolaria.layout import count_devices
from esper_jax.tolaria.run import Run
from esper_jax.urza import dispatch, probe
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.device import Device
from esper_jax.urza.dispatch import Dispatcher, Fallback
from esper_jax.urza.registry import Registry, check_folder, open_registry

ALL = "all"  # in place of a kernel's name


def check(config: ConfigDict) -> None:
  """Raises InputError where a config names a folder that no run may use."""
  if config.urza.dir:
    check_folder(config.urza.dir, trusted=config.urza.trusted)


def describe(config: ConfigDict, device: Device | None = None) -> str:
  """Says, in a few words, where kernels may run.

  Args:
    config: validated.
    device: None means the first that JAX sees.
  """
  device = device or probe.gpu()
  if device is None:
    return "no GPU: the reference code runs"
  if count_devices(config) > 1:
    return "several devices: the reference code runs"
  return f"kernels on {device.kind}: urza.require={config.urza.require}"


class Kernels:
  """The stored kernels that a run may use; on a CPU there are none."""

  def __init__(
    self,
    device: Device | None,
    open: Callable[[], Registry] = open_registry,
    *,
    require: str = "validated",
  ):
    """Opens the registry; where it cannot be read, references run.

    Args:
      device: what the kernels run on; None is the CPU, where references do,
        and nothing is opened.
      open: opens it.
      require: see `Dispatcher`.

    Raises:
      InputError: others could write to the registry's folder, and it is not
        trusted.
    """
    self._device = device
    self._require = require
    self._registry: Registry | None = None
    self._dispatcher: Dispatcher | None = None
    self._untold: list[Fallback] = []
    self._error = ""
    if device is not None:
      try:
        self._registry = open()
      except (OSError, Damaged) as error:
        self._error = f"the registry cannot be read: {error}"
        self._untold.append(Fallback(ALL, "", self._error))

  @classmethod
  def of(cls, config: ConfigDict, device: Device | None = None) -> "Kernels":
    """What a config says.

    Its folder is checked on every device: what would be refused beside a GPU
    is no surprise there.

    Args:
      config: validated.
      device: None means the first that JAX sees.

    Raises:
      InputError: see the constructor and `check`.
    """
    check(config)
    u = config.urza
    # A program over a mesh cannot cut what it does not know, such as a kernel.
    several = count_devices(config) > 1
    return cls(
      None if several else device or probe.gpu(),
      lambda: open_registry(u.dir, trusted=u.trusted),
      require=u.require,
    )

  def take_up(self, chosen: Mapping[str, str]) -> None:
    """Lets the programs that are traced from now on use the kernels.

    Args:
      chosen: of a run before it was interrupted, which is chosen again.
    """
    if self._device is None or self._registry is None:
      return
    self._dispatcher = Dispatcher(
      self._registry,
      self._device,
      require=self._require,
      probe=probe.make_probe(self._registry),
      prefer=chosen,
    )
    dispatch.install(self._dispatcher)

  def report(self, run: Run, publish: Callable[..., Any]) -> None:
    """Publishes what fell back since the last call; notes what was chosen.

    Args:
      run: its `kernels` are changed.
      publish: takes the event's type, `kernel` and `reason`.
    """
    fallbacks, self._untold = self._untold, []
    if self._dispatcher is not None:
      run.kernels = self._dispatcher.choices
      fallbacks += self._dispatcher.fallbacks()
    for fallback in fallbacks:
      publish("kernel_fallback", kernel=fallback.kernel, reason=fallback.reason)

  def health(self) -> Health:
    """Says whether the registry could be read."""
    state = State.DEGRADED if self._error else State.READY
    return Health(state, error=self._error)

  def close(self) -> None:
    """Leaves the process as it was before `take_up`; idempotent."""
    if dispatch.installed() is self._dispatcher:
      dispatch.install(None)
    self._dispatcher = None
