"""How long does a decision of the learned policy take?

An untrained network of the default size decides on --slots slots with
--blueprints blueprints each, all free to grow: features, network and the
likeliest choice, in one compiled program, called with arrays of the host as a
run does. The time of an untrained network is that of a trained one.

  .venv/bin/python -m benchmarks.policy_latency --slots=100
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._common import add_json, report
from esper_jax.tamiyo import learned, network, policy_file, traits
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo.observation import Observation, unknown
from esper_jax.tamiyo.rules import Settings
from esper_jax.types import Action

TARGET = 0.005  # seconds a decision


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the benchmark; returns the figures that --json writes."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for name, default, text in (
    ("slots", 100, "of the network (%(default)s)"),
    ("blueprints", 4, "that fit each (%(default)s)"),
    ("repeats", 200, "decisions (%(default)s)"),
  ):
    parser.add_argument(f"--{name}", type=int, default=default, help=text)
  add_json(parser)
  options = parser.parse_args(argv)
  figures = measure(options.slots, options.blueprints, options.repeats)
  report("policy_latency", figures, options.json)
  return figures


def measure(slots: int, blueprints: int, repeats: int) -> dict[str, Any]:
  """Times decisions.

  Returns:
    parameters of the network; seconds to compile, of each decision, and of the
    process's own time for each; whether the target is `met` by the median.
  """
  params = network.init(jax.random.key(0))
  file = policy_file.from_bytes(policy_file.to_bytes(params), "a benchmark")
  settings = Settings(max_adaptations_per_epoch=1)
  policy = learned.make(
    file,
    traits.unknown(slots, blueprints),
    settings,
    policies.make("heuristic"),
  )
  key, state = jax.random.key(0), policy.init(jax.random.key(0))
  observation = make_observation(slots, blueprints)
  start = time.perf_counter()
  decide = jax.jit(policy.decide).lower(state, observation, key).compile()
  compiled = time.perf_counter() - start
  wall, own = [], []
  for _ in range(repeats):
    times = time.perf_counter(), time.process_time()
    jax.block_until_ready(decide(state, observation, key))
    wall.append(time.perf_counter() - times[0])
    own.append(time.process_time() - times[1])
  median = float(np.median(wall))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(
    f"{count:,} parameters; {slots} slots x {blueprints} blueprints: compiled"
    f" in {compiled:.1f} s; a decision takes {1e3 * median:.2f} ms (median of"
    f" {repeats}; least {1e3 * min(wall):.2f}, the process's own time"
    f" {1e3 * float(np.median(own)):.2f})"
  )
  return {
    "parameters": count,
    "slots": slots,
    "blueprints": blueprints,
    "compile": compiled,
    "decision": wall,
    "process": own,
    "met": median < TARGET,
  }


def make_observation(slots: int, blueprints: int) -> Observation:
  """Every slot is free, and its scores are known."""
  draw = np.random.default_rng(0)
  o = unknown(slots, blueprints)
  scores = draw.uniform(1e-6, 1e-4, (2, slots, blueprints)).astype(np.float32)
  yes = jnp.ones((slots,), jnp.bool_)
  return o.replace(
    epoch=jnp.int32(10),
    epochs_left=jnp.int32(20),
    growths_left=jnp.int32(8),
    parameters=jnp.float32(1e5),
    val_loss=jnp.asarray(draw.uniform(0.4, 0.5, 8), jnp.float32),
    history_known=jnp.ones((8,), jnp.bool_),
    legal=o.legal.at[:, int(Action.GERMINATE)].set(True),
    cost=jnp.asarray(draw.integers(100, 9000, scores[0].shape), jnp.float32),
    scores=jnp.asarray(scores[0]),
    scores_known=yes,
    expansion=jnp.asarray(scores[1]),
    expansion_known=yes,
  )


if __name__ == "__main__":
  main()
