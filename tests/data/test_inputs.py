"""What a network is given is what it reads, or one line says what it reads."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax import InputError
from esper_jax.data.inputs import check_examples

GRAY, COLOUR = ("uint8", (8, 6, 1)), ("uint8", (8, 6, 3))
VECTORS, TEXT = ("float32", (5,)), ("int32", ("time",))


def zeros(dtype, *shape):
  return np.zeros(shape, dtype)


@pytest.mark.parametrize(
  ("reads", "examples"),
  [
    (GRAY, zeros("uint8", 2, 8, 6, 1)),
    (GRAY, zeros("uint8", 2, 8, 6)),
    (COLOUR, jnp.zeros((2, 8, 6, 3), jnp.uint8)),
    (VECTORS, zeros("float64", 2, 5)),
    (VECTORS, [[0.0, 1.0, 2.0, 3.0, 4.0]]),
    (VECTORS, jnp.zeros((2, 5), jnp.bfloat16)),
    (TEXT, zeros("int64", 2, 7)),
    (TEXT, [[1, 2, 3]]),
  ],
)
def test_what_fits_is_taken(reads, examples):
  out = check_examples(examples, *reads)
  assert (out.dtype, out.shape) == (reads[0], np.shape(examples))
  traced = jax.jit(lambda x: check_examples(x, *reads))(np.asarray(examples))
  assert np.array_equal(out, traced)


@pytest.mark.parametrize(
  ("reads", "examples", "says"),
  [
    (
      GRAY,
      zeros("float32", 2, 8, 6),
      "the network reads uint8 [batch, 8, 6, 1], and was given"
      " float32[2, 8, 6]; give the bytes of the images, 0 to 255:"
      " np.round(255 * images).astype(np.uint8) where yours are 0 to 1",
    ),
    (GRAY, zeros("int64", 2, 8, 6), "give the bytes of the images, 0 to 255"),
    (GRAY, zeros("uint8", 8, 6), "of one example give a batch of one, x[None]"),
    (GRAY, zeros("uint8", 8, 6, 1), "give a batch of one, x[None]"),
    (GRAY, zeros("uint8", 2, 8, 6, 3), "shape that it was trained on"),
    (GRAY, zeros("uint8", 2, 7, 6), "of the shape that it was trained on"),
    (COLOUR, zeros("uint8", 2, 8, 6), "the channels are missing, of gray im"),
    (COLOUR, zeros("uint8", 2, 8, 6, 1), "shape that it was trained on"),
    (COLOUR, zeros("uint8", 2, 6, 8, 3), "of the shape that it was trained on"),
    (VECTORS, zeros("float32", 5), "of one example give a batch of one"),
    (VECTORS, zeros("uint8", 2, 5), "give floats, as in training"),
    (VECTORS, zeros("float32", 2, 4), "of the shape that it was trained on"),
    (TEXT, zeros("float32", 2, 7), "give integers, as in training"),
    (TEXT, zeros("int32", 2, 7, 1), "give a batch of examples as in training"),
    (VECTORS, zeros("float32"), "give a batch of examples as in training"),
  ],
)
def test_what_does_not_fit_is_refused(reads, examples, says):
  with pytest.raises(InputError) as caught:
    check_examples(examples, *reads)
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_text_that_is_too_long():
  assert check_examples(zeros("int32", 2, 9), *TEXT, context=9).shape == (2, 9)
  with pytest.raises(InputError, match="give at most 9 tokens of each text"):
    check_examples(zeros("int32", 2, 10), *TEXT, context=9)


@hypothesis.given(
  st.lists(st.integers(1, 4), min_size=1, max_size=5),
  st.sampled_from(["uint8", "int32", "float32", "float16", "bool"]),
  st.sampled_from([GRAY, COLOUR, VECTORS, ("float32", (2, 3))]),
)
def test_nothing_but_the_contract_passes(shape, dtype, reads):
  examples = zeros(dtype, *shape)
  kind, of_one = reads
  fits = tuple(shape[1:]) == of_one or (*shape[1:], 1) == of_one == GRAY[1]
  right = dtype == kind or (kind, dtype) == ("float32", "float16")
  if fits and right:
    check_examples(examples, *reads)
  else:
    with pytest.raises(InputError):
      check_examples(examples, *reads)
