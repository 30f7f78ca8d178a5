"""Hosts with masks, without an environment around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts.host import from_linen
from esper_jax.hosts.mlp import MLP
from esper_jax.kasmina.slot import observe_slots
from esper_jax.simic import hosts
from esper_jax.types import InputError

BUILD = {"mlp": hosts.mlp, "cnn": hosts.cnn}
WIDTH, DEPTH = 8, 2
X = jax.random.normal(jax.random.key(9), (3, 8, 8, 3))


def run(host, params, collections, x=X):
  with observe_slots() as trace:
    logits = host.apply(params, collections, {}, x, train=False, key=None)[0]
  return logits, list(trace.outputs.values())


def masked(collections, **changes):
  masks = collections[hosts.MASKS]
  return {hosts.MASKS: {**masks, **changes}}


@pytest.mark.parametrize("name", BUILD)
def test_units_that_are_off_are_zero(name):
  host = BUILD[name](10, width=WIDTH, depth=DEPTH)
  params, collections = host.init(jax.random.key(0), X)
  units = jnp.arange(WIDTH) < 5
  _, outputs = run(host, params, masked(collections, units=units))
  assert len(outputs) == DEPTH
  for y in outputs:
    assert (y[..., 5:] == 0).all() and (y[..., :5] != 0).any()


@pytest.mark.parametrize("name", BUILD)
def test_layers_that_are_off_pass_on(name):
  host, short = (BUILD[name](10, width=WIDTH, depth=n) for n in (DEPTH, 1))
  params, collections = host.init(jax.random.key(0), X)
  layers = jnp.arange(DEPTH) < 1
  logits, _ = run(host, params, masked(collections, layers=layers))
  kept = {
    k: v for k, v in params.items() if k in short.init(jax.random.key(0), X)[0]
  }
  expected, _ = run(short, kept, short.init(jax.random.key(0), X)[1])
  np.testing.assert_array_equal(logits, expected)


def test_with_every_mask_on_the_mlp_is_the_plain_one():
  host = hosts.mlp(10, width=WIDTH, depth=DEPTH)
  params, collections = host.init(jax.random.key(0), X)
  plain = from_linen(MLP(10, width=WIDTH, depth=DEPTH))
  expected = plain.apply(params, {}, {}, X, train=False, key=None)[0]
  logits, _ = run(host, params, collections)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_an_odd_image_is_refused():
  with pytest.raises(InputError, match="odd"):
    hosts.cnn(10, width=8, depth=1).init(jax.random.key(0), X[:, 1:])
