"""How fast do thousands of growing networks train at once?

An environment-epoch is 50 steps of batch 32 on an MLP of width 32 with 4 slots
of 4 blueprints, one validation pass, one ablation per slot, a look at the
slots and the policy: by default the network that the package ships. The bare
inner loop is the same host's 50 steps without slots and nothing else. Both run
at the same number of networks in one process and take turns; the ratio of their
speeds is paired by round: the median and the 90 % percentile bootstrap interval
of the median. On a CPU give --in-turn, as training does there.

  .venv/bin/python -m benchmarks.simic_throughput --in-turn
  .venv/bin/python -m benchmarks.simic_throughput --in-turn \\
      --scaling 1 16 256 1024 4096
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._common import (
  add_json,
  interleaved,
  paired_ratio,
  report,
)
from esper_jax.data import augment, datasets
from esper_jax.simic import environment as env_lib
from esper_jax.simic import hosts, worlds
from esper_jax.simic.assembly import LIFE
from esper_jax.simic.environment import Environment, Setting
from esper_jax.tamiyo import learned, policy_file, traits
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo.policy import LEARNED
from esper_jax.tamiyo.rules import Settings
from esper_jax.tolaria import optimizers, steps
from esper_jax.types import HOST_GROUP

TARGET = 0.2
WIDTH, DEPTH, STEPS, BATCH, EPOCHS = 32, 4, 50, 32, 20
NAMES = ("dense", "bottleneck_dense", "lowrank_dense", "norm")
RULES = LIFE._replace(
  epochs=EPOCHS,
  max_growths=8,
  max_training_epochs=4,
  max_holding_epochs=2,
  embargo_epochs=1,
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  number = {"type": int, "help": "(%(default)s)"}
  parser.add_argument("--environments", default=64, **number)
  parser.add_argument("--epochs", default=4, **number)
  parser.add_argument("--rounds", default=12, **number)
  parser.add_argument("--policy", default=LEARNED)
  parser.add_argument("--in-turn", action="store_true")
  parser.add_argument("--scaling", nargs="*", type=int, default=[])
  add_json(parser)
  o = parser.parse_args(argv)
  figures: dict[str, Any] = {"target": TARGET, "policy": o.policy}
  main_row = compare(o.environments, o.epochs, o.rounds, o.policy, o.in_turn)
  figures |= {"main": main_row, "met": main_row["ratio"]["median"] >= TARGET}
  word = "met" if figures["met"] else "missed"
  print(f"target: a ratio of {TARGET:g} or more, {word}")
  figures["scaling"] = [
    compare(n, o.epochs, max(2, o.rounds // 4), o.policy, o.in_turn)
    for n in o.scaling
  ]
  report("simic_throughput", figures, o.json)
  return figures


def make_setting() -> Setting:
  """What all environments share: digits, an MLP with room to grow."""
  data = datasets.load("digits", validation_fraction=0.3)
  material = worlds.make_material(data, report=175)

  def preprocess(images: jax.Array, key: jax.Array | None) -> jax.Array:
    del key
    return augment.normalize(images, material.mean, material.std, jnp.float32)

  return Setting(
    host=hosts.mlp(material.num_classes, width=WIDTH, depth=DEPTH),
    material=material,
    names=NAMES,
    rules=RULES,
    options=steps.StepOptions(
      preprocess=preprocess,
      optimizer=optimizers.make_optimizer("adamw"),
      learning_rate=lambda step: jnp.full(step.shape, 2e-3, jnp.float32),
      newborn_factor=lambda age: optimizers.newborn_factor(age, 50),
    ),
    batch=BATCH,
    steps=STEPS,
    probe=64,
  )


def make_environment(setting: Setting) -> Environment:
  """The environment, its worlds randomized."""

  def build(width: int, depth: int) -> Any:
    return hosts.mlp(setting.material.num_classes, width=width, depth=depth)

  ranges = worlds.Ranges(
    units=(8, 16, 32),
    layers=(2, 3, 4),
    examples=(0.3, 1.0),
    label_noise=(0.0, 0.2),
    learning_rate=(0.5, 2.0),
    missing=2,
    budget=(1.5, 6.0),
  )
  draw = worlds.make_draw(
    setting.material,
    ranges,
    build=build,
    width=WIDTH,
    depth=DEPTH,
    names=NAMES,
  )
  return env_lib.make(setting, draw)


def make_policy(setting: Setting, name: str) -> policies.Policy:
  """The policy of that name; of `learned`, the one that the package ships."""
  shared = {k: v for k, v in RULES._asdict().items() if k in Settings._fields}
  settings = Settings(plateau_delta=0.5, warmup_epochs=1)._replace(**shared)
  if name != LEARNED:
    return policies.make(name, **settings._asdict())
  specs = list(worlds.slots_of(setting.host, setting.example).values())
  return learned.make(
    policy_file.load(policy_file.SHIPPED),
    traits.describe(specs, setting.names),
    settings,
    policies.make("heuristic", **settings._asdict()),
  )


def compare(
  environments: int,
  epochs: int,
  rounds: int,
  policy: str,
  in_turn: bool = False,
) -> dict[str, Any]:
  """Measures both at one number of networks, in environment-epochs a second.

  Args:
    environments: networks side by side.
    epochs: of each block.
    rounds: of one block each.
    policy: name of the policy that decides.
    in_turn: see `Setting`.
  """
  setting = make_setting()._replace(in_turn=in_turn)
  keys = jax.random.split(jax.random.key(0), environments)
  blocks = {
    "whole": whole_block(
      make_environment(setting), keys, epochs, make_policy(setting, policy)
    ),
    "bare": bare_block(setting, keys, epochs),
  }
  interleaved(blocks, 1)  # warm-up
  seconds = interleaved(blocks, rounds)
  ratio = paired_ratio(seconds["bare"], seconds["whole"])
  count = environments * epochs
  rates = {name: count / float(np.median(own)) for name, own in seconds.items()}
  print(
    f"{environments:5d} environments: whole {rates['whole']:.1f}, bare"
    f" {rates['bare']:.1f} environment-epochs/s, ratio {ratio.text()}"
  )
  return {
    "environments": environments,
    "epochs": epochs,
    "rates": rates,
    "ratio": ratio._asdict(),
    "seconds": seconds,
  }


def timed(call: Callable[[], Any]) -> Callable[[], float]:
  """What runs a compiled program and returns its seconds."""

  def block() -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start

  return block


def whole_block(
  env: Environment, keys: jax.Array, epochs: int, tamiyo: policies.Policy
) -> Callable[[], float]:
  """A block of environment-epochs, from where networks have begun to grow."""

  def begin(key):
    state, observation = env.reset(key)
    return state, observation, tamiyo.init(key)

  def roll(carry, key):
    def body(carry, key):
      state, observation, memory = carry
      memory, decisions = tamiyo.decide(memory, observation, key)
      state, observation, outcome = env.step(state, decisions, key)
      return (state, observation, memory), outcome.val_loss

    return jax.lax.scan(body, carry, jax.random.split(key, epochs))

  carry = jax.jit(jax.vmap(begin))(keys)
  run = jax.jit(jax.vmap(roll)).lower(carry, keys).compile()
  carry = run(carry, keys)[0]
  return timed(lambda: run(carry, keys))


def bare_block(
  setting: Setting, keys: jax.Array, epochs: int
) -> Callable[[], float]:
  """The same host's training steps, without slots."""
  loss = steps.make_loss(setting.host, setting.options)
  data, options = setting.material, setting.options
  example = jnp.zeros(setting.example.shape, setting.example.dtype)
  shape = (epochs * STEPS, BATCH)

  def begin(key):
    params, masks = setting.host.init(key, example)
    indices = jax.random.randint(key, shape, 0, len(data.labels), jnp.int32)
    return params, options.optimizer.init(params), masks, indices

  def train(params, optimizer, masks, indices):
    def body(carry, row):
      params, optimizer = carry
      x, y = options.preprocess(data.images[row], None), data.labels[row]
      (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(
        {HOST_GROUP: params}, masks, {}, x, y, None
      )
      own = gradient[HOST_GROUP]
      rate = options.learning_rate(jnp.zeros((), jnp.int32))
      return steps.move(options, params, own, optimizer, rate=rate), value

    return jax.lax.scan(body, (params, optimizer), indices)

  args = jax.jit(jax.vmap(begin))(keys)
  run = jax.jit(jax.vmap(train)).lower(*args).compile()
  return timed(lambda: run(*args))


if __name__ == "__main__":
  main()
