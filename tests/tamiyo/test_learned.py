import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tamiyo import features, learned, network, policy_file, traits
from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo.network import Sizes
from esper_jax.tamiyo.rules import Settings
from esper_jax.types import Action, InputError, Stage

SIZES = Sizes(width=8, layers=1, heads=2, hidden=8)
ROWS, KINDS = 4, 3
NUMBERS = {"warmup_epochs": 0, "seeds_per_slot": 2}
# These programs run a few times: compiling them is what takes time.
hasty = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def make_file(**biases):
  params = network.init(jax.random.key(0), SIZES)
  for name, value in biases.items():
    bias = np.asarray(params[name]["bias"]) + np.asarray(value, np.float32)
    params[name]["bias"] = bias
  return policy_file.from_bytes(
    policy_file.to_bytes(params, sizes=SIZES), "a test"
  )


def make(file, **more):
  settings = {**NUMBERS, **more}
  fallback = policies.make("heuristic", **settings)
  described = traits.unknown(ROWS, KINDS)
  return learned.make(file, described, Settings(**settings), fallback), fallback


def spoiled(after_epoch):
  """A file whose network overflows where at least so many epochs are over.

  The flag of a fall over `after_epoch` epochs is up from then on.
  """
  params = network.init(jax.random.key(0), SIZES)
  kernel = np.array(params["run"]["kernel"])
  kernel[features.RUN.index(f"val_fall_{after_epoch}?")] = 3e38
  params["run"]["kernel"] = kernel
  data = policy_file.to_bytes(params, sizes=SIZES)
  return policy_file.from_bytes(data, "a test")


@pytest.fixture(scope="module")
def eager():
  """A network that always grows; (policy, fallback, its programs)."""
  policy, fallback = make(make_file(stay=[-9.0]))
  return policy, fallback, hasty(policy.decide)


def begin(policy):
  return policy.init(jax.random.key(0))


def equal(a, b):
  return all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_it_asks_for_what_is_legal_and_says_so(anything, eager):
  policy, _, decide = eager
  grown = 0
  for seed in range(30):
    o = anything(seed, ROWS, KINDS)
    state, decisions = decide(begin(policy), o, jax.random.key(seed))
    assert int(state.failed) == -1
    legal = np.asarray(o.legal)
    for row, action in enumerate(np.asarray(decisions.action)):
      column = int(decisions.blueprint[row])
      own = action != Action.GERMINATE
      assert legal[row, action].any() if own else legal[row, action, column]
      reason = int(decisions.reason[row])
      assert reason == (obs.LEARNED if action != Action.WAIT else 0)
    grows = (np.asarray(decisions.action) == Action.GERMINATE).sum()
    assert grows <= min(2, int(o.growths_left))
    grown += grows
    words = policy.explain(decisions, o, ["a", "b"], ["x", "y", "z"])
    moves = np.flatnonzero(decisions.action != Action.WAIT)
    assert [w.row for w in words] == moves.tolist()
    assert all(
      "the learned policy gives it probability" in w.reason for w in words
    )
  assert grown > 10


def test_nothing_germinates_before_the_warmup_is_over(observe):
  policy, _ = make(make_file(stay=[-9.0]), warmup_epochs=5, seeds_per_slot=1)
  decide = hasty(policy.decide)
  for epoch, grows in ((4, 0), (5, 2)):
    o = observe(ROWS, KINDS, epoch=epoch)
    _, decisions = decide(begin(policy), o, jax.random.key(0))
    assert (np.asarray(decisions.action) == Action.GERMINATE).sum() == grows


def test_where_the_network_is_not_finite_the_fallback_decides_and_goes_on(
  anything, eager
):
  policy, fallback = make(spoiled(4))
  decide, theirs = hasty(policy.decide), hasty(fallback.decide)
  known = jnp.ones((obs.HISTORY,), jnp.bool_)
  key = jax.random.key(0)
  state = begin(policy)
  for seed in range(6):
    o = anything(seed, ROWS, KINDS).replace(epoch=jnp.int32(seed + 1))
    young = o.replace(history_known=known.at[:6].set(False))
    old = o.replace(history_known=known)
    if seed < 3:
      state, decisions = decide(state, young, key)
      assert int(state.failed) == -1
      assert not (decisions.reason & ~obs.LEARNED).any()
      continue
    seen = old if seed == 3 else young
    state, decisions = decide(state, seen, key)
    assert int(state.failed) == 4
    _, expected = theirs(fallback.init(key), seen, key)
    assert equal(decisions, expected)
    names = ["a", "b"], ["x", "y", "z"]
    assert policy.explain(decisions, seen, *names) == fallback.explain(
      expected, seen, *names
    )


def test_ranked_sets_are_distinct_likely_first_and_the_fallbacks_in_its_place(
  anything,
):
  policy, fallback = make(make_file())
  rank = hasty(policy.rank, static_argnums=2)
  theirs = hasty(fallback.rank, static_argnums=2)
  for seed in range(8):
    o = anything(seed, ROWS, KINDS)
    ranked = rank(begin(policy), o, 3)
    weights = [float(weight) for _, weight in ranked]
    assert weights == sorted(weights, reverse=True)
    assert 0 < sum(weights) <= 1 + 1e-5
    failed = begin(policy).replace(failed=jnp.int32(2))
    assert equal(rank(failed, o, 3), theirs((), o, 3))


def test_scores_are_asked_for_where_something_may_germinate(observe):
  o = observe(ROWS, KINDS)
  policy, fallback = make(make_file())
  asks, state = hasty(policy.wants_scores), begin(policy)
  assert asks(state, o)
  known = o.replace(scores_known=jnp.ones((ROWS,), jnp.bool_))
  assert not asks(state, known)
  shut = o.legal.at[:, int(Action.GERMINATE)].set(False)
  assert not asks(state, o.replace(legal=shut))
  cold, _ = make(make_file(), warmup_epochs=int(o.epoch) + 1)
  assert not hasty(cold.wants_scores)(begin(cold), o)
  failed = state.replace(failed=jnp.int32(1))
  assert bool(asks(failed, o)) == bool(fallback.wants_scores((), o))


def test_with_a_temperature_it_draws(observe):
  policy, _ = make(make_file(), temperature=1.0, seeds_per_slot=1)
  o = observe(ROWS, KINDS)
  keys = jax.random.split(jax.random.key(0), 400)
  decide = jax.vmap(policy.decide, (None, None, 0))
  _, decisions = hasty(decide)(begin(policy), o, keys)
  grows = (np.asarray(decisions.action) == Action.GERMINATE).any(axis=1)
  assert 0.1 < grows.mean() < 0.3  # the prior


def test_without_a_file_it_is_the_fallback(anything):
  policy, fallback = make(None)
  state = begin(policy)
  assert policy.name == "learned" and not state.digest.any()
  o, key = anything(3, ROWS, KINDS), jax.random.key(0)
  kept, decisions = hasty(policy.decide)(state, o, key)
  assert equal(kept, state)
  assert equal(decisions, hasty(fallback.decide)((), o, key)[1])
  a, b = (hasty(p.rank, static_argnums=2) for p in (policy, fallback))
  assert equal(a(state, o, 2), b((), o, 2))
  assert policy.wants_scores(state, o) == fallback.wants_scores((), o)


def test_a_fallback_may_never_want_scores(observe):
  o = observe(ROWS, KINDS)
  never = policies.make("never")
  described, settings = traits.unknown(ROWS, KINDS), Settings(**NUMBERS)
  assert learned.make(None, described, settings, never).wants_scores is None
  policy = learned.make(spoiled(1), described, settings, never)
  failed = begin(policy).replace(failed=jnp.int32(1))
  assert not hasty(policy.wants_scores)(failed, o)


def test_words_quote_what_was_measured(planted):
  policy, _ = make(make_file(), seeds_per_slot=1)
  o = planted(
    Stage.TRAINING,
    rows=ROWS,
    blueprints=KINDS,
    finite=[False] + [True] * (ROWS - 1),
    contribution=[0.02] * ROWS,
    contribution_se=[0.01] * ROWS,
    contribution_known=[True] * ROWS,
    scores=np.full((ROWS, KINDS), 2e-5),
    scores_known=[False, True, False, False],
    expansion=np.full((ROWS, KINDS), 1.5),
    expansion_known=[False, True, False, False],
  )

  def words(action, row):
    one = jnp.zeros((ROWS,), jnp.int32).at[row].set(1)
    decisions = obs.Decisions(
      action=one * int(action),
      blueprint=2 * one - 1,
      initializer=0 * one,
      weight=0.5 * one.astype(jnp.float32),
      reason=one * obs.LEARNED,
    )
    names = ["a", "b", "c", "d"], ["x", "y", "z"]
    return policy.explain(decisions, o, *names)[0].reason

  start = "the learned policy gives it probability 0.50; "
  assert words(Action.CULL, 0) == (
    f"{start}contribution 2.00e-02 +- 1.0e-02, 2.0 standard errors after"
    " 3 epochs in TRAINING; not finite"
  )
  assert words(Action.ADVANCE, 0).endswith("in TRAINING: the gate passes")
  assert words(Action.GERMINATE, 1) == (
    f"{start}y at b: validation loss improved 0 % over 2 epochs, germination"
    " score 2.0e-05 per parameter, expansion 1.5"
  )
  assert words(Action.GERMINATE, 2) == (
    f"{start}y at c: validation loss improved 0 % over 2 epochs, germination"
    " score not measured"
  )
  o = o.replace(history_known=jnp.zeros_like(o.history_known))
  assert words(Action.GERMINATE, 2) == (
    f"{start}y at c: germination score not measured"
  )


def test_it_is_made_of_a_file_not_by_name():
  assert "learned" in policies.names()
  with pytest.raises(InputError, match="made of a file of weights"):
    policies.make("learned")
  assert learned.digest_of(make_file()).any()
