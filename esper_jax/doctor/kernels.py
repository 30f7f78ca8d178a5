"""Urza's registry: is it whole, and does any of it run here?"""

from collections.abc import Iterator

from esper_jax import commands
from esper_jax.doctor.report import Level, Line
from esper_jax.doctor.settings import Settings
from esper_jax.types import counted
from esper_jax.urza import listing, upkeep
from esper_jax.urza.artefact import Damaged
from esper_jax.urza.device import Device
from esper_jax.urza.folder import ARTEFACTS, MANIFEST, places
from esper_jax.urza.registry import Record, Registry, open_registry


def check(settings: Settings, *, here: Device | None = None) -> Iterator[Line]:
  """Yields a line on the registry and one on its kernels.

  Args:
    settings: name a layer.
    here: the device; None looks.

  Raises:
    InputError: a layer is missing, or others can write to it.
  """
  registry = open_registry(
    settings.registry, trusted=settings.trusted, make=False
  )
  problems = upkeep.verify(registry)
  where = places(registry.folders)
  if problems:
    option = f" --dir={settings.registry}" if settings.registry else ""
    yield Line(
      "registry",
      Level.FAIL,
      f"{counted(len(problems), 'problem')} in {where}: {problems[0]}",
      f"`{commands.python()} -m esper_jax.urza verify{option}` names all;"
      " delete those files, or reinstall esper-jax where they are the"
      " package's",
    )
  else:
    yield Line("registry", Level.OK, f"whole: {where}")
  records, damaged = _records(registry)
  summary = listing.summary(records, None, damaged, here=here)
  yield Line("kernels", Level.OK, summary)


def _records(registry: Registry) -> tuple[list[Record], int]:
  """What is whole, and how much is not; the index, a file, is not asked."""
  keys = set()
  for folder in registry.folders:
    try:
      names = folder.names(ARTEFACTS)
    except Damaged:  # `verify` has told
      continue
    keys |= {named["key"] for n in names if (named := MANIFEST.fullmatch(n))}
  records, damaged = [], 0
  for key in sorted(keys):
    try:
      records.append(registry.record(key))
    except (KeyError, Damaged):  # or it went meanwhile
      damaged += 1
  return records, damaged
