"""Gates and legality, exhaustively against a scalar oracle."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina import lifecycle
from esper_jax.kasmina.lifecycle import Reason, Rules, Signals
from esper_jax.types import LIVE_STAGES, Action, Stage

RULES = Rules(
  epochs=20,
  lead_epochs=1,
  adaptation_frequency=1,
  max_adaptations_per_epoch=2,
  max_growths=5,
  seeds_per_slot=1,
  max_per_slot=2,
  alpha_curve="cosine",
  blend_epochs=2,
  min_training_epochs=2,
  max_training_epochs=8,
  min_holding_epochs=1,
  max_holding_epochs=4,
  embargo_epochs=3,
  training_gain_sigmas=-1.0,
  gain_sigmas=2.0,
  max_gradient_ratio=100.0,
)
NAN, INF = math.nan, math.inf

# (contribution, standard error) -> (above the TRAINING floor of -1 errors,
# above the HOLDING floor of 2 errors and 0).
GAINS = {
  (1.0, 0.25): (True, True),
  (0.5, 0.25): (True, False),  # exactly 2 errors: strict
  (0.0, 0.0): (False, False),
  (-0.1, 0.25): (True, False),
  (-0.25, 0.25): (False, False),  # exactly -1 error: strict
  (NAN, 0.25): (False, False),
  (INF, 0.25): (False, False),
  (1.0, NAN): (False, False),
  (1.0, INF): (False, False),
}
PARITIES = {0.0: True, 100.0: True, 101.0: False, NAN: False, INF: False}
CASES = {
  "stage": list(Stage),
  "age": [0, 1, 2, 5],
  "alpha": [0.5, 1.0],
  "gain": list(GAINS),
  "known": [False, True],
  "contribution_age": [0, 1, 2],
  "contribution_stage": [Stage.TRAINING, Stage.BLENDING, Stage.HOLDING],
  "parity": list(PARITIES),
  "parity_known": [False, True],
  "finite": [False, True],
}


def _oracle(c: dict) -> Reason:
  stage, why = c["stage"], Reason(0)
  if stage not in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING):
    return Reason.WRONG_STAGE
  if not c["finite"]:
    why |= Reason.NOT_FINITE
  if stage == Stage.BLENDING:
    if c["age"] < 2 or c["alpha"] != 1.0:
      why |= Reason.STILL_BLENDING
    return why
  if c["age"] < (2 if stage == Stage.TRAINING else 1):
    why |= Reason.TOO_YOUNG
  if stage == Stage.TRAINING:
    if not c["parity_known"]:
      why |= Reason.GRADIENT_UNKNOWN
    elif not PARITIES[c["parity"]]:
      why |= Reason.EXPLODING
  measured_here = c["known"] and c["contribution_stage"] == stage
  # A value as old as the stage itself was measured before the stage began.
  if not measured_here or c["contribution_age"] >= c["age"]:
    return why | Reason.CONTRIBUTION_UNKNOWN
  if c["contribution_age"] > 1:
    why |= Reason.CONTRIBUTION_STALE
  if not GAINS[c["gain"]][stage == Stage.HOLDING]:
    why |= Reason.NO_GAIN
  return why


def _arrays(cases: list[dict]):
  def ints(name):
    return jnp.asarray([int(c[name]) for c in cases], jnp.int32)

  def bools(name):
    return jnp.asarray([c[name] for c in cases], jnp.bool_)

  def floats(values):
    return jnp.asarray(list(values), jnp.float32)

  slots = lifecycle.initial(len(cases)).replace(
    stage=ints("stage"),
    age=ints("age"),
    alpha=floats(c["alpha"] for c in cases),
  )
  signals = Signals(
    contribution=floats(c["gain"][0] for c in cases),
    contribution_se=floats(c["gain"][1] for c in cases),
    contribution_known=bools("known"),
    contribution_age=ints("contribution_age"),
    contribution_stage=ints("contribution_stage"),
    parity=floats(c["parity"] for c in cases),
    parity_known=bools("parity_known"),
    finite=bools("finite"),
  )
  return slots, signals


@functools.cache
def _all_cases():
  cases = [
    dict(zip(CASES, values, strict=True))
    for values in itertools.product(*CASES.values())
  ]
  return cases, *_arrays(cases)


def test_gate_agrees_with_the_oracle_on_every_combination():
  cases, slots, signals = _all_cases()
  bits = lifecycle.gate(slots, signals, RULES)
  assert bits.dtype == jnp.int32 and not bits.weak_type
  want = np.asarray([int(_oracle(c)) for c in cases])
  wrong = np.flatnonzero(np.asarray(bits) != want)
  assert wrong.size == 0, (cases[wrong[0]], Reason(int(bits[wrong[0]])))
  passing = {cases[n]["stage"] for n in np.flatnonzero(want == 0)}
  assert passing == {Stage.TRAINING, Stage.BLENDING, Stage.HOLDING}


def test_gate_is_equal_eager_jitted_and_vmapped():
  _, slots, signals = _all_cases()
  gate = functools.partial(lifecycle.gate, rules=RULES)
  eager = gate(slots, signals)
  np.testing.assert_array_equal(jax.jit(gate)(slots, signals), eager)
  many = slots.replace(growths=jnp.zeros_like(slots.stage))
  cases = jax.tree.map(lambda x: x.reshape(-1, 1), (many, signals))
  np.testing.assert_array_equal(jax.vmap(gate)(*cases).reshape(-1), eager)


def test_a_permanent_seed_needs_a_gain_above_0_whatever_the_sigmas():
  case = {name: values[-1] for name, values in CASES.items()} | {
    "stage": Stage.HOLDING,
    "contribution_age": 0,
    "gain": (-0.1, 0.25),
  }
  slots, signals = _arrays([case, case | {"gain": (0.1, 0.25)}])
  rules = RULES._replace(gain_sigmas=-5.0)
  bits = lifecycle.gate(slots, signals, rules)
  assert bits.tolist() == [int(Reason.NO_GAIN), 0]


FITS = np.asarray([False, True, True])


@pytest.mark.parametrize("epoch", [14, 15])
def test_legal_agrees_with_the_oracle(epoch):
  """A full life takes 1 + 2 + 2 + 1 epochs of 20: boundary 14 is the last."""
  full = [
    (stage, fossils, quarantined, blueprint, passes)
    for stage in Stage
    for fossils in (0, 1, 2)
    for quarantined in (False, True)
    for blueprint in (-1, 0, 2)
    for passes in (False, True)
  ]
  base = {name: values[-1] for name, values in CASES.items()}
  good = base | {"gain": (1.0, 0.25), "parity": 0.0, "contribution_age": 0}
  slots, signals = _arrays(
    [
      good | {"stage": f[0], "contribution_stage": f[0], "finite": f[4]}
      for f in full
    ]
  )
  slots = slots.replace(
    fossils=jnp.asarray([f[1] for f in full], jnp.int32),
    quarantined=jnp.asarray([f[2] for f in full], jnp.bool_),
    blueprint=jnp.asarray([f[3] for f in full], jnp.int32),
  )
  fits = jnp.tile(jnp.asarray(FITS)[None], (len(full), 1))
  for growths in (4, 5):
    slots = slots.replace(growths=jnp.asarray(growths, jnp.int32))
    legal = np.asarray(lifecycle.legal(slots, signals, RULES, fits, epoch))
    assert legal.shape == (len(full), len(Action), 3)
    for row, (stage, fossils, barred, blueprint, passes) in enumerate(full):
      open_ = stage in (Stage.DORMANT, Stage.FOSSILIZED) and not barred
      rises = stage in (Stage.TRAINING, Stage.BLENDING)
      allowed = {
        Action.WAIT: True,
        Action.GERMINATE: open_
        and fossils < 2
        and growths < 5
        and epoch + 1 + 2 + 2 + 1 <= 20,
        Action.ADVANCE: rises and passes,
        Action.CULL: stage in LIVE_STAGES,
        Action.FOSSILIZE: stage == Stage.HOLDING and passes,
      }
      for action in Action:
        for column in range(3):
          fit = {Action.WAIT: True, Action.GERMINATE: FITS[column]}
          want = allowed[action] and fit.get(action, column == blueprint)
          got = bool(legal[row, action, column])
          assert got == want, (full[row], action, column, growths)
