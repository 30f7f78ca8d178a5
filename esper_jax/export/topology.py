"""What topology.json says: the network's form, its input and its output."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from esper_jax.export import folding
from esper_jax.export.network import GrownNetwork
from esper_jax.hosts.grown import SCHEMA
from esper_jax.hosts.host import Host
from esper_jax.hosts.registry import make_host
from esper_jax.kasmina import blueprints
from esper_jax.types import InputError, PyTree, SlotTable


def build(
  view: tuple[PyTree, Mapping[str, PyTree], Mapping[str, Any]],
  host: Mapping[str, Any],
  slots: SlotTable,
  *,
  reads: Mapping[str, Any],
  classes: Sequence[str] = (),
  modules: Sequence[str] = (),
  model: Host | None = None,
  before: Mapping[str, Any] | None = None,
) -> GrownNetwork:
  """Makes the network that is exported.

  Args:
    view: (params, collections, seeds) as training evaluates them.
    host: see `restoring.Restored`.
    slots: the host's slot table.
    reads: see `images`, `tokens` and `examples`.
    classes: names of what the last axis of the output stands for, in order;
      empty where they have none.
    modules: that register blueprints of the run.
    model: the host, where it is a user's.
    before: see `folding.fold`.

  Raises:
    InputError: a user's model gives no single array.
  """
  module = None if model else make_host(**host)
  folded = folding.fold(view, module, slots, before)
  topology = {
    "schema": SCHEMA,
    "generation": folding.generation_after(before),
    "input": dict(reads),
    "host": {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in host.items()
    },
    "parameters": blueprints.count(folded.variables["params"]),
    "seeds": folded.seeds,
    "merged": folded.merged,
    "modules": list(modules),
  }
  network = GrownNetwork(topology, folded.variables, model)
  named = {"classes": list(classes)} if classes else {}
  topology["output"] = {**_output(network), **named}
  return network


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


def examples(shape: Sequence[int], dtype: str) -> dict[str, Any]:
  """The input of a user's model that reads no images, of one example."""
  return {
    "meaning": "raw examples, as training had them",
    "dtype": dtype,
    "shape": ["batch", *shape],
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


def _output(network: GrownNetwork) -> dict[str, Any]:
  host, form = network.topology["host"], network.topology["input"]
  if "num_classes" in host:
    symbols = [size for size in form["shape"] if isinstance(size, str)]
    shape = [*symbols, host["num_classes"]]
    return {"meaning": "logits", "dtype": "float32", "shape": shape}
  raw = jax.ShapeDtypeStruct((2, *form["shape"][1:]), form["dtype"])
  out: Any = jax.eval_shape(network, raw)
  if not hasattr(out, "shape"):
    raise InputError(
      f"the model gives a {type(out).__name__}; what is exported gives one"
      " array: return that of inference alone where train is False"
    )
  shape = ["batch", *out.shape[1:]]
  return {"meaning": "outputs", "dtype": str(out.dtype), "shape": shape}
