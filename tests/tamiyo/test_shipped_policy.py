"""The learned policy that the package brings."""

import jax
import numpy as np

from configs.simic_digits import get_config
from esper_jax.simic import assembly, options
from esper_jax.tamiyo import learned, policy_file, traits
from esper_jax.tamiyo.policy import make
from esper_jax.tamiyo.rules import Settings

# Large enough for a policy, and far from what makes a package heavy.
MOST_BYTES, MOST_PARAMETERS = 1 << 20, 100_000


def test_it_is_small_and_reads():
  assert policy_file.SHIPPED.stat().st_size < MOST_BYTES
  policy = policy_file.load(policy_file.SHIPPED)
  leaves = jax.tree.leaves(policy.params)
  assert 0 < sum(leaf.size for leaf in leaves) < MOST_PARAMETERS


def test_it_is_what_the_config_trains():
  settings = options.read(get_config().to_dict(), (), assembly.DEFAULTS)
  provenance = policy_file.load(policy_file.SHIPPED).provenance
  assert provenance["config_hash"] == options.digest(assembly.kept(settings))
  assert provenance["seed"] == settings["training"].seed
  assert provenance["held_out"]["return"] > 0


def test_it_decides_whatever_it_sees(anything):
  rows, kinds = 4, 3
  policy = learned.make(
    policy_file.load(policy_file.SHIPPED),
    np.zeros((rows, kinds, len(traits.TRAITS)), np.float32),
    Settings(),
    make("heuristic"),
  )
  key = jax.random.key(0)
  decide = jax.jit(policy.decide)
  state = policy.init(key)
  for seed in range(20):
    state, _ = decide(state, anything(seed, rows, kinds), key)
  assert int(state.failed) == -1  # no output was not finite
