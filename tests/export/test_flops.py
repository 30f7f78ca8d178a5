"""An exported network costs no more than the same one written by hand.

The StableHLO program is lowered from what `load_grown` runs; XLA cannot count a
program whose batch is a symbol.
"""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from esper_jax import load_grown
from esper_jax.export import writing
from esper_jax.oona.lineage import MODULE
from esper_jax.tolaria.accounting import flops


def conv(features, size=3, stride=1):
  return nn.Conv(features, (size, size), strides=stride, use_bias=False)


def norm(x):
  return nn.BatchNorm(use_running_average=True)(x)


class HandwrittenResNet8(nn.Module):
  """With a seed of two 3x3 convolutions after the second block."""

  @nn.compact
  def __call__(self, images):
    x = images.astype(jnp.float32) / 255
    x = (x - jnp.array([0.3, 0.5])) / jnp.array([0.2, 0.4])
    x = nn.relu(norm(conv(8)(x)))
    for features, stride in ((8, 1), (16, 2), (32, 2)):
      y = nn.relu(norm(conv(features, 3, stride)(x)))
      y = norm(conv(features)(y))
      if stride == 2:
        x = norm(conv(features, 1, stride)(x))
      x = nn.relu(x + y)
      if features == 16:
        y = nn.relu(nn.GroupNorm(4, use_fast_variance=False)(conv(16)(x)))
        x = x + conv(16)(y)
    return nn.Dense(3)(x.mean(axis=(1, 2)))


class HandwrittenMLP(nn.Module):
  """With a seed of two dense layers after the first hidden layer."""

  @nn.compact
  def __call__(self, images):
    x = images.astype(jnp.float32) / 255
    x = (x - jnp.array([0.3, 0.5])) / jnp.array([0.2, 0.4])
    x = nn.relu(nn.Dense(8)(x.reshape(x.shape[0], -1)))
    y = nn.relu(
      nn.LayerNorm(use_fast_variance=False)(nn.Dense(8, use_bias=False)(x))
    )
    x = x + nn.Dense(8, use_bias=False)(y)
    x = nn.relu(nn.Dense(8)(x))
    return nn.Dense(3)(x)


def cost(function, *args):
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    return flops(jax.jit(function).lower(*args))


def exported_costs(folder, images):
  spec = importlib.util.spec_from_file_location("grown_model", folder / MODULE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  network = load_grown(folder, verify=False)
  return {
    "load_grown": cost(network.apply, network.variables, images),
    MODULE: cost(module.Network().apply, module.load(), images),
  }


@pytest.mark.parametrize(
  ("host", "slot", "blueprint", "twin"),
  [
    ("resnet8", 1, "conv3x3", HandwrittenResNet8),
    ("mlp", 0, "dense", HandwrittenMLP),
  ],
)
def test_no_more_than_the_same_network_by_hand(
  host, slot, blueprint, twin, grown, images, tmp_path
):
  writing.write_formats(
    tmp_path, grown(host, [(slot, blueprint, {"alpha": 0.5})]).network()
  )
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    variables = jax.eval_shape(twin().init, jax.random.key(0), images(8))
  by_hand = cost(twin().apply, variables, images(8))
  costs = exported_costs(tmp_path, images(8))
  assert by_hand > 1000
  assert costs[MODULE] <= by_hand
  # A seed's layer norm takes two means over no axis: XLA counts a division by
  # 1 for each of its inputs, and drops it when it compiles.
  assert costs["load_grown"] <= 1.02 * by_hand


def test_a_merged_seed_costs_nothing(grown, images, tmp_path):
  totals = []
  for number, planted in enumerate(([], [(0, "lowrank_dense", {})])):
    folder = tmp_path / str(number)
    folder.mkdir()
    writing.write_formats(folder, grown("mlp", planted).network())
    totals.append(exported_costs(folder, images(8)))
  assert totals[0] == totals[1]
