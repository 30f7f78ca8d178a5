"""What is exported is what was trained, in every format."""

import ast
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from esper_jax import InputError, load_grown
from esper_jax.export import folding, plain, writing
from esper_jax.hosts import host_names, make_host
from esper_jax.hosts.registry import slot_names
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.blueprints import Blueprint
from esper_jax.kasmina.builtin_blueprints import BUILT_IN
from esper_jax.kasmina.slot import BLEND_MODES
from esper_jax.oona.lineage import MODULE, PROGRAM, TOPOLOGY, WEIGHTS

FORMATS = {"load_grown", MODULE, PROGRAM}
DEEP = ("resnet32", "resnet34", "resnet56")
IMAGES = [n for n, parts in BUILT_IN.items() if "nhwc" in parts.kinds]
VECTORS = [n for n, parts in BUILT_IN.items() if "features" in parts.kinds]
TOKENS = [n for n, parts in BUILT_IN.items() if "tokens" in parts.kinds]
FITTING = {"mlp": VECTORS, "gpt": TOKENS}


def everywhere(host):
  """Every blueprint that fits the host, one after another over its slots."""
  names = FITTING.get(host, IMAGES)
  slots = len(slot_names(host))
  return [
    (n % slots, name, {"depth": n // slots}) for n, name in enumerate(names)
  ]


HOSTS = [
  pytest.param(name, marks=pytest.mark.full if name in DEEP else ())
  for name in host_names()
]


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_with_every_blueprint(host, grown, tmp_path):
  network = grown(host, everywhere(host))
  shares = network.differences(tmp_path)
  assert shares.keys() == FORMATS - ({MODULE} if host == "gpt" else set())
  assert max(shares.values()) <= 1
  listed = json.loads((tmp_path / TOPOLOGY).read_text())
  names = {seed["blueprint"] for seed in (*listed["seeds"], *listed["merged"])}
  assert names == set(FITTING.get(host, IMAGES))


def in_all_blends(host):
  """Every blueprint in every blend mode, half-way; a depth for each mode."""
  return [
    (slot, name, {"alpha": 0.3, "blend": blend, "depth": depth})
    for slot, name, _ in everywhere(host)
    for depth, blend in enumerate(BLEND_MODES)
  ]


@pytest.mark.parametrize("host", ["mlp", "resnet8"])
def test_seeds_that_are_blended_in(host, grown, tmp_path):
  network = grown(host, in_all_blends(host), norm="group")
  shares = network.differences(tmp_path)
  assert shares.keys() == FORMATS
  assert max(shares.values()) <= 1
  for seed in network.network().topology["seeds"]:
    inside = seed["blueprint"] in folding.LINEAR_IN_FACTOR
    inside &= seed["blend"] != "multiply"
    assert seed["strength"] == (1 if inside else 0.3), seed


def test_alpha_goes_into_the_weights_of_every_branch_that_is_linear():
  for name in BUILT_IN:
    blueprint = blueprints.get(name)
    kind = blueprint.kinds[0]
    shape = {"nhwc": (3, 3, 8), "features": (8,), "tokens": (4, 8)}[kind]
    spec = blueprints.SlotSpec("slot", shape, "float32", kind)

    @jax.jit
    def branches(key, blueprint=blueprint, spec=spec):
      params, state = blueprint.init(key, spec)
      x = jax.random.normal(key, (2, *spec.shape))
      half = jax.tree.map(
        lambda leaf: leaf * jnp.float32(0.5),
        blueprints.factor(blueprint, params),
      )
      less = blueprints.with_factor(blueprint, params, half)
      return [
        blueprint.apply(own, state, x, train=False, key=None)[0]
        for own in (params, less)
      ]

    whole, scaled = map(np.asarray, branches(jax.random.key(0)))
    close = np.allclose(scaled, 0.5 * whole, rtol=1e-5, atol=1e-6)
    assert close == (name in folding.LINEAR_IN_FACTOR), name


def test_bfloat16(grown, tmp_path):
  network = grown("resnet8", everywhere("resnet8"), dtype="bfloat16")
  shares = network.differences(tmp_path)
  assert shares.keys() == FORMATS
  assert max(shares.values()) <= 1


def test_what_adds_nothing_is_gone(grown):
  dead = [
    (0, "conv3x3", {"alpha": 0.0}),
    (1, "conv3x3", {"isolation": 1.0, "alpha": 0.5}),
  ]
  network = grown("resnet8", dead).network()
  plain_host = make_host("resnet8", num_classes=3, width=8, slots=())
  shapes = jax.eval_shape(
    plain_host.init, jax.random.key(0), jnp.zeros((1, 4, 4, 2), jnp.float32)
  )
  assert network.topology["seeds"] == []
  assert jax.tree.map(jnp.shape, network.variables) == jax.tree.map(
    jnp.shape, shapes
  )


@pytest.mark.parametrize(
  ("host", "slot", "into"),
  [
    ("mlp", 0, ["hidden2"]),
    ("mlp", 1, ["head"]),
    ("resnet8", 0, ["block2_1/conv1", "block2_1/conv3"]),
    ("resnet8", 2, ["head"]),
    ("resnet20", 2, ["block2_1/conv1", "block2_1/conv3"]),
    ("resnet20", 0, None),  # the shortcut reads the slot
  ],
)
def test_what_is_linear_is_merged_where_that_is_exact(
  host, slot, into, grown, images
):
  name = "lowrank_dense" if host == "mlp" else "lowrank"
  network = grown(
    host,
    [
      (slot, name, {"alpha": 0.5}),
      (slot, name, {}),
      (slot, name, {"depth": 1}),
    ],
  )
  made = network.network().topology
  assert [seed["into"] for seed in made["merged"]] == (
    [into] * 3 if into else []
  )
  assert len(made["seeds"]) == (0 if into else 3)
  if host == "resnet20":  # nothing new to compute
    return
  logits = jax.jit(network.network().__call__)(images(3))
  assert np.allclose(logits, network.logits(images(3)), rtol=1e-4, atol=1e-4)


def test_a_linear_seed_that_another_reads_or_joins_stays(grown):
  below = [(0, "lowrank_dense", {}), (0, "dense", {"depth": 1})]
  beside = [(0, "lowrank_dense", {}), (0, "dense", {})]
  gated = [(0, "lowrank_dense", {"blend": "gate"})]
  for planted in (below, beside, gated):
    assert grown("mlp", planted).network().topology["merged"] == []


def test_the_program_takes_any_number_of_images(grown, images, tmp_path):
  network = grown("mlp", [(1, "dense", {})])
  writing.write_formats(tmp_path, network.network())
  data = bytearray((tmp_path / PROGRAM).read_bytes())
  assert b"esper_jax" not in data  # nor any other path of this machine
  program = export.deserialize(data)
  assert set(program.platforms) == {"cpu", "cuda"}
  assert "custom_call" not in re.sub(
    r"custom_call @shape_assertion", "", program.mlir_module()
  )
  for count in (1, 7):
    assert np.allclose(
      program.call(images(count)), network.logits(images(count)), atol=1e-4
    )


def test_a_gpt_takes_texts_of_any_length_up_to_its_context(grown, tmp_path):
  network = grown("gpt", [(0, "causal_attention", {"alpha": 0.5})])
  made = network.network()
  assert made.topology["seeds"][0]["strength"] == 1  # it is in the weights
  assert made.topology["output"]["shape"] == ["batch", "time", 3]
  assert "host 'gpt' reads text" in plain.unsupported(made.topology)
  writing.write_formats(tmp_path, made)
  assert not (tmp_path / MODULE).exists()
  loaded = load_grown(tmp_path, verify=False)
  assert repr(loaded) == f"GrownNetwork(folder={tmp_path!r})"
  assert loaded.topology["input"]["vocabulary"] == "abc"
  program = export.deserialize(bytearray((tmp_path / PROGRAM).read_bytes()))
  for count, time in ((1, 6), (3, 2)):
    tokens = network.inputs(count)[:, :time]
    expected = network.logits(tokens)
    assert np.allclose(jax.jit(loaded.__call__)(tokens), expected, atol=1e-4)
    assert np.allclose(program.call(tokens), expected, atol=1e-4)
  with pytest.raises(ValueError, match="time|shapes"):
    program.call(jnp.zeros((1, 7), jnp.int32))


def test_the_module_needs_nothing_of_ours_and_reads_well(grown, tmp_path):
  network = grown("resnet8", everywhere("resnet8"))
  text = plain.source(network.network().topology, network.network().variables)
  tree = ast.parse(text)
  imported = {
    name.split(".")[0]
    for node in ast.walk(tree)
    for name in (
      [alias.name for alias in node.names]
      if isinstance(node, ast.Import)
      else [node.module or ""]
      if isinstance(node, ast.ImportFrom)
      else []
    )
  }
  allowed = {"collections", "pathlib", "typing", "flax", "jax", "safetensors"}
  assert imported == allowed
  assert max(len(line) for line in text.splitlines()) <= 80
  assert 'Block(16, 16, batch_norm, stride=2, name="block2_1")(x)' in text
  defined = {
    node.name
    for node in tree.body
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
  }
  used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
  assert defined - used == {"load", "Network"}


@pytest.fixture
def own_blueprint():
  """A blueprint of a user's, with state and a list among its parameters."""

  def init(key, spec):
    w = jax.random.normal(key, (spec.channels,), jnp.float32)
    return {"w": [w]}, {"own": {"norm": {"steps": jnp.ones((), jnp.float32)}}}

  def apply(params, state, x, *, train, key):
    w = params["w"][0] * state["own"]["norm"]["steps"]
    return jnp.tanh(x * w.astype(x.dtype).reshape(1, -1)), state

  blueprint = Blueprint("export_own", init, apply, ("features",), ("w",))
  blueprints.register(blueprint, check=False)
  yield blueprint.name
  if blueprint.name in blueprints.names():
    blueprints.unregister(blueprint.name)


def test_a_blueprint_of_a_user_has_no_plain_module(
  own_blueprint, grown, tmp_path
):
  network = grown("mlp", [(0, own_blueprint, {"alpha": 0.3})])
  shares = network.differences(tmp_path)
  assert shares.keys() == {"load_grown", PROGRAM}
  assert max(shares.values()) <= 1
  assert network.network().topology["seeds"][0]["strength"] == 0.3
  made = network.network()
  assert "export_own" in plain.unsupported(made.topology)
  with pytest.raises(InputError, match="no model.py: it has seeds of"):
    plain.source(made.topology, made.variables)
  writing.write_formats(tmp_path, network.network(modules=["their_module"]))
  blueprints.unregister(own_blueprint)
  with pytest.raises(InputError, match="import what.*first: their_module"):
    load_grown(tmp_path, verify=False)


def test_what_cannot_be_loaded_is_refused_by_name(grown, tmp_path):
  with pytest.raises(InputError, match="/exporte: no such folder; give a fol"):
    load_grown(tmp_path / "exporte")
  with pytest.raises(InputError, match="topology.json: No such file"):
    load_grown(tmp_path, verify=False)
  writing.write_formats(tmp_path, grown("mlp", []).network())
  weights = (tmp_path / WEIGHTS).read_bytes()
  (tmp_path / WEIGHTS).write_bytes(weights[:-1])
  with pytest.raises(InputError, match="weights.safetensors is not a .safe"):
    load_grown(tmp_path, verify=False)
  document = json.loads((tmp_path / TOPOLOGY).read_text())
  (tmp_path / TOPOLOGY).write_text(json.dumps({**document, "schema": 9}))
  with pytest.raises(InputError, match="has schema 9, this version reads 1"):
    load_grown(tmp_path, verify=False)
