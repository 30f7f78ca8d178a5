"""How records and names are shown."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.types import counted, form, uncallable


def test_the_form_of_a_value():
  assert form(np.zeros((8, 10), np.uint8)) == "uint8[8, 10]"
  assert form(jax.ShapeDtypeStruct((), jnp.bfloat16)) == "bfloat16[]"
  assert form([1, 2]) == "a list"


def test_a_number_and_its_noun():
  told = [counted(n, "epoch") for n in (0, 1, 2, 1234)]
  assert told == ["0 epochs", "1 epoch", "2 epochs", "1,234 epochs"]


def test_what_a_function_does_not_take():
  def two(a, b):
    return a, b

  assert uncallable(two, 1, 2) == uncallable(two, 1, b=2) == ""
  assert uncallable(two, 1) == (
    "it takes (a, b), missing a required argument: 'b'"
  )
  assert uncallable(max, 1) == ""  # it does not tell
  assert uncallable(3, 1) == "it is a int"
