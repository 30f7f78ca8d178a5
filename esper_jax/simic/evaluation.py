"""A learned policy against a clock, a coin and a rule, on unseen environments.

All policies meet the same environments, so every difference is paired. The
coin (`random`) is given the probability at which it germinates as often as the
learned policy, so that what is left is where and when.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats  # a dependency of JAX

from esper_jax.simic import rollout
from esper_jax.simic.actor import Actor, greedy
from esper_jax.simic.reward import Prices, returns
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo import rules
from esper_jax.tamiyo.policy import Policy
from esper_jax.types import PyTree

LEARNED = "learned"
BASELINES = ("never", "periodic", "random", "heuristic")
_HALVINGS = 8  # the coin's probability is found to 1 part in 256


class Played(NamedTuple):
  """What a policy did, by environment; float64 [environments] each.

  Attributes:
    earned: the return, in accuracy.
    accuracy: on the report split, at the end, 0 to 1.
    validation: the same on the validation split.
    parameters: at the end.
    germinated, fossilized, culled: seeds.
  """

  earned: np.ndarray
  accuracy: np.ndarray
  validation: np.ndarray
  parameters: np.ndarray
  germinated: np.ndarray
  fossilized: np.ndarray
  culled: np.ndarray


class Interval(NamedTuple):
  """A mean of paired differences and its 95 % interval (Student's t)."""

  mean: float
  low: float
  high: float


def paired(one: np.ndarray, other: np.ndarray) -> Interval:
  """Compares two measurements of the same environments: one less other.

  Args:
    one, other: float64 [n], n at least 2.
  """
  difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
  n = len(difference)
  mean = float(difference.mean())
  half = float(difference.std(ddof=1)) / math.sqrt(n)
  half *= float(stats.t.ppf(0.975, n - 1))
  return Interval(mean, mean - half, mean + half)


class Player:
  """Plays policies in the same environments, some at a time."""

  def __init__(
    self, environment: Any, prices: Prices, keys: jax.Array, *, batch: int = 64
  ):
    """Runs the never-grown twins of the environments.

    Args:
      environment: see `simic.records.Environment`.
      prices: see `reward.Prices`.
      keys: typed random keys [environments]; what batch does not divide is
        played more than once and counted once.
      batch: environments that run at a time; a bound on the memory.
    """
    self._environment, self._prices, self._keys = environment, prices, keys
    self._batch = min(batch, keys.shape[0])
    self._still = self._by_batch(
      jax.jit(lambda keys: rollout.play_still(environment, keys)), keys
    )

  def play(self, policy: Policy) -> Played:
    """Plays one of Tamiyo's policies."""

    def one(keys, index):
      own = jax.random.fold_in(jax.random.key(0), index)
      played = rollout.play_policy(self._environment, policy, keys, own)
      return played.outcome

    return self._played(jax.jit(one))

  def play_greedily(self, actor: Actor, params: PyTree) -> Played:
    """Lets a network decide greedily."""

    def one(keys, index):
      del index
      decide = greedy(actor, params)
      play = rollout.play
      return jax.vmap(
        lambda key: play(self._environment, decide, (), key, key).outcome
      )(keys)

    return self._played(jax.jit(one))

  def _by_batch(self, play: Callable[..., Any], *parts: Any) -> Any:
    size, out = self._keys.shape[0], []
    for start in range(0, size, self._batch):
      first = min(start, size - self._batch)
      some = [part[first : first + self._batch] for part in parts]
      got = jax.tree.map(lambda x, s=start - first: x[s:], play(*some))
      out.append(jax.device_get(got))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *out)

  def _played(self, play: Callable[..., Any]) -> Played:
    count = self._keys.shape[0]
    places = jnp.arange(count, dtype=jnp.int32) // self._batch
    outcome = self._by_batch(lambda k, n: play(k, n[0]), self._keys, places)
    outcome = jax.tree.map(jnp.asarray, outcome)
    still = jax.tree.map(jnp.asarray, self._still)
    earned = returns(outcome, still, self._prices)

    def final(values):
      return np.asarray(values[:, -1], np.float64)

    def total(values):
      return np.asarray(values.sum(axis=1), np.float64)

    return Played(
      earned=np.asarray(earned, np.float64),
      accuracy=final(outcome.report_accuracy),
      validation=final(outcome.val_accuracy),
      parameters=final(outcome.parameters),
      germinated=total(outcome.germinated),
      fossilized=total(outcome.fossilized),
      culled=total(outcome.culled),
    )


def matched_coin(
  environment: Any,
  settings: rules.Settings,
  germinated: float,
  keys: jax.Array,
) -> float:
  """Finds the probability at which `random` germinates as often.

  Args:
    environment: see `simic.records.Environment`.
    settings: of the policy; its probability is not read.
    germinated: per episode, on average.
    keys: of environments to try it in.

  Returns:
    A probability; 1 where even that germinates less.
  """

  @jax.jit
  def count(probability):
    own = settings._replace(probability=probability)
    policy = policies.from_rule("random", rules.random(own), own)
    played = rollout.play_policy(environment, policy, keys, jax.random.key(1))
    return played.outcome.germinated.sum(axis=1).astype(jnp.float32).mean()

  low, high = 0.0, 1.0
  if float(count(jnp.float32(high))) <= germinated:
    return high
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    more = float(count(jnp.float32(middle))) > germinated
    low, high = (low, middle) if more else (middle, high)
  return (low + high) / 2


def compare(
  environment: Any,
  actor: Actor,
  params: PyTree,
  prices: Prices,
  settings: rules.Settings,
  key: jax.Array,
  count: int,
  *,
  baselines: Sequence[str] = BASELINES,
) -> dict[str, Played]:
  """Plays a learned policy and the others in `count` new environments.

  Args:
    environment: see `simic.records.Environment`.
    actor: the network.
    params: its parameters.
    prices: see `reward.Prices`.
    settings: of the others.
    key: decides which environments.
    count: of environments, at least 2.
    baselines: which others, out of BASELINES.

  Returns:
    name -> `Played`, LEARNED first.
  """
  apart, trial = jax.random.split(key)
  player = Player(environment, prices, jax.random.split(apart, count))
  out = {LEARNED: player.play_greedily(actor, params)}
  for name in baselines:
    own = settings
    if name == "random":
      often = float(out[LEARNED].germinated.mean())
      tries = jax.random.split(trial, min(count, 64))
      chance = matched_coin(environment, settings, often, tries)
      own = settings._replace(probability=chance)
    out[name] = player.play(policies.make(name, **own._asdict()))
  return out


def document(played: Mapping[str, Played]) -> dict[str, Any]:
  """Makes what `--json` prints: the table's figures, as numbers."""
  ours = played[LEARNED]
  out: dict[str, Any] = {"environments": len(ours.earned), "policies": {}}
  for name, theirs in played.items():
    sown = theirs.germinated.sum()
    share = theirs.fossilized.sum() / sown if sown else None
    figures: dict[str, Any] = {
      k: float(v.mean()) for k, v in theirs._asdict().items()
    } | {"fossilized_share": None if share is None else float(share)}
    if name != LEARNED:
      figures["learned_less_this"] = {
        "earned": paired(ours.earned, theirs.earned)._asdict(),
        "accuracy": paired(ours.accuracy, theirs.accuracy)._asdict(),
      }
    out["policies"][name] = figures
  return out


def table(played: Mapping[str, Played]) -> str:
  """Makes the comparison as text; returns and accuracies in points."""
  rows = [
    (
      "policy",
      "return",
      "report accuracy",
      "parameters",
      "germ./foss./culled",
      "fossilized",
      "learned less this: return",
      "report accuracy",
    )
  ]
  for name, figures in document(played)["policies"].items():
    share = figures["fossilized_share"]
    less = figures.get("learned_less_this", {})
    rows.append(
      (
        name,
        f"{100 * figures['earned']:+.2f}",
        f"{100 * figures['accuracy']:.2f} %",
        f"{figures['parameters']:,.0f}",
        f"{figures['germinated']:.2f} / {figures['fossilized']:.2f} /"
        f" {figures['culled']:.2f}",
        "-" if share is None else f"{100 * share:.0f} %",
        _words(less.get("earned")),
        _words(less.get("accuracy")),
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(
      [row[0].ljust(widths[0])]
      + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
    ).rstrip()
    for row in rows
  ]
  return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _words(interval: Mapping[str, float] | None) -> str:
  if interval is None:
    return "-"
  mean, low, high = (100 * interval[k] for k in ("mean", "low", "high"))
  return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
