"""Where arrays lie on several devices, and that it changes only rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from esper_jax.tolaria import assembly, kernels, layout
from esper_jax.tolaria.layout import Layout
from esper_jax.types import InputError
from tests.urza.handmade import H100

ROOT = Path(__file__).parents[2]
FOUR = AbstractMesh((4,), ("data",))


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def specs(placed):
  return jax.tree.map(lambda sharding: sharding.spec, placed)


WHOLE, ROWS = PartitionSpec(), PartitionSpec("data")


def test_examples_are_cut_and_the_rest_is_everywhere():
  own = Layout(FOUR, least=0)
  state = {"w": shape(512, 512), "key": jax.eval_shape(jax.random.key, 0)}
  data = shape(100, 8), shape(100)
  placed = own.place("train", (state, {}, *data, shape(64)))
  assert specs(placed) == ({"w": WHOLE, "key": WHOLE}, {}, WHOLE, WHOLE, ROWS)
  chunk = own.place("chunk", (state, {}, *data, shape(32, 64)))
  assert chunk[4].spec == PartitionSpec(None, "data")
  batch = shape(8, 3), shape(8), shape(8)
  assert specs(own.place("evaluate", ({}, {}, {}, *batch)))[3:] == (ROWS,) * 3
  odd = shape(7, 3), shape(7), shape(7)  # seven do not go into four
  assert specs(own.place("evaluate", ({}, {}, {}, *odd)))[3:] == (WHOLE,) * 3
  assert specs(own.place("tick", (shape(8),))) == (WHOLE,)


def test_large_parameters_are_cut_along_their_longest_axis_that_divides():
  own = Layout(FOUR, least=64)
  cases = {
    (3, 3, 16, 8): PartitionSpec(None, None, "data"),
    (8, 16): PartitionSpec(None, "data"),
    (64,): ROWS,
    (6, 11): WHOLE,  # neither divides
    (63,): WHOLE,
    (4, 4): WHOLE,  # small
    (): WHOLE,
  }
  state = {str(n): shape(*sizes) for n, sizes in enumerate(cases)}
  placed = own.place("train", (state, {}, *[shape(64)] * 3))[0]
  assert list(specs(placed).values()) == list(cases.values())
  # What is summed up beside them is not.
  assert (
    specs(own.place("train", ({}, shape(64), *[shape(64)] * 3)))[1] == WHOLE
  )
  assert specs(own.place("score:dense", (shape(64),))) == (WHOLE,)


def test_one_device_has_no_layout(make_config):
  for count in (0, 1):
    config = make_config(**{"mesh.data": count})
    assert layout.make_layout(config) is None
    assert layout.describe(config) == ""


def test_too_few_devices_are_told(make_config):
  config = make_config(**{"mesh.data": 4})
  with pytest.raises(InputError) as caught:
    assembly.assemble(config, assembly.load_data(config))
  assert str(caught.value) == (
    "--config.mesh.data=4: there is 1 device (cpu); give at most 1, or 0 for"
    " all. On a CPU the environment variable JAX_NUM_CPU_DEVICES says how many"
    " there are"
  )


@pytest.fixture
def three_devices(monkeypatch):
  monkeypatch.setattr(
    layout.jax, "devices", lambda: [jax.local_devices()[0]] * 3
  )


def test_a_batch_must_divide(make_config, three_devices):
  config = make_config(**{"mesh.data": 3, "data.batch_size": 64})
  with pytest.raises(InputError) as caught:
    layout.make_layout(config)
  assert str(caught.value) == (
    "--config.data.batch_size=64: must be a multiple of the 3 devices of"
    " --config.mesh.data=3"
  )
  with pytest.raises(InputError, match="there are 3 devices"):
    layout.make_layout(make_config(**{"mesh.data": 4}))


def test_several_devices_are_told_and_take_no_kernels(
  make_config, three_devices, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
  config = make_config(**{"mesh.data": 0})
  assert layout.describe(config) == (
    "; 3 devices share each batch, parameters replicated"
  )
  assert kernels.describe(config, H100) == (
    "several devices: the reference code runs"
  )
  kernels.Kernels.of(config, H100).take_up({})
  assert kernels.dispatch.installed() is None


def on_four_devices(folder, *options):
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
  command = [sys.executable, "-m", "tests.tolaria.several_devices"]
  done = subprocess.run(
    [*command, str(folder), *options],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_four_devices_do_what_one_does(tmp_path):
  found = on_four_devices(tmp_path)
  one, four = found["one"], found["sharded"]
  assert one["devices"] == 1 and four["devices"] == 4
  (alone, summed), (shared, over_all) = one["work"], four["work"]
  assert shared < alone / 2 and (summed, over_all) == (False, True)
  assert len(one["losses"]) > 40
  same_as_one(found, "sharded")
  np.testing.assert_allclose(four["val"], one["val"], rtol=1e-4)
  assert [kind for kind, *_ in one["growth"]].count("germinated") == 2
  assert one["cut"] == []
  # Parameters and moments of the host, and of what has grown.
  assert any(name.startswith(".params") for name in four["cut"])
  assert any(name.startswith(".optimizer") for name in four["cut"])
  assert any(name.startswith(".seeds") for name in four["cut"])
  same_as_one(found, "resumed1")  # a checkpoint of four devices


def same_as_one(found, name, one="one"):
  losses = found[name]["losses"]
  np.testing.assert_allclose(losses, found[one]["losses"], rtol=1e-4)
  assert found[name]["growth"] == found[one]["growth"]


@pytest.mark.full
def test_four_devices_do_what_one_does_in_more_ways(tmp_path):
  found = on_four_devices(tmp_path, "--all")
  for name in ("four", "sharded", "resumed1", "resumed2"):
    same_as_one(found, name)
  same_as_one(found, "images of four", "images")
  assert found["four"]["cut"] == [] and found["four"]["devices"] == 4
  assert found["same bits"] is True
