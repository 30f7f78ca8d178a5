"""Where the arguments of a program lie."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from esper_jax.tezzeret.forge import Forge
from esper_jax.tezzeret.lowering import bringing, placed

ARGS = ({"w": np.ones((4, 2), np.float32)}, jnp.int32(3))


def test_without_a_place_arguments_stay_where_they_are():
  shapes = placed("double", ARGS, None)
  assert [x.shape for x in jax.tree.leaves(shapes)] == [(4, 2), ()]
  assert {x.sharding for x in jax.tree.leaves(shapes)} == {None}

  def program():
    raise AssertionError

  assert bringing(program, shapes) is program


def test_arguments_are_brought_to_their_place():
  mesh = jax.make_mesh((1,), ("data",))
  asked = []

  def place(name, args):
    asked.append((name, jax.tree.map(lambda x: x.shape, args)))
    return jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), args)

  forge = Forge(cost=lambda lowered: 1.0, place=place)
  forge.add("double", lambda tree, n: ({"w": tree["w"] * 2}, n * 2))
  program = forge.program("double", *ARGS)
  assert asked == [("double", ({"w": (4, 2)}, ()))]
  doubled, six = program.call(*ARGS)
  np.testing.assert_array_equal(doubled["w"], 2 * ARGS[0]["w"])
  assert six == 6
  assert doubled["w"].sharding.mesh == mesh
  # What lies there already is taken as it is.
  again, _ = forge.program("double", doubled, six).call(doubled, six)
  np.testing.assert_array_equal(again["w"], 4 * ARGS[0]["w"])
  forge.close()
