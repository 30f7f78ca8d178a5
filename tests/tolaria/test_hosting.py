"""A run goes on with a network that grew before."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from esper_jax import InputError, api, arguments, load_grown
from esper_jax import config as config_lib
from esper_jax.export import writing
from esper_jax.oona import lineage
from esper_jax.tolaria import assembly, hosting
from esper_jax.tolaria.given import Given
from esper_jax.tolaria.state import evaluation_view
from esper_jax.tolaria.trainer import Trainer

GROWN = Path(__file__).parents[1] / "integration" / "recorded" / "grown"
WIDTH = 8


def config(folder=GROWN, **changes):
  """Nine epochs; a seed fossilizes in the slot that holds one."""
  out = base.get_config()
  values = {
    "data.name": "digits",
    "data.validation_fraction": 0.3,
    "data.batch_size": 32,
    "data.train_limit": 64,
    "host.name": "mlp",
    "host.width": WIDTH,
    "host.depth": 1,
    "host.from": str(folder),
    "optimizer.learning_rate": 5e-3,
    "oona.fsync": False,
    "train.epochs": 9,
    "kasmina.blueprints": ("dense",),
    "kasmina.min_training_epochs": 1,
    "kasmina.max_training_epochs": 2,
    "kasmina.min_holding_epochs": 1,
    "kasmina.blend_epochs": 1,
    "kasmina.training_gain_sigmas": -1e9,
    "kasmina.gain_sigmas": 0.0,
    "kasmina.measure_examples": 64,
    "tezzeret.threads": 0,
    "tamiyo.policy": "schedule",
    "tamiyo.schedule": ((1, "slot1", "dense"),),
    **{key.replace("__", "."): value for key, value in changes.items()},
  }
  with out.ignore_type():
    for name, value in values.items():
      section, _, key = name.rpartition(".")
      (out[section] if section else out)[key] = value
  return config_lib.validate(out)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
  """Where the network is during the first run."""
  folder = tmp_path_factory.mktemp("moved") / "here"
  shutil.copytree(GROWN, folder)
  return folder


@pytest.fixture(scope="module")
def second(tmp_path_factory, moved):
  """A trainer whose run grew another seed on top."""
  path = tmp_path_factory.mktemp("second") / "run"
  trainer = Trainer(config(moved), path)
  assert trainer.train()["fossilized"] == 1
  return trainer


@pytest.fixture
def run(second):
  return second._store.path


def test_it_starts_where_the_network_was():
  settings = config()
  parts = assembly.assemble(settings, assembly.load_data(settings))
  state = assembly.new_state(settings, parts)
  images = jnp.asarray(parts.data.validation_images)
  x = parts.steps.preprocess(images, None)
  view = evaluation_view(state)
  logits = parts.host.apply(*view, x, train=False, key=None)[0]
  assert np.array_equal(logits, load_grown(GROWN)(images))
  assert list(parts.growth.slots) == ["slot1"]
  assert "mlp of" in parts.title and "1 seed grown before" in parts.title


def test_grow_takes_a_network_of_the_registry_as_its_model():
  changes, given = {"data.train_limit": 64}, {}
  arguments.take_model(load_grown(GROWN), None, changes, given)
  arguments.take_data("digits", changes, given)
  settings = api.make_config(changes)
  data = assembly.load_data(settings)
  parts = assembly.assemble(settings, data, Given(**given))
  assert given == {"title": "mlp"}
  assert parts.before.folder == GROWN
  assert list(parts.growth.slots) == ["slot1"]


def test_data_are_normalized_as_those_of_the_network(tmp_path):
  folder = tmp_path / "out"
  shutil.copytree(GROWN, folder)
  topology = json.loads((folder / lineage.TOPOLOGY).read_text())
  topology["input"]["mean"] = [0.5]
  rebind(folder, topology)
  settings = config(folder)
  parts = assembly.assemble(settings, assembly.load_data(settings))
  assert parts.data.mean == (0.5,)
  image = np.full((1, 8, 8, 1), 255, np.uint8)
  x = parts.steps.preprocess(image, None)
  assert np.allclose(x, 0.5 / parts.data.std[0])


def rebind(folder, topology):
  """Writes a topology and a lineage that binds it."""
  path = folder / lineage.TOPOLOGY
  path.write_text(json.dumps(topology))
  story = lineage.story(folder)
  story[-1]["files"][lineage.TOPOLOGY] = lineage.hash_file(path)
  (folder / lineage.LINEAGE).write_text(json.dumps(lineage.chain(story)))


def test_its_result_says_what_grew_before(run):
  result = json.loads((run / "result.json").read_text())
  assert result["grown_before"] == {"slot1": ["dense"]}


def test_it_is_exported_with_what_grew_before(second, run, tmp_path):
  done = writing.export_run(run, tmp_path / "out")
  assert max(done.report["max_abs_difference"].values()) < 1e-5
  assert lineage.verify(done.folder, head=done.head)
  seeds = json.loads((done.folder / lineage.TOPOLOGY).read_text())["seeds"]
  assert [(s["generation"], s["name"], s["depth"]) for s in seeds] == [
    (0, "slot1_dense", 0),
    (1, "slot1_dense_", 1),
  ]
  story = lineage.story(done.folder)
  kinds = [entry["type"] for entry in story]
  assert kinds[:5] == [
    "began",
    "germinated",
    "fossilized",
    "exported",
    "continued",
  ]
  images = second.parts.validation[0].images
  view = evaluation_view(second.run.state)
  x = second.parts.steps.preprocess(images, None)
  logits = second.parts.host.apply(*view, x, train=False, key=None)[0]
  assert np.allclose(load_grown(done.folder)(images), logits, atol=1e-5)
  third = config(done.folder, tamiyo__policy="never", tamiyo__schedule=())
  parts = assembly.assemble(third, assembly.load_data(third))
  assert "2 seeds grown before" in parts.title


def test_a_run_from_before_the_key_is_exported(run, tmp_path):
  old = tmp_path / "run"
  shutil.copytree(run, old)
  path = old / "config.json"
  document = json.loads(path.read_text())
  del document["config"]["train"]["ema_decay"]
  path.write_text(json.dumps(document))
  assert writing.export_run(old, tmp_path / "out").head


def test_the_network_may_move_but_not_change(second, run, moved, tmp_path):
  elsewhere = tmp_path / "there"
  shutil.copytree(moved, elsewhere)
  again = Trainer(config(elsewhere), run).train()
  assert again == json.loads((run / "result.json").read_text())
  topology = json.loads((elsewhere / lineage.TOPOLOGY).read_text())
  rebind(elsewhere, {**topology, "modules": ["other"]})
  with pytest.raises(InputError, match="goes on with another network than"):
    Trainer(config(elsewhere), run)


def test_a_network_that_was_tampered_with_is_refused(tmp_path):
  folder = tmp_path / "out"
  shutil.copytree(GROWN, folder)
  with (folder / lineage.WEIGHTS).open("ab") as file:
    file.write(b"x")
  with pytest.raises(InputError, match="weights.safetensors was changed"):
    config(folder)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (
      {"host__width": 9},
      "of host.width 8, and the config has 9; give --config.host.width=8$",
    ),
    ({"data__context": 9}, "of data.context 64, and the config has 9"),
    (
      {
        "host__name": "resnet8",
        "kasmina__blueprints": (),
        "host__slots": "all",
      },
      "of host.name mlp, and the config has resnet8",
    ),
  ],
)
def test_a_config_of_another_network_is_told(changes, says):
  settings = config(**changes, tamiyo__policy="never", tamiyo__schedule=())
  with pytest.raises(InputError, match=says):
    assembly.assemble(settings, assembly.load_data(settings))


@pytest.mark.parametrize(
  ("edit", "says"),
  [
    (
      lambda t: t["host"].update(num_classes=3),
      "tells 3 classes apart, and the data has 10",
    ),
    (
      lambda t: t["host"].update(inner_widths=[1, 2]),
      "of host.inner_widths 1,2, and the config has",
    ),
    (
      lambda t: t["input"].update(shape=["batch", 9, 9, 3]),
      "reads images of 9x9x3, and the data has 8x8x1",
    ),
    (
      lambda t: t["host"].update(name="given", title="Net"),
      r"is a network of a model of yours \(Net\)",
    ),
  ],
)
def test_a_network_that_does_not_fit_is_told(edit, says, tmp_path):
  folder = tmp_path / "out"
  shutil.copytree(GROWN, folder)
  topology = json.loads((folder / lineage.TOPOLOGY).read_text())
  edit(topology)
  rebind(folder, topology)
  settings = config(folder)
  with pytest.raises(InputError, match=says):
    assembly.assemble(settings, assembly.load_data(settings))


def test_a_text_must_have_the_same_characters():
  settings = config(
    host__name="gpt",
    host__width=8,
    host__depth=1,
    data__name="as_you_like_it",
    data__context=8,
    data__train_limit=64,
    kasmina__blueprints=(),
    tamiyo__policy="never",
    tamiyo__schedule=(),
    host__from="",
  )
  data = assembly.load_data(settings)
  host = hosting.host_arguments(settings, data.num_classes)
  topology = {"host": host, "input": {"vocabulary": data.vocabulary}}
  arguments = {name: host[name] for name in host if name != "dtype"}
  hosting._check_topology(topology, arguments, data, "out")
  assert hosting._normalized_as(data, topology["input"]) is data
  topology["input"]["vocabulary"] = "abc"
  with pytest.raises(InputError, match="reads a text of 3 characters, and the"):
    hosting._check_topology(topology, arguments, data, "out")
