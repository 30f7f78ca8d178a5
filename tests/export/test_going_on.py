"""A run goes on with a grown network of a user's model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax import InputError, api, arguments, load_grown
from esper_jax.hosts import grown
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import contribution
from esper_jax.oona import lineage
from esper_jax.tolaria import assembly
from esper_jax.tolaria.given import Given, shapes_of
from esper_jax.tolaria.state import evaluation_view
from tests.export import own_models
from tests.export.own_models import MODELS, X, Y

PLANTED = [
  ("middle", "dense", {"blend": "gate"}),
  ("middle", "lowrank_dense", {"depth": 1, "blend": "multiply", "alpha": 0.4}),
]
INNER = ("part/inner", "dense", {"alpha": 0.3})


@pytest.fixture(params=MODELS)
def there(request, tmp_path):
  """(what makes the model, the folder, what its network gives for X)."""
  make = MODELS[request.param]
  planted = [*PLANTED, INNER] if request.param == "linen" else PLANTED
  return make, tmp_path, own_models.export(make(), planted, tmp_path)


def parts_of(network, data=(X, Y)):
  """(parts, state) of a run that goes on with a network, before its start."""
  changes, given = {"data.batch_size": 8, "tamiyo.policy": "never"}, {}
  arguments.take_model(network, None, changes, given)
  arguments.take_data(data, changes, given)
  config, given = api.make_config(changes), Given(**given)
  data = assembly.load_data(config, given)
  parts = assembly.assemble(config, data, given)
  return parts, assembly.new_state(config, parts)


def test_it_starts_where_the_network_was(there):
  make, folder, expected = there
  network = load_grown(folder, model=make())
  parts, state = parts_of(network)
  view = evaluation_view(state)
  found = parts.host.apply(*view, X, train=False, key=None)[0]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert np.array_equal(found, network(X))
  assert view[2] == {}
  seeds = len(network.topology["seeds"])
  assert parts.title == f"Net of {folder} ({seeds} seeds grown before)"
  assert "middle" in parts.growth.slots
  names = {record["name"] for record in network.topology["seeds"]}
  assert names <= state.params.keys()


def test_what_grew_is_trained_with_the_host(there):
  make, folder, _ = there
  parts, state = parts_of(load_grown(folder, model=make()))
  params, collections, _ = evaluation_view(state)

  def loss(params):
    out = parts.host.apply(params, collections, {}, X, train=True, key=None)
    return (out[0] ** 2).sum(), out[1]

  gradients, new = jax.grad(loss, has_aux=True)(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert float(jnp.abs(leaf).max()) > 0 or "hidden" in str(path), path
  assert jax.tree.structure(new) == jax.tree.structure(collections)
  if "calls" in collections:
    count = int(collections["calls"]["count"])
    assert int(new["calls"]["count"]) == count + 1


def test_a_slot_grows_after_what_grew_there(there):
  make, folder, _ = there
  network = load_grown(folder, model=make())
  parts, state = parts_of(network)
  params, collections, _ = evaluation_view(state)
  seed = surgery.make_seed(
    parts.growth.slots["middle"],
    "dense",
    initializer="random",
    key=jax.random.key(9),
  ).replace(alpha=jnp.float32(1), isolation=jnp.float32(0))
  seeds = {"middle": {"dense": seed}}
  out, _, after = parts.host.apply(
    params, collections, seeds, X, train=False, key=None
  )
  assert jax.tree.structure(after) == jax.tree.structure(seeds)
  variables = {"params": params, **collections}
  records = network.topology["seeds"]
  shapes = shapes_of(network.model, parts.example)
  united = grown.united(variables, seeds, shapes, records)
  depths = {key: s.depth for key, s in united[2]["middle"].items()}
  assert depths == {"0:dense_1": 0, "0:lowrank_dense_2": 1, "dense": 2}
  same = network.model.apply(*united, X, train=False, key=None)[0]
  assert np.array_equal(out, same)
  assert not np.allclose(out, network(X), atol=1e-3)
  if make is MODELS["plain"]:
    x = jnp.tanh(X @ united[0][0])
    for key in depths:
      own = united[2]["middle"][key]
      x = x + own.alpha * contribution(own, x, train=False, key=None)[0]
    np.testing.assert_allclose(out, x @ united[0][1], rtol=1e-4, atol=1e-5)


@pytest.fixture
def folder(tmp_path):
  own_models.export(own_models.Net(), PLANTED, tmp_path, classes=("no", "yes"))
  return tmp_path


@pytest.mark.parametrize(
  ("data", "says"),
  [
    (
      (X[:, :4], Y),
      r"^model=.* examples float32 \[5\], and the data has",
    ),
    ((X.astype(int), Y), r"reads examples float32 \[5\], .* int32 \[5\]"),
    ((X, np.array(["a", "b"])[Y]), "apart no, yes, and the data has a, b"),
    ((X, Y + 1), "labels int32"),
  ],
)
def test_other_data_is_refused(folder, data, says):
  network = load_grown(folder, model=own_models.Net())
  with (
    pytest.raises(InputError, match=says) as caught,
    arguments.naming_arguments({}),
  ):
    parts_of(network, data)
  assert "\n" not in str(caught.value)


def test_labels_may_be_numbers(folder):
  network = load_grown(folder, model=own_models.Net())
  assert parts_of(network, (X, np.array(["no", "yes"])[Y]))
  assert parts_of(network, (X, Y))


def test_a_model_that_computes_something_else_is_refused(folder):
  network = load_grown(folder, model=own_models.Net("sin"))  # shapes are alike
  with pytest.raises(InputError, match="is not the one that grew: an output"):
    parts_of(network)
  (folder / lineage.PROGRAM).unlink()
  with pytest.raises(InputError, match=r"network.stablehlo is missing"):
    parts_of(network)


@pytest.mark.parametrize("name", [lineage.WEIGHTS, lineage.TOPOLOGY])
def test_an_export_that_was_changed_is_refused(folder, name):
  network = load_grown(folder, model=own_models.Net())
  with (folder / name).open("ab") as file:
    file.write(b" ")
  with pytest.raises(InputError, match=f"{name} was changed"):
    parts_of(network)
  with pytest.raises(InputError, match=f"{name} was changed: its SHA-256 is"):
    load_grown(folder, model=own_models.Net())
  if name == lineage.TOPOLOGY:  # of weights a format says the same
    assert load_grown(folder, model=own_models.Net(), verify=False)


def test_variables_are_those_of_the_network(folder):
  network = load_grown(folder, model=own_models.Net())
  with pytest.raises(InputError, match="own variables; leave variables out"):
    arguments.take_model(network, {"params": {}}, {}, {})
