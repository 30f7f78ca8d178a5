"""The network of Tamiyo as learners see it."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.simic import rollout
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
def _played(keys):
  """Episodes of drawn decisions, and what each choice comes back as."""
  params = ACTOR.init(jax.random.key(0))

  def decide(memory, observation, key):
    both, value = ACTOR.apply(params, observation)
    choice = ACTOR.sample(both, key)
    decisions = ACTOR.decisions(both, choice)
    again = ACTOR.choice(observation, decisions)
    log_prob = ACTOR.log_prob(both, choice)
    return memory, decisions, (choice, again, log_prob, value)

  return jax.vmap(lambda k: rollout.play(toy.ENVIRONMENT, decide, (), k, k))(
    keys
  )


def test_a_choice_comes_back_from_its_decisions():
  played = _played(jax.random.split(jax.random.key(0), 16))
  choice, again, log_prob, value = played.record
  assert (played.decisions.action == int(Action.GERMINATE)).any()
  assert (played.decisions.action == int(Action.ADVANCE)).any()
  jax.tree.map(np.testing.assert_array_equal, choice, again)
  assert jnp.isfinite(value).all()
  assert (log_prob <= 1e-6).all()
  assert (log_prob > -100).all()  # nothing that is not legal was drawn
