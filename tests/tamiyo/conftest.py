"""Observations to decide on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tamiyo.observation import HISTORY, unknown
from esper_jax.types import Action, Stage


def _observe(rows=3, blueprints=2, **fields):
  """Ten epochs in, the loss flat, all rows free to germinate; then `fields`."""
  o = unknown(rows, blueprints)
  base = {
    "epoch": 10,
    "growths_left": 8,
    "epochs_left": 20,
    "val_loss": [0.5] * HISTORY,
    "history_known": [True] * HISTORY,
    "cost": np.full((rows, blueprints), 100.0),
    "legal": o.legal.at[:, int(Action.GERMINATE), :].set(True),
  }
  return o.replace(
    **{
      name: jnp.asarray(np.asarray(value), getattr(o, name).dtype)
      for name, value in {**base, **fields}.items()
    }
  )


def _planted(stage, rows=2, blueprints=2, **fields):
  """Row 0 holds a seed of blueprint 1; its moves are legal, row 1 is free."""
  legal = np.zeros((rows, len(Action), blueprints), bool)
  legal[:, Action.WAIT] = True
  legal[1:, Action.GERMINATE] = True
  legal[0, [Action.ADVANCE, Action.CULL, Action.FOSSILIZE], 1] = True
  base = {
    "stage": [stage] + [Stage.DORMANT] * (rows - 1),
    "blueprint": [1] + [-1] * (rows - 1),
    "age": [3] + [0] * (rows - 1),
    "legal": legal,
  }
  return _observe(rows, blueprints, **{**base, **fields})


def _anything(seed, rows=4, blueprints=3):
  """A drawn observation; NaN and impossible mixtures included."""
  draw = np.random.default_rng(seed)
  stage = draw.integers(0, len(Stage), rows)
  scores = 10.0 ** draw.uniform(-9, 1, (rows, blueprints))
  scores[draw.random((rows, blueprints)) < 0.1] = np.nan
  legal = draw.random((rows, len(Action), blueprints)) < 0.6
  legal[:, Action.WAIT] = True
  free = (stage == Stage.DORMANT) | (stage == Stage.FOSSILIZED)
  legal[~free, Action.GERMINATE] = False
  known = np.arange(HISTORY) >= draw.integers(0, HISTORY)
  return _observe(
    rows,
    blueprints,
    epoch=draw.integers(1, 12),
    growths_left=draw.integers(0, 4),
    val_loss=draw.uniform(0.4, 0.41, HISTORY),
    history_known=known,
    stage=stage,
    blueprint=draw.integers(-1, blueprints, rows),
    age=draw.integers(0, 10, rows),
    contribution=draw.normal(size=rows),
    contribution_se=draw.uniform(0, 1, rows),
    contribution_known=draw.random(rows) < 0.5,
    contribution_age=draw.integers(0, 3, rows),
    contribution_stage=np.where(draw.random(rows) < 0.8, stage, 0),
    finite=draw.random(rows) < 0.9,
    scores=scores,
    scores_known=draw.random(rows) < 0.8,
    gate=np.where(draw.random(rows) < 0.5, 0, 1 << draw.integers(0, 6, rows)),
    legal=legal,
  )


@pytest.fixture
def observe():
  return _observe


@pytest.fixture
def planted():
  return _planted


@pytest.fixture
def anything():
  return _anything


@pytest.fixture
def equal():
  """Tells whether two trees are equal: integers exactly, floats to rounding.

  Compilers may sum floats in another order.
  """

  def tolerance(x):
    rounding = 1e-6 if x.dtype.kind == "f" else 0
    return {"rtol": 10 * rounding, "atol": rounding}

  def compare(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(
      x.dtype == y.dtype and np.allclose(x, y, **tolerance(x))
      for x, y in zip(a, b, strict=True)
    )

  return compare
