"""Every knob changes what happens.

Each case holds a context (keys that make the knob matter), another value for
the knob, and a probe: what of the program is looked at. Most probes are runs.
A knob without a case fails, and so does a case whose probe sees no difference,
which is what a knob that nobody reads would give.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict
from PIL import Image

from configs import digits
from esper_jax import config as config_lib
from esper_jax.kasmina import blueprints, lifecycle
from esper_jax.kasmina.gates import legal
from esper_jax.knobs import KNOBS
from esper_jax.nissa import displays
from esper_jax.oona import jsonl
from esper_jax.oona.redis_stream import RedisSink
from esper_jax.tamiyo import policy as policies
from esper_jax.tezzeret import disk
from esper_jax.tolaria import assembly, governor, layout
from esper_jax.tolaria.display import Silent
from esper_jax.tolaria.kernels import Kernels
from esper_jax.tolaria.run import unknown_signals
from esper_jax.tolaria.trainer import Trainer
from esper_jax.types import Action, InputError, Stage
from esper_jax.urza import dispatch
from esper_jax.urza.registry import open_registry
from tests.urza import handmade, sample_kernel

# The smallest run: 4 steps an epoch.
TINY: dict[str, Any] = {
  "host.name": "mlp",
  "host.width": 8,
  "host.depth": 1,
  "host.inner_widths": (),
  "data.train_limit": 64,
  "data.batch_size": 16,
  "optimizer.learning_rate": 1e-2,
  "optimizer.schedule": "constant",
  "train.epochs": 1,
  "train.log_every": 2,
  "kasmina.blueprints": ("dense",),
  "tamiyo.policy": "never",
  "tamiyo.probe_examples": 16,
  "oona.fsync": False,
}
# One seed that lives a full and short life: every gate lets it through.
GROW: dict[str, Any] = {
  "data.eval_batch_size": 64,
  "train.epochs": 6,
  "kasmina.min_training_epochs": 1,
  "kasmina.max_training_epochs": 2,
  "kasmina.min_holding_epochs": 1,
  "kasmina.max_holding_epochs": 2,
  "kasmina.blend_epochs": 1,
  "kasmina.training_gain_sigmas": -1e6,
  "kasmina.gain_sigmas": 0.0,
  "tamiyo.policy": "schedule",
  "tamiyo.schedule": ((1, "slot1", "dense"),),
  "tamiyo.warmup_epochs": 1,
  "tezzeret.lead_epochs": 0,
  "checkpoint.every_epochs": 99,
}
# Seeds that no gate lets out of TRAINING; they are culled.
STUCK = {**GROW, "kasmina.training_gain_sigmas": 1e6}
# A policy that is asked about two slots.
ASK = {
  **GROW,
  "host.depth": 2,
  "train.epochs": 5,
  "tamiyo.schedule": (),
}
RANDOM = {**ASK, "tamiyo.policy": "random", "tamiyo.probability": 1.0}
PERIODIC = {**ASK, "tamiyo.policy": "periodic", "tamiyo.period_epochs": 1}
PLATEAU = {
  **ASK,
  "tamiyo.policy": "heuristic",
  "tamiyo.plateau_epochs": 1,
  "tamiyo.plateau_delta": 0.9,
}
# What grew before: the logs of two slots, and an export with a seed.
RECORDS = Path(__file__).parent / "recorded"
REPLAY = {
  **GROW,
  "host.depth": 2,
  "tamiyo.policy": "replay",
  "tamiyo.schedule": (),
  "tamiyo.replay": str(RECORDS / "slot1.jsonl"),
}
RESNET = {
  "host.name": "resnet8",
  "host.width": 4,
  "kasmina.blueprints": ("conv3x3",),
}
NO_CIFAR = {
  "data.name": "cifar10",
  "data.download": False,
  "data.cache_dir": "nowhere/cache",
}

OWN_IMAGES = {
  "data.source": "folder:images",
  "data.cache_dir": "cache",
  "data.train_limit": 0,
}
GPT = {"host.name": "gpt", "data.name": "as_you_like_it"}

Probe = Callable[[ConfigDict], Any]


class Case(NamedTuple):
  """How one knob shows.

  Attributes:
    value: other than the context's.
    probe: what is looked at.
    context: keys that differ from TINY.
  """

  value: Any
  probe: Probe
  context: Mapping[str, Any] = {}


def build(changes: Mapping[str, Any]) -> ConfigDict:
  config = digits.get_config()
  with config.ignore_type():
    for key, value in {**TINY, **changes}.items():
      section, _, name = key.rpartition(".")
      (config[section] if section else config)[name] = value
  return config_lib.validate(config)


# --- Probes ------------------------------------------------------------------


class Outcome(NamedTuple):
  """A run, without what the clock says."""

  result: dict[str, Any]
  metrics: list[dict[str, Any]]
  events: list[dict[str, Any]]
  checkpoints: list[str]
  synced: int  # times that events.jsonl was


_RUNS: dict[str, Outcome] = {}


def run(config: ConfigDict) -> Outcome:
  """Trains; the same config is trained once."""
  name = json.dumps(config_lib.flatten(config), sort_keys=True)
  if name not in _RUNS:
    with tempfile.TemporaryDirectory() as folder:
      _RUNS[name] = _train(config, Path(folder) / "run")
  return _RUNS[name]


def _train(config: ConfigDict, path: Path) -> Outcome:
  real, synced = os.fsync, []

  def counted(fd: int) -> None:
    synced.append(os.fstat(fd).st_ino)
    real(fd)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(os, "fsync", counted)  # of the operating system, not ours
    result = Trainer(config, path).train()

  def lines(name: str) -> list[dict[str, Any]]:
    return [_timeless(line) for line in jsonl.read(path / name)]

  return Outcome(
    _timeless(result),
    lines("metrics.jsonl"),
    lines("events.jsonl"),
    sorted(p.name for p in (path / "checkpoints").iterdir()),
    synced.count((path / "events.jsonl").stat().st_ino),
  )


def _timeless(line: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in line.items() if "time" not in k and "sec" not in k}


def figures(config: ConfigDict) -> Any:
  """Every loss, accuracy and signal of a run."""
  return run(config).metrics


def reads_test(config: ConfigDict) -> Any:
  """Whether the test set was read."""
  return any("test_accuracy" in event for event in run(config).events)


def germinations(config: ConfigDict) -> Any:
  """When and where seeds were planted."""
  return [
    (event["epoch"], event["slot"], event["blueprint"])
    for event in run(config).events
    if event["type"] == "germinated"
  ]


def moves(config: ConfigDict) -> Any:
  """Everything that happened to the slots, and when."""
  return [
    (event["epoch"], event["type"], event.get("now"))
    for event in run(config).events
    if "slot" in event and event["type"] != "decision"
  ]


def alphas(config: ConfigDict) -> Any:
  lines = run(config).metrics
  return [x["slots/slot1/alpha"] for x in lines if "slots/slot1/alpha" in x]


def compiled(config: ConfigDict) -> Any:
  events = run(config).events
  return [e["program"] for e in events if e["type"] == "compile"]


def kept_checkpoints(config: ConfigDict) -> Any:
  return len(run(config).checkpoints)


def saves(config: ConfigDict) -> Any:
  return [e["epoch"] for e in run(config).events if e["type"] == "checkpoint"]


def ablations(config: ConfigDict) -> Any:
  """Examples measured, as FLOPs."""
  return run(config).result["ablation_flops"]


def syncs(config: ConfigDict) -> Any:
  outcome = run(config)
  return outcome.synced >= len(outcome.events)


def reasons(config: ConfigDict) -> Any:
  return [e["reason"] for e in run(config).events if e["type"] == "decision"]


def data(config: ConfigDict) -> Any:
  """The splits, or why there are none."""
  try:
    d = assembly.load_data(config)
  except InputError as error:
    return str(error)
  names = ("train_images", "validation_images", "test_images")
  return [hashlib.sha256(getattr(d, name)).hexdigest() for name in names]


def own_images(config: ConfigDict) -> Any:
  """The splits, where the folder "images" has 10 in each of two classes."""
  for n in range(20):
    path = Path("images", "ab"[n % 2], f"{n}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8), 10 * n, np.uint8)
    pixels[:4] = 0
    Image.fromarray(pixels).save(path)
  return data(config)


def shown_by(config: ConfigDict) -> Any:
  """What main.py leaves of a run for people to look at."""
  with (
    tempfile.TemporaryDirectory() as folder,
    pytest.MonkeyPatch.context() as patch,
  ):
    patch.setitem(sys.modules, "wandb", None)  # not installed
    try:
      shown = displays.of_run(folder, verbosity=0, **config_lib.shown(config))
    except InputError as error:
      return str(error)
    callbacks = shown.callbacks
    Trainer(config, folder, display=shown, callbacks=callbacks).train()
    names = ("report.html", "tensorboard", "profile")
    return [name for name in names if (Path(folder) / name).exists()]


def copies(config: ConfigDict) -> Any:
  """Where the events go, and how long the end of a run waits for it."""
  told, waited, close = [], [], RedisSink.close

  class Display(Silent):
    def part(self, name, text):
      told.append(text)

  with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(config, Path(folder) / "run", display=Display())

    def closing(sink, seconds):
      waited.append(seconds)
      return close(sink, 0.0)

    with mock.patch.object(RedisSink, "close", closing):
      trainer.shutdown()
  return re.findall(r"and to (Redis at \S+, stream \S+),", told[1]), waited


def timing_dependent(config: ConfigDict) -> Any:
  return run(config).result["timing_dependent"]


def compiled_ahead(config: ConfigDict) -> Any:
  compiled = [e for e in run(config).events if e["type"] == "compile"]
  return any(e["background"] for e in compiled)


def cached_in(config: ConfigDict) -> Any:
  """The folder of compiled programs where JAX itself was told of none."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  try:
    return disk.enable(config.tezzeret.cache_dir)
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


def served(config: ConfigDict) -> Any:
  """Whether a run beside a GPU would run a kernel; or why it is refused.

  The GPU is absent. Nobody has judged the kernel, and its folder can be
  written by others.
  """
  folder = Path("kernels").absolute()
  args = sample_kernel.KERNEL.arguments("float32", {"C": 16}, 2, 1, 1)
  if not folder.exists():
    made = handmade.artefact(sample_kernel.KERNEL, *args)
    open_registry(layers=(folder,)).put(*made)
    folder.chmod(0o777)
  try:
    beside = Kernels.of(config, handmade.H100)
  except InputError as error:
    return str(error)
  try:
    beside.take_up({})
    return dispatch.serves(sample_kernel.KERNEL, *args)
  finally:
    beside.close()


def parts(config: ConfigDict) -> assembly.Parts:
  return assembly.assemble(config, assembly.load_data(config))


def network(config: ConfigDict) -> Any:
  """Names and shapes of the host's variables."""
  p = parts(config)
  key = jax.random.key(0)
  return str(jax.eval_shape(lambda: p.host.init(key, p.example)))


def operations(config: ConfigDict) -> Any:
  """What the dormant host computes."""
  p = parts(config)

  def forward():
    params, collections = p.host.init(jax.random.key(0), p.example)
    return p.host.apply(
      params, collections, {}, p.example, train=False, key=None
    )[0]

  return str(jax.make_jaxpr(forward)())


def slots(config: ConfigDict) -> Any:
  return list(parts(config).growth.slots.items())


def rows(config: ConfigDict) -> Any:
  return parts(config).growth.rows


def branches(config: ConfigDict) -> Any:
  return parts(config).growth.blueprints


def timetable(config: ConfigDict) -> Any:
  return parts(config).timetable


def validation(config: ConfigDict) -> Any:
  return [batch.count for batch in parts(config).validation]


def options(config: ConfigDict) -> Any:
  return parts(config).compiler_options


def seen(config: ConfigDict) -> Any:
  """What the network sees of some images."""
  p = parts(config)
  images = jnp.asarray(p.data.train_images[:8])
  return np.asarray(p.steps.preprocess(images, jax.random.key(1))).tobytes()


def rates(config: ConfigDict) -> Any:
  """Learning rate by step."""
  p = parts(config)
  steps = range(p.timetable.total_steps)
  return [float(p.steps.learning_rate(jnp.int32(n))) for n in steps]


def updates(config: ConfigDict) -> Any:
  """What the optimizer makes of three gradients."""
  chain = parts(config).steps.optimizer
  params = {"w": jnp.ones((2, 2), jnp.float32)}
  state, out = chain.init(params), []
  for n in (1.0, 2.0, -0.5):
    gradient = {"w": jnp.asarray([[n, 0.1], [0.2, 1.0]], jnp.float32)}
    made: tuple[Any, Any] = chain.update(gradient, state, params)
    update, state = made
    out.append(np.asarray(update["w"]).tolist())
  return out


def newborn_rates(config: ConfigDict) -> Any:
  factor = parts(config).steps.newborn_factor
  return [float(factor(jnp.int32(age))) for age in (0, 5, 49)]


def room(config: ConfigDict) -> Any:
  """Whether a slot with one permanent seed may grow again."""
  growth = parts(config).growth
  fossil = lifecycle.initial(growth.rows)
  stage = jnp.full(growth.rows, int(Stage.FOSSILIZED), jnp.int32)
  fossil = fossil.replace(stage=stage, fossils=jnp.ones_like(stage))
  signals = unknown_signals(growth.rows)
  fits = jnp.asarray(growth.fits)
  allowed = legal(fossil, signals, growth.rules, fits, 1)
  return bool(allowed[:, int(Action.GERMINATE)].any())


def governed(config: ConfigDict) -> Any:
  """What the governor makes of figures that get worse; chance is 0.1."""
  rules, said = parts(config).governor, []
  for losses, accuracies in (
    ([1.0, 1.0, 1.0, 2.0, 2.0, 4.5], []),
    ([], [0.15, 0.11]),
    ([], [0.6, 0.15]),
  ):
    state = governor.GovernorState()
    for loss in losses:
      state, fault = governor.observe(state, rules, loss=loss)
      said.append(fault and fault.kind)
    for accuracy in accuracies:
      state, fault = governor.observe(state, rules, accuracy=accuracy)
      said.append(fault and fault.kind)
  state = governor.GovernorState()
  for _ in range(5):
    state, response = governor.respond(
      state,
      governor.Fault("loss_jump", ""),
      rules,
      epoch=9,
      last_changed={"slot1": 6},
    )
    said.append((response.quarantine, response.give_up))
  return said


# --- Cases -------------------------------------------------------------------

CROP = {"data.augment": ("crop",)}
CUTOUT = {"data.augment": ("cutout",)}
SGD = {"optimizer.name": "sgd"}


def placement(config: ConfigDict) -> str:
  """Where a parameter and a batch would lie, were there four devices."""
  four = jax.devices() * 4
  with (
    mock.patch.object(jax, "devices", lambda: four),
    mock.patch.object(
      jax, "make_mesh", lambda n, names, *_, **__: AbstractMesh(n, names)
    ),
  ):
    own = layout.make_layout(config)
  if own is None:
    return "one device"
  w, rows = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 64), (16,)))
  return str(own.place("train", ({"w": w}, {}, w, w, rows)))


# A server that is not there.
COPY = {
  "oona.redis_url": "redis://127.0.0.1:1",
  "oona.redis_flush_seconds": 0.0,
}
WSD = {"optimizer.schedule": "wsd", "train.epochs": 2}
URZA = {
  "urza.dir": "kernels",
  "urza.trusted": ("kernels",),
  "urza.require": "nothing",
}

CASES: dict[str, Case] = {
  "seed": Case(1, figures),
  "deterministic": Case(True, options),
  "host.name": Case("resnet8", network, {"kasmina.blueprints": ()}),
  "host.from": Case(str(RECORDS / "grown"), network),
  "host.width": Case(12, network),
  "host.depth": Case(2, network),
  "host.heads": Case(2, operations, GPT),
  "host.norm": Case("group", network, RESNET),
  "host.inner_widths": Case((0, 1, 0), network, RESNET),
  "host.slots": Case(("slot2",), slots, {"host.depth": 2}),
  "data.name": Case("cifar100", data, NO_CIFAR),
  "data.source": Case(
    "folder:images", own_images, OWN_IMAGES | {"data.source": ""}
  ),
  "data.image_size": Case(4, own_images, OWN_IMAGES),
  "data.context": Case(32, data, GPT),
  "data.dir": Case("elsewhere", data),
  "data.cache_dir": Case("elsewhere", data, NO_CIFAR),
  # A folder that cannot be: a download would begin by making it.
  "data.download": Case(
    True, data, {**NO_CIFAR, "data.cache_dir": f"{__file__}/cache"}
  ),
  "data.batch_size": Case(8, timetable),
  "data.eval_batch_size": Case(100, validation),
  "data.validation_fraction": Case(0.2, data),
  "data.split_seed": Case(1, data),
  "data.augment": Case(("flip",), seen),
  "data.crop_padding": Case(1, seen, CROP),
  "data.cutout_size": Case(2, seen, CUTOUT),
  "data.train_limit": Case(48, data),
  "optimizer.name": Case("lion", updates),
  "optimizer.learning_rate": Case(1e-3, rates),
  "optimizer.schedule": Case("cosine", rates),
  "optimizer.warmup_epochs": Case(1.0, rates),
  "optimizer.decay_fraction": Case(0.5, rates, WSD),
  "optimizer.final_factor": Case(0.5, rates, WSD),
  "optimizer.momentum": Case(0.5, updates, SGD),
  "optimizer.b2": Case(0.9, updates),
  "optimizer.weight_decay": Case(0.5, updates),
  "optimizer.clip_norm": Case(0.1, updates, SGD),
  "optimizer.newborn": Case("reset", figures, GROW),
  "optimizer.newborn_warmup_steps": Case(10, newborn_rates),
  "train.epochs": Case(2, timetable),
  "train.label_smoothing": Case(0.1, figures),
  "train.precision": Case("bfloat16", slots),
  "train.accumulate_steps": Case(2, updates),
  "train.ema_decay": Case(0.9, figures),
  "train.chunk_steps": Case(2, compiled),
  "train.log_every": Case(1, figures),
  "train.max_steps": Case(3, timetable),
  "eval.test": Case(False, reads_test),
  "kasmina.blueprints": Case((), branches),
  "kasmina.initializer": Case("random", figures, GROW),
  "kasmina.blend": Case("multiply", figures, GROW),
  "kasmina.alpha_curve": Case(
    "cosine", alphas, {**GROW, "kasmina.blend_epochs": 3}
  ),
  "kasmina.blend_epochs": Case(2, moves, GROW),
  "kasmina.proximal": Case(0.0, figures, GROW),
  "kasmina.seeds_per_slot": Case(2, rows),
  "kasmina.max_per_slot": Case(1, room, GROW),
  "kasmina.min_training_epochs": Case(2, moves, GROW),
  "kasmina.max_training_epochs": Case(3, moves, STUCK),
  "kasmina.min_holding_epochs": Case(2, moves, GROW),
  "kasmina.max_holding_epochs": Case(
    1, moves, {**GROW, "kasmina.gain_sigmas": 1e6}
  ),
  "kasmina.embargo_epochs": Case(1, moves, STUCK),
  "kasmina.gain_sigmas": Case(1e6, moves, GROW),
  "kasmina.training_gain_sigmas": Case(1e6, moves, GROW),
  "kasmina.max_gradient_ratio": Case(1e-12, moves, GROW),
  "kasmina.measure_examples": Case(64, ablations, GROW),
  "kasmina.measure_budget": Case(
    0.0,
    ablations,
    {**GROW, "kasmina.measure_budget": 1.0, "data.train_limit": 0},
  ),
  "tamiyo.policy": Case("never", germinations, GROW),
  "tamiyo.policy_path": Case(__file__, lambda c: None),  # see below
  # See tests/tolaria/test_policy_fallback.py and tests/tamiyo/test_learned.py.
  "tamiyo.on_policy_error": Case("stop", lambda c: None),
  "tamiyo.temperature": Case(1.0, lambda c: None),
  "tamiyo.adaptation_frequency": Case(2, germinations, PERIODIC),
  "tamiyo.max_adaptations_per_epoch": Case(1, germinations, RANDOM),
  "tamiyo.max_growths": Case(1, germinations, RANDOM),
  "tamiyo.warmup_epochs": Case(2, germinations, PERIODIC),
  "tamiyo.plateau_epochs": Case(2, reasons, PLATEAU),
  "tamiyo.plateau_delta": Case(1e-9, germinations, PLATEAU),
  "tamiyo.period_epochs": Case(9, germinations, PERIODIC),
  "tamiyo.probability": Case(0.0, germinations, RANDOM),
  "tamiyo.schedule": Case(((2, "slot1", "dense"),), germinations, GROW),
  "tamiyo.probe_examples": Case(32, reasons, PLATEAU),
  "tamiyo.replay": Case(str(RECORDS / "slot2.jsonl"), germinations, REPLAY),
  # Seed 1 draws a later epoch; seeds 0 and 2 draw different slots.
  "tamiyo.replay_permute": Case(
    "times", germinations, {**REPLAY, "tamiyo.replay_seed": 1}
  ),
  "tamiyo.replay_seed": Case(
    2, germinations, {**REPLAY, "tamiyo.replay_permute": "slots"}
  ),
  "tamiyo.replay_final": Case(True, germinations, REPLAY),
  "tezzeret.lead_epochs": Case(1, germinations, GROW),
  "tezzeret.guesses": Case(0, lambda config: parts(config).growth.guesses),
  "tezzeret.guess_seconds": Case(1.0, assembly.compile_limits),
  "tezzeret.max_programs": Case(1, assembly.compile_limits),
  "tezzeret.max_bytes": Case(1, assembly.compile_limits),
  "tezzeret.timeout_seconds": Case(9.0, timing_dependent),
  "tezzeret.threads": Case(0, compiled_ahead),
  "tezzeret.cache_dir": Case("here", cached_in, {"tezzeret.cache_dir": "off"}),
  "governor.loss_factor": Case(1.5, governed),
  "governor.window": Case(2, governed),
  "governor.chance_margin": Case(0.06, governed),
  "governor.above_margin": Case(0.04, governed),
  "governor.responsible_epochs": Case(2, governed),
  "governor.max_rollbacks": Case(1, governed),
  "checkpoint.every_epochs": Case(2, saves, {"train.epochs": 3}),
  "checkpoint.keep_last": Case(1, kept_checkpoints, {"train.epochs": 3}),
  "checkpoint.keep_best": Case(
    3,
    kept_checkpoints,
    {
      "train.epochs": 3,
      "checkpoint.every_epochs": 1,
      "checkpoint.keep_last": 1,
    },
  ),
  "oona.redis_url": Case("redis://127.0.0.1:1", copies),
  "oona.redis_stream": Case("other", copies, COPY),
  "oona.redis_flush_seconds": Case(0.6, copies, COPY),
  # Programs that are done at once are told of at once, and synced together.
  "oona.fsync": Case(True, syncs, {"tezzeret.threads": 0}),
  "nissa.report": Case(False, shown_by),
  "nissa.tensorboard": Case(True, shown_by),
  "nissa.wandb": Case("growing", shown_by),
  "nissa.profile_steps": Case((1, 2), shown_by),
  "mesh.data": Case(4, placement),
  "mesh.parameters": Case(
    "sharded", placement, {"mesh.data": 4, "mesh.shard_from": 16}
  ),
  "mesh.shard_from": Case(
    16, placement, {"mesh.data": 4, "mesh.parameters": "sharded"}
  ),
  "urza.modules": Case((), branches),  # see below
  "urza.dir": Case("", served, URZA),
  "urza.trusted": Case((), served, URZA),
  "urza.require": Case("validated", served, URZA),
}
# Shown by tests of their own.
APART = (
  "tamiyo.policy_path",
  "tamiyo.on_policy_error",
  "tamiyo.temperature",
  "urza.modules",
)


@pytest.fixture(scope="module", autouse=True)
def _forget_runs():
  yield
  _RUNS.clear()


def test_every_knob_has_a_case():
  assert set(CASES) == set(KNOBS)


@pytest.mark.parametrize("key", [key for key in KNOBS if key not in APART])
def test_knob_changes_what_happens(key, tmp_path, monkeypatch):
  case = CASES[key]
  monkeypatch.chdir(tmp_path)  # relative folders of the cases are nowhere
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  before, after = (
    build(changes)
    for changes in (case.context, {**case.context, key: case.value})
  )
  flat = (config_lib.flatten(before), config_lib.flatten(after))
  assert [k for k in KNOBS if flat[0][k] != flat[1][k]] == [key]
  assert case.probe(before) != case.probe(after)


SEEDS = """
from esper_jax.kasmina.blueprints import Blueprint, register
from esper_jax.kasmina import builtin_blueprints
from esper_jax.tamiyo import policy, rules

def build(settings):
  PATHS.append(settings.policy_path)
  return rules.random(settings)

PATHS = []
_, *parts = next(
  (name, *rest) for name, rest in builtin_blueprints.BUILT_IN.items()
  if name == "lowrank_dense"
)
register(Blueprint("of_the_user", *parts), check=False)
policy.register("of_the_user", build)
"""


def test_module_of_the_user_brings_blueprints_and_policies(
  tmp_path, monkeypatch
):
  name = "module_of_the_knobs_test"
  (tmp_path / f"{name}.py").write_text(SEEDS)
  weights = tmp_path / "weights"
  weights.write_bytes(b"")
  monkeypatch.syspath_prepend(tmp_path)
  changes = {"kasmina.blueprints": (), "urza.modules": (name,)}
  assert "of_the_user" not in branches(build({"kasmina.blueprints": ()}))
  try:
    assert "of_the_user" in branches(build(changes))
    for path in ("", str(weights)):
      policy = {"tamiyo.policy": "of_the_user", "tamiyo.policy_path": path}
      parts(build({**changes, **policy}))
      assert __import__(name).PATHS[-1] == path
  finally:
    blueprints.unregister("of_the_user")
    policies.unregister("of_the_user")
