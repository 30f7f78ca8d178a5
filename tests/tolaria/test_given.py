"""What a program hands to a trainer: variables, policies, objectives, data."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from esper_jax.data import augment
from esper_jax.data import given as given_data
from esper_jax.hosts.host import from_linen
from esper_jax.kasmina.slot import Slot
from esper_jax.tamiyo import policy as policies
from esper_jax.tolaria import assembly
from esper_jax.tolaria.given import Given, check_variables
from esper_jax.tolaria.objective import CLASSIFICATION
from esper_jax.tolaria.trainer import Trainer
from esper_jax.types import InputError


class Net(nn.Module):
  """Tokens in, classes out; one slot."""

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Embed(5, 3)(x).mean(axis=1)
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(3)(Slot(name="middle")(x, train=train))


TOKENS = np.arange(120).reshape(40, 3) % 5
LABELS = np.arange(40) % 3
HOST = from_linen(Net())
SPLITS = given_data.read((TOKENS, LABELS))
START = Net().init(jax.random.key(1), jnp.asarray(TOKENS[:1]), train=False)
GIVEN = Given(host=HOST, title="Net", splits=SPLITS)


@pytest.fixture
def make(make_config):
  def make(**changes):
    return make_config(
      **{
        "host.name": "given",
        "data.source": "given",
        "data.train_limit": 0,
        "data.batch_size": 8,
        "train.epochs": 1,
        "kasmina.blueprints": ("dense",),
      }
      | changes
    )

  return make


def assemble(config, **changes):
  given = GIVEN._replace(**changes)
  return assembly.assemble(config, assembly.load_data(config, given), given)


def test_given_variables_are_where_the_run_starts(make):
  for start in (START, freeze(START), jax.tree.map(np.asarray, START)):
    parts = assemble(make(), variables=start)
    state = assembly.new_state(make(), parts)
    same = {"params": state.params, **state.collections}
    jax.tree.map(np.testing.assert_array_equal, same, dict(START))


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lambda v: {"params": v["params"]}, "missing: batch_stats/BatchNorm_0/mea"),
    (lambda v: {**v, "seeds": {"a": jnp.ones(1)}}, "unknown: seeds/a"),
    (lambda v: v["params"], "unknown: BatchNorm_0/bias, BatchNorm_0/scale, "),
    (
      lambda v: jax.tree.map(lambda x: x[:1], v),
      "and 4 more. Give what model.init",
    ),
    (
      lambda v: jax.tree.map(lambda x: x.astype(int), v),
      "batch_stats/BatchNorm_0/mean int32[3] where the model has float[3]",
    ),
  ],
)
def test_variables_that_do_not_fit_are_named(change, says):
  with pytest.raises(InputError) as caught:
    check_variables(HOST, jnp.asarray(TOKENS[:1]), change(dict(START)))
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_policy_may_be_an_object_or_registered(make):
  config = make(**{"tamiyo.policy": "given"})
  own = policies.never("mine")
  assert assemble(config, policy=own).policy is own
  policies.register("given_test", policies._RULES["periodic"])
  try:
    assert assemble(config, policy="given_test").policy.name == "given_test"
  finally:
    policies.unregister("given_test")


@pytest.mark.parametrize(
  ("key", "says"),
  [
    ("host.name", "there is no host named 'given'"),
    ("data.source", "data.source is 'given'; valid are folder:PATH"),
    ("tamiyo.policy", "unknown policy 'given'"),
  ],
)
def test_what_was_not_given_cannot_be_named(make_config, key, says):
  config = make_config(**{key: "given"})
  with pytest.raises(InputError, match=says):
    assembly.assemble(config, assembly.load_data(config))


def test_a_model_with_too_few_outputs_is_refused(make):
  splits = given_data.read((TOKENS, LABELS + 1))
  with pytest.raises(
    InputError, match=r"float32\[2, 3\] for labels int32\[2\]"
  ):
    assemble(make(), splits=splits)


def test_augmentation_is_for_images_that_are_large_enough(make):
  with pytest.raises(InputError, match=r"flip but the examples are int32\[3\]"):
    assemble(make(**{"data.augment": ("flip",)}))
  fit = augment.check_fit
  images = np.zeros((1, 4, 6, 1), np.uint8)
  fit(images, ops=("crop", "cutout"), padding=4, cutout=4)
  for size, key in (({"padding": 5, "cutout": 4}, "crop_padding is 5"),):
    with pytest.raises(InputError, match=f"data.{key}; it must be at most 4"):
      fit(images, ops=("crop", "cutout"), **size)
  with pytest.raises(InputError, match="data.cutout_size is 5"):
    fit(images, ops=("cutout",), padding=9, cutout=5)


def test_numbers_reach_the_network_in_the_precision_of_the_run(make):
  splits = given_data.read((TOKENS / 2, LABELS))
  config = make(**{"train.precision": "bfloat16"})
  data = assembly.load_data(config, Given(splits=splits))
  half = assembly._preprocess(config, data)
  assert half(jnp.asarray(data.train_images), None).dtype == jnp.bfloat16


def test_a_run_tells_its_metrics_and_where_it_started(make, tmp_path):
  def right(logits, labels):
    return logits.argmax(-1) == labels

  given = GIVEN._replace(
    objective=CLASSIFICATION._replace(metrics={"right": right}),
    variables=START,
  )
  config = make(**{"data.eval_batch_size": 5, "tamiyo.policy": "never"})
  result = Trainer(config, tmp_path, given=given).train()
  for split, name in (("validation", "val"), ("test", "test")):
    mean = result["metrics"][split]["right"]
    np.testing.assert_allclose(mean, result[f"{name}_accuracy"], rtol=1e-6)
  with pytest.raises(InputError, match="started from other variables"):
    Trainer(config, tmp_path, given=given._replace(variables=None))
