"""How an exported network's variables are named, in files and in plain Flax.

Every tensor is "collection/module/.../leaf". A seed is a module beside those
of the host, called "<slot>_<key>"; its gate is "<slot>_<key>_gate".
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from esper_jax.kasmina.builtin_blueprints import BUILT_IN
from esper_jax.types import InputError, PyTree

SEED_STATE = "seed_state"  # collection of what blueprints of users keep


def seed_name(slot: str, key: str, taken: set[str]) -> str:
  """The module name of a seed; it and its gate's are then taken."""
  name = f"{slot.replace('/', '_')}_{key}"
  while {name, gate_name(name)} & taken:
    name += "_"
  taken |= {name, gate_name(name)}
  return name


def gate_name(seed: str) -> str:
  """The module name of a seed's gate."""
  return f"{seed}_gate"


def to_named(tree: PyTree, blueprint: str) -> dict[str, Any]:
  """The leaves of a seed's parameters by "module/leaf".

  A norm inside another layer stands beside it, as Linen's own layers need it:
  "conv1/norm/scale" is called "conv1_norm/scale".
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_leaf_name(path, blueprint): leaf for path, leaf in leaves}


def from_named(
  shapes: PyTree, named: Mapping[str, Any], blueprint: str
) -> PyTree:
  """The inverse of `to_named`; shapes is a tree of the wanted form."""
  paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
  return structure.unflatten(
    [named[_leaf_name(path, blueprint)] for path, _ in paths]
  )


def _leaf_name(path: Any, blueprint: str) -> str:
  name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
  return name.replace("/norm/", "_norm/") if blueprint in BUILT_IN else name


def flat(variables: Mapping[str, PyTree]) -> dict[str, Any]:
  """Nested variables as "collection/module/.../leaf" -> array."""
  return traverse_util.flatten_dict(variables, sep="/")


def nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flat`."""
  return traverse_util.unflatten_dict(tensors, sep="/")


def to_bytes(variables: Mapping[str, PyTree]) -> bytes:
  """Variables as a .safetensors file; equal variables give equal bytes."""
  return safetensors.save(
    {name: np.array(leaf, order="C") for name, leaf in flat(variables).items()}
  )


def from_bytes(data: bytes, source: str) -> dict[str, Any]:
  """Variables from the content of a file.

  Args:
    data: the content.
    source: what to call it in an error.

  Raises:
    InputError: it is not such a file.
  """
  try:
    return nested(safetensors.load(data))
  except (SafetensorError, ValueError, KeyError, TypeError) as error:
    reason = (str(error).splitlines() or [""])[0]
    raise InputError(
      f"{source} is not a .safetensors file, or damaged ({reason}); export the"
      " run again"
    ) from error
