"""What topology.json says: the network's form, its input and its output."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from esper_jax.export import folding
from esper_jax.export.network import SCHEMA, GrownNetwork
from esper_jax.hosts.host import Host
from esper_jax.hosts.registry import make_host
from esper_jax.kasmina import blueprints
from esper_jax.types import InputError, PyTree, SlotTable


def build(
  view: tuple[PyTree, Mapping[str, PyTree], Mapping[str, Any]],
  host: Mapping[str, Any],
  slots: SlotTable,
  *,
  image: Sequence[int],
  mean: Sequence[float],
  std: Sequence[float],
  dtype: str = "uint8",
  modules: Sequence[str] = (),
  given: Host | None = None,
) -> GrownNetwork:
  """Makes the network that is exported.

  Args:
    view: (params, collections, seeds) as training evaluates them.
    host: see `restoring.Restored`.
    slots: the host's slot table.
    image: the shape of a raw example: height, width, channels.
    mean: of each channel of the training images, in units of 255.
    std: as mean.
    dtype: of raw examples.
    modules: that register blueprints of the run.
    given: the host, where it is a user's.

  Raises:
    InputError: a user's model gives no single array.
  """
  module = None if given else make_host(**host)
  folded = folding.fold(view, module, slots)
  topology = {
    "schema": SCHEMA,
    "input": _input(image, mean, std, dtype),
    "host": {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in host.items()
    },
    "parameters": blueprints.count(folded.variables["params"]),
    "seeds": folded.seeds,
    "merged": folded.merged,
    "modules": list(modules),
  }
  network = GrownNetwork(topology, folded.variables, given)
  topology["output"] = _output(network)
  return network


def _input(
  image: Sequence[int],
  mean: Sequence[float],
  std: Sequence[float],
  dtype: str,
) -> dict[str, Any]:
  form = {"dtype": dtype, "shape": ["batch", *image]}
  if dtype != "uint8":
    return {"meaning": "raw examples, as training had them", **form}
  return {
    "meaning": "raw images; normalized inside: (image / 255 - mean) / std",
    **form,
    "mean": [folding.shortest(value) for value in mean],
    "std": [folding.shortest(value) for value in std],
  }


def _output(network: GrownNetwork) -> dict[str, Any]:
  host = network.topology["host"]
  if "num_classes" in host:
    shape = ["batch", host["num_classes"]]
    return {"meaning": "logits", "dtype": "float32", "shape": shape}
  form = network.topology["input"]
  examples = jax.ShapeDtypeStruct((2, *form["shape"][1:]), form["dtype"])
  out: Any = jax.eval_shape(network, examples)
  if not hasattr(out, "shape"):
    raise InputError(
      f"the model gives a {type(out).__name__}; what is exported gives one"
      " array: return that of inference alone where train is False"
    )
  shape = ["batch", *out.shape[1:]]
  return {"meaning": "outputs", "dtype": str(out.dtype), "shape": shape}
