"""Adds evidence with when it was made, and by which versions."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from esper_jax.urza import evidence
from esper_jax.urza.registry import Registry


def add(registry: Registry, key: str, record: Mapping[str, Any]) -> None:
  """Adds evidence about an artefact.

  Args:
    registry: takes it.
    key: of the artefact.
    record: its kind and figures.

  Raises:
    InputError: the registry refuses it.
  """
  known = {"made": evidence.now(), "by": versions()}
  registry.append(key, known | dict(record))


def versions() -> dict[str, str]:
  """Versions of Python, jaxlib and, where it is installed, Triton."""
  found = {"python": platform.python_version()}
  for name in ("jaxlib", "triton"):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
