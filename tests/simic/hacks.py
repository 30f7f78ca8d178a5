"""Policies that once made a reward grow without making a network better.

Each is written from what an `Observation` holds, so that it plays in any
environment. docs/simic.md has the table.
"""

import jax
import jax.numpy as jnp

from esper_jax.tamiyo import shepherd
from esper_jax.tamiyo.policy import never
from esper_jax.types import Action, Stage


def _table(o, **columns):
  """float32 [rows, actions, blueprints] of preferences by action name."""
  rows, blueprints = o.scores.shape
  table = jnp.zeros((rows, len(Action), blueprints))
  for name, value in columns.items():
    value = jnp.broadcast_to(
      jnp.asarray(value, jnp.float32), (rows, blueprints)
    )
    table = table.at[:, int(Action[name.upper()])].set(value)
  return table


def _kind(o, index):
  rows, blueprints = o.scores.shape
  return jnp.broadcast_to(jax.nn.one_hot(index, blueprints), (rows, blueprints))


def norm_farming(o):
  """Makes the cheapest blueprint permanent wherever it will go."""
  cheapest = jnp.argmin(o.cost[0])
  return _table(o, germinate=_kind(o, cheapest), advance=1, fossilize=1)


def padding(o):
  """Makes the largest blueprint permanent wherever it will go."""
  largest = jnp.argmax(o.cost[0])
  return _table(o, germinate=_kind(o, largest), advance=1, fossilize=1)


def cycling(o):
  """Germinates and culls, in turn, for what an event might earn."""
  return _table(o, germinate=1, cull=1)


def ransom(o):
  """Blends in whatever its removal hurts, culls it there, and starts again."""
  holding = (o.stage == int(Stage.HOLDING)).astype(jnp.float32)[:, None]
  cheapest = jnp.argmin(o.cost[0])
  return _table(o, germinate=_kind(o, cheapest), advance=1, cull=2.0 * holding)


def stalling(o):
  """Germinates wherever it can and never decides about anything again."""
  return _table(o, germinate=1)


SCRIPTS = (norm_farming, padding, cycling, ransom, stalling)


def policy(which):
  """Makes the policy of one of SCRIPTS; int32 [], so that one program does."""

  def decide(state, observation, key):
    del key
    tables = jnp.stack([script(observation) for script in SCRIPTS])
    action, blueprint = shepherd.select(
      tables[which], observation.legal, germinations=jnp.int32(1)
    )
    waits = shepherd.waiting(observation.stage.shape[0])
    return state, waits.replace(action=action, blueprint=blueprint)

  return never("script")._replace(decide=decide)
