"""Where arrays lie when a run has several devices.

A batch is cut over the devices, each of which computes on its share; what is
summed over the batch is summed over all devices. The partitioner of XLA (GSPMD;
Xu et al., 2021, arXiv:2105.04663) works this out from where a program's
arguments lie, so that the programs are those of one device. Large parameters
and what the optimizer keeps of them may be cut too, as in FSDP (Zhao et al.,
2023, arXiv:2304.11277); everything else lies on every device. Where a newborn
seed lies follows from the same rule.

Where the devices are of several processes, only the programs that read examples
run on all of them; each process does the rest by itself, on arrays of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from esper_jax.types import InputError, PyTree

AXIS = "data"
REPLICATED, SHARDED = "replicated", "sharded"
# Of a program: argument -> its axis of examples.
_EXAMPLES: dict[str, dict[int, int]] = {
  "train": {4: 0},
  "chunk": {4: 1},
  "evaluate": {3: 0, 4: 0, 5: 0},
  "metrics": {3: 0, 4: 0},
  "probe": {3: 0, 4: 0},
}
# Of a program: arguments that hold parameters.
_PARAMETERS: dict[str, range] = {
  "train": range(1),
  "chunk": range(1),
  "evaluate": range(3),
  "metrics": range(3),
  "probe": range(3),
}


class Layout(NamedTuple):
  """A mesh and the rule by which arrays are cut.

  Attributes:
    mesh: of one axis.
    least: elements from which a parameter is cut; 0 cuts none.
    several: whether its devices are of several processes.
  """

  mesh: Mesh
  least: int
  several: bool = False

  def place(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where the arguments of a program lie.

    Args:
      name: of the program.
      args: arrays or their shapes.

    Returns:
      A NamedSharding in place of each; None where it is the process's own.
    """
    if self.several and name not in _EXAMPLES:
      return jax.tree.map(lambda x: None, args)
    examples, parameters = _EXAMPLES.get(name, {}), _PARAMETERS.get(name, ())
    found = []
    for n, arg in enumerate(args):
      if n in examples:
        axis = examples[n]
        found.append(jax.tree.map(lambda x, a=axis: self._cut(x, a), arg))
      elif n in parameters and self.least:
        found.append(jax.tree.map(self._parameter, arg))
      else:
        found.append(jax.tree.map(lambda x: self._on(), arg))
    return tuple(found)

  def whole(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose results every process can read."""
    if not self.several:
      return function

    def gathered(*args: Any) -> Any:
      return jax.lax.with_sharding_constraint(function(*args), self._on())

    return gathered

  def everywhere(self, x: Any) -> jax.Array:
    """An array that many calls of programs read, on every device."""
    return _bring(x, self._on())

  def bring(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A program's arguments as arrays of all processes."""
    if not self.several:
      return args
    return jax.tree.map(_bring, args, self.place(name, args))

  def home(self, tree: PyTree) -> PyTree:
    """A program's results as arrays of this process."""
    if not self.several:
      return tree
    return jax.tree.map(lambda x: x.addressable_data(0), tree)

  def _on(self, *axes: str | None) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec(*axes))

  def _cut(self, x: Any, axis: int) -> NamedSharding:
    """Cut along an axis that divides by the number of devices, or whole."""
    if x.shape[axis] % self.mesh.size:
      return self._on()
    return self._on(*[None] * axis, AXIS)

  def _parameter(self, x: Any) -> NamedSharding:
    """Cut along the longest axis that divides, if it is large."""
    fitting = [n for n, size in enumerate(x.shape) if not size % self.mesh.size]
    if x.size < self.least or not fitting:
      return self._on()
    return self._cut(x, max(fitting, key=lambda n: x.shape[n]))


def _bring(x: Any, sharding: NamedSharding) -> jax.Array:
  """An array that all processes hold alike, as one of all devices."""
  if sharding.is_fully_addressable:
    return jax.device_put(x, sharding)
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return x  # it was brought before
  if not sharding.is_fully_replicated:
    whole = np.asarray(x)
    return jax.make_array_from_callback(
      whole.shape, sharding, lambda index: whole[index]
    )
  copies = [jax.device_put(x, d) for d in sharding.addressable_devices]
  return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)


def count_devices(config: ConfigDict) -> int:
  """Over how many devices a config cuts a batch.

  Raises:
    InputError: there are fewer.
  """
  asked, there = config.mesh.data, jax.devices()
  if asked > len(there):
    are = "is 1 device" if len(there) == 1 else f"are {len(there)} devices"
    raise InputError(
      f"--config.mesh.data={asked}: there {are} ({there[0].platform}); give at"
      f" most {len(there)}, or 0 for all. On a CPU the environment variable"
      " JAX_NUM_CPU_DEVICES says how many there are"
    )
  if jax.process_count() > 1:
    _check_processes(config, len(there))
  return asked or len(there)


def _check_processes(config: ConfigDict, there: int) -> None:
  m, count = config.mesh, jax.process_count()
  if m.data not in (0, there):
    raise InputError(
      f"--config.mesh.data={m.data}: {count} processes have {there} devices,"
      " and all take part; give 0"
    )
  if m.parameters == SHARDED:
    raise InputError(
      f"--config.mesh.parameters={SHARDED}: not with {count} processes, whose"
      f" checkpoints are written by one; give {REPLICATED}"
    )


def make_layout(config: ConfigDict) -> Layout | None:
  """The layout that a config asks for; None on one device.

  Raises:
    InputError: see `count_devices`; or a batch cannot be cut evenly.
  """
  count, m = count_devices(config), config.mesh
  if config.data.batch_size % count:
    raise InputError(
      f"--config.data.batch_size={config.data.batch_size}: must be a multiple"
      f" of the {count} devices of --config.mesh.data={m.data}"
    )
  if count == 1:
    return None
  mesh = jax.make_mesh(
    (count,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:count]
  )
  least = m.shard_from if m.parameters == SHARDED else 0
  return Layout(mesh, least, several=jax.process_count() > 1)


def describe(config: ConfigDict) -> str:
  """What is added to the line about the device; empty on one device."""
  count = count_devices(config)
  if count == 1:
    return ""
  processes = jax.process_count()
  of = f" of {processes} processes" if processes > 1 else ""
  return (
    f"; {count} devices{of} share each batch, parameters"
    f" {config.mesh.parameters}"
  )
