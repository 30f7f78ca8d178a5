import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo import policy as policies
from esper_jax.tamiyo.policy import from_rule, make, resolve_schedule
from esper_jax.tamiyo.rules import Rule, Settings, wish
from esper_jax.types import Action, InputError, Stage

GROW = int(Action.GERMINATE)
SETTINGS = {
  "schedule": ((4, 1, 2), (4, 0, 0), (7, 3, 1)),
  "probability": 0.6,
  "plateau_delta": 0.02,
}
CLEAR = {
  "scores": [[1e-6, 2e-6], [1e-6, 3.2e-4], [1e-6, 1e-6]],
  "scores_known": [True] * 3,
}


def _rank(policy, observation, k):
  rank = jax.jit(policy.rank, static_argnums=2)
  return rank(policy.init(jax.random.key(0)), observation, k)


def _choice(decisions):
  return decisions.action.tolist(), decisions.blueprint.tolist()


def _all(name, **more):
  policy = make(name, **SETTINGS, **more)

  def run(observation, key):
    state, decisions = policy.decide(policy.init(key), observation, key)
    ranked = policy.rank(state, observation, 3)
    if policy.wants_scores is None:
      return state, decisions, ranked
    return state, decisions, ranked, policy.wants_scores(state, observation)

  return run


@pytest.mark.parametrize(
  "name, lanes",
  [(name, 1) for name in policies.names() if name != policies.LEARNED]
  + [("random", 2)]
  + [
    pytest.param(name, 2, marks=pytest.mark.full)
    for name in ("periodic", "heuristic")
  ],
)
def test_eager_jit_and_vmap_agree_and_stay_within_the_law(
  anything, equal, name, lanes
):
  more = {"sequential": False} if lanes == 2 else {}
  run = _all(name, **{"seeds_per_slot": lanes, **more})
  observations = [anything(seed) for seed in range(24)]
  keys = jax.random.split(jax.random.key(0), len(observations))
  stacked = jax.tree.map(lambda *x: np.stack(x), *observations)
  batch = jax.device_get(jax.jit(jax.vmap(run))(stacked, keys))
  jitted = jax.jit(run)
  for n, o in enumerate(observations):
    result = jitted(o, keys[n])
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(result))
    assert equal(result, jax.tree.map(lambda x, n=n: x[n], batch))
    if n < 2:
      assert equal(result, run(o, keys[n]))
    _check_law(jax.device_get(result), jax.device_get(o))


def _check_law(result, o):
  _, decisions, ranked, *_ = result
  row = np.arange(o.stage.shape[0])
  assert o.legal[row, decisions.action, decisions.blueprint].all()
  grows = int((decisions.action == GROW).sum())
  assert grows <= min(2, int(o.growths_left))
  weights = np.array([float(w) for _, w in ranked])
  assert np.isfinite(weights).all()
  assert (weights >= 0).all() and weights.sum() <= 1 + 1e-5
  assert (np.diff(weights) <= 0).all()
  assert ((decisions.weight >= 0) & (decisions.weight <= 1)).all()
  moves = decisions.action != int(Action.WAIT)
  assert (decisions.weight[~moves] == 0).all()
  assert (decisions.reason[moves] > 0).all()


def test_never_never_moves(planted):
  policy = make("never")
  o = planted(Stage.TRAINING)
  state, decisions = policy.decide(
    policy.init(jax.random.key(1)), o, jax.random.key(0)
  )
  assert state == ()
  assert decisions.action.tolist() == [Action.WAIT] * 2
  assert policy.explain(decisions, o, ["a", "b"], ["c", "d"]) == []
  ((ranked, weight),) = policy.rank(state, o, 5)
  assert float(weight) == 1.0
  assert _choice(ranked) == _choice(decisions)


def _rank_then_decide(policy, now, later, k):
  """The sets ranked at one boundary, and what is decided at the next."""
  state, key = policy.init(jax.random.key(0)), jax.random.key(5)
  decide = jax.jit(policy.decide)
  state, _ = decide(state, now, key)
  rank = jax.jit(policy.rank, static_argnums=2)
  ranked = [_choice(d) for d, _ in rank(state, now, k)]
  _, decisions = decide(state, later, key)
  return ranked, _choice(decisions)


@pytest.mark.parametrize("name", ["periodic", "schedule"])
def test_rank_of_a_rule_by_the_clock_is_exact(observe, name):
  policy = make(name, schedule=((4, 1, 2), (4, 0, 0)), period_epochs=4)
  for epoch in (3, 4):
    now, later = observe(3, 3, epoch=epoch), observe(3, 3, epoch=epoch + 1)
    ranked, decided = _rank_then_decide(policy, now, later, 1)
    assert ranked == [decided]
    assert (GROW in decided[0]) == (epoch == 3)


@pytest.mark.parametrize("seed", range(5))
def test_rank_of_the_heuristic_holds_what_it_then_decides(observe, seed):
  """Scores are clear; loss and scores change by a little until the decision."""
  draw = np.random.default_rng(seed)
  policy = make("heuristic")
  best = (int(draw.integers(6)), int(draw.integers(4)))
  scores = 10.0 ** draw.uniform(-6, -4.5, (6, 4))
  scores[best] = 3e-4
  loss = 0.5 * (1 - 0.03) ** np.array([0, 1, 2, 3, 4, 4.4, 4.6, 4.7, 4.8])
  known = {"scores_known": [True] * 6}
  now = observe(6, 4, val_loss=loss[:-1], scores=scores, **known)
  noise = draw.uniform(0.8, 1.2, scores.shape)
  later = observe(
    6, 4, epoch=11, val_loss=loss[1:], scores=scores * noise, **known
  )
  ranked, decided = _rank_then_decide(policy, now, later, 2)
  assert decided[0][best[0]] == GROW
  assert decided[1][best[0]] == best[1]
  assert decided in ranked


def test_rank_waits_while_the_loss_falls(observe):
  policy = make("heuristic")
  o = observe(**CLEAR, val_loss=0.9 ** np.arange(8))
  (first, weight), *_ = _rank(policy, o, 3)
  assert GROW not in first.action.tolist()
  assert float(weight) > 0.99


def test_rank_hedges_where_the_plateau_is_uncertain(observe):
  policy = make("heuristic")
  o = observe(**CLEAR, val_loss=0.995 ** np.arange(8))
  (_, high), (_, low) = _rank(policy, o, 2)
  assert 0.3 < float(low) <= float(high) < 0.7


def test_rank_without_scores_spreads_over_what_is_legal(observe):
  policy = make("heuristic")
  weights = [float(w) for _, w in _rank(policy, observe(), 99)]
  assert len(weights) == 3 * 2 + 1
  np.testing.assert_allclose(sum(weights), 1.0, rtol=1e-5)
  np.testing.assert_allclose(weights[:6], weights[0], rtol=1e-5)
  assert weights[6] < weights[5]


def test_rank_gives_a_row_without_scores_the_mean_of_the_others(observe):
  policy = make("heuristic")
  o = observe(
    scores=[[2e-4, 0], [0, 0], [4e-4, 0]], scores_known=[True, False, True]
  )
  ranked = _rank(policy, o, 4)
  first = [d.action.tolist().index(GROW) for d, _ in ranked]
  assert first == [2, 1, 1, 0]
  weights = np.array([float(w) for _, w in ranked])
  np.testing.assert_allclose(
    weights / weights[3], [4, 2.25, 2.25, 1], rtol=1e-5
  )


def test_rank_expects_no_second_seed_while_one_is_in_training(planted):
  policy = make("heuristic")
  o = planted(Stage.TRAINING, gate=[2, 0])
  (first, weight), *_ = _rank(policy, o, 2)
  assert first.action.tolist() == [Action.WAIT] * 2
  assert float(weight) == 1.0


def test_rank_foresees_that_patience_ends(planted):
  policy = make("heuristic")
  now = planted(Stage.TRAINING, age=[7, 0], gate=[2, 0])
  later = planted(Stage.TRAINING, age=[8, 0], gate=[2, 0], epoch=11)
  ranked, decided = _rank_then_decide(policy, now, later, 1)
  assert ranked == [decided]
  assert decided[0][0] == Action.CULL


def test_rank_merges_equal_sets_of_two_germinations(observe):
  policy = make("heuristic", sequential=False)
  scores = [[3e-4, 0], [3e-4, 0], [1e-7, 0]]
  o = observe(scores=scores, scores_known=[True] * 3)
  (first, weight), *_ = _rank(policy, o, 3)
  assert first.action.tolist() == [GROW, GROW, Action.WAIT]
  assert float(weight) > 0.95


def test_rank_of_random_knows_its_probability(observe):
  policy = make("random", probability=0.3, max_adaptations_per_epoch=1)
  weights = [float(w) for _, w in _rank(policy, observe(), 7)]
  np.testing.assert_allclose(weights, [0.7] + [0.05] * 6, rtol=1e-5)


def test_explain_names_the_slot_of_each_row(observe):
  policy = make("schedule", schedule=((10, 1, 0),), seeds_per_slot=2)
  o = observe(4, 1)
  _, decisions = policy.decide((), o, jax.random.key(0))
  (record,) = policy.explain(decisions, o, ["a", "b"], ["conv"])
  assert (record.row, record.slot) == (2, "b")


def test_explain_names_the_blueprint_and_initializer(planted):
  policy = make("heuristic")
  o = planted(Stage.TRAINING)
  _, decisions = policy.decide((), o, jax.random.key(0))
  decisions = decisions.replace(
    initializer=jnp.full((2,), obs.INITIALIZERS.index("gradient"))
  )
  (record,) = policy.explain(decisions, o, ["a", "b"], ["conv", "dense"])
  assert record.action == Action.ADVANCE
  assert (record.blueprint, record.initializer) == ("dense", "gradient")
  assert record.weight == 1.0


def test_own_policy(observe):
  """A user's rule: every fourth epoch, the cheapest pair that fits."""

  def cheapest(settings):
    def propose(state, observation, key):
      return wish(
        observation,
        1.0 / observation.cost,
        count=1,
        chance=observation.epoch % 4 == 0,
      )

    return Rule(propose=propose)

  policies.register("cheapest", cheapest)
  policy = make("cheapest")
  cost = [[9, 8], [7, 5], [6, 9]]
  state = policy.init(jax.random.key(0))
  o = observe(cost=cost, epoch=8)
  state, decisions = jax.jit(policy.decide)(state, o, jax.random.key(0))
  assert _choice(decisions) == ([0, GROW, 0], [-1, 1, -1])
  (record,) = policy.explain(decisions, o, "abc", ["conv", "dense"])
  assert record.reason == "the rule asks for it with weight 0.23"
  assert policy.wants_scores is None
  ((ranked, weight),) = _rank(policy, observe(cost=cost, epoch=7), 1)
  assert _choice(ranked) == _choice(decisions)
  assert float(weight) == pytest.approx(
    0.2 / sum(1 / c for c in (9, 8, 7, 5, 6, 9))
  )
  assert "cheapest" in policies.names()
  with pytest.raises(InputError, match="'cheapest' exists already"):
    policies.register("cheapest", cheapest)
  policies.unregister("cheapest")
  assert "cheapest" not in policies.names()


def test_a_rule_can_be_used_without_a_name(observe):
  rule = Rule(lambda s, o, key: wish(o, jnp.ones_like(o.scores), count=9))
  policy = from_rule("mine", rule, Settings(max_adaptations_per_epoch=3))
  _, decisions = policy.decide((), observe(), jax.random.key(0))
  assert policy.name == "mine"
  assert decisions.action.tolist() == [GROW] * 3


@pytest.mark.parametrize(
  "settings, text",
  [
    ({"plateau": 3}, "unknown setting 'plateau' .*valid: max_adapt"),
    ({"plateau_epochs": 8}, "plateau_epochs=8 .*valid: 1 to 7"),
    ({"probability": 1.5}, "probability=1.5 .*valid: 0 to 1"),
    ({"period_epochs": 0}, "period_epochs=0 "),
    ({"gain_sigmas": float("nan")}, "gain_sigmas=nan "),
  ],
)
def test_bad_settings_are_named(settings, text):
  with pytest.raises(InputError, match=text):
    make("heuristic", **settings)


def test_unknown_policy_lists_the_valid_ones():
  with pytest.raises(InputError, match="'clever'; valid: never, periodic"):
    make("clever")


def test_schedule_names_become_indices():
  schedule = [(3, "b", "conv"), (1, "a", "dense")]
  assert resolve_schedule(schedule, ["a", "b"], ["conv", "dense"]) == (
    (3, 1, 0),
    (1, 0, 1),
  )


@pytest.mark.parametrize(
  "entry, text",
  [
    ((3, "c", "conv"), "slot 'c' does not exist; valid: a, b"),
    ((3, "a", "conf"), "blueprint 'conf' does not exist; valid: conv, dense"),
    ((0, "a", "conv"), "epoch 0 must be a whole number of at least 1"),
    ((1.5, "a", "conv"), "epoch 1.5 must be"),
    ((3, "a"), "is not a triple; write"),
  ],
)
def test_bad_schedule_entries_are_named(entry, text):
  with pytest.raises(InputError, match=text):
    resolve_schedule([entry], ["a", "b"], ["conv", "dense"])


@pytest.mark.parametrize(
  "fits, there", [([False, True], "dense"), ([False, False], "none")]
)
def test_what_does_not_fit_a_slot_is_not_scheduled_there(fits, there):
  blueprints = ["conv", "dense"]
  table = [[True, True], fits]
  assert resolve_schedule([(1, "a", "conv")], ["a", "b"], blueprints, table)
  with pytest.raises(
    InputError,
    match=f"'conv' does not fit slot 'b'; those that do: {there}$",
  ):
    resolve_schedule([(1, "b", "conv")], ["a", "b"], blueprints, table)
