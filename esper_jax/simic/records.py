"""Records of the environment: its state, what a step tells, what all share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import struct

from esper_jax.hosts.host import Host
from esper_jax.kasmina import lifecycle
from esper_jax.simic.learner import Learner
from esper_jax.simic.planted import Grid
from esper_jax.simic.worlds import Material, World, slots_of
from esper_jax.tamiyo.observation import Decisions, Observation
from esper_jax.tolaria import steps
from esper_jax.tolaria.run import History


class EnvState(struct.PyTreeNode):
  """One environment between two steps.

  Attributes:
    world: what it is made of.
    learner: the network and its optimizer.
    slots: lifecycle of every row.
    signals: what is known of every row's seed.
    history: of the last epochs.
    epoch: int32 []. Boundary at which it stands.
    key: typed PRNG key []. Newborns are drawn from it, as in a run whose
      seed makes this key; never consumed.
  """

  world: World
  learner: Learner
  slots: lifecycle.SlotState
  signals: lifecycle.Signals
  history: History
  epoch: jax.Array
  key: jax.Array


class Outcome(struct.PyTreeNode):
  """What an epoch came to.

  At the last boundary the network is what `lifecycle.finish` left of it.

  Attributes:
    val_loss: float32 []. Nats per example.
    val_accuracy: float32 []. 0 to 1.
    report_accuracy: float32 []. On the report split, which neither policy nor
      reward may know; 0 until done.
    parameters: float32 []. Of the host and what is planted.
    flops: float32 []. Of this epoch's training, as the network that really
      grew would spend: silent seeds cost nothing.
    done: bool []. Whether this was the last epoch.
    germinated, fossilized, culled: int32 []. Seeds planted, made permanent
      and silenced by this step.
  """

  val_loss: jax.Array
  val_accuracy: jax.Array
  report_accuracy: jax.Array
  parameters: jax.Array
  flops: jax.Array
  done: jax.Array
  germinated: jax.Array
  fossilized: jax.Array
  culled: jax.Array


class Environment(NamedTuple):
  """Growth as a reinforcement-learning environment.

  Attributes:
    reset: key -> (EnvState, Observation). Draws a world and a fresh network.
      At this boundary, 0, nothing may germinate yet, as in a run.
    step: (EnvState, Decisions, key) -> (EnvState, Observation, Outcome). The
      key draws the order of the examples. What is not legal does not happen.
    epochs: steps of an episode; the last one calls `lifecycle.finish`.
  """

  reset: Callable[[jax.Array], tuple[EnvState, Observation]]
  step: Callable[
    [EnvState, Decisions, jax.Array], tuple[EnvState, Observation, Outcome]
  ]
  epochs: int


class Setting(NamedTuple):
  """What all environments of a population have in common.

  Attributes:
    host: with masks, see `simic.hosts`.
    material: the data.
    names: of the blueprints; each must fit every slot.
    rules: of the lifecycle, one seed per slot.
    options: of the training step. Its learning rate is multiplied by the
      world's.
    batch: examples per training step.
    steps: training steps per epoch.
    probe: training examples per look at the slots.
    proximal: see `kasmina.slot.Seed`.
    in_turn: whether environments of a batch run one after another, each
      computing only the seeds that live, in place of side by side. Faster on
      one CPU core.
  """

  host: Host
  material: Material
  names: tuple[str, ...]
  rules: lifecycle.Rules
  options: steps.StepOptions
  batch: int
  steps: int
  probe: int
  proximal: float = 1.0
  in_turn: bool = False

  @property
  def example(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a preprocessed batch of one."""
    first = self.material.images[:1]
    return jax.eval_shape(lambda x: self.options.preprocess(x, None), first)

  @property
  def grid(self) -> Grid:
    """Where seeds may be."""
    slots = slots_of(self.host, self.example)
    return Grid.of(slots, self.names, proximal=self.proximal)


class Order(NamedTuple):
  """Which training examples an epoch reads.

  Attributes:
    batches: int32 [steps, batch].
    probe: int32 [examples].
  """

  batches: jax.Array
  probe: jax.Array
