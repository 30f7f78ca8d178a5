"""From a training state to plain variables: alpha folded in, the dead gone.

A seed that adds nothing (isolated, or alpha 0) is left out. Where the branch is
linear in its last factor, alpha goes into that factor. A seed that is linear in
its input is merged into the layers that read its slot, where these are linear
too and read nothing else:

  MLP     every slot: the next dense layer, or the head
  ResNet  the slot before a stage begins: the block's first convolution and
          its projection; the last slot: the head (a mean over space and a
          dense layer). Inside a stage the shortcut itself reads the slot.
  GPT     none: what reads a slot is a norm, or the residual connection
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from esper_jax.hosts import grown, naming
from esper_jax.hosts.mlp import MLP, mlp_slots
from esper_jax.hosts.resnet import ResNet, resnet_slots
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.slot import Seed, all_seeds
from esper_jax.types import Path, PyTree, SlotTable

# Branches that are linear in the factor that `Blueprint.zero` names.
LINEAR_IN_FACTOR = (
  "conv3x3",
  "bottleneck",
  "depthwise",
  "norm",
  "lowrank",
  "dense",
  "bottleneck_dense",
  "lowrank_dense",
  "causal_attention",
)
# Those that are linear in their input: x D U.
LINEAR = ("lowrank", "lowrank_dense")
_Group = dict[str, Seed]  # by key


class Folded(NamedTuple):
  """What is left of a grown network.

  Attributes:
    variables: collection -> nested modules, float32 arrays (NumPy).
    seeds: records of what the network still has, in the order they run:
      name, generation, slot, key, blueprint, blend, depth, strength (what is
      left of alpha), input (the slot's spec), parameters.
    merged: records of seeds that went into host weights: generation, slot, key,
      blueprint, into (module names).
  """

  variables: dict[str, Any]
  seeds: list[dict[str, Any]]
  merged: list[dict[str, Any]]


def fold(
  view: tuple[PyTree, Mapping[str, PyTree], Mapping[str, Any]],
  module: nn.Module | None,
  slots: SlotTable,
  before: Mapping[str, Any] | None = None,
) -> Folded:
  """Turns what is evaluated in training into plain variables.

  Args:
    view: (params, collections, seeds), see `state.evaluation_view`.
    module: the host; None where it is a user's.
    slots: its slot table.
    before: the topology of the network that the run went on with; the
      parameters are then its own, and its seeds run first.
  """
  older = [] if before is None else before["seeds"]
  generation = generation_after(before)
  params, collections, seeds = jax.device_get(view)
  variables = {
    name: naming.nested(naming.to_named(tree, ""))
    for name, tree in {"params": params, **collections}.items()
  }
  taken = {module for tree in variables.values() for module in tree}
  live: dict[Path, _Group] = {path: {} for path in slots}
  for (path, key), seed in all_seeds(seeds).items():
    if float(seed.alpha) != 0 and float(seed.isolation) == 0:
      live[path][key] = _with_alpha_inside(seed)
  records = [r for r in older if r["slot"] not in slots]
  merged = [] if before is None else list(before["merged"])
  for path, spec in slots.items():
    groups = _in_order(live[path])
    into = readers(module, path)
    while groups and into and _is_linear(groups[-1]):
      group = groups.pop()
      _merge(variables["params"], list(group.values()), into)
      for key, seed in group.items():
        merged.append(
          {
            "generation": generation,
            "slot": path,
            "key": key,
            "blueprint": seed.blueprint,
            "into": list(into),
          }
        )
    own = [record for record in older if record["slot"] == path]
    records += own
    deeper = 1 + max((record["depth"] for record in own), default=-1)
    for group in groups:
      for key, seed in group.items():
        name = naming.seed_name(path, key, taken)
        grown.put(variables, name, seed)
        records.append(
          {
            "name": name,
            "generation": generation,
            "slot": path,
            "key": key,
            "blueprint": seed.blueprint,
            "blend": seed.blend,
            "depth": deeper + seed.depth,
            "strength": shortest(seed.alpha),
            "input": dataclasses.asdict(spec) | {"shape": list(spec.shape)},
            "parameters": blueprints.count(seed.params),
          }
        )
  return Folded(variables, records, merged)


def generation_after(before: Mapping[str, Any] | None) -> int:
  """How many runs there were before: 0 where nothing was gone on with."""
  return 0 if before is None else before.get("generation", 0) + 1


def shortest(value: Any) -> float:
  """The number with the fewest digits that is this one in float32."""
  return float(str(np.float32(value)))


def readers(module: nn.Module | None, slot: Path) -> tuple[str, ...]:
  """The layers that read a slot, if all are linear and nothing else does.

  Returns:
    Module paths "/"-separated, each with a `kernel` whose last axis but one
    is the slot's channels; () where another operation reads the slot.
  """
  if isinstance(module, MLP):
    n = mlp_slots(module.depth).index(slot) + 1
    return (f"hidden{n + 1}",) if n < module.depth else ("head",)
  if isinstance(module, ResNet):
    order = resnet_slots(module.blocks)
    n = order.index(slot) + 1
    if n == len(order):
      return ("head",)
    block = order[n].replace("slot", "block")
    if block.endswith("_1"):  # of the second stage or a later one
      return (f"{block}/conv1", f"{block}/conv3")
  return ()


def _with_alpha_inside(seed: Seed) -> Seed:
  """The seed with alpha 1, if its last factor can take alpha in."""
  foldable = seed.blueprint in LINEAR_IN_FACTOR and seed.blend != "multiply"
  if not foldable or float(seed.alpha) == 1:
    return seed
  blueprint, branch = blueprints.get(seed.blueprint), seed.params["branch"]
  factor = jax.tree.map(
    lambda leaf: leaf * np.float32(seed.alpha),
    blueprints.factor(blueprint, branch),
  )
  branch = blueprints.with_factor(blueprint, branch, factor)
  return seed.replace(
    params={**seed.params, "branch": branch}, alpha=np.float32(1)
  )


def _in_order(own: _Group) -> list[_Group]:
  """A slot's seeds, those side by side together, by depth."""
  depths = sorted({seed.depth for seed in own.values()})
  return [
    {k: s for k, s in sorted(own.items()) if s.depth == depth}
    for depth in depths
  ]


def _is_linear(group: _Group) -> bool:
  return all(
    seed.blueprint in LINEAR and seed.blend == "add" for seed in group.values()
  )


def _merge(params: Any, beside: list[Seed], into: tuple[str, ...]) -> None:
  """Turns (x + sum of x D U) K into x (K + sum of D U K), in place."""
  change = np.float64(0)
  for seed in beside:
    branch = seed.params["branch"]
    down, up = (
      np.asarray(branch[name]["kernel"], np.float64) for name in ("down", "up")
    )
    change = change + down @ up
  for path in into:
    layer = params
    for part in path.split("/"):
      layer = layer[part]
    kernel = np.asarray(layer["kernel"], np.float64)
    layer["kernel"] = np.float32(kernel + np.matmul(change, kernel))
