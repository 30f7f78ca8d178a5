"""What a seed is worth, and what may be spent on finding out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_jax.kasmina import lifecycle, surgery
from esper_jax.kasmina.slot import seeds_at
from esper_jax.tolaria import measure
from esper_jax.tolaria.accounting import Ledger
from esper_jax.tolaria.governor import GovernorState
from esper_jax.tolaria.optimizers import make_optimizer
from esper_jax.tolaria.run import History, Run, unknown_signals
from esper_jax.tolaria.state import TrainState
from esper_jax.tolaria.steps import empty_sums
from esper_jax.types import SlotSpec, Stage

OPTIMIZER = make_optimizer("sgd", momentum=0.0)
SPECS = [SlotSpec(n, (4,), "float32", "features") for n in ("a", "b", "c")]
PATHS = [spec.name for spec in SPECS]


def state_with(*specs) -> TrainState:
  params = {"kernel": jnp.ones((2, 3))}
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    collections={},
    seeds={},
    optimizer={"host": OPTIMIZER.init(params)},
    age={"host": jnp.zeros((), jnp.int32)},
    average=None,
    lr_factor=jnp.ones((), jnp.float32),
    key=jax.random.key(0),
  )
  for spec in specs:
    state, _ = surgery.germinate(
      state,
      spec,
      "lowrank_dense",
      key=jax.random.key(0),
      optimizer=OPTIMIZER,
    )
  return state


def make_run(state: TrainState, **changes) -> Run:
  keys: list[str | None] = [
    "lowrank_dense" if seeds_at(state.seeds, path) else None for path in PATHS
  ]
  return Run(
    state=state,
    sums=empty_sums(state).replace(**changes),
    slots=lifecycle.initial(len(PATHS)),
    signals=unknown_signals(len(PATHS)),
    keys=keys,
    births=[""] * len(PATHS),
    culls=[0] * len(PATHS),
    history=History.empty(),
    policy=(),
    governor=GovernorState(),
    ledger=Ledger(),
  )


# --- batches and losses ---------------------------------------------------


def test_batches_are_equal_padded_and_in_order():
  images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
  labels = np.arange(7, dtype=np.int32)
  batches = measure.device_batches(images, labels, 3)
  assert [b.count for b in batches] == [3, 3, 1]
  for n, batch in enumerate(batches):
    assert isinstance(batch.images, jax.Array)
    assert (batch.images.shape, batch.images.dtype) == ((3, 1, 1, 1), "uint8")
    assert (batch.labels.shape, batch.labels.dtype) == ((3,), "int32")
    assert batch.mask.dtype == "float32"
    assert batch.mask.tolist() == [1.0 * (i < batch.count) for i in range(3)]
    own = slice(3 * n, 3 * n + batch.count)
    assert batch.labels[: batch.count].tolist() == labels[own].tolist()
    assert batch.images.ravel().tolist() == batch.labels.tolist()


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_losses_are_per_example_without_the_padding(size):
  images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
  labels = np.arange(7, dtype=np.int32) % 2

  def evaluate(batch):
    value = batch.images.reshape(-1).astype(jnp.float32)
    return value, batch.labels.astype(jnp.float32)

  losses, hits = measure.losses(
    evaluate, measure.device_batches(images, labels, size)
  )
  assert losses.tolist() == [0, 1, 2, 3, 4, 5, 6]
  assert hits.tolist() == labels.tolist()
  assert losses.dtype == hits.dtype == np.float32


# --- contribution ---------------------------------------------------------


def test_contribution_is_the_paired_mean_with_its_standard_error():
  rng = np.random.default_rng(0)
  hard = rng.exponential(3.0, 400).astype(np.float32)
  gain = rng.normal(0.1, 0.05, 400).astype(np.float32)
  worth = measure.contribution(hard - gain, hard)
  paired = hard.astype(np.float64) - (hard - gain)
  assert worth.mean == pytest.approx(paired.mean())
  assert worth.error == pytest.approx(paired.std(ddof=1) / 20)
  assert worth.mean == pytest.approx(0.1, abs=0.01)  # a seed that helps
  assert worth.error < 0.003  # what pairing is for: unpaired it is 0.2
  hurt = measure.contribution(hard, hard - gain)
  assert (hurt.mean, hurt.error) == (-worth.mean, worth.error)


def test_a_seed_without_effect_contributes_exactly_nothing():
  losses = np.linspace(0, 5, 9, dtype=np.float32)
  assert measure.contribution(losses, losses) == (0.0, 0.0)


@pytest.mark.parametrize(
  ("isolated", "alpha", "expected"), [(True, 0.0, 1.0), (False, 0.7, 0.0)]
)
def test_ablation_switches_one_seed(isolated, alpha, expected):
  state = state_with(*SPECS[:2])
  state = surgery.set_leaves(
    state, "a", "lowrank_dense", alpha=alpha, isolation=float(isolated)
  )
  new = measure.ablate(state, "a", "lowrank_dense", isolated=isolated)
  seed, old = (seeds_at(s.seeds, "a")["lowrank_dense"] for s in (new, state))
  assert (float(seed.alpha), float(seed.isolation)) == (expected, 0.0)
  assert seed.params is old.params
  assert seeds_at(new.seeds, "b") == seeds_at(state.seeds, "b")
  assert jax.tree.structure(new) == jax.tree.structure(state)  # same program


# --- the plan -------------------------------------------------------------

D, T, B, H, F = (
  int(stage)
  for stage in (
    Stage.DORMANT,
    Stage.TRAINING,
    Stage.BLENDING,
    Stage.HOLDING,
    Stage.FOSSILIZED,
  )
)


def plan(stages, *, ages=None, since=None, budget=1e9, limit=1000, **options):
  rows = len(stages)
  return measure.plan(
    np.array(stages),
    np.array(ages or [0] * rows),
    np.array(since or [0] * rows),
    min_training=options.pop("min_training", 2),
    budget=budget,
    cost=options.pop("cost", 1.0),
    limit=limit,
  )


def test_holding_comes_first_then_ripe_then_the_longest_unmeasured():
  chosen = plan(
    [F, T, B, H, T, D, F, H],
    ages=[9, 2, 1, 1, 1, 0, 9, 1],
    since=[4, 0, 7, 0, 4, 99, 2, 0],
  )
  assert chosen.rows == [3, 7, 1, 2, 0, 4, 6]


@pytest.mark.parametrize(
  "stage", [Stage.DORMANT, Stage.GERMINATED, Stage.CULLED, Stage.EMBARGOED]
)
def test_what_is_not_in_the_tree_is_not_measured(stage):
  chosen = plan([int(stage), int(stage)])
  assert chosen.rows == []
  assert chosen.examples == 1000


def test_urgent_seeds_are_measured_beyond_the_budget():
  chosen = plan([H, T, F], ages=[1, 2, 9], budget=0.0)
  assert chosen == ([0, 1], measure.MIN_EXAMPLES)


@pytest.mark.parametrize(
  ("budget", "rows"),
  [(255, []), (256, [1]), (511, [1]), (512, [1, 0]), (9999, [1, 0, 2])],
)
def test_others_share_what_is_left(budget, rows):
  chosen = plan([F, B, F], since=[3, 5, 1], budget=budget)
  assert chosen.rows == rows


@pytest.mark.parametrize(
  ("budget", "limit", "examples"),
  [
    (0, 1000, 256),
    (600, 1000, 300),
    (1e9, 1000, 1000),
    (0, 100, 100),  # the whole split where it is smaller
    (600, 100, 100),
  ],
)
def test_the_budget_buys_examples(budget, limit, examples):
  assert plan([H, H], budget=budget, limit=limit).examples == examples


def test_cost_is_per_example():
  cheap = plan([H], budget=1000.0, cost=2.0)
  assert cheap.examples == 500


@settings(max_examples=200, deadline=None)
@given(
  rows=st.lists(
    st.tuples(
      st.sampled_from([int(s) for s in Stage]),
      st.integers(0, 5),
      st.integers(0, 50),
    ),
    max_size=8,
  ),
  budget=st.floats(0, 1e5),
  cost=st.floats(0.1, 100.0),
  limit=st.integers(1, 2000),
)
def test_a_plan_keeps_its_budget_unless_seeds_are_urgent(
  rows, budget, cost, limit
):
  stages, ages, since = (
    np.array([row[i] for row in rows], np.int64) for i in range(3)
  )
  chosen, examples = measure.plan(
    stages,
    ages,
    since,
    min_training=3,
    budget=budget,
    cost=cost,
    limit=limit,
  )
  urgent = {
    r
    for r in range(len(rows))
    if stages[r] == H or (stages[r] == T and ages[r] >= 3)
  }
  assert len(set(chosen)) == len(chosen)
  assert set(chosen[: len(urgent)]) == urgent
  assert {int(stages[r]) for r in chosen} <= {T, B, H, F}
  assert min(limit, measure.MIN_EXAMPLES) <= examples <= limit
  if len(chosen) * examples * cost > budget * (1 + 1e-9):
    assert set(chosen) == urgent
    assert examples == min(limit, measure.MIN_EXAMPLES)


# --- signals --------------------------------------------------------------


def test_parity_is_the_ratio_of_root_mean_square_gradients():
  run = make_run(
    state_with(SPECS[0], SPECS[2]),
    square={
      "host": jnp.float32(4.0),
      "a/lowrank_dense": jnp.float32(1.0),
      "c/lowrank_dense": jnp.float32(36.0),
    },
  )
  before = run.signals
  measure.note_gradients(run, PATHS)
  assert run.signals.parity.tolist() == [0.5, 0.0, 3.0]
  assert run.signals.parity_known.tolist() == [True, False, True]
  assert run.signals.finite.tolist() == [True, True, True]
  same = ("contribution", "contribution_known", "contribution_age")
  for name in same:
    assert getattr(run.signals, name) is getattr(before, name)


def test_a_host_without_gradient_gives_a_finite_parity():
  run = make_run(
    state_with(SPECS[0]),
    square={"host": jnp.float32(0), "a/lowrank_dense": jnp.float32(1e-6)},
  )
  measure.note_gradients(run, PATHS)
  assert math.isfinite(float(run.signals.parity[0]))
  assert float(run.signals.parity[0]) > 1e9


def test_a_gradient_that_was_not_finite_is_noted():
  state = state_with(*SPECS[:2])
  finite = {group: jnp.asarray(True) for group in state.optimizer}
  run = make_run(
    state,
    square={
      "host": jnp.float32(1),
      "a/lowrank_dense": jnp.float32(math.nan),
      "b/lowrank_dense": jnp.float32(1),
    },
    finite=finite | {"a/lowrank_dense": jnp.asarray(False)},
  )
  measure.note_gradients(run, PATHS)
  assert run.signals.finite.tolist() == [False, True, True]
  assert run.signals.parity.tolist() == [0.0, 1.0, 0.0]  # no NaN in a record
  assert run.signals.parity_known.tolist() == [True, True, False]


def test_parameters_that_are_not_finite_are_noted_and_may_recover():
  state = state_with(*SPECS[:2])
  square = {group: jnp.float32(1) for group in state.optimizer}
  own = seeds_at(state.seeds, "b")["lowrank_dense"]
  sick = own.replace(
    params=jax.tree.map(lambda p: p.at[0, 0].set(jnp.inf), own.params)
  )
  run = make_run(
    state.replace(seeds={**state.seeds, "b": {"lowrank_dense": sick}}),
    square=square,
  )
  measure.note_gradients(run, PATHS)
  assert run.signals.finite.tolist() == [True, False, True]
  run.state = state
  measure.note_gradients(run, PATHS)
  assert run.signals.finite.tolist() == [True, True, True]
  assert run.signals.parity.tolist() == [1.0, 1.0, 0.0]


def test_a_contribution_is_noted_with_its_stage():
  run = make_run(state_with(*SPECS))
  run.signals = run.signals.replace(
    contribution_age=jnp.asarray([4, 5, 6], jnp.int32)
  )
  worth = measure.Contribution(0.25, 0.125)
  measure.note_contribution(run, 1, worth, Stage.HOLDING)
  s = run.signals
  assert s.contribution.tolist() == [0.0, 0.25, 0.0]
  assert s.contribution_se.tolist() == [0.0, 0.125, 0.0]
  assert s.contribution_known.tolist() == [False, True, False]
  assert s.contribution_age.tolist() == [4, 0, 6]
  assert s.contribution_stage.tolist() == [D, H, D]
  for name in ("contribution", "contribution_se"):
    assert getattr(s, name).dtype == jnp.float32


# --- an epoch boundary ----------------------------------------------------

SPLIT = measure.device_batches(
  np.zeros((600, 1, 1, 1), np.uint8), np.zeros(600, np.int32), 100
)
BASE = np.linspace(1.0, 2.0, 600)
GAIN = {"a": 0.5, "b": -0.25, "c": 0.125}
STAGES = {  # stage -> the leaves that go with it
  Stage.TRAINING: {"alpha": 0.0, "isolation": 1.0},
  Stage.BLENDING: {"alpha": 0.5, "isolation": 0.0},
  Stage.HOLDING: {"alpha": 1.0, "isolation": 0.0},
  Stage.FOSSILIZED: {"alpha": 1.0, "isolation": 0.0},
}


def split_losses(state, batches):
  """Losses that each seed lowers by its gain times its present weight."""
  n = sum(batch.count for batch in batches)
  losses = BASE[:n].copy()
  for path, gain in GAIN.items():
    for seed in seeds_at(state.seeds, path).values():
      losses -= gain * float(seed.alpha) * (1 - float(seed.isolation))
  return losses.astype(np.float32)


def boundary(stages, *, share=1.0, examples=1000, train=10**9, ablation=0):
  """A run after `update`, and the examples of each of its ablations."""
  planted = [s for s, stage in zip(SPECS, stages, strict=True) if stage]
  state = state_with(*planted)
  for spec, stage in zip(SPECS, stages, strict=True):
    if stage in STAGES:
      leaves = STAGES[stage]
      state = surgery.set_leaves(state, spec.name, "lowrank_dense", **leaves)
  run = make_run(state)
  run.slots = run.slots.replace(stage=jnp.asarray(stages, jnp.int32))
  run.signals = run.signals.replace(
    contribution_age=jnp.asarray([3, 5, 7], jnp.int32)
  )
  run.ledger = Ledger(train=train, ablation=ablation)
  asked = []

  def evaluate(state, batches):
    asked.append(sum(batch.count for batch in batches))
    return split_losses(state, batches)

  measure.update(
    run,
    PATHS,
    batches=SPLIT,
    baseline=split_losses(state, SPLIT),
    limits=measure.Limits(share=share, examples=examples, min_training=1),
    cost=100.0,  # of a batch, so 1 an example
    evaluate=evaluate,
  )
  return run, asked


def test_every_stage_is_compared_with_its_opposite():
  for stage, weight in (
    (Stage.TRAINING, 1.0),  # tried at alpha 1
    (Stage.BLENDING, 0.5),  # its present value against none
    (Stage.HOLDING, 1.0),
    (Stage.FOSSILIZED, 1.0),
  ):
    run, asked = boundary([stage] * 3)
    expected = [weight * gain for gain in GAIN.values()]
    s = run.signals
    np.testing.assert_allclose(s.contribution, expected, rtol=1e-5)
    assert (s.contribution_se < 1e-6).all()  # paired: the same gain for all
    assert s.contribution_known.all()
    assert s.contribution_age.tolist() == [0, 0, 0]
    assert s.contribution_stage.tolist() == [int(stage)] * 3
    assert s.parity_known.all()
    assert asked == [600] * 3


def test_rows_without_a_seed_only_grow_older():
  run, asked = boundary([Stage.DORMANT, Stage.HOLDING, Stage.DORMANT])
  s = run.signals
  assert asked == [600]
  assert s.contribution_known.tolist() == [False, True, False]
  assert s.contribution_age.tolist() == [4, 0, 8]
  assert s.parity_known.tolist() == [False, True, False]


def test_a_stage_without_a_seed_in_the_tree_is_not_measured():
  state = state_with()
  run = make_run(state)
  stages = [Stage.GERMINATED, Stage.FOSSILIZED, Stage.EMBARGOED]
  run.slots = run.slots.replace(stage=jnp.asarray(stages, jnp.int32))
  measure.update(
    run,
    PATHS,
    batches=SPLIT,
    baseline=split_losses(state, SPLIT),
    limits=measure.Limits(share=1.0, examples=1000, min_training=1),
    cost=100.0,
    evaluate=split_losses,
  )
  assert not run.signals.contribution_known.any()


@pytest.mark.parametrize(
  ("changes", "asked"),
  [
    ({"examples": 300}, [300]),  # as many as asked for
    ({"examples": 250}, [300]),  # in whole batches
    ({"share": 0.0}, [300]),  # urgent: at least 256
    ({"share": 0.4, "train": 1000}, [400]),
    ({"share": 0.9, "train": 1000, "ablation": 500}, [400]),  # some is spent
    ({"share": 0.9, "train": 1000, "ablation": 5000}, [300]),  # overspent
  ],
)
def test_the_budget_is_a_share_of_training_less_what_was_spent(changes, asked):
  stages = [Stage.HOLDING, Stage.DORMANT, Stage.DORMANT]
  run, have = boundary(stages, **changes)
  assert have == asked
  np.testing.assert_allclose(run.signals.contribution[0], 0.5, rtol=1e-5)


def test_what_is_beyond_the_budget_waits():
  stages = [Stage.FOSSILIZED, Stage.HOLDING, Stage.BLENDING]
  run, asked = boundary(stages, share=0.6, train=1000)
  assert run.signals.contribution_known.tolist() == [False, True, True]
  assert run.signals.contribution_age.tolist() == [4, 0, 0]  # 7 waited longer
  assert len(asked) == 2
