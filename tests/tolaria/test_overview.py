"""The lines at a run's start that are worked out, not copied."""

import pytest

from esper_jax.tolaria import overview
from esper_jax.tolaria.assembly import Timetable


@pytest.mark.parametrize(
  ("timetable", "text"),
  [
    (Timetable(31, 30, 930), "30 epochs of 31 steps"),
    (Timetable(1, 1, 1), "1 epoch of 1 step"),
    (Timetable(16, 1, 2), "2 steps"),
    (Timetable(16, 2, 17), "17 steps"),
  ],
)
def test_the_length_of_a_run(timetable, text):
  assert overview._length(timetable) == text


def test_the_last_germination(watch):
  rules = watch().trainer.parts.growth.rules
  # Decided, planted an epoch later, then 1 + 1 + 1 epochs in its stages.
  rules = rules._replace(
    epochs=9,
    lead_epochs=1,
    min_training_epochs=1,
    blend_epochs=1,
    min_holding_epochs=1,
    adaptation_frequency=1,
  )
  assert overview._deadline(rules) == ", the last by epoch 5"
  short = rules._replace(epochs=4)
  assert overview._deadline(short) == (
    "; none, as a seed's life needs 5 epochs, and the run has 4: raise"
    " train.epochs"
  )
  assert overview._deadline(rules._replace(epochs=5)).endswith("by epoch 1")
