"""Which slot a parameter feeds: the stretches of a host between its slots."""

from collections.abc import Callable, Sequence

import jax
from jax.extend import core

from esper_jax.types import PyTree


def first_reached(
  forward: Callable[[PyTree], Sequence[jax.Array]], params: PyTree
) -> PyTree:
  """Finds, for every parameter, the first output that depends on it.

  One abstract trace; nothing is computed. A call inside the program (a scan, a
  checkpointed block) counts as one operation: all that enters it reaches all
  that leaves it.

  Args:
    forward: params -> outputs, in the order in which they are made.
    params: arrays or their shapes.

  Returns:
    A tree as params of int: the index of the output, -1 where none depends on
    the parameter.
  """
  leaves, structure = jax.tree.flatten(params)
  program = jax.make_jaxpr(lambda p: list(forward(p)))(params).jaxpr
  # A variable's ancestors among the leaves, as the bits of an integer.
  ancestors = {var: 1 << n for n, var in enumerate(program.invars)}

  def of(atoms):
    bits = 0
    for atom in atoms:
      if not isinstance(atom, core.Literal):
        bits |= ancestors.get(atom, 0)
    return bits

  for equation in program.eqns:
    bits = of(equation.invars)
    ancestors.update((var, bits) for var in equation.outvars)
  reached = [of([var]) for var in program.outvars]
  first = [
    next((i for i, bits in enumerate(reached) if bits >> n & 1), -1)
    for n in range(len(leaves))
  ]
  return jax.tree.unflatten(structure, first)
