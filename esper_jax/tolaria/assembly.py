"""From a config to the parts of a run. Nothing here trains."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from esper_jax.data import augment, datasets, splits
from esper_jax.data.pipeline import BatchOrder
from esper_jax.data.splits import Dataset
from esper_jax.hosts.host import Host, from_linen
from esper_jax.hosts.registry import host_names, make_host, reads_tokens
from esper_jax.kasmina import surgery
from esper_jax.kasmina.slot import with_seeds_at
from esper_jax.knobs import GIVEN
from esper_jax.tamiyo.policy import Policy
from esper_jax.tezzeret.program import Limits
from esper_jax.tolaria import governor, learned_policy, optimizers, replaying
from esper_jax.tolaria import objective as objectives
from esper_jax.tolaria.given import NOTHING, Given, Start, check_variables
from esper_jax.tolaria.growth_options import GrowthOptions, make_growth
from esper_jax.tolaria.layout import Layout, make_layout
from esper_jax.tolaria.measure import EvalBatch, device_batches
from esper_jax.tolaria.state import TrainState, init_state
from esper_jax.tolaria.steps import StepOptions
from esper_jax.types import InputError, SlotTable

MAX_EVAL_BATCH = 512
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
  title: str = ""  # of a given host
  layout: Layout | None = None  # of several devices; None: there is one


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
  host, dtype = _host(config, data, given)
  preprocess = _preprocess(config, data, dtype)
  timetable = make_timetable(config, data)
  chain = _optimizer(config)
  example = preprocess(jnp.asarray(data.train_images[:1]), None)
  slots = slots_of(host, example)
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
    governor=governor.Rules(
      chance=1 / data.num_classes if data.num_classes else 0.0,
      **config.governor.to_dict(),
    ),
    compiler_options=dict(_DETERMINISTIC) if config.deterministic else {},
    policy_error=policy_error,
    start=None
    if given.variables is None
    else check_variables(host, example, given.variables),
    title=given.title,
    layout=make_layout(config),
  )
  check_readable(parts)
  if given.host is not None or given.objective is not None:
    check_figures(parts)
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
  """What compiled programs may take."""
  return Limits(**{name: config.tezzeret[name] for name in Limits._fields})


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
    InputError: not one full batch.
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
  return Timetable(steps, epochs, total)


def eval_batch_size(config: ConfigDict, data: Dataset) -> int:
  """Examples per evaluation call."""
  whole = len(data.validation_labels)
  return config.data.eval_batch_size or min(MAX_EVAL_BATCH, whole)


def slots_of(host: Host, example: jax.Array) -> SlotTable:
  """The host's slot table, from one abstract trace."""

  def forward():
    params, collections = host.init(jax.random.key(0), example)
    return host.apply(params, collections, {}, example, train=False, key=None)

  # Flax runs the module once in init and once in apply: same slots.
  return surgery.slot_table(forward)


def check_readable(parts: Parts) -> None:
  """Refuses a host whose program would ignore a planted seed.

  One abstract trace with a seed in every slot; nothing is computed.

  Raises:
    InputError: names the slot and the cause.
  """
  growth = parts.growth
  chosen = {}
  for row, path in enumerate(growth.slots):
    column = np.flatnonzero(growth.fits[row * growth.lanes])
    if len(column):
      chosen[path] = growth.blueprints[int(column[0])]

  def forward():
    params, collections = parts.host.init(jax.random.key(0), parts.example)
    seeds: dict[str, Any] = {}
    for path, name in chosen.items():
      seed = surgery.make_seed(growth.slots[path], name, key=jax.random.key(0))
      seeds = with_seeds_at(seeds, path, {name: seed})
    expected.update(seeds)
    return parts.host.apply(
      params, collections, seeds, parts.example, train=False, key=None
    )

  expected: dict[str, Any] = {}
  surgery.check_consumed(forward, expected)


def check_figures(parts: Parts) -> None:
  """Refuses a host whose outputs give no loss; nothing is computed.

  Raises:
    InputError: see `objective.check`.
  """
  data = parts.data

  def forward(images):
    params, collections = parts.host.init(jax.random.key(0), parts.example)
    x = parts.steps.preprocess(images, None)
    return parts.host.apply(params, collections, {}, x, train=False, key=None)

  outputs = jax.eval_shape(forward, data.train_images[:2])[0]
  objectives.check(
    parts.steps.objective,
    outputs,
    jax.eval_shape(jnp.asarray, data.train_labels[:2]),
    num_classes=data.num_classes,
  )


def host_arguments(config: ConfigDict, num_classes: int) -> dict[str, Any]:
  """What `hosts.registry.make_host` takes for a config, slots left out.

  Args:
    config: validated.
    num_classes: of the data.

  Returns:
    Plain values; "dtype" is a name.
  """
  precision = config.train.precision
  if precision == "auto":
    on_cpu = jax.default_backend() == "cpu"
    precision = "float32" if on_cpu else "bfloat16"
  h = config.host
  return {
    "name": h.name,
    "num_classes": num_classes,
    "width": h.width,
    "depth": h.depth,
    "heads": h.heads,
    "context": config.data.context,
    "norm": h.norm,
    "inner_widths": tuple(h.inner_widths),
    "dtype": precision,
  }


def _host(config: ConfigDict, data: Dataset, given: Given) -> tuple[Host, Any]:
  slots = config.host.slots
  arguments = host_arguments(config, data.num_classes)
  dtype = jnp.dtype(arguments.pop("dtype"))
  if given.host is not None:
    return given.host, dtype
  name, is_text = config.host.name, data.train_images.dtype == np.int32
  if is_text != reads_tokens(name):
    fitting = [n for n in host_names() if reads_tokens(n) == is_text]
    raise InputError(
      f"host.name is {name}, which reads {'images' if is_text else 'text'},"
      f" but the data is {data.source}: set --config.host.name to one of"
      f" {', '.join(fitting)}, or --config.data.source=text:PATH, or"
      " --config.data.name"
    )
  module = make_host(
    **arguments,
    slots=slots if isinstance(slots, str) else tuple(slots),
    dtype=dtype,
  )
  return from_linen(module), dtype


def _preprocess(config: ConfigDict, data: Dataset, dtype: Any) -> Any:
  d = config.data
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
