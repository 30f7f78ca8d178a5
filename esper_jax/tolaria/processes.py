"""Several processes that train one network, and what they agree on.

Each runs the same program on its own devices and loads the same data. Process 0
takes the decisions, writes the run directory and speaks to people; the others
follow. Whatever depends on time, on the disk or on signals is agreed on here,
at points that all processes pass in the same order.
"""

import os
import pickle
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from esper_jax.tezzeret.program import first_line
from esper_jax.types import InputError, PyTree

# Where no cluster tells: HOST:PORT of process 0, how many, and which this is.
VARIABLES = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)


def start(environment: Mapping[str, str] = os.environ) -> None:
  """Joins the processes that train one network; before JAX is used.

  Args:
    environment: has all of VARIABLES, or none where Slurm, Open MPI,
      Kubernetes or a TPU pod tells who the processes are.

  Raises:
    InputError: they cannot be told, or do not find each other.
  """
  address, *numbers = (environment.get(name, "") for name in VARIABLES)
  there = [name for name in VARIABLES if environment.get(name)]
  if there and len(there) < len(VARIABLES):
    missing = ", ".join(name for name in VARIABLES if name not in there)
    raise InputError(
      f"--distributed: {', '.join(there)} of the environment needs {missing}"
      " too; set all, or none in a cluster that tells who its processes are"
    )
  if not all(number.isdecimal() for number in numbers if number):
    raise InputError(
      f"--distributed: {VARIABLES[1]} is {numbers[0]} and {VARIABLES[2]} is"
      f" {numbers[1]}; give integers, the second one from 0"
    )
  told: Any = [None] * 3
  if there:
    told = [address, *map(int, numbers)]
  # On CPUs, programs under way side by side would mix up what they exchange.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  try:
    jax.distributed.initialize(*told)
  except (RuntimeError, ValueError) as error:
    raise InputError(
      "--distributed: the processes do not find each other"
      f" ({first_line(error)}); set"
      f" {', '.join(VARIABLES)}, or have Slurm, Open MPI, Kubernetes or a TPU"
      " pod start them"
    ) from error


def several() -> bool:
  """Whether this process is one of several."""
  return jax.process_count() > 1


def leads() -> bool:
  """Whether this process decides and writes: the only one, or process 0."""
  return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
  """What every process has, in their order; all call it at the same point."""
  if not several():
    return [value]
  content = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(content.size))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: content.size] = content
  rows = multihost_utils.process_allgather(padded)
  return [
    pickle.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes, strict=True)
  ]


def agree(value: Any) -> Any:
  """What process 0 has; all call it at the same point."""
  if not several():
    return value
  content = np.frombuffer(pickle.dumps(value if leads() else None), np.uint8)
  size = multihost_utils.broadcast_one_to_all(np.int32(content.size))
  padded = np.zeros(int(size), np.uint8)
  if leads():
    padded[:] = content
  content = np.asarray(multihost_utils.broadcast_one_to_all(padded))
  return pickle.loads(content.tobytes())


def agree_on(tree: PyTree) -> PyTree:
  """The arrays of process 0, in a tree of the same form on all."""
  if not several():
    return tree
  leaves, structure = jax.tree.flatten(tree)
  return structure.unflatten(agree([np.asarray(leaf) for leaf in leaves]))
