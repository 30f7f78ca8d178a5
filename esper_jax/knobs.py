"""The table of knobs: what each key of a config accepts.

`esper_jax/defaults.py` holds the defaults and what each key means.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# Host name -> number of stages with residual blocks.
STAGES = {
  "resnet8": 3,
  "resnet18": 4,
  "resnet20": 3,
  "resnet32": 3,
  "resnet34": 4,
  "resnet56": 3,
  "mlp": 0,
  "gpt": 0,
}
# Data set -> side of its square images, pixels.
PIXELS = {"cifar10": 32, "cifar100": 32, "digits": 8}
TEXTS = ("as_you_like_it",)  # data sets that are texts
HOSTS = tuple(STAGES)
# What `esper_jax.grow` was called with, in place of a name.
GIVEN = "given"
FOLDER = "folder:"
SOURCES = (FOLDER, "text:")  # of data; a path follows
DATASETS = (*PIXELS, *TEXTS)
# These say where data lies, what stays on disk, what is shown and which devices
# compute, not what is computed: they are outside `config.config_hash` and may
# differ when a run is resumed (on the same data: its SHA-256 is compared). What
# is replayed or gone on with is in the hash, wherever it is.
FREE_KEYS = (
  "host.from",
  "data.source",
  "data.image_size",
  "data.dir",
  "data.cache_dir",
  "data.download",
  "tamiyo.replay",
  "tamiyo.on_policy_error",
  "checkpoint.keep_last",
  "checkpoint.keep_best",
  "oona.fsync",
  "nissa.report",
  "nissa.tensorboard",
  "nissa.wandb",
  "nissa.profile_steps",
  "oona.redis_url",
  "oona.redis_stream",
  "oona.redis_flush_seconds",
  "tezzeret.guesses",
  "tezzeret.guess_seconds",
  "tezzeret.max_programs",
  "tezzeret.max_bytes",
  "tezzeret.threads",
  "tezzeret.cache_dir",
  "mesh.data",
  "mesh.parameters",
  "mesh.shard_from",
  "urza.dir",
  "urza.trusted",
)


class Knob(NamedTuple):
  """What one key accepts.

  Attributes:
    accepts: value -> whether it is valid.
    valid: the same in words; follows "must be".
    choices: the valid words, where they can be listed.
  """

  accepts: Callable[[Any], bool]
  valid: str
  choices: tuple[str, ...] = ()


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _integer(low: int, high: int | None = None) -> Knob:
  top = math.inf if high is None else high
  words = f"of at least {low}" if high is None else f"from {low} to {high}"
  return Knob(
    lambda v: _is_integer(v) and low <= v <= top, f"an integer {words}"
  )


def _number(interval: str) -> Knob:
  """A finite number in an interval written as in "[0, 1)" or "(0, inf)"."""
  low, high = (float(part) for part in interval[1:-1].split(","))

  def accepts(value):
    if not (_is_integer(value) or isinstance(value, float)):
      return False
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below

  return Knob(accepts, f"a number in {interval}")


def _choice(*words: str) -> Knob:
  return Knob(
    lambda v: isinstance(v, str) and v in words,
    f"one of {', '.join(words)}",
    words,
  )


def _or_given(knob: Knob) -> Knob:
  """Takes GIVEN too; it is no word for the command line, so not listed."""
  return knob._replace(accepts=lambda v: v == GIVEN or knob.accepts(v))


def are_names(value: Any) -> bool:
  """Whether it is a tuple of non-empty texts."""
  return isinstance(value, tuple) and all(
    isinstance(name, str) and name for name in value
  )


def _is_appointment(value: Any) -> bool:
  """Whether it is (epoch, slot, blueprint)."""
  return (
    isinstance(value, tuple)
    and len(value) == 3
    and _is_integer(value[0])
    and value[0] >= 1
    and are_names(value[1:])
  )


def _is_span(value: Any) -> bool:
  """Whether it is (low, high)."""
  return (
    isinstance(value, tuple)
    and len(value) == 2
    and all(map(_COUNT.accepts, value))
    and value[0] < value[1]
  )


_SWITCH = Knob(lambda v: isinstance(v, bool), "True or False")
_TEXT = Knob(lambda v: isinstance(v, str), "a text")
_NAMES = Knob(are_names, "names separated by commas")
_POSITIVE = _integer(1)
_COUNT = _integer(0)
_SHARE = _number("[0, 1)")
_AUGMENTATIONS = ("crop", "flip", "cutout")

KNOBS: dict[str, Knob] = {
  "seed": _integer(0, 2**31 - 1),
  "deterministic": _SWITCH,
  "host.name": _or_given(_choice(*HOSTS)),
  "host.width": _COUNT,
  "host.depth": _POSITIVE,
  "host.heads": _POSITIVE,
  "host.norm": _choice("batch", "group"),
  "host.inner_widths": Knob(
    lambda v: isinstance(v, tuple) and all(map(_COUNT.accepts, v)),
    "integers of at least 0, one per stage, such as 0,1,0",
  ),
  "host.from": _TEXT,
  "host.slots": Knob(
    lambda v: v == "all" or are_names(v),
    "all, or slot names separated by commas",
  ),
  "data.name": _choice(*DATASETS),
  "data.source": Knob(
    lambda v: (
      isinstance(v, str)
      and (v in ("", GIVEN) or v.startswith(SOURCES) and v not in SOURCES)
    ),
    "folder:PATH, text:PATH, or empty for --config.data.name",
  ),
  "data.image_size": _COUNT,
  "data.context": _POSITIVE,
  "data.dir": _TEXT,
  "data.cache_dir": _TEXT,
  "data.download": _SWITCH,
  "data.batch_size": _POSITIVE,
  "data.eval_batch_size": _COUNT,
  "data.validation_fraction": _number("(0, 1)"),
  "data.split_seed": _integer(0, 2**31 - 1),
  "data.augment": Knob(
    lambda v: are_names(v) and set(v) <= set(_AUGMENTATIONS),
    "none, or a list out of crop,flip,cutout",
  ),
  "data.crop_padding": _COUNT,
  "data.cutout_size": _POSITIVE,
  "data.train_limit": _COUNT,
  "optimizer.name": _choice("sgd", "adamw", "adam", "lion", "rmsprop"),
  "optimizer.learning_rate": _number("(0, inf)"),
  "optimizer.schedule": _choice("constant", "cosine", "wsd"),
  "optimizer.warmup_epochs": _number("[0, inf)"),
  "optimizer.decay_fraction": _number("[0, 1]"),
  "optimizer.final_factor": _number("[0, 1]"),
  "optimizer.momentum": _SHARE,
  "optimizer.b2": _SHARE,
  "optimizer.weight_decay": _number("[0, inf)"),
  "optimizer.clip_norm": _number("[0, inf)"),
  "optimizer.newborn": _choice("zero", "reset", "copy", "global_count"),
  "optimizer.newborn_warmup_steps": _COUNT,
  "train.epochs": _POSITIVE,
  "train.label_smoothing": _SHARE,
  "train.precision": _choice("float32", "bfloat16", "auto"),
  "train.accumulate_steps": _POSITIVE,
  "train.ema_decay": _SHARE,
  "train.chunk_steps": _COUNT,
  "train.log_every": _POSITIVE,
  "train.max_steps": _COUNT,
  "eval.test": _SWITCH,
  "kasmina.blueprints": _NAMES,
  "kasmina.initializer": _choice("zero_out", "random", "gradient"),
  "kasmina.blend": _choice("add", "multiply", "gate"),
  "kasmina.alpha_curve": _choice("linear", "cosine", "sigmoid"),
  "kasmina.blend_epochs": _POSITIVE,
  "kasmina.proximal": _number("[0, inf)"),
  "kasmina.seeds_per_slot": _POSITIVE,
  "kasmina.max_per_slot": _POSITIVE,
  "kasmina.min_training_epochs": _POSITIVE,
  "kasmina.max_training_epochs": _POSITIVE,
  "kasmina.min_holding_epochs": _POSITIVE,
  "kasmina.max_holding_epochs": _POSITIVE,
  "kasmina.embargo_epochs": _COUNT,
  "kasmina.gain_sigmas": _number("[0, inf)"),
  "kasmina.training_gain_sigmas": _number("(-inf, inf)"),
  "kasmina.max_gradient_ratio": _number("(0, inf)"),
  "kasmina.measure_examples": _POSITIVE,
  "kasmina.measure_budget": _number("[0, 1]"),
  "tamiyo.policy": _or_given(
    _choice(
      "never",
      "periodic",
      "schedule",
      "random",
      "heuristic",
      "replay",
      "learned",
    )
  ),
  "tamiyo.policy_path": _TEXT,
  "tamiyo.on_policy_error": _choice("fallback", "stop"),
  "tamiyo.temperature": _number("[0, inf)"),
  "tamiyo.adaptation_frequency": _integer(1, 8),  # of 8 epochs remembered
  "tamiyo.max_adaptations_per_epoch": _POSITIVE,
  "tamiyo.max_growths": _COUNT,
  "tamiyo.warmup_epochs": _COUNT,
  "tamiyo.plateau_epochs": _integer(1, 7),
  "tamiyo.plateau_delta": _number("[0, inf)"),
  "tamiyo.period_epochs": _POSITIVE,
  "tamiyo.probability": _number("[0, 1]"),
  "tamiyo.schedule": Knob(
    lambda v: isinstance(v, tuple) and all(map(_is_appointment, v)),
    "a tuple of (epoch, slot, blueprint), such as ((3, 'slot1_1', 'conv3x3'),)",
  ),
  "tamiyo.probe_examples": _POSITIVE,
  "tamiyo.replay": _TEXT,
  "tamiyo.replay_permute": Knob(
    lambda v: v in ("", "slots", "times"),
    "slots, times or empty",
    ("slots", "times"),
  ),
  "tamiyo.replay_seed": _integer(0, 2**31 - 1),
  "tamiyo.replay_final": _SWITCH,
  "tezzeret.lead_epochs": _COUNT,
  "tezzeret.guesses": _COUNT,
  "tezzeret.guess_seconds": _number("[0, inf)"),
  "tezzeret.max_programs": _POSITIVE,
  "tezzeret.max_bytes": _POSITIVE,
  "tezzeret.timeout_seconds": _number("[0, inf)"),
  "tezzeret.threads": _COUNT,
  "tezzeret.cache_dir": _TEXT,
  "governor.loss_factor": _number("(1, inf)"),
  "governor.window": _POSITIVE,
  "governor.chance_margin": _SHARE,
  "governor.above_margin": _SHARE,
  "governor.responsible_epochs": _COUNT,
  "governor.max_rollbacks": _COUNT,
  "checkpoint.every_epochs": _POSITIVE,
  "checkpoint.keep_last": _POSITIVE,
  "checkpoint.keep_best": _COUNT,
  "oona.fsync": _SWITCH,
  "nissa.report": _SWITCH,
  "nissa.tensorboard": _SWITCH,
  "nissa.wandb": _TEXT,
  "nissa.profile_steps": Knob(
    lambda v: v == () or _is_span(v),
    "two steps, the first the lower, such as 10,20, or ()",
  ),
  "oona.redis_url": _TEXT,
  "oona.redis_stream": Knob(
    lambda v: isinstance(v, str) and v != "", "a text that is not empty"
  ),
  "oona.redis_flush_seconds": _number("[0, inf)"),
  "mesh.data": _COUNT,
  "mesh.parameters": _choice("replicated", "sharded"),
  "mesh.shard_from": _POSITIVE,
  "urza.modules": Knob(
    lambda v: (
      are_names(v)
      and all(part.isidentifier() for name in v for part in name.split("."))
    ),
    "names of Python modules separated by commas",
  ),
  "urza.dir": _TEXT,
  "urza.trusted": Knob(are_names, "folders separated by commas"),
  "urza.require": _choice("validated", "probed", "nothing"),
}


def nearest(word: str, valid: Iterable[str]) -> str:
  """Returns the valid word most like this one; its last part counts most.

  Args:
    word: what the user wrote, e.g. "learning_rate" or "optimzer.b2".
    valid: at least one word.
  """

  def likeness(candidate):
    whole = difflib.SequenceMatcher(None, word, candidate).ratio()
    last = difflib.SequenceMatcher(
      None, word.rpartition(".")[2], candidate.rpartition(".")[2]
    ).ratio()
    return max(whole, 0.99 * last), whole

  return max(valid, key=likeness)
