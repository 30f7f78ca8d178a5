"""Exports a run: every format, each checked, in a folder that is whole."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from esper_jax.export import plain, plain_running, stablehlo, topology
from esper_jax.export.network import GrownNetwork, load_grown
from esper_jax.hosts import naming
from esper_jax.hosts.host import Host
from esper_jax.hosts.registry import reads_tokens
from esper_jax.oona import lineage
from esper_jax.oona.jsonl import explain_write_errors
from esper_jax.oona.jsonl import plain as plain_json
from esper_jax.oona.lineage import (
  FILES,
  LINEAGE,
  MODULE,
  PROGRAM,
  REPORT,
  SEEDS,
  TOPOLOGY,
  WEIGHTS,
)
from esper_jax.tolaria import restoring, workdir
from esper_jax.tolaria.given import NOTHING, Given
from esper_jax.tolaria.restoring import Restored
from esper_jax.tolaria.state import count_parameters, evaluation_view
from esper_jax.types import InputError, RunFailedError
from esper_jax.urza import dispatch

_OTHER = (
  "{} is there already and holds something else than this export; give another"
  " folder"
)


class Exported(NamedTuple):
  """What was written.

  Attributes:
    folder: where.
    report: what export.json holds.
    head: of the lineage.
    notes: what the reader should know, in lines.
  """

  folder: Path
  report: dict[str, Any]
  head: str
  notes: list[str]

  def __repr__(self) -> str:
    """Without the report, which is long."""
    return (
      f"Exported(folder={self.folder!r}, head={self.head!r},"
      f" notes={self.notes!r})"
    )


def export_run(
  run: str | os.PathLike,
  to: str | os.PathLike,
  *,
  data_dir: str = "",
  given: Given = NOTHING,
) -> Exported:
  """Writes the grown network of a run.

  Args:
    run: the run directory, finished or interrupted.
    to: the folder to make. It must not be there, or be empty, or hold an export
      of the same network: that one is left as it is, and returned.
    data_dir: see `restoring.restore`.
    given: see `restoring.restore`.

  Raises:
    InputError: one of them cannot be used, or JAX may not use the CPU, whose
      arithmetic is float32 to the last bit.
    RunFailedError: a format does not give what training gives, or the folder
      cannot be written; nothing is left of it.
  """
  folder = Path(to).absolute()
  if _taken(folder) and not (folder / LINEAGE).is_file():
    raise InputError(_OTHER.format(folder))
  with jax.default_device(_cpu()):
    restored = restoring.restore(Path(run), data_dir=data_dir, given=given)
    return _write(folder, restored)


def _cpu() -> jax.Device:
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError as error:
    raise InputError(
      "an export is made and checked on the CPU, which JAX may not use here"
      f" (JAX_PLATFORMS is '{os.environ.get('JAX_PLATFORMS', '')}'); add cpu to"
      " it, as in JAX_PLATFORMS=cuda,cpu, and export again"
    ) from error


def _taken(folder: Path) -> bool:
  return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _write(folder: Path, restored: Restored) -> Exported:
  history = _history(restored)
  network = _network(restored)
  lineage.check_seeds(
    history, network.topology, str(restored.path / "events.jsonl")
  )
  if _taken(folder):
    return _there(folder, restored, network, history)
  with explain_write_errors(folder, error=InputError):
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = workdir.temporary_name(folder)
    unfinished.mkdir()
  try:
    with explain_write_errors(folder):
      refused = write_formats(unfinished, network)
    report = _report(unfinished, restored, network, refused)
    with explain_write_errors(folder):
      workdir.write_json(unfinished / REPORT, report)
      exported = _exported(unfinished, restored)
      story = lineage.chain(plain_json([*history, exported]))
      workdir.write_json(unfinished / LINEAGE, story)
      for path in (*unfinished.iterdir(), unfinished):
        workdir.sync_path(path)
      unfinished.rename(folder)
      workdir.sync_path(folder.parent)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return Exported(folder, report, story["head"], _notes(restored, report))


def _there(
  folder: Path,
  restored: Restored,
  network: GrownNetwork,
  history: list[dict[str, Any]],
) -> Exported:
  """The export that is there, whole and of the same network and history.

  Raises:
    InputError: it is another one, or was changed.
  """
  try:
    head = lineage.verify(folder).head
  except InputError as error:
    raise InputError(_OTHER.format(folder)) from error
  *before, last = lineage.story(folder)
  weights = hashlib.sha256(naming.to_bytes(network.variables)).hexdigest()
  same = (
    before == plain_json(history)
    and last["epoch"] == restored.epoch
    and last["step"] == restored.checkpoint.step
    and last["files"][WEIGHTS] == weights
    and workdir.read_json(folder / TOPOLOGY) == plain_json(network.topology)
  )
  report = workdir.read_json(folder / REPORT)
  if not same or report is None:
    raise InputError(_OTHER.format(folder))
  return Exported(folder, report, head, _notes(restored, report))


def compare(
  folder: Path,
  inputs: jax.Array,
  expected: np.ndarray,
  model: Host | None = None,
) -> dict[str, float]:
  """Runs every format that a folder has, as its user would.

  Args:
    folder: of the export.
    inputs: what the network reads, see `GrownNetwork`.
    expected: float32 [batch, ...], the training network's outputs.
    model: see `load_grown`.

  Returns:
    Format -> largest absolute difference of an output; NaN where either is.
  """
  formats: dict[str, Callable[[], Any]] = {
    "load_grown": lambda: jax.jit(
      load_grown(folder, model=model, verify=False).__call__
    )(inputs),
    MODULE: lambda: plain_running.network(folder / MODULE, inputs),
    SEEDS: lambda: plain_running.slots(folder / SEEDS, inputs, model),
    PROGRAM: lambda: stablehlo.run((folder / PROGRAM).read_bytes(), inputs),
  }
  there = {
    name: run
    for name, run in formats.items()
    if name == "load_grown" or (folder / name).exists()
  }
  return {
    name: float(np.abs(np.asarray(run(), np.float32) - expected).max())
    for name, run in there.items()
  }


def _network(restored: Restored) -> GrownNetwork:
  parts, data = restored.parts, restored.parts.data
  if reads_tokens(restored.host["name"]):
    reads = topology.tokens(restored.host["context"], data.vocabulary)
  else:
    shape, dtype = data.train_images.shape[1:], data.train_images.dtype
    reads = topology.examples(shape, str(dtype))
    if dtype == np.uint8:
      reads = topology.images(shape, data.mean, data.std)
  return topology.build(
    evaluation_view(restored.state),
    restored.host,
    parts.growth.slots,
    reads=reads,
    classes=data.classes,
    modules=restored.modules,
    model=restored.model,
    before=parts.before.topology if parts.before else None,
  )


def write_formats(folder: Path, network: GrownNetwork) -> dict[str, str]:
  """Writes weights, topology, program and plain modules.

  Args:
    folder: that exists.
    network: to write.

  Returns:
    File name -> why it was not written.
  """
  refused = {}
  (folder / WEIGHTS).write_bytes(naming.to_bytes(network.variables))
  workdir.write_json(folder / TOPOLOGY, network.topology)
  try:
    (folder / PROGRAM).write_bytes(stablehlo.serialize(network))
  except InputError as error:
    refused[PROGRAM] = str(error)
  modules = {MODULE: plain.source}
  if network.model and network.model.module:
    modules[SEEDS] = plain.slots_source
  for name, source in modules.items():
    try:
      text = source(network.topology, network.variables)
      (folder / name).write_text(text, encoding="utf-8")
    except InputError as error:
      refused[name] = str(error)
  return refused


def _report(
  folder: Path,
  restored: Restored,
  network: GrownNetwork,
  refused: dict[str, str],
) -> dict[str, Any]:
  """The content of export.json, if every format gives what training gives."""
  batch = restored.parts.validation[0]
  images = batch.images[: batch.count]
  expected = _trained(restored, images)
  largest = float(np.abs(expected).max())
  bound = stablehlo.tolerance(network, largest)
  differences = compare(folder, images, expected, restored.model)
  for name, difference in differences.items():
    if not difference <= bound:  # NaN is refused too
      raise RunFailedError(
        f"{name} is not the network that was trained: an output differs by"
        f" {difference:.2g} on {batch.count} validation examples, more than"
        f" {bound:.2g}; nothing was written"
      )
  return {
    "run": restored.path.name,
    "status": restored.status,
    "epoch": restored.epoch,
    "checkpoint": restored.checkpoint.path.name,
    "parameters_trained": count_parameters(restored.state),
    "parameters_exported": network.topology["parameters"],
    "examples": batch.count,
    "largest_output": largest,
    "tolerance": bound,
    "max_abs_difference": differences,
    "refused": refused,
    "platforms": list(stablehlo.PLATFORMS),
    "checked_on": next(iter(images.devices())).platform,
    "versions": {"jax": jax.__version__, "flax": flax.__version__},
  }


def _trained(restored: Restored, images: jax.Array) -> np.ndarray:
  """What the run's own network says; references in place of kernels."""
  parts = restored.parts

  def forward(view: Any, images: jax.Array) -> jax.Array:
    x = parts.steps.preprocess(images, None)
    return parts.host.apply(*view, x, train=False, key=None)[0]

  with dispatch.using(None):
    outputs = jax.jit(forward)(evaluation_view(restored.state), images)
    return np.asarray(outputs, np.float32)


def _history(restored: Restored) -> list[dict[str, Any]]:
  """Entries of the lineage: what came before this run, and what it changed."""
  data, before = restored.parts.data, restored.parts.before
  began = {
    "type": "began" if before is None else "continued",
    "host": restored.host,
    "seed": restored.seed,
    "parameters": sum(x.size for x in jax.tree.leaves(restored.state.params)),
    "config_hash": restored.config_hash,
    "data": data.name,
    "data_sha256": data.sha256,
  }
  changes = lineage.changes(
    restored.path / "events.jsonl", before=restored.next_event
  )
  older = [] if before is None else lineage.story(before.folder)
  return [*older, began, *changes]


def _exported(folder: Path, restored: Restored) -> dict[str, Any]:
  """The last entry, which binds the files."""
  names = [name for name in FILES if (folder / name).exists()]
  return {
    "type": "exported",
    "epoch": restored.epoch,
    "step": restored.checkpoint.step,
    "files": {name: lineage.hash_file(folder / name) for name in names},
  }


def _notes(restored: Restored, report: Mapping[str, Any]) -> list[str]:
  notes = [
    f"checkpoint {item.checkpoint.path.name} is damaged ({item.reason});"
    f" {restored.checkpoint.path.name} was exported"
    for item in restored.damaged
  ]
  if restored.status != "completed":
    notes.append(
      f"the run is {restored.status}: this is its network after epoch"
      f" {restored.epoch}"
    )
  return [*notes, *report["refused"].values()]
