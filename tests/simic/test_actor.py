"""The network of Tamiyo as learners see it."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.simic.actor import of_network
from esper_jax.tamiyo import traits
from esper_jax.tamiyo.features import Limits
from esper_jax.tamiyo.network import Sizes
from esper_jax.types import Action
from tests.simic import toy

ACTOR = of_network(
  traits.unknown(toy.ROWS, toy.BLUEPRINTS),
  Limits(max_growths=toy.RULES.max_growths),
  Sizes(width=8, layers=1, heads=1, hidden=8),
)


@toy.fast_jit
def _walk(key):
  """A few boundaries with drawn decisions: what each choice comes back as."""
  params = ACTOR.init(key)
  state, observation = toy.ENVIRONMENT.reset(key)
  out = []
  for n in range(4):
    own = jax.random.fold_in(key, n)
    both, value = ACTOR.apply(params, observation)
    choice = ACTOR.sample(both, own)
    decisions = ACTOR.decisions(both, choice)
    again = ACTOR.choice(observation, decisions)
    out.append((choice, again, decisions, ACTOR.log_prob(both, choice), value))
    state, observation, _ = toy.ENVIRONMENT.step(state, decisions, own)
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *out)


def test_a_choice_comes_back_from_its_decisions():
  keys = jax.random.split(jax.random.key(0), 16)
  choice, again, decisions, log_prob, value = jax.vmap(_walk)(keys)
  assert (decisions.action == int(Action.GERMINATE)).any()
  assert (decisions.action == int(Action.ADVANCE)).any()
  jax.tree.map(np.testing.assert_array_equal, choice, again)
  assert jnp.isfinite(value).all()
  assert (log_prob <= 0).all()
  assert (log_prob > -100).all()  # nothing that is not legal was drawn
