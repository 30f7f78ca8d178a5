"""Populations on one device and on several."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esper_jax.simic import rollout
from esper_jax.simic.actor import using
from esper_jax.simic.learning import descend
from esper_jax.tolaria.optimizers import with_own_promotion
from tests.simic import toy

KEYS = 4
CODE = f"""
import sys
import jax
import numpy as np
from esper_jax.simic import rollout
from tests.simic import test_rollout, toy
assert len(jax.devices()) == 2
run = toy.fast_jit(test_rollout.played)
keys = rollout.everywhere(jax.random.split(jax.random.key(0), {KEYS}))
out = run(keys)
for leaf in jax.tree.leaves(out):
  assert len(leaf.sharding.device_set) == 2 and leaf.is_fully_replicated
odd = run(keys[:3])  # two devices do not divide three
for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(odd), strict=True):
  np.testing.assert_allclose(a[:3], b, rtol=1e-6)
for leaf in jax.jit(rollout.apart)(test_rollout.data(4)):
  assert [len(part.data) for part in leaf.addressable_shards] == [2, 2]
told = jax.jit(test_rollout.learned)(*test_rollout.data(4))
assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(told))
np.savez(sys.argv[1], *jax.tree.leaves((out, told)))
"""


def played(keys):
  """Outcomes of growing in some environments."""
  params = toy.ACTOR.init(jax.random.key(1))
  decide = using(toy.ACTOR, params)
  return rollout.population(
    lambda key: rollout.play(toy.ENVIRONMENT, decide, (), key, key).outcome,
    keys,
  )


def data(size):
  """x float32 [size, 3] and y float32 [size] of a line to fit."""
  x = jax.random.normal(jax.random.key(2), (size, 3))
  return x, x.sum(axis=1) + 0.5


def learned(x, y):
  """Two steps down the squared error of the line."""
  adam = with_own_promotion(optax.adam(0.1))
  params = {"slope": jnp.zeros(3), "offset": jnp.zeros(())}

  def loss(params, x, y):
    error = ((x @ params["slope"] + params["offset"] - y) ** 2).mean()
    return error, error

  state = params, adam.init(params)
  for _ in range(2):
    state, error = descend(loss, adam, state, x, y)
  return state[0], error


def test_what_the_devices_do_not_divide_stays_whole():
  x, y = data(3)
  assert rollout.apart((x, y)) == (x, y)


@pytest.mark.full
def test_several_devices_give_what_one_gives(tmp_path):
  path = tmp_path / "out.npz"
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
  root = Path(__file__).parents[2]
  subprocess.run(
    [sys.executable, "-c", CODE, path], env=env, cwd=root, check=True
  )
  with np.load(path) as file:
    several = [file[name] for name in file.files]
  keys = jax.random.split(jax.random.key(0), KEYS)
  told = jax.jit(learned)(*data(4))
  one = jax.tree.leaves((toy.fast_jit(played)(keys), told))
  assert any(np.asarray(leaf).any() for leaf in one)
  for a, b in zip(one, several, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
