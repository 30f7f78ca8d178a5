"""From settings to parts: the environment, the network and its learners."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esper_jax.data import augment, datasets
from esper_jax.kasmina.rules import Rules
from esper_jax.simic import (
  actor,
  environment,
  evolution,
  hosts,
  imitation,
  monte_carlo,
  ppo,
  training,
  worlds,
)
from esper_jax.simic.actor import Actor
from esper_jax.simic.records import Environment, Setting
from esper_jax.simic.reward import Prices
from esper_jax.tamiyo import policy, rules, traits
from esper_jax.tamiyo.features import Limits
from esper_jax.tamiyo.network import Sizes
from esper_jax.tolaria import optimizers, steps


class Population(NamedTuple):
  """The networks that grow, and the worlds they meet.

  Attributes:
    data: name of the data set.
    dir: folder that holds it; "" = the cache.
    validation_fraction: share of train held out, the report split included.
    report: examples of the report split.
    pool: side of the squares of pixels whose mean is taken.
    host: "mlp" or "cnn", see `hosts`.
    width: units of the host, at most; depth: its hidden layers, at most.
    units, layers: choices of both; () = at most.
    blueprints: names.
    batch: examples per step; steps: per epoch; probe: examples per look.
    optimizer, learning_rate, schedule, newborn_steps: of the host's training.
    in_turn: whether environments run one after another, see `records.Setting`;
      False is for a GPU.
    examples, label_noise, rate, missing, budget, attention: see
      `worlds.Ranges`.
  """

  data: str = "digits"
  dir: str = ""
  validation_fraction: float = 0.5
  report: int = 300
  pool: int = 1
  host: str = "mlp"
  width: int = 16
  depth: int = 3
  units: tuple[int, ...] = (4, 6, 8, 12, 16)
  layers: tuple[int, ...] = (2, 3)
  blueprints: tuple[str, ...] = (
    "norm",
    "dense",
    "bottleneck_dense",
    "lowrank_dense",
  )
  batch: int = 32
  steps: int = 16
  probe: int = 128
  optimizer: str = "adamw"
  learning_rate: float = 0.005
  schedule: str = "wsd"
  newborn_steps: int = 0
  in_turn: bool = True
  examples: tuple[float, float] = (0.3, 1.0)
  label_noise: tuple[float, float] = (0.0, 0.2)
  rate: tuple[float, float] = (0.5, 2.0)
  missing: int = 1
  budget: tuple[float, float] = (2.0, 20.0)
  attention: tuple[float, float] = (0.0, 1.0)


LIFE = Rules(
  epochs=20,
  lead_epochs=1,
  adaptation_frequency=1,
  max_adaptations_per_epoch=2,
  max_growths=6,
  seeds_per_slot=1,
  max_per_slot=1,
  alpha_curve="linear",
  blend_epochs=2,
  min_training_epochs=1,
  max_training_epochs=6,
  min_holding_epochs=1,
  max_holding_epochs=4,
  embargo_epochs=2,
  training_gain_sigmas=-2.0,
  gain_sigmas=2.0,
  max_gradient_ratio=1e3,
)
DEFAULTS: dict[str, Any] = {
  "training": training.Settings(),
  "population": Population(),
  "kasmina": LIFE,
  "reward": Prices(),
  "network": Sizes(),
  "imitation": imitation.Settings(),
  "monte_carlo": monte_carlo.Settings(),
  "ppo": ppo.Settings(),
  "evolution": evolution.Settings(),
  "tamiyo": rules.Settings(warmup_epochs=1, plateau_delta=0.1),
}


def kept(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The settings that change results: all but where the data lies."""
  population = settings["population"]._replace(dir="")
  return {**settings, "population": population}


class Parts(NamedTuple):
  """What training and evaluation need.

  Attributes:
    environment: see `records.Environment`.
    actor: the network.
    prices: of the reward.
    others: settings of the policies that are not learned.
  """

  environment: Environment
  actor: Actor
  prices: Prices
  others: rules.Settings


def build(settings: Mapping[str, Any]) -> Parts:
  """Loads the data and makes the parts.

  Args:
    settings: section -> record, as `options.read` gives it with DEFAULTS.

  Raises:
    InputError: the data cannot be had, or settings do not fit together.
  """
  p: Population = settings["population"]
  life: Rules = settings["kasmina"]
  data = datasets.load(
    p.data, dir=p.dir, validation_fraction=p.validation_fraction
  )
  material = worlds.make_material(data, report=p.report, pool=p.pool)

  def preprocess(images: jax.Array, key: jax.Array | None) -> jax.Array:
    del key  # nothing is augmented
    return augment.normalize(images, material.mean, material.std, jnp.float32)

  def host(units: int, layers: int):
    make = {"mlp": hosts.mlp, "cnn": hosts.cnn}[p.host]
    return make(material.num_classes, width=units, depth=layers)

  setting = Setting(
    host=host(p.width, p.depth),
    material=material,
    names=p.blueprints,
    rules=life,
    options=steps.StepOptions(
      preprocess=preprocess,
      optimizer=optimizers.make_optimizer(p.optimizer),
      learning_rate=optimizers.make_schedule(
        p.schedule, peak=p.learning_rate, total_steps=life.epochs * p.steps
      ),
      newborn_factor=lambda age: optimizers.newborn_factor(
        age, p.newborn_steps
      ),
    ),
    batch=p.batch,
    steps=p.steps,
    probe=p.probe,
    in_turn=p.in_turn,
  )
  ranges = worlds.Ranges(
    units=p.units,
    layers=p.layers,
    examples=p.examples,
    label_noise=p.label_noise,
    learning_rate=p.rate,
    missing=p.missing,
    budget=p.budget,
    attention=p.attention,
  )
  draw = worlds.make_draw(
    material,
    ranges,
    build=host,
    width=p.width,
    depth=p.depth,
    names=p.blueprints,
  )
  limits = Limits(
    max_training_epochs=life.max_training_epochs,
    max_holding_epochs=life.max_holding_epochs,
    max_growths=life.max_growths,
    seeds_per_slot=life.seeds_per_slot,
  )
  specs = list(worlds.slots_of(setting.host, setting.example).values())
  described = traits.describe(specs, p.blueprints)
  others: rules.Settings = settings["tamiyo"]
  return Parts(
    environment=environment.make(setting, draw),
    actor=actor.of_network(
      described,
      limits,
      settings["network"],
      draws=others.max_adaptations_per_epoch,
      drawn=others.temperature > 0,
    ),
    prices=settings["reward"],
    others=others,
  )


def phases(
  parts: Parts, settings: Mapping[str, Any]
) -> tuple[training.Phase, ...]:
  """Makes the phases of a training run: what begins it, then the learner."""
  own: training.Settings = settings["training"]
  basis = (parts.actor, parts.environment)
  out = []
  if own.imitate:
    teacher = policy.make("heuristic", **parts.others._asdict())
    copying = imitation.learner(
      *basis, teacher, parts.prices, settings["imitation"]
    )
    out.append(training.Phase("imitation", copying, own.imitate))
  if own.explore:
    numbers = settings["monte_carlo"]._replace(iterations=own.explore)
    exploring = monte_carlo.learner(*basis, parts.others, parts.prices, numbers)
    out.append(training.Phase("monte_carlo", exploring, own.explore))
  if not own.iterations:
    return tuple(out)
  if own.learner == "ppo":
    numbers = settings["ppo"]._replace(iterations=own.iterations)
    learner = ppo.learner(*basis, parts.prices, numbers)
  else:
    learner = evolution.learner(*basis, parts.prices, settings["evolution"])
  out.append(training.Phase(own.learner, learner, own.iterations, own.patience))
  return tuple(out)
