"""From a config to the parts of a run. Nothing here trains."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from esper_jax.data import augment, datasets, splits
from esper_jax.data.pipeline import BatchOrder
from esper_jax.data.splits import Dataset
from esper_jax.hosts.host import Host
from esper_jax.knobs import GIVEN
from esper_jax.tamiyo.policy import Policy
from esper_jax.tezzeret.program import Limits
from esper_jax.tolaria import (
  governor,
  hosting,
  learned_policy,
  optimizers,
  processes,
  replaying,
)
from esper_jax.tolaria import objective as objectives
from esper_jax.tolaria.given import NOTHING, Given, Start, check_variables
from esper_jax.tolaria.growth_options import GrowthOptions, make_growth
from esper_jax.tolaria.hosting import Before
from esper_jax.tolaria.layout import Layout, make_layout
from esper_jax.tolaria.measure import EvalBatch, device_batches
from esper_jax.tolaria.state import TrainState, init_state
from esper_jax.tolaria.steps import StepOptions
from esper_jax.types import InputError

MAX_EVAL_BATCH = 512
ABOVE_ERRORS = 3.0  # standard errors above chance: an accuracy is no accident
# Neither atomics in any order nor a choice of algorithms by measured time.
_DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
ACCELERATOR_CHUNK = 32  # steps per call; a scan of convolutions is slow on CPU


class Timetable(NamedTuple):
  """How long a run is.

  Attributes:
    steps_per_epoch: full batches in the training split.
    epochs: of the run.
    total_steps: of the run; the last epoch may be cut short.
  """

  steps_per_epoch: int
  epochs: int
  total_steps: int

  def steps_in(self, epoch: int) -> int:
    """Steps of one epoch, counted from 0."""
    left = self.total_steps - epoch * self.steps_per_epoch
    return min(self.steps_per_epoch, left)


class Parts(NamedTuple):
  """Everything that a trainer is made of, as plain objects."""

  data: Dataset
  validation: list[EvalBatch]
  host: Host
  example: jax.Array  # a preprocessed batch of one
  timetable: Timetable
  steps: StepOptions
  chunk: int
  growth: GrowthOptions
  policy: Policy
  governor: governor.Rules
  compiler_options: dict[str, Any]
  policy_error: str = ""  # why a learned policy cannot be used
  start: Start | None = None  # the host's first variables; None: drawn
  title: str = ""  # of a host that has no name of ours
  before: Before | None = None  # the network that the run goes on with
  layout: Layout | None = None  # of several devices; None: there is one
  warnings: tuple[str, ...] = ()  # what is odd and not wrong, for people


def load_data(config: ConfigDict, given: Given = NOTHING) -> Dataset:
  """Loads the config's data set, or divides the given data."""
  d = config.data
  if given.splits is not None:
    return splits.divide(
      GIVEN,
      given.splits,
      validation_fraction=d.validation_fraction,
      split_seed=d.split_seed,
      train_limit=d.train_limit,
    )
  return datasets.load(**data_options(config))


def data_options(config: ConfigDict) -> dict[str, Any]:
  """What `datasets.load` takes, of a config."""
  d = config.data
  return {
    "name": d.name,
    "source": d.source,
    "image_size": d.image_size,
    "context": d.context,
    "dir": d.dir,
    "cache_dir": d.cache_dir,
    "download": d.download,
    "validation_fraction": d.validation_fraction,
    "split_seed": d.split_seed,
    "train_limit": d.train_limit,
  }


def assemble(
  config: ConfigDict, data: Dataset, given: Given = NOTHING
) -> Parts:
  """Builds the parts of a run.

  Args:
    config: validated.
    data: see `load_data`.
    given: in place of what the config names.

  Raises:
    InputError: parts that do not fit each other.
  """
  named = (
    hosting.named_host(config, data)
    if given.host is None
    else hosting.given_host(config, data, given.host, given.title)
  )
  host, data = named.host, named.data
  variables = given.variables if named.variables is None else named.variables
  preprocess = _preprocess(config, data)
  timetable = make_timetable(config, data)
  chain = _optimizer(config)
  example = preprocess(jnp.asarray(data.train_images[:1]), None)
  slots = hosting.slots_of(host, example)
  growth = make_growth(config, slots, chain, epochs=timetable.epochs)
  growth = replaying.with_replay(config, growth)
  policy, policy_error = learned_policy.make_policy(
    config, growth, given.policy
  )
  parts = Parts(
    data=data,
    validation=device_batches(
      data.validation_images,
      data.validation_labels,
      eval_batch_size(config, data),
    ),
    host=host,
    example=example,
    timetable=timetable,
    steps=StepOptions(
      preprocess=preprocess,
      optimizer=chain,
      learning_rate=_schedule(config, timetable),
      newborn_factor=lambda age: optimizers.newborn_factor(
        age, config.optimizer.newborn_warmup_steps
      ),
      objective=given.objective
      or objectives.classification(
        label_smoothing=config.train.label_smoothing
      ),
      ema_decay=config.train.ema_decay,
    ),
    chunk=_chunk(config),
    growth=growth,
    policy=policy,
    governor=_governor_rules(config, data),
    compiler_options=dict(_DETERMINISTIC) if config.deterministic else {},
    policy_error=policy_error,
    start=None
    if variables is None
    else check_variables(host, example, variables),
    title=named.title,
    before=named.before,
    layout=make_layout(config),
  )
  hosting.check_readable(host, example, growth)
  if given.host is not None or given.objective is not None:
    found = hosting.check_figures(host, example, data, parts.steps)
    parts = parts._replace(warnings=found)
  return parts


def new_state(config: ConfigDict, parts: Parts) -> TrainState:
  """The state before the first step."""
  return init_state(
    parts.host,
    parts.steps.optimizer,
    parts.example,
    seed=config.seed,
    average=config.train.ema_decay > 0,
    variables=parts.start[:2] if parts.start else None,
  )


def compile_limits(config: ConfigDict) -> Limits:
  """What compiled programs may take.

  Several processes compile when needed, and so all in the same order.
  """
  limits = Limits(**{name: config.tezzeret[name] for name in Limits._fields})
  return limits._replace(threads=0) if processes.several() else limits


def make_order(config: ConfigDict, parts: Parts, attempt: int) -> BatchOrder:
  """The order of the training examples in one attempt of a run."""
  return BatchOrder(
    len(parts.data.train_labels),
    config.data.batch_size,
    num_epochs=parts.timetable.epochs,
    seed=config.seed,
    attempt=attempt,
  )


def make_timetable(config: ConfigDict, data: Dataset) -> Timetable:
  """Counts steps and epochs.

  Raises:
    InputError: not one full batch, or no step that shall be traced.
  """
  examples, batch = len(data.train_labels), config.data.batch_size
  if batch > examples:
    raise InputError(
      f"data.batch_size is {batch} but the training split has {examples}"
      f" examples; give at most {examples}"
    )
  steps, epochs = examples // batch, config.train.epochs
  total = steps * epochs
  if config.train.max_steps:
    total = min(total, config.train.max_steps)
    epochs = -(-total // steps)
  first, end = config.nissa.profile_steps or (0, 0)
  if first >= total:
    raise InputError(
      f"--config.nissa.profile_steps={first},{end}: the run has {total} steps,"
      f" so the first must be below {total}"
    )
  return Timetable(steps, epochs, total)


def eval_batch_size(config: ConfigDict, data: Dataset) -> int:
  """Examples per evaluation call."""
  whole = len(data.validation_labels)
  return config.data.eval_batch_size or min(MAX_EVAL_BATCH, whole)


def _preprocess(config: ConfigDict, data: Dataset) -> Any:
  d = config.data
  dtype = jnp.dtype(hosting.dtype_of(config))
  ops = augment.check_ops(d.augment)
  augment.check_fit(
    data.train_images, ops=ops, padding=d.crop_padding, cutout=d.cutout_size
  )

  def preprocess(images: jax.Array, key: jax.Array | None) -> jax.Array:
    x = augment.to_input(images, data.mean, data.std, dtype)
    if key is None or not ops:
      return x
    return augment.augment(
      x, key, ops=ops, padding=d.crop_padding, cutout=d.cutout_size
    )

  return preprocess


def _governor_rules(config: ConfigDict, data: Dataset) -> governor.Rules:
  """The governor's rules; on few examples, learning has to show more."""
  chance = 1 / data.num_classes if data.num_classes else 0.0
  rules = governor.Rules(chance=chance, **config.governor.to_dict())
  error = math.sqrt(chance * (1 - chance) / len(data.validation_labels))
  margin = max(rules.above_margin, ABOVE_ERRORS * error)
  return rules._replace(above_margin=margin)


def _optimizer(config: ConfigDict) -> Any:
  o = config.optimizer
  return optimizers.make_optimizer(
    o.name,
    momentum=o.momentum,
    b2=o.b2,
    weight_decay=o.weight_decay,
    clip_norm=o.clip_norm,
    accumulate_steps=config.train.accumulate_steps,
  )


def _schedule(config: ConfigDict, timetable: Timetable) -> Any:
  o = config.optimizer
  return optimizers.make_schedule(
    o.schedule,
    peak=o.learning_rate,
    total_steps=timetable.total_steps,
    warmup_steps=round(o.warmup_epochs * timetable.steps_per_epoch),
    decay_fraction=o.decay_fraction,
    final_factor=o.final_factor,
  )


def _chunk(config: ConfigDict) -> int:
  if config.train.chunk_steps:
    return config.train.chunk_steps
  return 1 if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK
