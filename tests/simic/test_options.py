"""What a Simic config may say, and what is said where it is wrong."""

import json
from typing import NamedTuple

import pytest

from esper_jax.simic import assembly, monte_carlo, options, ppo, training
from esper_jax.types import InputError


class Host(NamedTuple):
  units: tuple[int, ...] = (4, 8)
  rate: float = 0.5


DEFAULTS = {
  "training": training.Settings(),
  "ppo": ppo.Settings(),
  "monte_carlo": monte_carlo.Settings(),
  "host": Host(),
}


def _read(*overrides, **config):
  return options.read(config, overrides, DEFAULTS)


def test_what_is_not_named_keeps_its_default():
  got = _read("ppo.clip=0.1", training={"seed": 3})
  assert got["training"] == training.Settings(seed=3)
  assert got["ppo"] == ppo.Settings(clip=0.1)


def test_values_take_the_type_of_the_default():
  got = _read("host.units=[4]", "host.rate=1", "training.learner=evolution")
  assert got["host"] == Host(units=(4,), rate=1.0)
  assert isinstance(got["host"].rate, float)
  assert got["training"].learner == "evolution"


@pytest.mark.parametrize(
  ("override", "says"),
  [
    ("ppo.clop=1", "no such key; the nearest is --config.ppo.clip"),
    ("ppo.clip", "needs a value: --config.ppo.clip=VALUE"),
    ("ppo.clip=x", "must be of type float, like 0.2"),
    ("ppo.clip=0", "must be above 0"),
    ("ppo.trace=2", "must be at most 1"),
    ("ppo.dense=1", "must be of type bool"),
    ("ppo.passes=0", "must be 1 or more"),
    ("ppo.learning_rate=1e999", "must be finite"),
    ("training.seed=-1", "must be 0 or more"),
    ("training.learner=sarsa", "must be one of ppo, evolution"),
    ("ppo.discount=0.9", "must be 1 with --config.ppo.dense=True"),
    ("ppo.minibatches=3", "must divide --config.ppo.environments=64"),
    (
      "monte_carlo.minibatches=3",
      "divide --config.monte_carlo.environments=1024",
    ),
    ("monte_carlo.most=0.01", "at least --config.monte_carlo.least=0.03"),
    ("monte_carlo.own=2", "must be at most 1"),
    ("monte_carlo.stray=2", "must be at most 1"),
    ("monte_carlo.follow=2", "must be at most 1"),
    ("monte_carlo.follow=0", "must be above 0"),
    ("monte_carlo.margin=-1", "must be 0 or more"),
    ("monte_carlo.least=0", "must be above 0"),
  ],
)
def test_a_bad_value_is_one_line_that_says_what_is_valid(override, says):
  with pytest.raises(InputError, match=says) as caught:
    _read(override)
  assert "\n" not in str(caught.value)


def test_something_must_be_learned():
  none = ("training.explore=0", "training.iterations=0")
  with pytest.raises(InputError, match="nothing would be learned"):
    _read(*none)
  assert _read(*none, "training.imitate=1")["training"].imitate == 1


def test_the_phases_are_those_that_have_iterations():
  def names(*overrides):
    settings = options.read(
      {}, ("population.steps=1", *overrides), assembly.DEFAULTS
    )
    parts = assembly.build(settings)
    return [phase.name for phase in assembly.phases(parts, settings)]

  every = ("training.imitate=1", "training.explore=1", "training.iterations=1")
  assert names(*every) == ["imitation", "monte_carlo", "ppo"]
  assert names("training.iterations=0") == ["monte_carlo"]
  others = ("training.iterations=1", "training.learner=evolution")
  assert names("training.explore=0", *others) == ["evolution"]


def test_a_section_must_be_one():
  with pytest.raises(InputError, match="config.seed is no section"):
    _read(seed=1)


def test_the_digest_is_of_all_settings():
  one = options.digest(_read())
  assert one == options.digest(_read("ppo.clip=0.2"))
  assert one != options.digest(_read("ppo.clip=0.3"))


def test_all_settings_come_back_through_json():
  settings = options.read({}, (), assembly.DEFAULTS)
  flat = json.loads(json.dumps(options.flat(settings)))
  overrides = [f"{key}={value!r}" for key, value in flat.items()]
  assert options.read({}, overrides, assembly.DEFAULTS) == settings


def test_a_policy_draws_or_takes_the_likeliest():
  for value, drawn in (("0", 0.0), ("1.0", 1.0)):
    overrides = (f"tamiyo.temperature={value}",)
    settings = options.read({}, overrides, assembly.DEFAULTS)
    assert settings["tamiyo"].temperature == drawn
  with pytest.raises(InputError, match="must be 0, the likeliest, or 1"):
    options.read({}, ("tamiyo.temperature=0.5",), assembly.DEFAULTS)


def test_what_the_lifecycle_decides_is_given_to_the_policies():
  settings = options.read({}, ("kasmina.max_growths=3",), assembly.DEFAULTS)
  assert settings["tamiyo"].max_growths == 3
  with pytest.raises(InputError, match=r"set --config\.kasmina\.max_growths"):
    options.read({}, ("tamiyo.max_growths=3",), assembly.DEFAULTS)
  repeated = ("tamiyo.max_growths=3", "kasmina.max_growths=3")
  assert options.read({}, repeated, assembly.DEFAULTS) == settings
