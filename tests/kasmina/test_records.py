"""Alpha curves and the table of reasons."""

import math

import jax
import numpy as np
import pytest

from esper_jax.kasmina import lifecycle
from esper_jax.kasmina.lifecycle import CURVES, REASONS, Reason, alpha_at
from esper_jax.types import InputError


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 100, 1000])
def test_curve_rises_from_exactly_0_to_exactly_1(curve, epochs):
  alpha = alpha_at(np.arange(epochs + 1) / epochs, curve)
  assert alpha.dtype == np.float32
  assert alpha[0] == 0.0
  assert alpha[-1] == 1.0
  assert (np.diff(alpha) > 0).all()


@pytest.mark.parametrize("curve", CURVES)
def test_curve_is_symmetric_and_clips_its_argument(curve):
  t = np.linspace(0.0, 1.0, 11)
  np.testing.assert_allclose(
    alpha_at(t, curve) + alpha_at(1.0 - t, curve), 1.0, atol=1e-6
  )
  assert alpha_at([-3.0, 0.5, 9.0], curve).tolist() == [0.0, 0.5, 1.0]


def test_curves_have_their_own_shape():
  at_quarter = [float(alpha_at(0.25, curve)) for curve in CURVES]
  low, quarter = (1 / (1 + math.exp(x)) for x in (6.0, 3.0))
  logistic = (quarter - low) / (1 - 2 * low)
  want = [0.25, (1 - 0.5**0.5) / 2, logistic]
  np.testing.assert_allclose(at_quarter, want, rtol=1e-6)


def test_unknown_curve_is_named_with_the_valid_ones():
  with pytest.raises(InputError, match="'cubic'.*linear, cosine, sigmoid"):
    alpha_at(0.5, "cubic")


def test_every_reason_has_its_own_bit_and_text():
  assert list(REASONS) == [1 << n for n in range(len(Reason))]
  assert len(set(REASONS.values())) == len(Reason)


@pytest.mark.parametrize("bits", [0, 1, 2 | 8, 128 | 1 << 18])
def test_texts_name_exactly_the_bits(bits):
  texts = lifecycle.texts(bits)
  assert texts == [text for bit, text in REASONS.items() if bits & bit]
  assert len(texts) == bits.bit_count()


def test_a_run_starts_dormant_with_strongly_typed_leaves():
  slots = lifecycle.initial(3)
  values = {
    "stage": 0,
    "age": 0,
    "life": 0,
    "blueprint": -1,
    "alpha": 0.0,
    "due": -1,
    "embargo": 0,
    "fossils": 0,
    "quarantined": False,
    "reason": 0,
  }
  for name, value in values.items():
    assert getattr(slots, name).tolist() == [value] * 3
  assert slots.growths.shape == () and int(slots.growths) == 0
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(slots))
