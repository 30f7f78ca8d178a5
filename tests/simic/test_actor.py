"""The network of Tamiyo as learners see it."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.simic import rollout
from esper_jax.simic.actor import of_network, using
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


def test_a_policy_in_use_draws_where_it_is_told_to():
  _, observation = toy.ENVIRONMENT.reset(jax.random.key(0))
  legal = jnp.ones_like(observation.legal)
  observation = observation.replace(legal=legal, growths_left=jnp.int32(8))
  params, keys = (
    ACTOR.init(jax.random.key(0)),
    jax.random.split(jax.random.key(1), 32),
  )

  def chosen(actor):
    decide = using(actor, params)
    return toy.fast_jit(
      jax.vmap(lambda k: decide((), observation, k)[1].action)
    )(keys)

  assert len(np.unique(chosen(ACTOR), axis=0)) == 1
  assert len(np.unique(chosen(ACTOR._replace(drawn=True)), axis=0)) > 4
