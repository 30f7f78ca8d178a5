"""How records and names are shown."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.types import form


def test_the_form_of_a_value():
  assert form(np.zeros((8, 10), np.uint8)) == "uint8[8, 10]"
  assert form(jax.ShapeDtypeStruct((), jnp.bfloat16)) == "bfloat16[]"
  assert form([1, 2]) == "a list"
