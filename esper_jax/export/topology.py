"""What topology.json says: the network's form, its input and its output."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from esper_jax.export import folding
from esper_jax.export.network import SCHEMA, GrownNetwork
from esper_jax.hosts.registry import make_host
from esper_jax.kasmina import blueprints
from esper_jax.types import PyTree, SlotTable


def build(
  view: tuple[PyTree, Mapping[str, PyTree], Mapping[str, Any]],
  host: Mapping[str, Any],
  slots: SlotTable,
  *,
  reads: Mapping[str, Any],
  modules: Sequence[str] = (),
) -> GrownNetwork:
  """Makes the network that is exported.

  Args:
    view: (params, collections, seeds) as training evaluates them.
    host: arguments of `make_host`, slots left out; "dtype" is a name.
    slots: the host's slot table.
    reads: see `images` and `tokens`.
    modules: that register blueprints of the run.
  """
  arguments = dict(host)
  dtype = jnp.dtype(arguments.pop("dtype"))
  module = make_host(**arguments, dtype=dtype)
  folded = folding.fold(view, module, slots)
  topology = {
    "schema": SCHEMA,
    "input": dict(reads),
    "output": {
      "meaning": "logits",
      "dtype": "float32",
      "shape": [*_symbols(reads["shape"]), arguments["num_classes"]],
    },
    "host": {**arguments, "dtype": str(dtype)}
    | {"inner_widths": list(arguments["inner_widths"])},
    "parameters": blueprints.count(folded.variables["params"]),
    "seeds": folded.seeds,
    "merged": folded.merged,
    "modules": list(modules),
  }
  return GrownNetwork(topology, folded.variables)


def images(
  shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
  """The input of a network that reads images.

  Args:
    shape: height, width, channels.
    mean: of each channel of the training images, in units of 255.
    std: as mean.
  """
  return {
    "meaning": "raw images; normalized inside: (image / 255 - mean) / std",
    "dtype": "uint8",
    "shape": ["batch", *shape],
    "mean": [folding.shortest(value) for value in mean],
    "std": [folding.shortest(value) for value in std],
  }


def tokens(context: int, vocabulary: str) -> dict[str, Any]:
  """The input of a network that reads text.

  Args:
    context: tokens that it can see at once.
    vocabulary: the character of each token.
  """
  return {
    "meaning": "tokens, places in the vocabulary; time is at most the context",
    "dtype": "int32",
    "shape": ["batch", "time"],
    "context": context,
    "vocabulary": vocabulary,
  }


def _symbols(shape: Sequence[Any]) -> list[str]:
  return [size for size in shape if isinstance(size, str)]
