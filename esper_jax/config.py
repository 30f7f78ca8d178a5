"""What a config may say: keys, types, ranges, and what changes results.

Every check that needs no JAX is here, so that bad input is refused before
anything slow starts. A config is the `ml_collections.ConfigDict` that
`esper_jax/defaults.py` builds; keys are written "section.name".
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from esper_jax.knobs import (
  FOLDER,
  FREE_KEYS,
  KNOBS,
  PIXELS,
  STAGES,
  are_names,
  nearest,
)
from esper_jax.oona import growth_log, lineage, redis_url
from esper_jax.types import InputError

# Keys whose names may be written as one text: "a,b".
_LISTS = (
  "host.slots",
  "data.augment",
  "kasmina.blueprints",
  "urza.modules",
  "urza.trusted",
)


def flatten(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
  """Returns "section.name" -> value, names given as "a,b" as tuples."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict | Mapping):
      flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
    else:
      flat[key] = value
  return {key: _tidy(key, value) for key, value in flat.items()}


def _tidy(key: str, value: Any) -> Any:
  """One form for what can be written in several ways."""
  if isinstance(value, list):  # JSON has no tuples
    value = tuple(_tidy("", item) for item in value)
  if key not in _LISTS or (key == "host.slots" and value == "all"):
    return value
  if isinstance(value, str):
    value = (value,)
  if not (isinstance(value, tuple) and all(isinstance(v, str) for v in value)):
    return value  # `validate` says what is wrong with it
  parts = (part.strip() for item in value for part in item.split(","))
  names = tuple(part for part in parts if part)
  return () if key == "data.augment" and names == ("none",) else names


def shown(config: ConfigDict) -> dict[str, Any]:
  """Returns the keys of `nissa` that a display takes."""
  keys = config.nissa.to_dict()
  del keys["profile_steps"]  # of the trainer: no display is told of each step
  return keys


def check_keys(keys: Iterable[str]) -> None:
  """Raises InputError for the first key that does not exist."""
  for key in keys:
    if key in KNOBS:
      continue
    inside = [known for known in KNOBS if known.startswith(f"{key}.")]
    if inside:
      names = ", ".join(known.rpartition(".")[2] for known in inside)
      raise InputError(
        f"--config.{key} is a section; set one of its keys: {names}"
      )
    raise InputError(
      f"--config.{key}: no such key; the nearest is"
      f" --config.{nearest(key, KNOBS)}"
    )


def check_complete(config: Mapping[str, Any] | ConfigDict) -> None:
  """Raises InputError unless the config has every key and no other."""
  flat = flatten(config)
  check_keys(flat)
  for key in KNOBS:
    if key not in flat:
      raise InputError(
        f"config.{key} is missing; start from configs/base.py:get_config()"
      )


def check_value(key: str, value: Any) -> None:
  """Raises InputError where the value is not valid for an existing key."""
  knob = KNOBS[key]
  if knob.accepts(value):
    return
  text = ",".join(value) if value and are_names(value) else value
  hint = ""
  if knob.choices and isinstance(value, str):
    hint = f"; the nearest is {nearest(value, knob.choices)}"
  raise InputError(f"--config.{key}={text}: must be {knob.valid}{hint}")


def validate(config: ConfigDict) -> ConfigDict:
  """Checks every key, type and range, and what must hold between keys.

  Args:
    config: as built by `defaults.get_config` and then edited.

  Returns:
    A locked copy in which every list is a tuple: `data.augment` always,
    `host.slots` unless it is "all".

  Raises:
    InputError: names the key, the value, what is valid and the nearest key.
  """
  check_complete(config)
  flat = flatten(config)
  for key, value in flat.items():
    if key != "tamiyo.policy" or not flat["urza.modules"]:
      check_value(key, value)  # a module may register a policy of its own
  _check_together(flat)
  out = copy.deepcopy(config)
  with out.ignore_type():
    for key, value in flat.items():
      if isinstance(value, tuple):
        section, _, name = key.partition(".")
        out[section][name] = value
  return out.lock()


def _check_together(flat: Mapping[str, Any]) -> None:
  def require(holds: bool, key: str, must: str) -> None:
    if not holds:
      raise InputError(f"--config.{key}={flat[key]}: {must}")

  def require_order(low: str, high: str) -> None:
    require(
      flat[low] <= flat[high],
      low,
      f"must be at most --config.{high}={flat[high]}",
    )

  for stage in ("training", "holding"):
    low, high = f"kasmina.min_{stage}_epochs", f"kasmina.max_{stage}_epochs"
    require_order(low, high)
  require_order("kasmina.seeds_per_slot", "kasmina.max_per_slot")
  require_order("governor.chance_margin", "governor.above_margin")
  host, widths = flat["host.name"], flat["host.inner_widths"]
  stages = STAGES.get(host, 0)
  require(
    len(widths) in (0, stages),
    "host.inner_widths",
    f"has {len(widths)} widths where {host} has {stages} stages; give as"
    " many, or --config.host.inner_widths='()'",
  )
  name, source = flat["data.name"], flat["data.source"]
  require(
    not source or not flat["data.dir"],
    "data.dir",
    f"--config.data.source={source} takes its place; give one of the two",
  )
  require(
    source.startswith(FOLDER) or not flat["data.image_size"],
    "data.image_size",
    "is for images of yours; give --config.data.source=folder:PATH, or 0",
  )
  pixels = math.inf if source else PIXELS.get(name, math.inf)  # else when read
  for op, key in (
    ("crop", "data.crop_padding"),
    ("cutout", "data.cutout_size"),
  ):
    fits = op not in flat["data.augment"] or flat[key] <= pixels
    require(fits, key, f"must be at most {pixels}, the side of a {name} image")
  limit, batch = flat["data.train_limit"], flat["data.batch_size"]
  require(
    limit == 0 or batch <= limit,
    "data.batch_size",
    f"must be at most --config.data.train_limit={limit}",
  )
  epochs = flat["train.epochs"]
  decay = flat["optimizer.decay_fraction"] * epochs
  busy = decay if flat["optimizer.schedule"] == "wsd" else 0.0
  require(
    flat["optimizer.warmup_epochs"] <= epochs - busy,
    "optimizer.warmup_epochs",
    f"must be at most {epochs - busy:g}: --config.train.epochs={epochs}"
    + (f" less {busy:g} epochs of decay" if busy else ""),
  )
  schedule = flat["tamiyo.schedule"]
  require(
    flat["tamiyo.policy"] != "schedule" or len(schedule) > 0,
    "tamiyo.policy",
    "needs --config.tamiyo.schedule, a tuple of (epoch, slot, blueprint)",
  )
  require(
    all(epoch < epochs for epoch, _, _ in schedule),
    "tamiyo.schedule",
    f"every epoch must be below --config.train.epochs={epochs}",
  )
  policy, path = flat["tamiyo.policy"], flat["tamiyo.policy_path"]
  # A learned policy that is not there is replaced, or not, when it is read.
  own = not path or policy == "learned"
  require(own or os.path.isfile(path), "tamiyo.policy_path", "no such file")
  require(
    own or policy not in KNOBS["tamiyo.policy"].choices,
    "tamiyo.policy_path",
    f"the policy {policy} reads no file; leave it empty, or choose a policy of"
    " --config.urza.modules",
  )
  replay, final = flat["tamiyo.replay"], flat["tamiyo.replay_final"]
  require(
    policy != "replay" or replay != "",
    "tamiyo.policy",
    "needs --config.tamiyo.replay, the events.jsonl of a completed run",
  )
  for key in ("tamiyo.replay", "tamiyo.replay_permute", "tamiyo.replay_final"):
    require(
      policy == "replay" or not flat[key],
      key,
      f"the policy {policy} replays nothing; leave it out, or give"
      " --config.tamiyo.policy=replay",
    )
  require(
    not final or flat["tamiyo.replay_permute"] != "times",
    "tamiyo.replay_permute",
    "what is there from the start has no times; give slots, or leave out"
    " --config.tamiyo.replay_final",
  )
  if flat["oona.redis_url"]:
    redis_url.check(flat["oona.redis_url"], name="--config.oona.redis_url")
  if replay:
    growth_log.read_lives(replay)  # or say what is wrong with it
  if flat["host.from"]:
    lineage.verify(flat["host.from"])  # or say what was changed


def config_hash(config: Mapping[str, Any] | ConfigDict) -> str:
  """Returns the SHA-256, in hex, of the keys that change results."""
  every = flatten(config)
  flat = {k: v for k, v in every.items() if k not in FREE_KEYS}
  if flat["tamiyo.policy"] == "replay":
    lives = growth_log.read_lives(every["tamiyo.replay"])
    flat["tamiyo.replay"] = growth_log.digest(lives)
  if every.get("host.from"):
    flat["host.from"] = lineage.head_of(every["host.from"])
  text = json.dumps(flat, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def differences(
  old: Mapping[str, Any] | ConfigDict, new: Mapping[str, Any] | ConfigDict
) -> dict[str, tuple[Any, Any]]:
  """Returns key -> (old, new value) where a resumed run must not differ.

  Args:
    old: the config of the run on disk, possibly as read from JSON.
    new: the config asked for now.

  Returns:
    Sorted by key; a key that one side lacks has the value "(absent)" there.
    Empty: the run may be resumed. `FREE_KEYS` never appear.
  """
  before, after = flatten(old), flatten(new)
  pairs = {
    key: (before.get(key, "(absent)"), after.get(key, "(absent)"))
    for key in sorted((before.keys() | after.keys()) - set(FREE_KEYS))
  }
  return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def check_same(
  old: Mapping[str, Any] | ConfigDict,
  new: Mapping[str, Any] | ConfigDict,
  *,
  workdir: str | os.PathLike[str],
) -> None:
  """Raises InputError where a run of `old` cannot go on as `new`; says why."""
  found = differences(old, new)
  if found:
    listed = "; ".join(
      f"{key} is {was} there and {now} here"
      for key, (was, now) in found.items()
    )
    raise InputError(
      f"--workdir={os.fspath(workdir)} holds a run of another config:"
      f" {listed}. Choose another --workdir, or give the values of that run"
    )
