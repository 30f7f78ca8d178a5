"""Trees as named arrays: how a run's state goes into a checkpoint and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.types import InputError, PyTree

_KEY = "#key:"  # between the path of a typed random key and its generator


def flatten(tree: PyTree) -> dict[str, np.ndarray]:
  """Gives every leaf of a tree a name and a host copy.

  Args:
    tree: of arrays; typed random keys are stored with their generator's name.

  Returns:
    "/"-separated path -> array (a view of device memory on CPU: save it before
    the next step donates the buffer).

  Raises:
    ValueError: two leaves have one name (a dict key that contains "/").
  """
  leaves = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = _name(path)
    if _is_key(leaf):
      name = f"{name}{_KEY}{jax.random.key_impl(leaf)}"
      leaf = jax.random.key_data(leaf)
    if name in leaves:
      raise ValueError(
        f"two leaves are named '{name}': no key of the tree may contain '/'"
      )
    leaves[name] = leaf
  return {k: np.asarray(v) for k, v in jax.device_get(leaves).items()}


def restore_into(
  tree: PyTree, arrays: Mapping[str, np.ndarray], *, source: str = "checkpoint"
) -> PyTree:
  """Puts named arrays into the form of a tree: the inverse of `flatten`.

  Args:
    tree: of arrays or ShapeDtypeStructs; says what is expected.
    arrays: as `flatten` gives them.
    source: what to call them in an error.

  Returns:
    The tree with JAX arrays (strongly typed copies) on the default device.

  Raises:
    InputError: leaves are missing, left over, or of another shape or dtype.
  """
  found = {}
  for name, value in arrays.items():
    path, is_key, generator = name.partition(_KEY)
    leaf = jnp.array(value)
    if is_key:
      leaf = jax.random.wrap_key_data(leaf, impl=generator)
    found[path] = leaf
  paths, structure = jax.tree_util.tree_flatten_with_path(tree)
  wanted = {_name(path): leaf for path, leaf in paths}
  problems = [
    *_problem("missing", [k for k in wanted if k not in found]),
    *_problem("not expected", [k for k in found if k not in wanted]),
    *_problem(
      "different",
      [
        f"{k} is {_form(found[k])} there, {_form(leaf)} here"
        for k, leaf in wanted.items()
        if k in found and _form(found[k]) != _form(leaf)
      ],
    ),
  ]
  if problems:
    raise InputError(
      f"the {source} does not fit this network: {'; '.join(problems)}. Resume"
      " with the config it was made with"
    )
  return jax.tree_util.tree_unflatten(structure, [found[k] for k in wanted])


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _form(leaf: Any) -> str:
  return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _problem(word: str, items: list[str]) -> list[str]:
  if not items:
    return []
  more = f" and {len(items) - 3} more" if len(items) > 3 else ""
  return [f"{word}: {', '.join(items[:3])}{more}"]
