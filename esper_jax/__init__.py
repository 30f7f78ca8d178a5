"""Neural networks that grow while they train.

The public names below load on first use, so that importing the package, and
`main.py --help`, need no JAX.
"""

import importlib
from typing import Any

_HOMES = {
  "Blueprint": "esper_jax.kasmina.blueprints",
  "Grown": "esper_jax.api",
  "InputError": "esper_jax.types",
  "RunFailedError": "esper_jax.types",
  "Seed": "esper_jax.kasmina.slot",
  "Slot": "esper_jax.kasmina.slot",
  "SlotSpec": "esper_jax.types",
  "Stage": "esper_jax.types",
  "Trainer": "esper_jax.tolaria.trainer",
  "apply_slot": "esper_jax.kasmina.slot",
  "from_linen": "esper_jax.hosts.host",
  "from_nnx": "esper_jax.hosts.nnx_modules",
  "grow": "esper_jax.api",
  "load_events": "esper_jax.nissa.loading",
  "load_grown": "esper_jax.export.network",
  "load_metrics": "esper_jax.nissa.loading",
  "nnx_blueprint": "esper_jax.hosts.nnx_modules",
  "nnx_slot": "esper_jax.hosts.nnx_modules",
  "register_blueprint": "esper_jax.kasmina.blueprints",
}
_RENAMED = {"register_blueprint": "register"}

__all__ = tuple(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(
      f"module 'esper_jax' has no attribute '{name}'; it has"
      f" {', '.join(_HOMES)}"
    )
  module = importlib.import_module(_HOMES[name])
  return getattr(module, _RENAMED.get(name, name))


def __dir__() -> list[str]:
  return sorted((*globals(), *_HOMES))
