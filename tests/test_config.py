"""Configs: their defaults, what is refused and how, what makes two equal."""

import ast
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base
from esper_jax import config as config_lib
from esper_jax import config_file, defaults, hosts, knobs
from esper_jax.data import augment, datasets, text
from esper_jax.hosts.norms import NORMS
from esper_jax.kasmina import initializers, rules, slot, surgery
from esper_jax.knobs import KNOBS
from esper_jax.tamiyo import policy
from esper_jax.tolaria import optimizers
from esper_jax.types import InputError
from esper_jax.urza import dispatch

CONFIGS = Path(__file__).parents[1] / "configs"
# Those of main.py: simic_*.py are read by `python -m esper_jax.simic`.
FILES = [
  p
  for p in sorted(CONFIGS.glob("*.py"))
  if p.stem != "base" and not p.stem.startswith("simic_")
]


def edited(**changes) -> ConfigDict:
  """The base config with keys changed; "__" stands for the dot."""
  config = base.get_config()
  for key, value in changes.items():
    section, _, name = key.rpartition("__")
    (config[section] if section else config)[name] = value
  return config


def refusal(**changes) -> str:
  with pytest.raises(InputError) as caught:
    config_lib.validate(edited(**changes))
  message = str(caught.value)
  assert "\n" not in message
  return message


def test_every_knob_has_a_range_and_a_valid_default():
  assert set(config_lib.flatten(base.get_config())) == set(KNOBS)
  config_lib.validate(base.get_config())


def test_every_knob_is_explained_once():
  """A comment stands on the knob's line or ends on the line before it."""
  lines = Path(defaults.__file__).read_text().splitlines()
  for key in KNOBS:
    section, _, name = key.rpartition(".")
    written = f"config.{key} = ", f'config.{section}["{name}"] = '
    places = [
      n for n, line in enumerate(lines) if any(w in line for w in written)
    ]
    assert len(places) == 1, key
    before, line = lines[places[0] - 1], lines[places[0]]
    assert "  # " in line or before.strip().startswith("# "), key


def test_defaults_that_users_rely_on():
  config = base.get_config()
  assert config.optimizer.learning_rate == 1e-3
  assert config.data.batch_size == 32
  assert config.train.epochs == 100
  assert config.tamiyo.policy == "learned"
  assert defaults.get_config().tamiyo.policy == "heuristic"
  assert config.tamiyo.policy_path == ""
  assert config.tamiyo.adaptation_frequency == 1
  assert config.tamiyo.max_adaptations_per_epoch == 2


def test_words_that_a_config_may_use_are_those_of_the_packages():
  """The tables of knobs repeat them: they must not import JAX."""
  for key, words in {
    "host.name": hosts.host_names(),
    "host.norm": NORMS,
    "data.name": datasets.NAMES,
    "optimizer.name": optimizers.NAMES,
    "optimizer.schedule": optimizers.SCHEDULES,
    "optimizer.newborn": surgery.NEWBORN,
    "kasmina.initializer": initializers.NAMES,
    "kasmina.blend": slot.BLEND_MODES,
    "kasmina.alpha_curve": rules.CURVES,
    "tamiyo.policy": policy.names(),
    "urza.require": dispatch.REQUIREMENTS,
  }.items():
    assert set(KNOBS[key].choices) == set(words), key
  config_lib.check_value("data.augment", augment.OPS)
  assert set(knobs.TEXTS) == set(text.SHIPPED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_in_each_profile(path):
  profiles = config_file.describe(path).profiles
  assert tuple(profiles) == ("gpu", "cpu", "smoke")
  for profile in profiles:
    config_lib.validate(config_file.load(f"{path}:{profile}"))
  smoke = config_file.load(f"{path}:smoke")
  assert smoke.train.max_steps == 2
  default, gpu = (config_file.load(f"{path}{p}") for p in ("", ":gpu"))
  assert config_lib.config_hash(default) == config_lib.config_hash(gpu)
  with pytest.raises(InputError, match=f"{path.name}.*no such profile: cpuu.*"):
    config_file.load(f"{path}:cpuu")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_configs_name_their_command(path):
  text = ast.get_docstring(ast.parse(path.read_text())) or ""
  assert (
    f"Command: .venv/bin/python main.py --config=configs/{path.name}" in text
  )
  assert config_file.describe(path).summary == text.splitlines()[0]


# For each kind of knob: values just outside its range.
OUTSIDE = {
  "seed": [-1, 2**31, True],
  "deterministic": [1],
  "host.name": ["resnet19"],
  "host.width": [-1],
  "host.inner_widths": [(-1, 0, 0, 0), (1.5, 0, 0, 0), "0,1"],
  "host.slots": [3, ("a", 1)],
  "host.heads": [0],
  "data.source": ["given:", "folder:", "text:", "cats", "mine.txt", None],
  "data.image_size": [-1, 8.0],
  "data.context": [0],
  "data.dir": [None],
  "data.download": ["yes"],
  "data.batch_size": [0, 1.5],
  "data.validation_fraction": [0.0, 1.0],
  "data.augment": [("crop", "flop"), None],
  "optimizer.learning_rate": [0.0, -1.0, float("nan"), float("inf")],
  "optimizer.final_factor": [-0.1, 1.1],
  "optimizer.momentum": [1.0, "0.9"],
  "kasmina.blueprints": [(1,)],
  "tamiyo.replay": [3],
  "tamiyo.replay_permute": ["slot", None, 0],
  "tamiyo.replay_seed": [-1, 2**31],
  "tamiyo.replay_final": [1],
  "tamiyo.schedule": [
    ((3, "slot1_1"),),
    ((0, "slot1_1", "norm"),),
    (("3", "slot1_1", "norm"),),
    (3, "slot1_1", "norm"),
  ],
  "nissa.profile_steps": [
    None,
    (10,),
    (10, 20, 30),
    (10, 10),
    (-1, 5),
    (0, 5.0),
    (False, 5),
  ],
  "urza.modules": [("not a module",)],
  "urza.dir": [None],
  "urza.trusted": [("",), ("/data", 1)],
  "urza.require": ["promised"],
}


@pytest.mark.parametrize(
  ("key", "value"),
  [(key, value) for key, values in OUTSIDE.items() for value in values],
)
def test_value_outside_its_range_is_refused(key, value):
  with pytest.raises(InputError, match=f"--config.{key}=.*must be") as caught:
    config_lib.check_value(key, value)
  assert KNOBS[key].valid in str(caught.value)


def test_limits_of_a_range_are_inside():
  for key, values in {
    "seed": [0, 2**31 - 1],
    "optimizer.final_factor": [0, 0.0, 1.0],
    "optimizer.momentum": [0.0],
    "host.inner_widths": [(), (0, 1)],
    "tamiyo.schedule": [(), ((1, "slot1", "norm"),)],
    "nissa.profile_steps": [(), (0, 1)],
    "urza.modules": [(), ("my_seeds", "package.more_seeds")],
    "urza.trusted": [(), ("/data/urza", "~/kernels")],
  }.items():
    for value in values:
      config_lib.check_value(key, value)


def test_list_that_holds_no_names_is_refused():
  assert refusal(data__augment=("crop", 1)).startswith(
    "--config.data.augment=('crop', 1): must be none, or a list out of"
  )


def test_what_grow_was_called_with_is_valid_but_not_offered():
  given = {"host__name": "given", "data__source": "given"}
  config_lib.validate(edited(**given, tamiyo__policy="given"))
  assert "given" not in refusal(host__name="resnet19")


def test_refusal_of_a_word_names_the_nearest():
  message = refusal(host__name="resnet19")
  assert message.startswith("--config.host.name=resnet19: must be one of ")
  assert message.endswith("; the nearest is resnet18")


@pytest.mark.parametrize(
  ("written", "meant"),
  [
    ("train.epoch", "train.epochs"),
    ("trian.epochs", "train.epochs"),
    ("learning_rate", "optimizer.learning_rate"),
    ("tamiyo.max_adaptation_per_epoch", "tamiyo.max_adaptations_per_epoch"),
    ("data.momentum", "optimizer.momentum"),
    ("data.cachedir", "data.cache_dir"),
  ],
)
def test_unknown_key_names_the_nearest(written, meant):
  with pytest.raises(InputError) as caught:
    config_lib.check_keys(["seed", written])
  assert str(caught.value) == (
    f"--config.{written}: no such key; the nearest is --config.{meant}"
  )


def test_unknown_and_missing_keys_of_a_config_are_refused():
  config = base.get_config()
  config.train.epoch = 3
  with pytest.raises(InputError, match="nearest is --config.train.epochs"):
    config_lib.validate(config)
  config = base.get_config()
  del config.train["epochs"]
  with pytest.raises(InputError, match="config.train.epochs is missing"):
    config_lib.validate(config)


def test_section_is_no_key():
  with pytest.raises(InputError, match="is a section; .*: loss_factor, window"):
    config_lib.check_keys(["governor"])


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (
      {"kasmina__min_training_epochs": 9},
      "--config.kasmina.min_training_epochs=9: must be at most"
      " --config.kasmina.max_training_epochs=8",
    ),
    ({"kasmina__min_holding_epochs": 5}, "kasmina.max_holding_epochs=4"),
    ({"kasmina__seeds_per_slot": 3}, "kasmina.max_per_slot=2"),
    ({"governor__chance_margin": 0.2}, "governor.above_margin=0.1"),
    ({"host__inner_widths": (1,)}, "has 1 widths where resnet18 has 4 stages"),
    (
      {"host__name": "mlp", "host__inner_widths": (1,)},
      "has 1 widths where mlp has 0 stages",
    ),
    (
      {"data__augment": ("crop",), "data__crop_padding": 33},
      "must be at most 32, the side of a cifar10 image",
    ),
    (
      {"data__name": "digits", "data__augment": "cutout,crop"}
      | {"data__cutout_size": 9},
      "must be at most 8, the side of a digits image",
    ),
    (
      {"data__source": "folder:x", "data__dir": "y"},
      "--config.data.dir=y: --config.data.source=folder:x takes its place",
    ),
    ({"data__image_size": 8}, "give --config.data.source=folder:PATH, or 0"),
    (
      {"data__source": "text:a.txt", "data__dir": "x", "host__name": "gpt"},
      "--config.data.source=text:a.txt takes its place",
    ),
    ({"data__train_limit": 31}, "must be at most --config.data.train_limit=31"),
    (
      {"optimizer__warmup_epochs": 101.0},
      "must be at most 100: --config.train.epochs=100",
    ),
    (
      {"optimizer__schedule": "wsd", "optimizer__warmup_epochs": 81.0},
      "must be at most 80: --config.train.epochs=100 less 20 epochs of decay",
    ),
    ({"tamiyo__policy": "schedule"}, "needs --config.tamiyo.schedule"),
    (
      {"tamiyo__schedule": ((100, "slot1_1", "norm"),)},
      "every epoch must be below --config.train.epochs=100",
    ),
    (
      {
        "tamiyo__policy": "heuristic",
        "tamiyo__policy_path": "no/such.safetensors",
      },
      "no such file",
    ),
  ],
)
def test_what_must_hold_between_keys(changes, says):
  assert says in refusal(**changes)


def test_a_server_is_named_by_a_url_that_is_not_repeated():
  said = refusal(oona__redis_url="redis://:secret@host:port")
  assert said.startswith("--config.oona.redis_url: its host or port")
  assert "secret" not in said
  assert "must be a text that is not empty" in refusal(oona__redis_stream="")


def test_knobs_that_are_off_are_not_compared():
  config_lib.validate(edited(data__name="digits", data__cutout_size=9))
  config_lib.validate(
    edited(
      tamiyo__policy="schedule", tamiyo__schedule=((99, "slot1_1", "norm"),)
    )
  )
  config_lib.validate(edited(host__inner_widths=(0, 1, 0, 0)))
  source = {"data__source": "folder:x", "data__image_size": 64}
  crop = {"data__augment": ("crop",), "data__crop_padding": 33}
  config_lib.validate(edited(**source, **crop))


def test_policy_may_come_from_a_module():
  changes = {"tamiyo__policy": "mine"}
  assert "must be one of never, periodic" in refusal(**changes)
  config_lib.validate(edited(**changes, urza__modules=("my_policies",)))


def test_policy_file_is_for_policies_of_a_module(tmp_path):
  path = tmp_path / "policy.safetensors"
  path.write_bytes(b"")
  changes = {"tamiyo__policy": "heuristic", "tamiyo__policy_path": str(path)}
  assert "the policy heuristic reads no file" in refusal(**changes)
  changes |= {"tamiyo__policy": "mine", "urza__modules": ("my_policies",)}
  config_lib.validate(edited(**changes))


def test_a_learned_policy_may_be_missing():
  """Then the heuristic goes on: see tests/tolaria/test_policy_fallback.py."""
  for path in ("", "no/such.safetensors", "a-name"):
    changes = {"tamiyo__policy": "learned", "tamiyo__policy_path": path}
    config_lib.validate(edited(**changes))
  assert "one of fallback, stop" in refusal(tamiyo__on_policy_error="go on")


def test_names_can_be_written_in_several_ways():
  ways = [
    edited(host__slots=value, kasmina__blueprints=("norm", "conv3x3"))
    for value in ("slot1_1,slot2_1", ["slot1_1", "slot2_1"])
  ]
  ways.append(
    edited(
      host__slots=("slot1_1", " slot2_1"), kasmina__blueprints=("norm,conv3x3",)
    )
  )
  for config in map(config_lib.validate, ways):
    assert config.host.slots == ("slot1_1", "slot2_1")
    assert config.kasmina.blueprints == ("norm", "conv3x3")
  assert len({config_lib.config_hash(config) for config in ways}) == 1


def test_validated_config_is_a_locked_copy_with_tuples():
  original = base.get_config()
  config = config_lib.validate(original)
  assert config.data.augment == ()
  assert config.host.slots == "all"
  assert original.data.augment == "none"
  with pytest.raises(AttributeError):
    config.train.epoch = 3
  config.host.slots = ("slot1_1",)  # both forms stay allowed
  again = config_lib.validate(config)
  assert again.host.slots == ("slot1_1",)


def test_config_read_from_json_is_the_same_config():
  config = config_lib.validate(
    edited(
      tamiyo__policy="schedule",
      tamiyo__schedule=((3, "slot1_1", "norm"), (9, "slot2_1", "norm")),
      host__inner_widths=(0, 1, 0, 0),
      data__augment=("crop", "flip"),
    )
  )
  loaded = json.loads(json.dumps(config.to_dict()))
  assert config_lib.differences(loaded, config) == {}
  assert config_lib.config_hash(loaded) == config_lib.config_hash(config)
  again = config_lib.validate(ConfigDict(loaded))
  assert config_lib.flatten(again) == config_lib.flatten(config)
  assert again.tamiyo.schedule[1] == (9, "slot2_1", "norm")


def other_value(key):
  """A valid value that is not the default."""
  value = config_lib.flatten(base.get_config())[key]
  if isinstance(value, bool):
    return not value
  if isinstance(value, int | float):
    return value + 1
  return f"{value}x" if isinstance(value, str) else (*value, "x")


# What is at these paths is in the hash, wherever it is.
@pytest.mark.parametrize("key", [k for k in KNOBS if k != "host.from"])
def test_hash_covers_what_changes_results_and_nothing_else(key):
  changed = base.get_config()
  section, _, name = key.rpartition(".")
  (changed[section] if section else changed)[name] = other_value(key)
  free = key in config_lib.FREE_KEYS
  before, after = map(config_lib.config_hash, (base.get_config(), changed))
  assert (before == after) == free
  found = config_lib.differences(base.get_config(), changed)
  assert list(found) == ([] if free else [key])


def test_resuming_another_config_explains_the_difference():
  old = base.get_config().to_dict()
  config_lib.check_same(old, edited(data__dir="elsewhere"), workdir="runs/a")
  del old["oona"], old["seed"]
  new = edited(train__epochs=50, host__name="mlp")
  with pytest.raises(InputError) as caught:
    config_lib.check_same(old, new, workdir=Path("runs/a"))
  assert str(caught.value) == (
    "--workdir=runs/a holds a run of another config:"
    " host.name is resnet18 there and mlp here;"
    " seed is (absent) there and 0 here;"
    " train.epochs is 100 there and 50 here."
    " Choose another --workdir, or give the values of that run"
  )
