"""A grown network read back: what `esper_jax.load_grown` returns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from esper_jax.data import augment
from esper_jax.data.inputs import check_examples
from esper_jax.hosts import grown
from esper_jax.hosts.host import Host, from_model
from esper_jax.hosts.registry import make_host
from esper_jax.kasmina import blueprints
from esper_jax.knobs import GIVEN
from esper_jax.oona import lineage
from esper_jax.oona.lineage import PROGRAM, TOPOLOGY, WEIGHTS
from esper_jax.tolaria.given import misfit, shapes_of
from esper_jax.types import InputError, PyTree


class GrownNetwork:
  """An exported network: `network(inputs)` gives logits.

  A user's model takes examples and gives outputs of any kind.

  Attributes:
    topology: what topology.json holds.
    variables: collection -> nested modules: those of the host, and of each
      seed beside them.
    model: the host, where it is a user's.
    folder: of the export; None where there is none yet.
  """

  def __init__(
    self,
    topology: Mapping[str, Any],
    variables: Mapping[str, PyTree],
    model: Host | None = None,
    folder: Path | None = None,
  ):
    """Builds the network.

    Args:
      topology: see the attribute.
      variables: see the attribute.
      model, folder: see the attributes.

    Raises:
      InputError: a blueprint is not registered, or the given host has other
        variables.
    """
    self.topology = topology
    self.variables = variables
    host = dict(topology["host"])
    self._dtype = jnp.dtype(host.pop("dtype"))
    records = topology["seeds"]
    for record in records:
      blueprints.get(record["blueprint"])
    self.model, self.folder = model, folder
    if model is not None:
      shapes = self._fitting(model)
      self._host = grown.with_seeds(model, shapes, records)
      return
    slots = tuple({record["slot"]: None for record in records})
    module = make_host(**host, slots=slots, dtype=self._dtype)
    self._host = grown.as_host(module, records, slots=())

  def __repr__(self) -> str:
    """Without the variables, which are long."""
    return f"GrownNetwork(folder={self.folder!r})"

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes, in the order of the logits; () without names."""
    return tuple(self.topology["output"].get("classes", ()))

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns the logits, float32 [batch, classes].

    Args:
      inputs: uint8 [batch, height, width, channels], images as the data set
        has them; they are normalized here. Of a network that reads text:
        tokens int32 [batch, time], places in `topology["input"]["vocabulary"]`,
        which give the logits of each next one, [batch, time, classes]. Of a
        user's model: raw examples, as topology["input"] says.

    Raises:
      InputError: the inputs have another dtype or another shape.
    """
    return self.apply(self.variables, inputs)

  def apply(
    self, variables: Mapping[str, PyTree], inputs: jax.Array
  ) -> jax.Array:
    """As calling it, with other variables of the same form; to be jitted."""
    x = self._prepare(inputs)
    others = dict(variables)
    params = others.pop("params")
    return self._host.apply(params, others, {}, x, train=False, key=None)[0]

  def _prepare(self, examples: jax.Array) -> jax.Array:
    """Raw examples as the host reads them."""
    form, dtype = self.topology["input"], self._dtype
    examples = check_examples(
      examples, form["dtype"], form["shape"][1:], context=form.get("context", 0)
    )
    scaling = form.get("mean", ()), form.get("std", ())
    return augment.to_input(examples, *scaling, dtype)

  def _fitting(self, model: Host) -> dict[str, PyTree]:
    """The shapes of the user's host's variables, if they are the network's."""
    form = self.topology["input"]
    raw = jax.ShapeDtypeStruct((1, *form["shape"][1:]), form["dtype"])
    shapes = shapes_of(model, jax.eval_shape(self._prepare, raw))
    host = grown.without_seeds(self.variables, self.topology["seeds"])
    problems = misfit(shapes, host)
    if problems:
      raise InputError(
        f"the model is not the one that grew: {problems}; give the same"
      )
    return shapes


def load_grown(
  path: str | Path,
  *,
  model: nn.Module | Host | None = None,
  verify: bool = True,
) -> GrownNetwork:
  """Loads a network that an export wrote.

  Args:
    path: the folder.
    model: what `grow` was given, where the network is a user's; else None. It
      must have the same names and shapes; what it computes is not compared.
    verify: whether the files that are read must have the SHA-256 that
      lineage.json says; False: no lineage is needed.

  Returns:
    A network to call: `load_grown(path)(inputs)`; for a program of your own,
    `network.apply(network.variables, images)` under `jax.jit`. `grow` takes it
    as a model, to go on with it.

  Raises:
    InputError: a file is missing, was changed or is of another schema, a
      blueprint is not registered, or the model is missing or another one.
      `python -m esper_jax.export verify` checks every file, and the history.
  """
  folder = Path(path)
  if verify:
    lineage.check_files(folder, (TOPOLOGY, WEIGHTS))
  topology, variables = grown.read(folder)
  given = _given(folder, topology["host"], model)
  try:
    values = jax.tree.map(jnp.asarray, variables)
    return GrownNetwork(topology, values, given, folder.absolute())
  except InputError as error:
    modules = ", ".join(topology["modules"])
    hint = f" (import what registers it first: {modules})" if modules else ""
    raise InputError(f"{folder / TOPOLOGY}: {error}{hint}") from error


def _given(folder: Path, host: Mapping[str, Any], model: Any) -> Host | None:
  if host["name"] != GIVEN:
    if model is not None:
      raise InputError(
        f"{folder} holds a {host['name']}, which is made from what is there;"
        " leave model out"
      )
    return None
  if model is None:
    raise InputError(
      f"{folder} holds a network of a model of yours ({host['title']}); give"
      f" what grow() was given, load_grown('{folder}', model=...), or use"
      f" {PROGRAM}, which needs no model"
    )
  return from_model(model)
