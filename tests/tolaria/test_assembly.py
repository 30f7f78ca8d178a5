"""From a config to parts: what fits, what does not, and what is counted."""

import sys

import jax
import numpy as np
import pytest

from esper_jax.data.splits import Dataset
from esper_jax.kasmina import blueprints
from esper_jax.tolaria import assembly, overview
from esper_jax.types import InputError


@pytest.fixture
def assemble(make_config):
  def make(**changes):
    config = make_config(**changes)
    return assembly.assemble(config, assembly.load_data(config))

  return make


def test_a_timetable_counts_steps(make_config):
  config = make_config()
  data = assembly.load_data(config)
  timetable = assembly.make_timetable(config, data)
  assert timetable == (7, 5, 35)
  assert [timetable.steps_in(e) for e in range(5)] == [7] * 5
  config.train.max_steps = 9
  timetable = assembly.make_timetable(config, data)
  assert timetable == (7, 2, 9)
  assert [timetable.steps_in(e) for e in range(2)] == [7, 2]


def test_a_batch_must_not_exceed_the_split(make_config):
  config = make_config(**{"data.batch_size": 449})
  data = assembly.load_data(config)
  with pytest.raises(InputError, match="is 449 but the training split has 448"):
    assembly.make_timetable(config, data)


def test_a_step_that_shall_be_traced_must_be_of_the_run(make_config):
  config = make_config(**{"nissa.profile_steps": (34, 99)})
  data = assembly.load_data(config)
  assert assembly.make_timetable(config, data).total_steps == 35
  config.nissa.profile_steps = (35, 99)
  message = r"profile_steps=35,99: the run has 35 steps, so .* below 35"
  with pytest.raises(InputError, match=message):
    assembly.make_timetable(config, data)


def test_evaluation_batches(make_config):
  config = make_config()
  data = assembly.load_data(config)
  assert assembly.eval_batch_size(config, data) == len(data.validation_labels)
  large = data._asdict() if hasattr(data, "_asdict") else vars(data)
  labels = np.zeros(513, np.int32)
  data = Dataset(**{**large, "validation_labels": labels})
  assert assembly.eval_batch_size(config, data) == assembly.MAX_EVAL_BATCH
  config.data.eval_batch_size = 9
  assert assembly.eval_batch_size(config, data) == 9


def test_chunks_are_for_accelerators(assemble):
  assert assemble().chunk == 1
  assert assemble(**{"train.chunk_steps": 5}).chunk == 5


def test_all_blueprints_that_fit_are_offered(assemble):
  growth = assemble(**{"kasmina.blueprints": ()}).growth
  assert "dense" in growth.blueprints
  assert "conv3x3" not in growth.blueprints
  assert growth.fits.all()
  for column, name in enumerate(growth.blueprints):
    spec = growth.slots["slot1"]
    params, _ = blueprints.get(name).init(jax.random.key(0), spec)
    assert growth.cost[0, column] == blueprints.count(params)


def test_lanes_are_rows(assemble):
  growth = assemble(**{"kasmina.seeds_per_slot": 2}).growth
  assert growth.rows == 4
  assert [growth.path(r) for r in range(4)] == ["slot1"] * 2 + ["slot2"] * 2


@pytest.fixture
def choosy():
  """A blueprint for slots of 16 channels alone."""

  def init(key, spec):
    if spec.channels != 16:
      raise InputError("needs 16 channels")
    return {"scale": jax.random.normal(key, (16,))}, {}

  def apply(params, state, x, *, train, key):
    del train, key
    return x * params["scale"].reshape(1, 1, 1, -1), state

  blueprint = blueprints.Blueprint("choosy", init, apply, ("nhwc",), ("scale",))
  blueprints.register(blueprint, check=False)
  yield "choosy"
  blueprints.unregister("choosy")


def test_a_blueprint_may_fit_some_slots_only(assemble, make_config, choosy):
  changes = {
    "host.name": "resnet8",
    "host.width": 8,
    "kasmina.blueprints": (choosy,),
  }
  growth = assemble(**changes).growth
  assert growth.fits[:, 0].tolist() == [False, True, False]
  assert growth.cost[:, 0].tolist() == [0, 16, 0]
  table = overview.slot_table(make_config(**changes))
  assert [row["name"] for row in table] == ["slot1_1", "slot2_1", "slot3_1"]
  assert [row["shape"][-1] for row in table] == [8, 16, 32]
  assert [row["kind"] for row in table] == ["nhwc"] * 3
  assert [row["blueprints"] for row in table[::2]] == [[], []]
  ((name, parameters, flops),) = table[1]["blueprints"]
  assert (name, parameters) == (choosy, 16)
  assert flops == 4 * 4 * 16  # one multiplication an element


def test_a_blueprint_that_fits_nowhere_is_refused(assemble):
  with pytest.raises(InputError, match="'conv3x3' fits no slot of the host"):
    assemble(**{"kasmina.blueprints": ("conv3x3",)})
  with pytest.raises(InputError, match="'nothing' is not registered"):
    assemble(**{"kasmina.blueprints": ("nothing",)})


TEXT = {"data.name": "as_you_like_it", "data.train_limit": 64}


def test_a_text_takes_a_host_that_reads_it_and_no_augmentation(assemble):
  parts = assemble(**{**TEXT, "host.name": "gpt", "data.context": 16})
  tokens = parts.data.train_images[:2]
  assert parts.steps.preprocess(tokens, jax.random.key(0)) is tokens
  assert parts.growth.slots["slot1"].form == (
    (16, 8),
    "float32",
    "tokens",
    True,
  )
  with pytest.raises(InputError, match="mlp, which reads images.* one of gpt"):
    assemble(**TEXT)
  with pytest.raises(InputError, match="gpt, which reads text.*digits.* mlp,"):
    assemble(**{"host.name": "gpt"})
  with pytest.raises(InputError, match="augment is flip but .*no images: set"):
    assemble(**{**TEXT, "host.name": "gpt", "data.augment": "flip"})


MODULES = {
  "fine": "from esper_jax.kasmina.blueprints import *\nMADE = True\n",
  "broken": "raise KeyError('a   b')\n",
  "bad_input": (
    "from esper_jax.types import InputError\nraise InputError('no good')\n"
  ),
}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("fine", None),
    ("broken", "cannot be imported \\(KeyError: 'a b'\\)"),
    ("bad_input", "'assembly_test_bad_input': no good"),
  ],
)
def test_modules_are_imported_first(
  assemble, tmp_path, monkeypatch, text, message
):
  module = f"assembly_test_{text}"
  (tmp_path / f"{module}.py").write_text(MODULES[text])
  monkeypatch.syspath_prepend(tmp_path)
  if message is None:
    assemble(**{"urza.modules": (module,)})
    assert sys.modules.pop(module).MADE
    return
  with pytest.raises(InputError, match=message):
    assemble(**{"urza.modules": (module,)})


def test_a_module_that_is_not_there(assemble):
  with pytest.raises(InputError, match="ModuleNotFoundError"):
    assemble(**{"urza.modules": ("no_such_module_of_mine",)})


def test_determinism_is_an_option_of_the_compiler(assemble):
  assert assemble().compiler_options == {}
  config = {"deterministic": True}
  assert assemble(**config).compiler_options != {}


def test_on_few_examples_learning_has_to_show_more(assemble):
  """An accuracy within 3 standard errors of chance proves nothing."""
  parts = assemble(**{"governor.above_margin": 0.1})
  assert parts.governor.above_margin == 0.1  # 431 examples of ten classes
  few = assemble(
    **{"data.validation_fraction": 0.02, "governor.above_margin": 0.1}
  )
  count = len(few.data.validation_labels)
  expected = 3 * (0.1 * 0.9 / count) ** 0.5
  assert few.governor.above_margin == pytest.approx(expected) and count < 60
