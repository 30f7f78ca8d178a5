"""Inputs for checks, and the distance between results."""

import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.urza.kernels import lowrank_weights
from esper_jax.urza.samples import FAR, distance, samples

KERNEL = lowrank_weights.KERNEL
SIZE = {"C": 64, "R": 8, "S": 4}


def drawn(dtype="float32", seed=0, **options):
  arrays = samples(KERNEL, dtype, SIZE, 2, 5, 7, seed, **options)
  return dict(zip(KERNEL.source.parameters, arrays, strict=False))


def test_arrays_are_those_the_kernel_asks_for():
  arrays = samples(KERNEL, "bfloat16", SIZE, 2, 5, 7)
  shapes = KERNEL.arguments("bfloat16", SIZE, 2, 5, 7)
  for array, shape in zip(arrays, shapes, strict=True):
    assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
    assert np.isfinite(array.astype(np.float32)).all()


def test_a_seed_gives_the_same_arrays_and_another_seed_others():
  one, two, other = drawn(), drawn(), drawn(seed=1)
  assert all((one[name] == two[name]).all() for name in one)
  assert (one["x"] != other["x"]).any()


def test_flags_go_through_all_states_of_a_seed():
  states = {
    (float(a), float(i))
    for seed in range(5)
    for a, i in zip(*(drawn(seed=seed)[n] for n in ("alpha", "isolation")))  # noqa: B905
  }
  zero, some = 0.0, float(np.float32(0.3))
  assert states == {
    (some, 0.0),
    (zero, 1.0),
    (1.0, 0.0),
    (zero, 0.0),
    (some, 1.0),
  }
  assert all((drawn(seed=seed)["proximal"] > 0).all() for seed in range(5))


def test_weights_keep_the_scale_of_what_they_multiply():
  arrays = drawn()
  r = arrays["x"] @ arrays["down"][0] @ arrays["up"][0]
  assert 0.5 < r.std() < 2


def test_special_values_are_among_activations_only():
  arrays = drawn("bfloat16", special=True)
  for name, array in arrays.items():
    values = array.astype(np.float32)
    special = name in ("x", "g")
    assert np.isnan(values).sum() == special
    assert np.isinf(values).sum() == 2 * special


@pytest.mark.parametrize(
  "got, expected, error",
  [
    ([1.0, 2.0], [1.0, 2.0], 0.0),
    ([np.nan, np.inf], [np.nan, np.inf], 0.0),
    ([np.nan, 1.0], [2.0, 1.0], FAR),
    ([np.inf, 1.0], [-np.inf, 1.0], FAR),
    ([1.0, 1.0], [np.inf, 1.0], FAR),
    ([3.5], [3.0], 0.125),
    # Of two sums, that which is near zero is held to the size of both.
    ([30.0, 4.0], [30.0, 0.0], 4 / (1 + 450**0.5)),
    ([], [], 0.0),
  ],
)
def test_distance_is_a_share_of_one_plus_size(got, expected, error):
  arrays = [np.array(a, np.float32) for a in (got, expected)]
  assert distance(arrays[:1], arrays[1:]) == pytest.approx(error)


def test_distance_takes_the_worst_of_all_arrays():
  ones = jnp.ones((2, 2), jnp.bfloat16)
  assert distance((ones, ones * 2), (ones, ones)) == 0.5


def test_distance_refuses_what_cannot_be_compared():
  with pytest.raises(ValueError, match="arrays, not 2"):
    distance([1.0], [1.0, 2.0])
  with pytest.raises(ValueError, match="shape"):
    distance([np.ones(2)], [np.ones(3)])
