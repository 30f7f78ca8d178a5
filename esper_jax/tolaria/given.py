"""What a program hands to a trainer in place of what a config names."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from esper_jax.data.splits import Splits
from esper_jax.hosts.host import Host
from esper_jax.tamiyo.policy import Policy
from esper_jax.tolaria.objective import Objective
from esper_jax.types import InputError, PyTree

_LISTED = 3  # leaves that an error names


class Given(NamedTuple):
  """Each is None where the config says what to take.

  Attributes:
    host: the network; the config's host.name is then "given".
    title: of the host, for people.
    splits: data; the config's data.source is then "given".
    policy: or the name of one that was registered; the config's tamiyo.policy
      is then "given".
    objective: what is minimized and what counts as right.
    variables: collection -> tree, the host's at the start of a run.
  """

  host: Host | None = None
  title: str = ""
  splits: Splits | None = None
  policy: Policy | str | None = None
  objective: Objective | None = None
  variables: Mapping[str, PyTree] | None = None


NOTHING = Given()


class Start(NamedTuple):
  """The host's variables at the start of a run, as its `init` gives them."""

  params: PyTree
  collections: dict[str, PyTree]
  sha256: str  # of the names and values, hexadecimal


def check_variables(
  host: Host, example: jax.Array, variables: Mapping[str, PyTree]
) -> Start:
  """Fits variables from elsewhere to a host.

  Args:
    host: of the run.
    example: a preprocessed batch of one.
    variables: {"params": tree, ...}, of numpy or JAX arrays.

  Raises:
    InputError: a leaf is missing, unknown to the host, or of another shape or
      kind of number.
  """
  shapes = shapes_of(host, example)
  wanted = _named(shapes)
  found = _named(unfreeze(dict(variables)))
  problems = misfit(shapes, found)
  if problems:
    raise InputError(
      f"variables do not fit the model: {problems}. Give what"
      " model.init(...) gives, {'params': ...} and its other collections, of a"
      " network that has not grown"
    )
  digest = hashlib.sha256()
  for name in wanted:
    digest.update(f"{name}{_form(found[name])}".encode())
    digest.update(found[name].tobytes())
  leaves = [jnp.array(found[name], leaf.dtype) for name, leaf in wanted.items()]
  filled = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
  return Start(filled.pop("params"), filled, digest.hexdigest())


def shapes_of(host: Host, example: Any) -> dict[str, PyTree]:
  """Collection -> tree of shapes, as the host's `init` gives them.

  Args:
    host: only traced.
    example: a preprocessed batch of one, or its shape.
  """
  params, others = jax.eval_shape(host.init, jax.random.key(0), example)
  return {"params": params, **others}


def misfit(wanted: PyTree, found: PyTree) -> str:
  """Where variables are not those of a model; "" where they are.

  Args:
    wanted: collection -> tree of shapes or arrays, the model's.
    found: collection -> tree of arrays.
  """
  own, others = _named(wanted), _named(found)
  different = [
    f"{name} {_form(others[name])} where the model has {_form(leaf)}"
    for name, leaf in own.items()
    if name in others and _form(others[name]) != _form(leaf)
  ]
  problems = [
    *_problem("missing", [name for name in own if name not in others]),
    *_problem("unknown", [name for name in others if name not in own]),
    *_problem("different", different),
  ]
  return "; ".join(problems)


def _named(tree: PyTree) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    if isinstance(leaf, jax.ShapeDtypeStruct)
    else np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _form(leaf: Any) -> str:
  """Kind of number and shape: any float fits a float."""
  kind = "float" if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
  return f"{kind}[{', '.join(map(str, leaf.shape))}]"


def _problem(word: str, items: list[str]) -> list[str]:
  more = len(items) - _LISTED
  rest = f" and {more} more" if more > 0 else ""
  return [f"{word}: {', '.join(items[:_LISTED])}{rest}"] if items else []
