"""Trees to named arrays and back, bit for bit; mismatches are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from esper_jax.tolaria import arrays
from esper_jax.types import InputError


class Record(struct.PyTreeNode):
  alpha: jax.Array
  items: tuple


def make_tree():
  return {
    "params": {"slot1": Record(jnp.float32(0.5), (jnp.arange(3), None))},
    "half": jnp.ones((2, 2), jnp.bfloat16),
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
  }


def test_names_are_paths_and_values_are_host_arrays():
  flat = arrays.flatten(make_tree())
  assert sorted(flat) == [
    "half",
    "key#key:threefry2x32",
    "keys#key:rbg",
    "params/slot1/alpha",
    "params/slot1/items/0",
  ]
  assert all(isinstance(v, np.ndarray) for v in flat.values())
  assert flat["keys#key:rbg"].shape == (2, 4)


@pytest.mark.parametrize("abstract", [True, False])
def test_round_trip_is_exact_and_strongly_typed(abstract):
  tree = make_tree()
  target = jax.eval_shape(make_tree) if abstract else tree
  back = arrays.restore_into(target, arrays.flatten(tree))
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert not getattr(a, "weak_type", False)  # keys have none
  for a, b in zip(
    arrays.flatten(back).values(), arrays.flatten(tree).values(), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_restored_arrays_are_copies():
  flat = {"x": np.zeros((64,), np.float32)}
  back = arrays.restore_into({"x": jnp.ones((64,), jnp.float32)}, flat)
  flat["x"][:] = 7
  np.testing.assert_array_equal(back["x"], np.zeros((64,), np.float32))


def test_a_name_that_two_leaves_share_is_refused():
  tree = {"a": {"b": jnp.zeros(())}, "a/b": jnp.zeros(())}
  with pytest.raises(ValueError, match="two leaves are named 'a/b'"):
    arrays.flatten(tree)


def test_a_mismatch_names_the_leaves_and_counts_the_rest():
  tree = {f"w{n}": jnp.zeros((2,), jnp.float32) for n in range(5)}
  flat = {
    "w0": np.zeros((3,), np.float32),
    "extra": np.zeros((), np.int32),
  }
  with pytest.raises(InputError) as caught:
    arrays.restore_into(tree, flat, source="checkpoint of step 3")
  assert str(caught.value) == (
    "the checkpoint of step 3 does not fit this network: missing: w1, w2, w3"
    " and 1 more; not expected: extra; different: w0 is float32[3] there,"
    " float32[2] here. Resume with the config it was made with"
  )


def test_another_generator_or_dtype_is_a_mismatch():
  flat = arrays.flatten({"key": jax.random.key(0), "n": jnp.int32(1)})
  want = {"key": jax.random.key(0, impl="rbg"), "n": jnp.float32(1)}
  with pytest.raises(InputError, match=r"key<fry>\[\] there, key<rbg>\[\] her"):
    arrays.restore_into(want, flat)
  with pytest.raises(InputError, match=r"n is int32\[\] there, float32\[\]"):
    arrays.restore_into(want, flat)
