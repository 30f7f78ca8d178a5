"""The default gates let a good seed through, and nothing else.

Real runs on digits; the seeds are blueprints of the tests. A fixed random map
at the input's own scale ("noise") and a map that takes half of the input away
("harm") cannot learn; the built-in dense block can.
"""

import os

import jax
import jax.numpy as jnp
import pytest

from configs import digits
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.oona import jsonl
from esper_jax.tolaria.trainer import Trainer

SEEDS = 20 if os.environ.get("ESPER_TEST_FULL") else 3


def _init(key, spec):
  scale = spec.channels**-0.5
  shape = (spec.channels, spec.channels)
  return {"w": scale * jax.random.normal(key, shape, jnp.float32)}, {}


def _noise(params, state, x, *, train, key):
  return x @ jax.lax.stop_gradient(params["w"]).astype(x.dtype), state


def _harm(params, state, x, *, train, key):
  frozen = jax.lax.stop_gradient(params["w"]).sum().astype(x.dtype)
  return -0.5 * x + 0 * frozen, state


@pytest.fixture(autouse=True)
def useless_blueprints():
  for name, apply in (("noise", _noise), ("harm", _harm)):
    blueprints.register(
      Blueprint(name, _init, apply, ("features",), ("w",)), check=False
    )
  yield
  for name in ("noise", "harm"):
    blueprints.unregister(name)


def grow(tmp_path, blueprint: str, seed: int) -> tuple[dict, list[dict]]:
  """Plants one blueprint in a narrow MLP; returns the result and events."""
  config = digits.get_config()
  config.seed = seed
  config.host.name = "mlp"
  config.host.width = 8
  config.host.inner_widths = ()
  config.train.epochs = 24
  config.checkpoint.every_epochs = 24
  config.kasmina.blueprints = (blueprint,)
  config.kasmina.initializer = "zero_out" if blueprint == "dense" else "random"
  config.tamiyo.policy = "schedule"
  config.tamiyo.schedule = ((2, "slot1", blueprint),)
  result = Trainer(config, tmp_path / f"{blueprint}{seed}").train()
  events = jsonl.read(tmp_path / f"{blueprint}{seed}" / "events.jsonl")
  return result, events


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("blueprint", ["noise", "harm"])
def test_a_useless_seed_is_culled(tmp_path, blueprint, seed):
  result, events = grow(tmp_path, blueprint, seed)
  assert (result["germinated"], result["fossilized"]) == (1, 0)
  assert result["culled"] == 1
  refusals = [e for e in events if e["type"] == "gate_refused"]
  assert "standard errors" in refusals[0]["reason"]
  assert result["params_final"] == result["params_initial"]


@pytest.mark.full
def test_a_useful_seed_is_fossilized(tmp_path):
  passed = 0
  for seed in range(SEEDS):
    result, events = grow(tmp_path, "dense", seed)
    passed += result["fossilized"]
    for event in events:
      if event["type"] == "fossilized":
        assert event["contribution"] > 2 * event["contribution_se"]
  assert passed >= 0.9 * SEEDS  # measured: 19 of 20
