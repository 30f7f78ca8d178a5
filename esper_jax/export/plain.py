"""Writes a grown network as plain Flax Linen, for people to read.

Of the hosts of the registry that read images, all of it (model.py); of a user's
Linen model, what grew in its slots (seeds.py). Both with the blueprints that
come with the project.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from esper_jax.export import plain_layers
from esper_jax.hosts import naming
from esper_jax.hosts.mlp import MLP
from esper_jax.hosts.registry import make_host, reads_tokens
from esper_jax.knobs import GIVEN
from esper_jax.oona.lineage import MODULE, SEEDS
from esper_jax.types import InputError, counted

# Blueprint -> (class, the constructor's arguments from the parameters).
_Shapes = Mapping[str, tuple[int, ...]]
_SEEDS: dict[str, Callable[[_Shapes], str]] = {
  "conv3x3": lambda _: "Conv3x3(",
  "bottleneck": lambda _: "Bottleneck(",
  "depthwise": lambda _: "Depthwise(",
  "squeeze_excite": lambda _: "SqueezeExcite(",
  "lowrank": lambda s: f"LowRank({s['down/kernel'][1]}, ",
  "lowrank_dense": lambda s: f"LowRank({s['down/kernel'][1]}, ",
  "dense": lambda s: f"TwoLayers({s['dense1/kernel'][1]}, ",
  "bottleneck_dense": lambda s: f"TwoLayers({s['dense1/kernel'][1]}, ",
}
_NORMS = {"nhwc": "NormOfImages(", "features": "NormOfVectors("}

_HEAD = '''\
"""{title}

Written by `python -m esper_jax.export`; needs jax, flax and safetensors alone.
Takes raw images, uint8 [batch, {shape}], and gives
logits, float32 [batch, {classes}]; the normalization is inside. For inference.

  logits = Network().apply(load(), images)
"""

{callable}from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from safetensors.numpy import load_file

MEAN = {mean}  # of each channel of the training images / 255
STD = {std}
DTYPE = jnp.{dtype}  # of the computation
{norm}

def load(folder: Path = Path(__file__).parent) -> dict[str, Any]:
  """The variables of `Network`: what weights.safetensors holds."""
  tensors = load_file(folder / "weights.safetensors")
  return traverse_util.unflatten_dict(tensors, sep="/")


def normalize(images: jax.Array) -> jax.Array:
  """Bytes to zero mean and unit variance per channel."""
  x = images.astype(jnp.float32) * jnp.float32(1 / 255)
  x = (x - jnp.array(MEAN, jnp.float32)) / jnp.array(STD, jnp.float32)
  return x.astype(DTYPE)
'''

_SLOTS = '''\
"""What grew in {title}: {count}.

Written by `export` of what `esper_jax.grow` gave; needs jax, flax and
safetensors alone. Where the model has `from esper_jax import Slot`, write
`from seeds import Slot` instead; then, with raw examples, {reads},

  outputs = {title}(...).apply(load(), prepare(examples), train=False)
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from safetensors.numpy import load_file

DTYPE = jnp.{dtype}  # of the computation
PLACES = {places}  # module -> the slot in which it grew


def load(folder: Path = Path(__file__).parent) -> dict[str, Any]:
  """The variables of the model: what weights.safetensors holds."""
  found = {{}}
  for name, leaf in load_file(folder / "weights.safetensors").items():
    collection, *path = name.split("/")
    if collection == "params" and path[0] in PLACES:
      path = [*PLACES[path[0]].split("/"), *path]
    found[collection, *path] = leaf
  return traverse_util.unflatten_dict(found)


def prepare(examples: jax.Array) -> jax.Array:
  """Raw examples as the model reads them."""
{prepare}


class Slot(nn.Module):
  """A place where the model grew, by its name."""

  causal: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    return grown("/".join(self.path), x)


def grown(slot: str, x: jax.Array) -> jax.Array:
  """What the seeds of a slot make of x; for use in a compact module."""
{body}
'''
_BYTES = """\
  x = examples.astype(jnp.float32) * jnp.float32(1 / 255)
  mean, std = jnp.array({mean}), jnp.array({std})  # of each channel
  return ((x - mean) / std).astype(DTYPE)"""
_PREPARE = {
  "uint8": _BYTES,
  "float32": "  return jnp.asarray(examples, DTYPE)",
  "int32": "  return jnp.asarray(examples, jnp.int32)",
}

_NORM = """
Norm = Callable[[jax.Array, str], jax.Array]
"""


def unsupported(topology: Mapping[str, Any]) -> str:
  """Why a network has no plain module, in one line; "" where it has one."""
  host = topology["host"]["name"]
  if reads_tokens(host):
    return (
      f"no {MODULE}: host '{host}' reads text, and plain Flax is written for"
      " hosts that read images alone; use esper_jax.load_grown or the StableHLO"
      " program"
    )
  if host == GIVEN:
    return (
      f"no {MODULE}: the model is your own ({topology['host']['title']}), and"
      " plain Flax is written for the project's hosts alone; use"
      " esper_jax.load_grown(DIR, model=...), the StableHLO program, or, of a"
      f" Linen model, {SEEDS}"
    )
  return _strange(topology, MODULE)


def _strange(topology: Mapping[str, Any], file: str) -> str:
  strange = sorted(
    {
      record["blueprint"]
      for record in topology["seeds"]
      if record["blueprint"] not in _SEEDS and record["blueprint"] != "norm"
    }
  )
  if not strange:
    return ""
  known = ", ".join(sorted([*_SEEDS, "norm"]))
  return (
    f"no {file}: it has seeds of blueprint '{strange[0]}', and plain Flax is"
    f" written for the project's own alone ({known}); use"
    " esper_jax.load_grown or the StableHLO program"
  )


def source(topology: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
  """The text of the module.

  Args:
    topology: what topology.json holds.
    variables: of the network.

  Raises:
    InputError: see `unsupported`.
  """
  refusal = unsupported(topology)
  if refusal:
    raise InputError(refusal)
  scaling, host = topology["input"], topology["host"]
  body = "\n".join(f"    {line}" for line in _body(topology, variables))
  network = (
    "class Network(nn.Module):\n"
    f'  """{host["name"]} with {len(topology["seeds"])} seeds."""\n\n'
    "  @nn.compact\n"
    "  def __call__(self, images: jax.Array) -> jax.Array:\n"
    f"{body}\n"
  )
  layers = _layers(network)
  blocks = any(text.startswith("class Block") for text in layers)
  head = _HEAD.format(
    title=f"A grown {host['name']}: {topology['parameters']:,} parameters.",
    shape=", ".join(map(str, scaling["shape"][1:])),
    classes=topology["output"]["shape"][1],
    mean=tuple(scaling["mean"]),
    std=tuple(scaling["std"]),
    dtype=host["dtype"],
    callable="from collections.abc import Callable\n" if blocks else "",
    norm=_NORM if blocks else "",
  )
  return "\n\n".join([head, *layers, network])


def slots_source(
  topology: Mapping[str, Any], variables: Mapping[str, Any]
) -> str:
  """The text of the module that holds what grew in a user's Linen model.

  Args:
    topology: what topology.json holds.
    variables: of the network.

  Raises:
    InputError: a seed is of a blueprint that is not the project's.
  """
  refusal = _strange(topology, SEEDS)
  if refusal:
    raise InputError(refusal)
  records, form, host = topology["seeds"], topology["input"], topology["host"]
  lines: list[str] = []
  for slot in dict.fromkeys(record["slot"] for record in records):
    lines.append(f"if slot == {slot!r}:")
    own = _seeds(topology, variables["params"], slot)
    lines += [f"  {line}" for line in own]
  places = {}
  for record in records:
    places[record["name"]] = record["slot"]
    if record["blend"] == "gate":
      places[naming.gate_name(record["name"])] = record["slot"]
  body = "\n".join(f"  {line}" for line in [*lines, "return x"])
  text = _SLOTS.format(
    title=host["title"],
    count=counted(len(records), "seed"),
    reads=f"{form['dtype']} [{', '.join(map(str, form['shape']))}]",
    dtype=host["dtype"],
    places=places,
    prepare=_PREPARE[form["dtype"]].format(
      mean=form.get("mean"), std=form.get("std")
    ),
    body=body,
  )
  return "\n\n".join([text, *_layers(body)])


def _body(
  topology: Mapping[str, Any], variables: Mapping[str, Any]
) -> Iterator[str]:
  """The lines of the network's `__call__`."""
  arguments = dict(topology["host"])
  del arguments["dtype"]
  module: Any = make_host(**arguments, slots=())
  parameters = variables["params"]
  yield "x = normalize(images)"
  if isinstance(module, MLP):
    yield "x = x.reshape(x.shape[0], -1)"
    for n in range(1, module.depth + 1):
      layer = f'nn.Dense({module.width}, dtype=DTYPE, name="hidden{n}")'
      yield f"x = nn.relu({layer}(x))"
      yield from _seeds(topology, parameters, f"slot{n}")
    yield "x = x.astype(jnp.float32)"
  else:
    yield from _blocks(module, topology, parameters)
    yield "x = x.astype(jnp.float32).mean(axis=(1, 2))"
  yield f'return nn.Dense({module.num_classes}, name="head")(x)'


def _blocks(
  module: Any, topology: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Iterator[str]:
  norm = f"{module.norm}_norm"
  yield f'x = conv({module.width}, 3, name="stem")(x)'
  yield f'x = nn.relu({norm}(x, "stem_norm"))'
  for s, count in enumerate(module.blocks):
    for b in range(count):
      name = f"{s + 1}_{b + 1}"
      block = parameters[f"block{name}"]
      inner = block["conv1"]["kernel"].shape[-1]
      outer = block["conv2"]["kernel"].shape[-1]
      stride = ", stride=2" if s > 0 and b == 0 else ""
      made = f"Block({outer}, {inner}, {norm}{stride}"
      yield f'x = {made}, name="block{name}")(x)'
      yield from _seeds(topology, parameters, f"slot{name}")


def _seeds(
  topology: Mapping[str, Any], parameters: Mapping[str, Any], slot: str
) -> Iterator[str]:
  """Lines that add what grew in a slot; those side by side read one x."""
  own = [r for r in topology["seeds"] if r["slot"] == slot]
  for depth in sorted({r["depth"] for r in own}):
    beside = [r for r in own if r["depth"] == depth]
    read = "x"
    if len(beside) > 1:
      read = "before"
      yield f"{read} = x"
    for record in beside:
      yield from _seed(record, parameters, read)


def _seed(
  record: Mapping[str, Any], parameters: Mapping[str, Any], read: str
) -> Iterator[str]:
  name, blueprint, blend = (record[k] for k in ("name", "blueprint", "blend"))
  tree = naming.flat(parameters[name])
  shapes = {k: tuple(v.shape) for k, v in tree.items()}
  if blueprint == "norm":
    made = _NORMS[record["input"]["kind"]]
  else:
    made = _SEEDS[blueprint](shapes)
  y = f'{made}name="{name}")({read})'
  strength = record["strength"]
  factor = "" if strength == 1 else f"{strength!r} * "
  if blend == "gate":
    yield f'gated = gate({read}, "{naming.gate_name(name)}")'
    yield f"x = x + {factor}gated * {y}"
  elif blend == "multiply":
    yield f"y = {y}"
    yield f"x = x + {factor}{read} * jnp.tanh(y)"
  else:
    yield f"x = x + {factor}{y}"


def _layers(network: str) -> list[str]:
  """The text of the layers that some text needs, in the file's order."""
  members = {
    name: inspect.getsource(member)
    for name, member in vars(plain_layers).items()
    if getattr(member, "__module__", "") == plain_layers.__name__
  }
  needed, pending = set[str](), [textwrap.dedent(network)]
  while pending:
    new = (_names(pending.pop()) & members.keys()) - needed
    needed |= new
    pending += [members[name] for name in new]
  return [text for name, text in members.items() if name in needed]


def _names(text: str) -> set[str]:
  nodes = ast.walk(ast.parse(text))
  return {node.id for node in nodes if isinstance(node, ast.Name)}
