"""The heuristic with other criteria: policies for `benchmarks.criteria`.

Importing this registers them; `--config.urza.modules=benchmarks._criteria` does
it for a run of one's own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from esper_jax.tamiyo import policy
from esper_jax.tamiyo.heuristic import heuristic
from esper_jax.tamiyo.observation import Observation
from esper_jax.tamiyo.rules import Rule, Settings, wish
from esper_jax.types import Action

Criterion = Callable[[Observation], jax.Array]


def score(o: Observation) -> jax.Array:
  """float32 [rows, blueprints]; 0 where it was not measured."""
  known = o.scores_known.reshape(-1, 1) & jnp.isfinite(o.scores)
  return jnp.where(known, o.scores, 0.0)


def whole(o: Observation) -> jax.Array:
  """As `score`, of all of the seed's parameters together."""
  return score(o) * o.cost


def expansion(o: Observation) -> jax.Array:
  """As `score`, the gain over that of the parameters there."""
  known = o.expansion_known.reshape(-1, 1) & jnp.isfinite(o.expansion)
  return jnp.where(known, o.expansion, 0.0)


def _first(o: Observation) -> jax.Array:
  return 1.0 / (1.0 + jnp.arange(o.stage.shape[0], dtype=jnp.float32)[:, None])


def _with_best(where: Criterion, what: Criterion) -> Criterion:
  """The criterion `where`, at each place for the best blueprint by `what`."""

  def value(o):
    legal = o.legal[:, int(Action.GERMINATE), :]
    worth = jnp.where(legal, what(o), 0.0)
    best = (worth > 0) & (worth == worth.max(axis=1, keepdims=True))
    return jnp.where(best, where(o), 0.0)

  return value


CRITERIA: dict[str, Criterion] = {
  "by_score": score,
  "by_whole": whole,
  "by_expansion": expansion,
  "by_place": _with_best(expansion, score),
  "by_first": _with_best(_first, whole),
}


def rule(criterion: Criterion) -> Callable[[Settings], Rule]:
  """The heuristic with another criterion."""

  def build(settings: Settings) -> Rule:
    own = heuristic(settings)

    def propose(state, observation, key):
      asked = own.propose(state, observation, key)
      return wish(
        observation,
        criterion(observation),
        count=asked.count,
        chance=asked.chance,
        seeds_per_slot=settings.seeds_per_slot,
      )

    plain = Rule(propose)  # its sentence says nothing of a criterion
    return own._replace(propose=propose, sentence=plain.sentence)

  return build


for _name, _criterion in CRITERIA.items():
  policy.register(_name, rule(_criterion))
