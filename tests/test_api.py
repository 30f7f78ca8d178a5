"""`esper_jax.grow`: what it takes, refuses, resumes and gives back."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from esper_jax import InputError, Slot, api, arguments, grow
from esper_jax.kasmina import blueprints as kasmina
from esper_jax.oona import jsonl
from esper_jax.tamiyo import policy as policies


class Net(nn.Module):
  """One hidden layer and a slot."""

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.Dense(3)(Slot(name="middle")(nn.Dense(4)(x), train=train))


class Plain(nn.Module):
  """Takes no `train`."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x)


X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
Y = np.arange(60) % 3
CONFIG = {"train.epochs": 2, "data.batch_size": 8, "tamiyo.policy": "never"}
QUIET = {"config": CONFIG, "verbosity": 0}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def init(key, spec):
  return {"w": jax.random.normal(key, (spec.channels,))}, {}


def apply(params, state, x, *, train, key):
  return x * params["w"].astype(x.dtype).reshape(1, -1), state


SCALE = kasmina.Blueprint("api_scale", init, apply, ("features",), ("w",))


def test_a_run_and_its_resumption(capsys):
  stops = [lambda trainer, metrics: trainer.stop()]
  seen = []
  first = grow(Net(), (X, Y), **QUIET, callbacks=stops, events=[seen.append])
  logged = jsonl.read(first.workdir / "events.jsonl")
  assert [event["type"] for event in seen] == [line["type"] for line in logged]
  assert seen[0]["type"] == "run_started"
  assert first.result["status"] == "interrupted"
  assert first.workdir.parts[0] == "runs"
  assert first.workdir.name.startswith("net-")
  again = grow(Net(), (X, Y), config=CONFIG, workdir=first.workdir)
  assert again.result["status"] == "completed"
  out = capsys.readouterr().out
  assert "given 5 float32 examples of 3 classes; 20% of it" in out
  assert "Net, 39 parameters, 1 slot (middle)" in out
  shown = grow(Net(), (X, Y), **QUIET, workdir=first.workdir)
  assert shown.result == again.result
  logits = Net().apply(again.variables, X)
  np.testing.assert_allclose(shown.predict(X), logits, rtol=1e-5, atol=1e-6)
  assert repr(shown) == f"Grown(workdir={first.workdir!r})"
  held = shown.data.validation_images, shown.data.validation_labels
  right = shown.predict(held[0]).argmax(-1) == held[1]
  assert float(right.mean()) == pytest.approx(again.result["val_accuracy"])
  places = [np.flatnonzero((X == x).all(1))[0] for x in held[0]]
  assert places == sorted(places)
  assert (Y[places] == held[1]).all()
  with pytest.raises(
    InputError, match="^workdir=.* on other data.* another wor"
  ):
    grow(Net(), (X + 1, Y), **QUIET, workdir=first.workdir)


class Wide(nn.Module):
  """Tells five classes apart, and cannot grow."""

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.Dense(5)(x)


class Flat(nn.Module):
  """Reads anything."""

  @nn.compact
  def __call__(self, x, *, train=False):
    return Net()(x.reshape(x.shape[0], -1), train=train)


class Twice(nn.Module):
  """Has two slots of one name."""

  @nn.compact
  def __call__(self, x, *, train=False):
    x = Slot(name="middle")(nn.Dense(3)(x), train=train)
    return Slot(name="middle")(x, train=train)


def test_what_is_odd_and_not_wrong_is_said_at_the_start(capsys):
  done = grow(Wide(), (X, Y), config=CONFIG)
  assert done.result["status"] == "completed"
  out = capsys.readouterr().out
  assert (
    "warning  the model gives 5 logits, and the data has 3 classes: give its"
    " last layer 3, unless more classes are meant to come\n"
  ) in out
  assert (
    "0 slots (none: it cannot grow; a place to grow is x ="
    " esper_jax.Slot(name='middle')(x, train=train))"
  ) in out
  grow(Net(), (X, Y), config=CONFIG)
  out = capsys.readouterr().out
  assert "warning" not in out
  assert "tamiyo   policy never: nothing will be planted\n" in out
  assert "drawn once for all, is the test: 43 train" in out
  assert out.count("3 classes") == 1
  first = np.zeros((60, 1, 5, 5), np.uint8)
  grow(Flat(), (first, Y), config={**CONFIG, "train.epochs": 1})
  assert "warning  examples of 1x5x5 look like" in capsys.readouterr().out


def test_a_run_in_which_nothing_is_planted_says_why(capsys):
  config = {**CONFIG, "tamiyo.policy": "heuristic"}
  grow(Net(), (X, Y), config=config)
  assert (
    "nothing was planted: a seed's life takes more than the run's 2 epochs;"
    " raise config['train.epochs'] to 9 or more\n"
  ) in capsys.readouterr().out


def test_examples_of_another_form_are_refused():
  grown = grow(Net(), (X, Y), **QUIET)
  for predict in (grown.predict, grown.preprocess):
    with pytest.raises(InputError, match=r"float32 \[batch, 5\], .*x\[None\]"):
      predict(X[0])


REFUSED = [
  ((Twice(), (X, Y)), {}, "two parts of the model have one name (Could not cr"),
  (
    (Net(), (X, Y)),
    {
      "config": {
        "tamiyo.policy": "schedule",
        "tamiyo.schedule": ((1, "middle", "conv3x3"),),
      }
    },
    "'conv3x3' does not exist; valid: ",
  ),
  ((Net, (X, Y)), {}, "the model is Net; give an instance of a Flax Linen"),
  (("resnet8", (X, Y)), {}, "the model is str; give an instance"),
  ((Plain(), (X, Y)), {}, "Plain.__call__ takes no 'train'; write def"),
  ((Net(), "cifar"), {}, "data is 'cifar'; give arrays, 'folder:PATH', 'text"),
  ((Net(), "folder:no"), {}, "no' is not there; set data=folder:PATH"),
  ((Net(), "folder:shape"), {}, "did you mean 'folder:"),
  ((Net(), "folder:shape"), {}, "/shapes'?"),
  ((Net(), "shapes"), {}, "data is 'shapes'; did you mean 'folder:shapes'? Or"),
  ((Net(), Path("shapes")), {}, "did you mean 'folder:shapes'? Or give arr"),
  ((Net(), "shapes/a.txt"), {}, "did you mean 'text:shapes/a.txt'? Or give"),
  ((Net(), (X, Y)), {"config": {"train.epoch": 1}}, "['train.epoch']: no s"),
  (
    (Net(), (X, Y)),
    {"config": {"train.epochs": 0}},
    "config['train.epochs']=0: must be an integer of a",
  ),
  (
    (Net(), (X, Y)),
    {"config": {"host.width": 3}},
    "config['host.width'] is fo",
  ),
  (
    (Net(), (X, Y)),
    {"config": {"host.from": "out"}},
    "or go on with a grown one, grow(load_grown(DIR, mo",
  ),
  ((Net(), (X, Y)), {"config": {"data.source": "folder:x"}}, "argument data"),
  ((Net(), (X, Y)), {"config": CONFIG, "policy": "random"}, "argument policy"),
  ((Net(), (X, Y)), {"policy": "randon"}, "policy=randon: must be"),
  (
    (Net(), (X, Y)),
    {"config": {"tamiyo.policy": "randon"}},
    "config['tamiyo.policy']=randon: must be",
  ),
  ((Net(), (X, Y)), {"blueprints": ["dens"]}, "'dens' is not registered"),
  ((Net(), (X, Y)), {"variables": {}}, "variables do not fit the model: miss"),
  (
    (Net(), (X, Y + 1)),
    {},
    "the model gives float32[2, 3] for labels int32[2]; the lowest label is 1",
  ),
  (
    (Net(), (X, Y)),
    {"loss": lambda o, y: o[:, 0], "config": {"train.label_smoothing": 0.1}},
    "it is for the loss that is built in",
  ),
  ((Net(), (X, Y)), {"metrics": {"m": lambda o, y: o}}, "metrics['m'] gives"),
]


@pytest.mark.parametrize(("args", "options", "says"), REFUSED)
def test_bad_input_starts_nothing(args, options, says, tmp_path):
  Path("shapes").mkdir()
  Path("shapes/a.txt").touch()
  with pytest.raises(InputError) as caught:
    grow(*args, **options)
  assert not str(caught.value).startswith("data.")
  assert len(caught.traceback) == 2  # this line and one of grow
  assert caught.value.__cause__ is None
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)
  assert "--" not in str(caught.value)  # a flag of main.py
  runs = tmp_path / "runs"
  assert not runs.exists() or list(runs.iterdir()) == []


def test_a_number_has_one_form_in_a_config():
  whole = api.make_config({"optimizer.learning_rate": 1, "host.slots": "a,b"})
  assert isinstance(whole, ConfigDict)
  assert type(whole.optimizer.learning_rate) is float
  assert whole.host.slots == ("a", "b")
  assert api.make_config({"seed": 3}).seed == 3


def test_blueprints_of_ones_own_are_registered_once_and_replaced():
  try:
    assert arguments.names_of(SCALE) == ("api_scale",)
    assert arguments.names_of([SCALE, "dense"]) == ("api_scale", "dense")
    other = SCALE._replace(apply=lambda *a, **k: apply(*a, **k))
    arguments.names_of([other])
    assert kasmina.get("api_scale") is other
    assert arguments.names_of("dense") == ("dense",)
  finally:
    kasmina.unregister("api_scale")
  with pytest.raises(InputError, match="'dense' is already registered"):
    arguments.names_of([SCALE._replace(name="dense")])


def test_policies_of_ones_own_are_given():
  for policy, expected in (
    ("random", ("random", None)),
    (policies.never("mine"), ("given", "mine")),
  ):
    changes, given = {}, {}
    arguments.take_policy(policy, changes, given)
    name = getattr(given.get("policy"), "name", None)
    assert (changes["tamiyo.policy"], name) == expected


def test_fresh_directories_are_never_shared(tmp_path):
  first = api._fresh(tmp_path / "a" / "run")
  second = api._fresh(tmp_path / "a" / "run")
  assert [p.name for p in (first, second)] == ["run", "run-2"]
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot write .*; give a workdir"):
    api._fresh(tmp_path / "file" / "run")
