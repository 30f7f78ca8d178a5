import jax
import jax.numpy as jnp

from esper_jax.kasmina.segments import first_reached

SHAPES = {
  name: jax.ShapeDtypeStruct((), jnp.float32)
  for name in ("first", "second", "shared", "head", "unused")
}


def test_a_parameter_belongs_to_the_first_output_that_it_reaches():
  def forward(p):
    one = jnp.sin(p["first"] * p["shared"])
    two = one + jnp.tanh(p["second"]) * p["shared"] + 1.0
    return [one, two]

  found = first_reached(forward, SHAPES)
  assert found == {
    "first": 0,
    "second": 1,
    "shared": 0,
    "head": -1,
    "unused": -1,
  }


def test_parallel_branches_keep_their_own():
  found = first_reached(lambda p: (p["second"] * 2, p["first"] * 3), SHAPES)
  assert (found["second"], found["first"]) == (0, 1)


def test_a_call_inside_counts_as_one_operation():
  @jax.jit
  def both(a, b):
    return a + 1, b + 1

  found = first_reached(lambda p: both(p["first"], p["second"]), SHAPES)
  assert (found["first"], found["second"]) == (0, 0)


def test_outputs_that_depend_on_nothing():
  found = first_reached(lambda p: [jnp.float32(1), p["first"]], SHAPES)
  assert found["first"] == 1
  assert found["head"] == -1


def test_it_works_inside_a_trace():
  def inside(p, x):
    found = first_reached(lambda q: [q["first"] * x], p)
    assert found["first"] == 0
    return p["first"]

  jax.jit(inside)({"first": jnp.float32(2)}, jnp.float32(3))
