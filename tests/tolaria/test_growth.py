"""What growth does with a policy's word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.kasmina.records import Reason
from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo.observation import Decision
from esper_jax.tamiyo.policy import never
from esper_jax.tamiyo.shepherd import waiting
from esper_jax.tezzeret.forge import Forge
from esper_jax.tolaria.growth import Growth
from esper_jax.tolaria.growth_programs import make_observe
from esper_jax.types import Action, Stage


def obey(run, decide, explain=lambda *_: []):
  """Puts a policy of the test's own in the place of the run's."""
  trainer = run.trainer
  policy = never()._replace(
    decide=lambda state, observation, key: (state, decide(observation)),
    explain=explain,
  )
  trainer._growth = Growth(
    trainer.parts.growth,
    policy,
    trainer.bus,
    trainer._programs,
    Forge(cost=lambda lowered: 0.0),
  )


def at(epoch, row, action, *, initializer=0):
  """Decides one thing at one boundary."""

  def decide(observation):
    asked = waiting(observation.stage.shape[0])
    now = observation.epoch == epoch
    return asked.replace(
      action=asked.action.at[row].set(jnp.where(now, int(action), 0)),
      blueprint=asked.blueprint.at[row].set(0),
      initializer=asked.initializer.at[row].set(initializer),
    )

  return decide


@pytest.mark.parametrize("chosen", ["", "random", "gradient"])
def test_a_policy_may_choose_the_initializer(watch, chosen):
  index = obs.INITIALIZERS.index(chosen)

  def explain(decisions, observation, slots, blueprints):
    del slots, blueprints
    if int(observation.epoch) != 1:
      return []
    assert decisions.initializer.tolist() == [index, 0]
    return [Decision("slot1", Action.GERMINATE, "dense", chosen, "so", 0, 1.0)]

  run = watch()
  obey(run, at(1, 0, Action.GERMINATE, initializer=index), explain)
  run.train()
  (birth,) = [e for e in run.events if e["type"] == "germinated"]
  assert birth["initializer"] == (chosen or "zero_out")
  assert (run.result["probe_flops"] > 0) == (chosen == "gradient")
  (decision,) = [e for e in run.events if e["type"] == "decision"]
  assert decision["reason"] == "so"


def test_what_is_not_legal_is_refused_with_a_reason(watch):
  run = watch()
  obey(run, at(2, 1, Action.FOSSILIZE))
  run.train()
  (refused,) = [e for e in run.events if e["type"] == "gate_refused"]
  assert refused["slot"] == "slot2"
  assert refused["action"] == "fossilize"
  assert refused["reason"] == "the stage does not allow this move"
  assert run.result["germinated"] == 0


@pytest.mark.parametrize("explained", [True, False])
def test_a_cull_has_the_reason_of_its_decision(watch, explained):
  def decide(observation):
    sown, culled = at(1, 0, Action.GERMINATE), at(3, 0, Action.CULL)
    late = observation.epoch == 3
    return jax.tree.map(
      lambda one, other: jnp.where(late, other, one),
      sown(observation),
      culled(observation),
    )

  def explain(decisions, observation, slots, blueprints):
    del decisions, slots, blueprints
    epoch = int(observation.epoch)
    if epoch not in ((1, 3) if explained else (1,)):
      return []
    action = Action.GERMINATE if epoch == 1 else Action.CULL
    return [Decision("slot1", action, "dense", "zero_out", "so", 0, 1.0)]

  run = watch()
  obey(run, decide, explain)
  run.train()
  (culled,) = [e for e in run.events if e["type"] == "culled"]
  assert culled["epoch"] == 3
  assert (culled["reason"] == "so") == explained
  words = "so" if explained else "the policy culled it"
  assert culled["reason"].endswith(words)


def test_a_refusal_is_told_anew_in_each_stage_and_when_it_changes(watch):
  run = watch()
  own, growth = run.trainer.run, run.trainer._growth
  run.trainer.train_epoch()
  observation, _ = growth._observe(own)
  worse = Reason.NO_GAIN | Reason.EXPLODING

  def look(stage, gate):
    before = len(run.events)
    seen = observation.replace(
      stage=np.array([stage, Stage.DORMANT]), gate=np.array([gate, worse])
    )
    growth._tell_refusals(own, seen)
    return [event["reason"] for event in run.events[before:]]

  no_gain = (
    "its contribution is not above the required number of standard error"
  )
  assert look(Stage.TRAINING, Reason.NO_GAIN) == [no_gain + "s"]
  assert not look(Stage.TRAINING, Reason.NO_GAIN)
  assert not look(Stage.TRAINING, Reason.TOO_YOUNG)  # that is no news
  assert not look(Stage.TRAINING, Reason.NO_GAIN)
  assert len(look(Stage.TRAINING, worse)) == 1
  assert len(look(Stage.TRAINING, Reason.NO_GAIN)) == 1
  assert not look(Stage.TRAINING, 0)
  assert len(look(Stage.TRAINING, Reason.NO_GAIN)) == 1
  own.slots = own.slots.replace(
    stage=jnp.full_like(own.slots.stage, int(Stage.BLENDING)),
    alpha=jnp.ones_like(own.slots.alpha),
    age=jnp.ones_like(own.slots.age),
  )
  obey(run, at(1, 0, Action.ADVANCE))
  run.trainer._growth._ask(own, run.trainer._growth._observe(own)[0])
  assert int(own.slots.stage[0]) == Stage.HOLDING
  assert look(Stage.HOLDING, Reason.NO_GAIN) == [no_gain + "s"]
  run.trainer.shutdown()


def test_a_policy_is_asked_at_its_own_frequency(watch):
  run = watch(
    **{
      "tamiyo.policy": "schedule",
      "tamiyo.schedule": ((1, "slot1", "dense"),),
      "tamiyo.adaptation_frequency": 3,
      "kasmina.training_gain_sigmas": -1e6,
      "train.epochs": 11,
    }
  ).train()
  asked = {e["epoch"] for e in run.events if e["type"] == "decision"}
  assert asked == {3, 6, 9}
  # The lead is not rounded up.
  assert run.times("germinated") == [("germinated", 4)]


def test_only_what_can_germinate_is_scored(watch):
  run = watch(
    **{
      "tamiyo.policy": "heuristic",
      "kasmina.blueprints": ("dense", "lowrank_dense"),
    }
  )
  growth, own = run.trainer._growth, run.trainer.run
  run.trainer.train_epoch()
  growth.quarantine(own, ["slot2"])
  fits = np.array([[True, False], [True, True]])
  growth.options = growth.options._replace(fits=fits)
  observe = make_observe(growth.options.rules, fits, growth.options.cost)
  observation = observe(
    own.slots,
    own.signals,
    own.history,
    jnp.int32(own.epoch),
    jnp.float32(1),
    jnp.float32(1),
  )
  scored = growth._with_scores(
    own, observation, run.trainer._programs.probe(own)
  )
  assert (scored.scores > 0).tolist() == [[True, False], [False, False]]
  assert scored.scores_known.tolist() == [True, False]
  assert scored.signal_known.tolist() == [True, True]
  assert (scored.activation_ms > 0).all()
  assert (scored.cotangent_ms > 0).all()
  run.trainer.shutdown()


def test_the_flops_of_a_large_host_reach_the_policy(watch):
  seen = []

  def explain(decisions, observation, slots, blueprints):
    del decisions, slots, blueprints
    seen.append(float(observation.flops))
    return []

  run = watch()
  obey(run, at(1, 0, Action.WAIT), explain)
  trainer = run.trainer
  trainer._programs.step_flops = 2**40  # more than an int32 holds
  trainer._growth.boundary(trainer.run, last=False)
  assert seen == [2.0**40]
