"""Hosts that are a user's own: any tree of variables, any examples."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax import InputError, apply_slot, load_grown
from esper_jax.export import topology, writing
from esper_jax.hosts.host import Host
from esper_jax.kasmina import surgery
from esper_jax.oona.lineage import MODULE, PROGRAM, TOPOLOGY
from esper_jax.tolaria.hosting import slots_of

X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def host(spread=lambda x: x):
  """Its parameters are a list; one name is that of a seed beside it."""

  def init(key, x):
    del x
    a, b = jax.random.split(key)
    draw = functools.partial(jax.random.normal, dtype=jnp.float32)
    return {"layers": [draw(a, (5, 4)), draw(b, (4, 2))]}, {
      "extra": {"middle_dense": jnp.ones((2,), jnp.float32)}
    }

  def apply(params, collections, seeds, x, *, train, key):
    first, second = params["layers"]
    x, seeds = apply_slot(seeds, "middle", jnp.tanh(x @ first), train=train)
    scale = collections["extra"]["middle_dense"].reshape(1, 2)
    return spread(x @ second) * scale, dict(collections), seeds

  return Host(init, apply)


def network(own):
  """(the exported form, what it must give): two seeds, half-way."""
  slots = slots_of(own, jnp.asarray(X[:1]))
  params, collections = own.init(jax.random.key(0), X[:1])
  seeds = {}
  for number, blend in enumerate(("add", "multiply")):
    seed = surgery.make_seed(
      slots["middle"],
      "dense",
      initializer="random",
      blend=blend,
      depth=number,
      key=jax.random.key(number),
    )
    half = {"alpha": jnp.float32(0.3), "isolation": jnp.float32(0)}
    seeds["dense_2" if number else "dense"] = seed.replace(**half)
  view = params, collections, {"middle": seeds}
  made = topology.build(
    view,
    {"name": "given", "title": "host", "dtype": "float32"},
    slots,
    reads=topology.examples(X.shape[1:], "float32"),
    model=own,
  )
  plain = own.apply(params, collections, {}, X, train=False, key=None)[0]
  grown = own.apply(*view, X, train=False, key=None)[0]
  assert np.abs(np.subtract(grown, plain)).max() > 0.01
  return made, np.asarray(grown)


def test_a_host_that_is_no_flax_module(tmp_path):
  own = host()
  made, expected = network(own)
  refused = writing.write_formats(tmp_path, made)
  assert "the model is your own (host)" in refused.pop(MODULE)
  assert not refused
  found = writing.compare(tmp_path, jnp.asarray(X), expected, own)
  assert found.keys() == {"load_grown", PROGRAM}
  assert max(found.values()) < 1e-5
  said = json.loads((tmp_path / TOPOLOGY).read_text())
  assert said["input"]["dtype"] == "float32"
  assert said["output"]["shape"] == ["batch", 2]
  assert [s["name"] for s in said["seeds"]] == [
    "middle_dense_",
    "middle_dense_2",
  ]
  assert [s["strength"] for s in said["seeds"]] == pytest.approx([1, 0.3])
  with pytest.raises(InputError, match=r"model of yours \(host\); give what"):
    load_grown(tmp_path, verify=False)
  other = own._replace(init=lambda key, x: ({"layers": [jnp.ones(3)]}, {}))
  with pytest.raises(InputError, match="not the one that grew: unknown: "):
    load_grown(tmp_path, model=other, verify=False)


def test_a_model_that_counts_its_batch_has_no_program(tmp_path):
  own = host(lambda y: y + jnp.zeros((int(y.shape[0]), 1), y.dtype))
  made, expected = network(own)
  refused = writing.write_formats(tmp_path, made)
  assert "cannot be lowered for any batch size" in refused[PROGRAM]
  assert "\n" not in refused[PROGRAM]
  found = writing.compare(tmp_path, jnp.asarray(X), expected, own)
  assert found.keys() == {"load_grown"}
  assert max(found.values()) < 1e-5


def test_a_model_that_gives_more_than_an_array_is_refused():
  def more(*args, **kwargs):
    y, *rest = own.apply(*args, **kwargs)
    return (y, y), *rest

  own = host()
  with pytest.raises(InputError, match="the model gives a tuple"):
    topology.build(
      (*own.init(jax.random.key(0), X), {}),
      {"name": "given", "title": "host", "dtype": "float32"},
      {},
      reads=topology.examples(X.shape[1:], "float32"),
      model=Host(own.init, more),
    )


def test_a_host_of_the_registry_takes_no_model(grown, tmp_path):
  writing.write_formats(tmp_path, grown("mlp", []).network())
  with pytest.raises(InputError, match="holds a mlp, .* leave model out"):
    load_grown(tmp_path, model=host(), verify=False)
