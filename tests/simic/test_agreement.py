"""The environment and the trainer: the same losses over whole lives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from esper_jax.data.pipeline import permutation
from esper_jax.simic import environment as env_lib
from esper_jax.simic import hosts, worlds
from esper_jax.tamiyo import shepherd
from esper_jax.tolaria import assembly
from esper_jax.tolaria.programs import PROBE_STREAM
from esper_jax.tolaria.trainer import Trainer
from esper_jax.types import Stage

STEPS, WIDTH, DEPTH, EPOCHS = 7, 8, 2, 9
NAMES = ("dense", "norm")
FAST = {"xla_backend_optimization_level": 0}  # compiling is what takes time


def config():
  """Digits, a narrow MLP; one seed after the other, judged strictly."""
  made = base.get_config()
  for name, value in {
    "data.name": "digits",
    "data.validation_fraction": 0.3,
    "data.batch_size": 64,
    "data.train_limit": 64 * STEPS,
    "host.name": "mlp",
    "host.width": WIDTH,
    "host.depth": DEPTH,
    "optimizer.learning_rate": 5e-3,
    "optimizer.clip_norm": 1.0,
    "optimizer.weight_decay": 1e-2,
    "oona.fsync": False,
    "train.epochs": EPOCHS,
    "kasmina.blueprints": NAMES,
    "kasmina.seeds_per_slot": 1,
    "kasmina.max_per_slot": 1,
    "kasmina.min_training_epochs": 1,
    "kasmina.max_training_epochs": 2,
    "kasmina.max_holding_epochs": 1,
    "kasmina.blend_epochs": 2,
    "kasmina.embargo_epochs": 1,
    "kasmina.training_gain_sigmas": -2.0,
    "kasmina.gain_sigmas": 6.0,  # one seed passes, one does not
    "kasmina.measure_budget": 1.0,
    "tamiyo.policy": "schedule",
    "tamiyo.schedule": ((1, "slot1", "dense"), (2, "slot2", "norm")),
    "tamiyo.probe_examples": 32,
    "tezzeret.guesses": 0,
    "tezzeret.threads": 0,
  }.items():
    section, _, key = name.rpartition(".")
    made[section][key] = value
  return made


class Seen:
  """What each epoch of a run or of an environment came to."""

  def __init__(self):
    self.losses, self.worth, self.known, self.stages = [], [], [], []

  def note(self, history, signals):
    h, s = history, signals
    last = [h.train_loss[-1], h.val_loss[-1]]
    self.losses.append([*last, h.train_accuracy[-1], h.val_accuracy[-1]])
    self.worth.append([s.contribution, s.contribution_se, s.parity])
    measured = s.contribution_known
    self.known.append([measured, measured, s.parity_known])
    self.stages.append(s.contribution_stage)

  def arrays(self):
    return [
      np.asarray(jax.device_get(part))
      for part in (self.losses, self.worth, self.known, self.stages)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(the trainer, its first parameters, what it saw, its result)."""
  seen = Seen()

  def note(trainer, metrics):
    del metrics
    seen.note(trainer.run.history, trainer.run.signals)

  trainer = Trainer(
    config(), tmp_path_factory.mktemp("run") / "r", callbacks=[note]
  )
  first = jax.tree.map(np.array, trainer.run.state.params)
  return trainer, first, seen, trainer.train()


@pytest.fixture(scope="module")
def stepped(trained):
  """(the last state, outcomes, what the environment saw)."""
  trainer, first, *_ = trained
  setting, world = setting_of(trainer)
  state = env_lib.begin(
    setting, world, jax.random.key(1), jax.random.key(trainer.config.seed)
  )
  learner = state.learner.replace(params=jax.tree.map(jnp.asarray, first))
  state = state.replace(learner=learner)
  policy = trainer.parts.policy
  policy_state = policy.init(jax.random.key(trainer.config.seed))
  advance = jax.jit(env_lib.make_advance(setting), compiler_options=FAST)
  decide = jax.jit(policy.decide)
  decisions = shepherd.waiting(DEPTH)
  seen, outcomes = Seen(), []
  for epoch in range(EPOCHS):
    state, observation, outcome = advance(
      state, decisions, order_of(trainer, epoch)
    )
    seen.note(*jax.device_get((state.history, state.signals)))
    outcomes.append(jax.device_get(outcome))
    policy_state, decisions = decide(
      policy_state, observation, jax.random.key(0)
    )
  return state, outcomes, seen


def setting_of(trainer):
  data = trainer.parts.data
  material = worlds.Material(
    images=jnp.asarray(data.train_images),
    labels=jnp.asarray(data.train_labels),
    validation_images=jnp.asarray(data.validation_images),
    validation_labels=jnp.asarray(data.validation_labels),
    report_images=jnp.asarray(data.test_images),
    report_labels=jnp.asarray(data.test_labels),
    num_classes=data.num_classes,
    mean=data.mean,
    std=data.std,
  )

  def build(width, depth):
    return hosts.mlp(data.num_classes, width=width, depth=depth)

  setting = env_lib.Setting(
    host=build(WIDTH, DEPTH),
    material=material,
    names=NAMES,
    rules=trainer.parts.growth.rules,
    options=trainer.parts.steps,
    batch=trainer.config.data.batch_size,
    steps=STEPS,
    probe=trainer.config.tamiyo.probe_examples,
  )
  draw = worlds.make_draw(
    material,
    worlds.Ranges(),
    build=build,
    width=WIDTH,
    depth=DEPTH,
    names=NAMES,
  )
  return setting, draw(jax.random.key(0))


def order_of(trainer, epoch):
  """The examples that the trainer reads in an epoch and at its boundary."""
  order = assembly.make_order(trainer.config, trainer.parts, 0)
  rows = [order[epoch * STEPS + n] for n in range(STEPS)]
  stream = (PROBE_STREAM, 0, epoch + 1)
  total = len(trainer.parts.data.train_labels)
  probed = permutation(total, seed=trainer.config.seed, stream=stream)
  probed = probed[: trainer.config.tamiyo.probe_examples].astype(np.int32)
  return env_lib.Order(jnp.asarray(np.stack(rows)), jnp.asarray(probed))


def test_losses_agree_over_whole_lives(trained, stepped):
  mine, theirs = stepped[2].arrays()[0], trained[2].arrays()[0]
  np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-5)


def test_contributions_and_parities_agree(trained, stepped):
  _, mine, known, stages = stepped[2].arrays()
  _, theirs, told, expected = trained[2].arrays()
  # The trainer forgets at a planting, after which its figures are noted.
  assert (known | ~told).all() and told.any()
  np.testing.assert_allclose(
    np.where(told, mine, 0), np.where(told, theirs, 0), rtol=5e-3, atol=2e-5
  )
  told = told[:, 0]
  assert (np.where(told, stages, 0) == np.where(told, expected, 0)).all()


def test_the_lives_are_whole(trained, stepped):
  trainer = trained[0]
  state, outcomes, _ = stepped
  assert trainer.run.fossilized == sum(o.fossilized for o in outcomes) == 1
  assert sum(trainer.run.culls) == sum(o.culled for o in outcomes) >= 1
  assert trainer.run.germinated == sum(o.germinated for o in outcomes) == 2
  stages = np.asarray(trainer.run.slots.stage)
  np.testing.assert_array_equal(np.asarray(state.slots.stage), stages)
  assert int(Stage.FOSSILIZED) in stages


def test_the_final_network_agrees(trained, stepped):
  last, result = stepped[1][-1], trained[3]
  assert last.done and not any(o.done for o in stepped[1][:-1])
  assert last.val_accuracy == pytest.approx(result["val_accuracy"], abs=1e-6)
  assert last.report_accuracy == pytest.approx(
    result["test_accuracy"], abs=1e-6
  )
  assert last.parameters == result["params_final"]


def test_flops_are_those_of_the_network_that_grew(trained, stepped):
  spent = sum(o.flops for o in stepped[1])
  assert spent == pytest.approx(trained[3]["train_flops"], rel=0.25)
