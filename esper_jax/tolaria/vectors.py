"""NumPy vectors on the disk, by Orbax."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as orbax
from orbax.checkpoint import v1 as ocp

from esper_jax.tolaria import processes


def save(folder: Path, vectors: Mapping[str, np.ndarray]) -> None:
  """Writes vectors by name into a folder that is not there."""
  with _orbax() as alone:
    if not alone.active_processes:
      ocp.save(str(folder), cast(Any, vectors))
      return
    # `ocp.save` has all processes compare the path, whatever is active.
    options = alone.v0()
    handler = orbax.PyTreeCheckpointHandler(
      use_ocdbt=False, multiprocessing_options=options
    )
    with orbax.Checkpointer(handler, multiprocessing_options=options) as writer:
      writer.save(folder, dict(vectors))


def load(folder: Path) -> dict[str, np.ndarray]:
  """Reads what `save` wrote."""
  with _orbax():
    return cast(Any, ocp.load(str(folder)))


class _OrbaxNoise(logging.Filter):
  """Drops what Orbax logs: its failures reach us as exceptions too."""

  def filter(self, record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.options.MultiprocessingOptions]:
  """Orbax with the leanest options for a few vectors, and quiet.

  Of several processes the one that writes or reads waits for no other.
  """
  context = ocp.Context()
  saving = context.array.saving
  saving.use_ocdbt = False  # one file per vector: 14 ms a save against 20
  saving.use_compression = False  # weights are noise
  saving.enable_write_sharding_file = False
  saving.enable_post_merge_validation = False
  saving.array_metadata_store = None
  if processes.several():
    me = jax.process_index()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
  logger, noise = logging.getLogger("absl"), _OrbaxNoise()
  logger.addFilter(noise)
  try:
    with context:
      yield context.multiprocessing
  finally:
    logger.removeFilter(noise)
