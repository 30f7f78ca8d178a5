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
from esper_jax.simic.actor import Actor, using
from esper_jax.simic.reward import Prices, returns
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo import rules
from esper_jax.tamiyo.policy import LEARNED
from esper_jax.types import PyTree

POLICIES = (LEARNED, "never", "periodic", "random", "heuristic")
MARGIN = 0.002  # of accuracy: what counts as no worse than the heuristic
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


def least(one: np.ndarray, other: np.ndarray) -> float:
  """Bounds the mean paired difference from below, one-sided, at 95 %.

  The lower of the two one-sided tests (Schuirmann 1987): `one` is not worse
  than `other` by a margin where this is above minus the margin.

  Args:
    one, other: float64 [n], n at least 2.
  """
  difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
  n = len(difference)
  half = float(difference.std(ddof=1)) / math.sqrt(n)
  return float(difference.mean()) - half * float(stats.t.ppf(0.95, n - 1))


def play_one_of(
  environment: Any,
  players: Sequence[tuple[Callable[[jax.Array], PyTree], rollout.Decide]],
  which: jax.Array,
  keys: jax.Array,
) -> Any:
  """Plays one episode in each environment with one of several players.

  All are in the one program: an environment takes long to compile.

  Args:
    environment: see `simic.records.Environment`.
    players: (key -> its first memory, its `Decide`) of each.
    which: int32 []. Whose decisions are carried out.
    keys: typed random keys [environments].

  Returns:
    `Outcome`, [environments, epochs].
  """

  def decide(memory, observation, key):
    asked = [
      own(state, observation, key)
      for (_, own), state in zip(players, memory, strict=True)
    ]
    after, every, _ = zip(*asked, strict=True)
    return after, jax.tree.map(lambda *d: jnp.stack(d)[which], *every), ()

  def one(key):
    mine = jax.random.fold_in(key, 1)
    memory = tuple(init(mine) for init, _ in players)
    return rollout.play(environment, decide, memory, key, mine).outcome

  return rollout.population(one, keys)


def make_play(
  environment: Any, actor: Actor, settings: rules.Settings
) -> Callable[..., Any]:
  """Builds one program for all policies: an environment takes long to compile.

  Args:
    environment: see `simic.records.Environment`.
    actor: the network of the learned policy.
    settings: of the others; the probability is an argument of the program.

  Returns:
    (which of POLICIES int32 [], parameters, probability of `random` float32
    [], keys [environments]) -> `Outcome`, [environments, epochs].
  """

  def play(which, params, probability, keys):
    coin = settings._replace(probability=probability)
    others = [
      policies.make("never"),
      policies.make("periodic", **settings._asdict()),
      policies.from_rule("random", rules.random(coin), coin),
      policies.make("heuristic", **settings._asdict()),
    ]
    players = [
      (lambda key: (), using(actor, params)),
      *((policy.init, rollout.deciding(policy)) for policy in others),
    ]
    return play_one_of(environment, players, which, keys)

  return play


def measured(outcome: Any, still: Any, prices: Prices) -> Played:
  """Sums up what a policy did.

  Args:
    outcome: `Outcome`, arrays [environments, epochs].
    still: of the twins, likewise.
    prices: see `reward.Prices`.
  """

  def final(values):
    return np.asarray(values[:, -1], np.float64)

  def total(values):
    return np.asarray(values.sum(axis=1), np.float64)

  return Played(
    earned=np.asarray(returns(outcome, still, prices), np.float64),
    accuracy=final(outcome.report_accuracy),
    validation=final(outcome.val_accuracy),
    parameters=final(outcome.parameters),
    germinated=total(outcome.germinated),
    fossilized=total(outcome.fossilized),
    culled=total(outcome.culled),
  )


def match_coin(count: Callable[[float], float], germinated: float) -> float:
  """Finds the probability at which `random` germinates as often.

  Args:
    count: probability -> germinations per episode, nowhere falling.
    germinated: the same of the policy to match.

  Returns:
    A probability: 0 where nothing is to be matched, 1 where even that
    germinates less.
  """
  low, high = 0.0, 1.0
  if germinated <= 0:
    return low
  if count(high) <= germinated:
    return high
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    more = count(middle) > germinated
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
  batch: int = 64,
  jit: Callable[..., Any] = jax.jit,
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
    batch: of them that run at a time; a bound on the memory.
    jit: compiles the program; a hasty one serves tests.

  Returns:
    name -> `Played`, in the order of POLICIES. The coin is matched in other
    environments than those of the comparison, a batch of them.
  """
  apart, trial = jax.random.split(key)
  batch = min(batch, count)
  keys = jax.random.split(apart, count)
  tries = jax.random.split(trial, batch)
  play = jit(make_play(environment, actor, settings))

  def run(name: str, some: jax.Array, probability: float = 0.0) -> Any:
    which = jnp.int32(POLICIES.index(name))
    chance = jnp.float32(probability)
    return rollout.by_batch(
      lambda k: play(which, params, chance, k), some, batch
    )

  def often(probability: float) -> float:
    sown = run("random", tries, probability).germinated.sum(axis=1)
    return float(sown.astype(jnp.float32).mean())

  still = run("never", keys)
  out = {LEARNED: measured(run(LEARNED, keys), still, prices)}
  chance = match_coin(often, float(out[LEARNED].germinated.mean()))
  for name in POLICIES[1:]:
    outcome = still if name == "never" else run(name, keys, chance)
    out[name] = measured(outcome, still, prices)
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
        "accuracy_at_least": least(ours.accuracy, theirs.accuracy),
      }
    out["policies"][name] = figures
  return out


def table(played: Mapping[str, Played]) -> str:
  """Makes the comparison as text; returns and accuracies in points."""
  figures_of = document(played)["policies"]
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
  for name, figures in figures_of.items():
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
  low = figures_of["heuristic"]["learned_less_this"]["accuracy_at_least"]
  verdict = "not worse" if low > -MARGIN else "not shown to be no worse"
  last = (
    f"learned is {verdict} than the heuristic by a margin of"
    f" {100 * MARGIN:.1f} points of report accuracy: {100 * low:+.2f} at least"
    " (one-sided 95 %)"
  )
  return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], last])


def _words(interval: Mapping[str, float] | None) -> str:
  if interval is None:
    return "-"
  mean, low, high = (100 * interval[k] for k in ("mean", "low", "high"))
  return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
