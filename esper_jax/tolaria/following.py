"""The files of a run that several processes train: one has them, all follow."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from esper_jax import config as config_lib
from esper_jax.oona.bus import Bus, Sink
from esper_jax.tolaria import processes
from esper_jax.tolaria.assembly import Parts
from esper_jax.tolaria.checkpoints import Damage, Loaded
from esper_jax.tolaria.store import Store
from esper_jax.types import InputError


def open_store(path: str | Path, config: ConfigDict, parts: Parts) -> Store:
  """Takes the directory of a run; of several processes the first one does.

  Args and errors: see `Store`; all processes fail together, and where they
  were started with other configs or on other data.
  """
  if not processes.several():
    return Store(path, config, parts)
  mine = config_lib.config_hash(config), parts.data.sha256
  all_of_them = processes.gather(mine)
  if any(other != mine for other in all_of_them):
    raise InputError(
      f"{len(all_of_them)} processes were started to train one network, but not"
      " with the same config and data; start all alike"
    )
  if not processes.leads():
    return Follower()
  try:
    store = Store(path, config, parts)
  except InputError as error:
    processes.agree(error)
    raise
  processes.agree(store.shared())
  return store


class Follower(Store):
  """What the store of process 0 says, in a process that writes nothing."""

  redis = None

  def __init__(self) -> None:
    """Waits until process 0 has the directory.

    Raises:
      InputError: it cannot have it.
    """
    told = processes.agree(None)
    if isinstance(told, InputError):
      raise told
    vars(self).update(told)

  def attach(self, bus: Bus, sinks: Iterable[Sink] = ()) -> None:
    """Numbers events as process 0 does, and writes none."""
    for sink in sinks:
      bus.subscribe(sink, required=True)
    bus.next_id = self._next_event

  def last_scheduled(self) -> tuple[Loaded | None, list[Damage]]:
    """See `Store.last_scheduled`."""
    return processes.agree(None)

  def log(self, line: Any) -> None:
    """Writes nothing."""

  def save(self, *args: Any, **how: Any) -> None:
    """Writes nothing."""

  def wait(self) -> None:
    """Nothing is being written."""

  def write_result(self, document: Any) -> None:
    """Writes nothing."""

  def flush(self, tell: Any) -> None:
    """Copies nothing."""

  def close(self) -> None:
    """Holds nothing."""
