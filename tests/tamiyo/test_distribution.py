import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tamiyo import distribution
from esper_jax.tamiyo.distribution import MOVES, Choice, Logits
from esper_jax.types import Action

WAIT, ADVANCE, CULL, FOSSILIZE = range(4)
# These programs run once or twice: compiling them is what takes time.
hasty = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def draw_logits(rows, blueprints, seed=0, scale=1.0):
  draw = np.random.default_rng(seed)
  return Logits(
    jnp.asarray(scale * draw.normal(size=(rows, blueprints)), jnp.float32),
    jnp.asarray(scale * draw.normal(), jnp.float32),
    jnp.asarray(scale * draw.normal(size=(rows, len(MOVES))), jnp.float32),
  )


def choice(growth, moves):
  return Choice(jnp.asarray(growth, jnp.int32), jnp.asarray(moves, jnp.int32))


def every_choice(rows, blueprints, draws):
  pairs = range(-1, rows * blueprints)
  grown = list(itertools.product(pairs, repeat=draws))
  moves = list(itertools.product(range(len(MOVES)), repeat=rows))
  every = list(itertools.product(grown, moves))
  return choice([g for g, _ in every], [m for _, m in every])


@functools.partial(hasty, static_argnames="lanes")
def log_probs(logits, observation, choices, lanes=1):
  return jax.vmap(
    lambda c: distribution.log_prob(logits, observation, c, lanes=lanes)
  )(choices)


entropy_of = hasty(distribution.entropy, static_argnames=("draws", "lanes"))


def log_prob(logits, observation, made):
  batch = jax.tree.map(lambda x: x[None], made)
  return float(log_probs(logits, observation, batch)[0])


@pytest.fixture
def mixed(observe):
  """Rows 0 and 1 free for both blueprints and the second; row 2 in HOLDING."""
  legal = np.zeros((3, len(Action), 2), bool)
  legal[:, Action.WAIT] = True
  legal[0, Action.GERMINATE] = True
  legal[1, Action.GERMINATE, 1] = True
  legal[2, [Action.CULL, Action.FOSSILIZE], 0] = True
  return observe(3, 2, legal=legal, blueprint=[-1, -1, 0], growths_left=8)


def test_log_prob_is_that_of_the_hand_computed_case(mixed):
  logits = Logits(
    jnp.asarray([[1.0, 2.0], [9.0, 0.0], [9.0, 9.0]], jnp.float32),
    jnp.float32(0.5),
    jnp.asarray([[0.0, 5.0, 5.0, 5.0]] * 2 + [[0.0, 9.0, 1.0, 2.0]]),
  )
  e = math.exp
  whole = e(1) + e(2) + e(0) + e(0.5)
  moves = 1 + e(1) + e(2)
  for growth, share in ((0, e(1)), (1, e(2)), (3, e(0)), (-1, e(0.5))):
    for move, part in ((WAIT, 1.0), (CULL, e(1)), (FOSSILIZE, e(2))):
      made = choice([growth], [WAIT, WAIT, move])
      value = log_prob(logits, mixed, made)
      assert math.exp(value) == pytest.approx(share / whole * part / moves)
  two = choice([1, 3], [WAIT, WAIT, WAIT])  # 1 takes 0 away as well
  value = log_prob(logits, mixed, two)
  expected = e(2) / whole * e(0) / (e(0) + e(0.5)) / moves
  assert math.exp(value) == pytest.approx(expected)


@pytest.mark.parametrize("draws, lanes", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_probabilities_and_entropy_are_those_of_all_choices(
  anything, draws, lanes
):
  for seed in range(4):
    observation = anything(seed, rows=2, blueprints=2)
    logits = draw_logits(2, 2, seed)
    choices = every_choice(2, 2, draws)
    log_p = np.asarray(log_probs(logits, observation, choices, lanes))
    p = np.exp(log_p)
    sizes = {"draws": draws, "lanes": lanes}
    assert p.sum() == pytest.approx(1, abs=1e-5)
    entropy = float(entropy_of(logits, observation, **sizes))
    assert entropy == pytest.approx(-(p * log_p).sum(), abs=1e-4)


@pytest.mark.parametrize("draws, lanes", [(1, 1), (2, 2)])
def test_samples_come_as_often_as_their_probability_says(
  anything, draws, lanes
):
  observation = anything(3, rows=2, blueprints=2).replace(
    growths_left=jnp.int32(2)
  )
  logits = draw_logits(2, 2)
  keys = jax.random.split(jax.random.key(0), 20_000)
  sizes = {"draws": draws, "lanes": lanes}
  drawn = jax.jit(
    jax.vmap(lambda key: distribution.sample(logits, observation, key, **sizes))
  )(keys)
  log_p = log_probs(logits, observation, drawn, lanes)
  assert float(log_p.min()) > -100  # nothing illegal comes out
  entropy = float(entropy_of(logits, observation, **sizes))
  assert float(-log_p.mean()) == pytest.approx(entropy, abs=0.03)


@pytest.mark.parametrize("draws, lanes", [(1, 1), (3, 1), (2, 2)])
def test_decisions_are_legal_and_within_the_caps(anything, draws, lanes):
  @hasty
  def decide(observation, logits, key):
    sizes = {"draws": draws, "lanes": lanes}
    chosen = (
      distribution.sample(logits, observation, key, **sizes),
      distribution.mode(logits, observation, **sizes),
    )
    return [distribution.to_decisions(c, observation, logits) for c in chosen]

  for seed in range(60):
    observation = anything(seed)
    logits = draw_logits(4, 3, seed, scale=3.0)
    for decisions in decide(observation, logits, jax.random.key(seed)):
      action = np.asarray(decisions.action)
      blueprint = np.asarray(decisions.blueprint)
      grown = action == Action.GERMINATE
      for row in range(4):
        column = blueprint[row]
        legal = np.asarray(observation.legal)[row, action[row]]
        assert legal[column] if grown[row] else legal.any()
        assert (column == -1) == (action[row] == Action.WAIT) or (
          column == observation.blueprint[row]
        )
      slots = grown.reshape(-1, lanes)
      culled = (action == Action.CULL).reshape(-1, lanes)
      assert grown.sum() <= min(draws, int(observation.growths_left))
      assert slots.sum(axis=1).max() <= 1
      assert not (slots.any(axis=1) & culled.any(axis=1)).any()
      weight = np.asarray(decisions.weight)
      assert ((weight >= 0) & (weight <= 1)).all()
      assert (weight[action == Action.WAIT] == 0).all()


def test_of_two_lanes_the_first_that_is_free_grows(observe):
  logits = draw_logits(4, 1)
  keys = jax.random.split(jax.random.key(1), 200)
  observation = observe(4, 1)
  drawn = hasty(
    jax.vmap(lambda key: distribution.sample(logits, observation, key, lanes=2))
  )(keys)
  assert set(np.asarray(drawn.growth).ravel()) == {-1, 0, 2}


def test_the_mode_grows_where_growing_is_likelier_than_not(observe):
  mode = hasty(distribution.mode, static_argnames="draws")
  starting_with = hasty(distribution.starting_with, static_argnames="draws")
  observation = observe(3, 2)
  germinate = jnp.asarray([[0.0, 0.0], [0.0, 0.2], [0.0, 0.0]], jnp.float32)
  moves = jnp.zeros((3, 4), jnp.float32)
  for stay, growth in ((1.0, 3), (2.0, -1)):  # log 6 is 1.8
    logits = Logits(germinate, jnp.float32(stay), moves)
    assert mode(logits, observation).growth.tolist() == [growth]
  logits = Logits(germinate, jnp.float32(1.2), moves)
  chosen = mode(logits, observation, draws=3)
  assert chosen.growth.tolist() == [3, 0, -1]  # log 4 and log 2 are left
  chosen = starting_with(logits, observation, jnp.int32(5))
  assert chosen.growth.tolist() == [5]
  chosen = starting_with(logits, observation, jnp.int32(-1), draws=2)
  assert chosen.growth.tolist() == [-1, -1]


def test_what_cannot_come_out_has_no_probability(mixed):
  logits = draw_logits(3, 2)
  waits = [WAIT] * 3
  for growth, moves in (
    ([2], waits),  # does not fit
    ([0, 1], waits),  # the same slot twice
    ([-1, 0], waits),  # after the end
    ([0], [ADVANCE, WAIT, WAIT]),
    ([-1], [WAIT, WAIT, ADVANCE]),
  ):
    assert log_prob(logits, mixed, choice(growth, moves)) < -1e8
  spent = mixed.replace(growths_left=jnp.int32(1))
  assert log_prob(logits, spent, choice([0, 3], waits)) < -1e8


def test_gradients_are_finite_where_nothing_is_legal(observe):
  observation = observe(2, 2, growths_left=0)
  observation = observation.replace(legal=jnp.zeros_like(observation.legal))
  waits = choice([-1, -1], [WAIT, WAIT])

  def loss(logits):
    return distribution.log_prob(
      logits, observation, waits
    ) + distribution.entropy(logits, observation, draws=2)

  value, gradient = hasty(jax.value_and_grad(loss))(draw_logits(2, 2))
  assert float(value) == 0
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_gradients_are_those_of_differences(mixed):
  made = choice([1, 3], [WAIT, WAIT, CULL])

  def loss(logits):
    return distribution.log_prob(logits, mixed, made) + distribution.entropy(
      logits, mixed, draws=2
    )

  logits = draw_logits(3, 2)
  both = hasty(jax.value_and_grad(loss))
  _, gradient = both(logits)
  direction = draw_logits(3, 2, 5)
  slope = sum(
    (g * d).sum()
    for g, d in zip(
      jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
    )
  )
  ends = [
    both(jax.tree.map(lambda x, d, s=s: x + s * d, logits, direction))[0]
    for s in (1e-2, -1e-2)
  ]
  assert float(slope) == pytest.approx(
    float(ends[0] - ends[1]) / 2e-2, rel=1e-2
  )


def test_growth_probability_is_that_of_the_first_draw(mixed):
  logits = draw_logits(3, 2)
  some, pairs = distribution.growth_probability(logits, mixed)
  assert float(pairs.sum()) == pytest.approx(float(some))
  assert np.asarray(pairs > 0).tolist() == [
    [True, True],
    [False, True],
    [False, False],
  ]
