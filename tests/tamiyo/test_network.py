import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tamiyo import network
from esper_jax.tamiyo.features import BLUEPRINT, RUN, SLOT, Inputs
from esper_jax.tamiyo.network import DEFAULT, PolicyNetwork, Sizes
from esper_jax.tamiyo.traits import TRAITS

SMALL = Sizes(width=8, layers=1, heads=2, hidden=8)


@pytest.fixture(scope="module")
def params():
  return jax.jit(lambda key: network.init(key, SMALL))(jax.random.key(0))


def loud(params, seed=0):
  """Parameters of a size at which every input shows."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(draw.normal(size=x.shape) * 0.5, jnp.float32), params
  )


def draw_inputs(rows, kinds, seed=0):
  draw = np.random.default_rng(seed)

  def table(*shape):
    return jnp.asarray(draw.uniform(-1, 1, shape), jnp.float32)

  yes = jnp.ones((rows, kinds), jnp.bool_)
  return Inputs(
    run=table(len(RUN)),
    slots=table(rows, len(SLOT)),
    blueprints=table(rows, kinds, len(BLUEPRINT) + len(TRAITS)),
    present=yes[:, 0],
    fits=yes,
    open=yes,
  )


apply = jax.jit(
  lambda params, inputs: network.apply(params, inputs, SMALL),
  compiler_options={"xla_backend_optimization_level": 0},
)


def test_it_is_small():
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = jax.eval_shape(network.init, key)
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert 20_000 < count < 100_000
  assert DEFAULT.width % DEFAULT.heads == 0
  assert PolicyNetwork().sizes == DEFAULT


def test_untrained_it_grows_now_and_then_and_seldom_culls(params):
  logits, value = apply(params, draw_inputs(5, 2))
  grows = jax.nn.softmax(jnp.append(logits.germinate.ravel(), logits.stay))
  assert float(1 - grows[-1]) == pytest.approx(0.2, abs=0.05)
  chance = jax.nn.softmax(logits.moves[:, :3], axis=-1)
  assert (chance[:, 1] > 0.7).all()
  cull = jax.nn.softmax(logits.moves[:, jnp.asarray([0, 2])], axis=-1)[:, 1]
  assert (cull < 0.03).all()
  assert value.shape == () and abs(float(value)) < 0.1


def test_rows_and_blueprints_have_no_place(params):
  params = loud(params)
  inputs = draw_inputs(5, 2)
  rows, kinds = np.asarray([3, 0, 4, 1, 2]), np.asarray([1, 0])
  permuted = Inputs(
    run=inputs.run,
    slots=inputs.slots[rows],
    blueprints=inputs.blueprints[rows][:, kinds],
    present=inputs.present[rows],
    fits=inputs.fits[rows][:, kinds],
    open=inputs.open[rows][:, kinds],
  )
  (a, value), (b, other) = apply(params, inputs), apply(params, permuted)
  assert np.allclose(a.germinate[rows][:, kinds], b.germinate, atol=1e-4)
  assert np.allclose(a.moves[rows], b.moves, atol=1e-4)
  assert np.allclose([a.stay, value], [b.stay, other], atol=1e-4)
  assert np.ptp(np.asarray(a.germinate)) > 0.01


def test_slots_see_each_other_but_not_those_that_are_absent(params):
  params = loud(params)
  inputs = draw_inputs(5, 2)
  seen, _ = apply(params, inputs.replace(slots=inputs.slots.at[4].set(1.0)))
  whole, _ = apply(params, inputs)
  assert not np.allclose(seen.moves[:4], whole.moves[:4], atol=1e-4)
  absent = inputs.replace(
    present=inputs.present.at[4].set(False), fits=inputs.fits.at[4].set(False)
  )
  a = apply(params, absent)
  b = apply(params, absent.replace(slots=absent.slots.at[4].set(1.0)))
  assert np.allclose(a[0].moves[:4], b[0].moves[:4])
  assert np.allclose(a[0].stay, b[0].stay) and np.allclose(a[1], b[1])
