"""The heuristic against the real lifecycle."""

import jax
import jax.numpy as jnp
import numpy as np

from esper_jax.kasmina import lifecycle
from esper_jax.tamiyo.policy import make
from esper_jax.types import Action, Stage

RULES = lifecycle.Rules(
  epochs=30,
  lead_epochs=1,
  adaptation_frequency=1,
  max_adaptations_per_epoch=2,
  max_growths=3,
  seeds_per_slot=1,
  max_per_slot=1,
  alpha_curve="linear",
  blend_epochs=3,
  min_training_epochs=2,
  max_training_epochs=4,
  min_holding_epochs=1,
  max_holding_epochs=4,
  embargo_epochs=2,
  training_gain_sigmas=0.0,
  gain_sigmas=2.0,
  max_gradient_ratio=1e3,
)


def _live(policy, observe, contributions):
  """Runs a policy against the lifecycle; returns (epoch, Decision) pairs.

  Every boundary measures every seed; contributions are by slot.
  """
  count = len(contributions)
  fits = jnp.ones((count, 2), bool)
  slots = lifecycle.initial(count)
  state = policy.init(jax.random.key(0))
  names = [f"slot{n}" for n in range(count)], ["conv", "dense"]
  decide = jax.jit(policy.decide)
  tick = jax.jit(lifecycle.tick, static_argnums=1)
  gate = jax.jit(lifecycle.gate, static_argnums=2)
  legal = jax.jit(lifecycle.legal, static_argnums=2)
  act = jax.jit(lifecycle.act, static_argnums=4)
  enact = jax.jit(lifecycle.enact, static_argnums=1)
  log = []
  for epoch in range(1, RULES.epochs):
    slots = tick(slots, RULES)
    own = (slots.stage >= int(Stage.TRAINING)) & (slots.blueprint >= 0)
    signals = lifecycle.Signals(
      contribution=jnp.asarray(contributions),
      contribution_se=jnp.full((count,), 0.01),
      contribution_known=own,
      contribution_age=jnp.zeros((count,), jnp.int32),
      contribution_stage=slots.stage,
      parity=jnp.ones((count,)),
      parity_known=own,
      finite=jnp.ones((count,), bool),
    )
    o = observe(
      count,
      2,
      epoch=epoch,
      growths_left=RULES.max_growths - slots.growths,
      epochs_left=RULES.epochs - epoch,
      **{
        field: getattr(slots, field)
        for field in ("stage", "age", "life", "blueprint", "alpha")
      },
      **{
        field: getattr(signals, field)
        for field in lifecycle.Signals.__dataclass_fields__
      },
      scores=1e-3 / (1.0 + np.arange(2 * count).reshape(count, 2)),
      scores_known=[True] * count,
      gate=gate(slots, signals, RULES),
      legal=legal(slots, signals, RULES, fits, epoch),
    )
    state, d = decide(state, o, jax.random.fold_in(jax.random.key(1), epoch))
    log += [(epoch, record) for record in policy.explain(d, o, *names)]
    slots, refused = act(
      slots, d.action, d.blueprint, signals, RULES, fits, epoch
    )
    assert not refused.any()
    slots, _, _ = enact(slots, RULES, epoch)
  return log


def test_the_heuristic_leads_a_good_seed_through_its_whole_life(observe):
  policy = make("heuristic", max_training_epochs=4)
  log = _live(policy, observe, [0.05])
  assert [(epoch, r.action) for epoch, r in log] == [
    (2, Action.GERMINATE),  # planted at 3
    (5, Action.ADVANCE),
    (8, Action.ADVANCE),
    (9, Action.FOSSILIZE),
  ]
  assert "5.0 standard errors" in log[-1][1].reason


def test_the_heuristic_culls_a_seed_that_hurts_and_grows_elsewhere(observe):
  policy = make("heuristic", max_training_epochs=4)
  log = _live(policy, observe, [-0.05, 0.05])
  by_slot = {"slot0": [], "slot1": []}
  for _, record in log:
    by_slot[record.slot].append(record.action)
  assert by_slot["slot0"][:2] == [Action.GERMINATE, Action.CULL]
  assert Action.FOSSILIZE not in by_slot["slot0"]
  assert by_slot["slot1"][-1] == Action.FOSSILIZE
