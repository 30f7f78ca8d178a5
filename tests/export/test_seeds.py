"""seeds.py: what grew in a user's Linen model, without our code."""

import subprocess
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import esper_jax
from esper_jax.export import plain, topology, writing
from esper_jax.hosts.host import from_model
from esper_jax.kasmina import blueprints
from esper_jax.oona.lineage import PROGRAM, SEEDS
from esper_jax.types import InputError
from tests.export import own_models

TIMEOUT = 300  # seconds
# The user's file, in which one line is another one than before.
MODEL = """
import flax.linen as nn
import jax.numpy as jnp
from seeds import Slot, load, prepare


class Part(nn.Module):
  @nn.compact
  def __call__(self, x, *, train=False):
    return Slot(name="inner")(nn.relu(nn.Dense(8)(x)), train=train)


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, *, train=False):
    x = Part(name="part")(x, train=train)
    x = nn.BatchNorm(use_running_average=not train)(x)
    calls = self.variable("calls", "count", lambda: jnp.ones((), jnp.int32))
    x = jnp.tanh(x) * calls.value
    return nn.Dense(2)(Slot(name="middle")(x, train=train))


if __name__ == "__main__":
  import sys
  sys.modules["esper_jax"] = None
  import numpy as np

  examples = np.load("examples.npy")
  variables = load()
  outputs = Net().apply(variables, prepare(examples), train=False)
  np.save("outputs.npy", outputs)
  import jax
  drawn = Net().init(jax.random.key(0), prepare(examples))
  assert jax.tree.structure(drawn) == jax.tree.structure(variables)
"""


def test_the_users_class_with_those_layers_is_the_network(tmp_path):
  planted = [
    ("middle", "dense", {"blend": "gate"}),
    ("middle", "norm", {}),
    ("middle", "lowrank_dense", {"depth": 1, "alpha": 0.4}),
    ("part/inner", "bottleneck_dense", {"blend": "multiply", "alpha": 0.5}),
  ]
  expected = own_models.export(own_models.Net(), planted, tmp_path)
  np.save(tmp_path / "examples.npy", own_models.X)
  (tmp_path / "user.py").write_text(MODEL)
  done = subprocess.run(
    [sys.executable, "user.py"],
    cwd=tmp_path,
    text=True,
    capture_output=True,
    timeout=TIMEOUT,
  )
  assert done.returncode == 0, done.stderr
  found = np.load(tmp_path / "outputs.npy")
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


class Images(nn.Module):
  """A slot on maps of a convolution, another on vectors."""

  @nn.compact
  def __call__(self, x, *, train=False):
    x = esper_jax.Slot(name="maps")(nn.Conv(8, (3, 3))(x), train=train)
    x = esper_jax.Slot(name="vector")(x.mean(axis=(1, 2)), train=train)
    return nn.Dense(3)(x)


def test_every_blueprint_on_raw_images(tmp_path):
  planted = []
  for depth, name in enumerate(sorted({*plain._SEEDS, "norm"})):
    for slot, kind in (("maps", "nhwc"), ("vector", "features")):
      if kind in blueprints.get(name).kinds:
        planted.append((slot, name, {"depth": depth, "alpha": 0.3}))
  images = np.random.default_rng(0).integers(0, 256, (6, 6, 6, 3), np.uint8)
  mean, std = (0.3, 0.5, 0.4), (0.2, 0.4, 0.3)
  x = (images / np.float32(255) - np.float32(mean)) / np.float32(std)
  expected = own_models.export(
    Images(),
    planted,
    tmp_path,
    x=x.astype(np.float32),
    reads=topology.images(images.shape[1:], mean, std),
  )
  host = from_model(Images())
  found = writing.compare(tmp_path, jnp.asarray(images), expected, host)
  assert found.keys() == {"load_grown", SEEDS, PROGRAM}
  assert max(found.values()) < 1e-4 * max(1, np.abs(expected).max())


def test_where_it_is_not_written(tmp_path):
  for name, make in own_models.MODELS.items():
    folder = tmp_path / name
    folder.mkdir()
    own_models.export(make(), [("middle", "dense", {})], folder)
    assert (folder / SEEDS).exists() == (name == "linen")
  topology = {"seeds": [{"blueprint": "mine"}]}
  with pytest.raises(InputError, match="no seeds.py: it has seeds of blueprin"):
    plain.slots_source(topology, {})
