"""Python and the packages, beside what the installed metadata asks for."""

import platform
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import esper_jax
from esper_jax import commands
from esper_jax.doctor.report import Level, Line
from esper_jax.doctor.settings import Settings

OWN = "esper-jax"
# Told first, and without our metadata too.
NAMED = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "ml-collections",
  "numpy",
)
EXTRAS = ("cuda12", "triton", "images", "redis")  # whose packages a run may use
OPTIONAL = ("triton", "jax-triton")  # told where they are, as those of extras

Find = Callable[[str], Any]
"""`importlib.metadata.distribution`, or what stands for it in a test."""


def check(
  settings: Settings,
  *,
  find: Find = metadata.distribution,
  python: str = platform.python_version(),
) -> Iterator[Line]:
  """Yields a line for Python, for us and for each package.

  Args:
    settings: not looked at.
    find: finds what is installed.
    python: its version.
  """
  del settings
  own = _found(find, OWN)
  text = own.metadata["Requires-Python"] if own else None
  remedy = "make the environment with another Python"
  yield _line("python", python, SpecifierSet(text or ""), remedy)
  yield _own(own)
  requires = own.requires if own else None
  needed = dict.fromkeys(NAMED, SpecifierSet()) | asked(requires)
  jax = _found(find, "jax")
  needed["jaxlib"] &= asked(jax.requires if jax else None).get(
    "jaxlib", SpecifierSet()
  )
  for name, specifier in needed.items():
    yield _package(name, version_of(find, name), specifier)
  extra = dict.fromkeys(OPTIONAL, SpecifierSet())
  for group in EXTRAS:
    extra |= asked(requires, group)
  for name, specifier in extra.items():
    version = version_of(find, name)
    if version and name not in needed:
      yield _package(name, version, specifier)


def asked(
  requires: Iterable[str] | None, extra: str = ""
) -> dict[str, SpecifierSet]:
  """What a distribution asks for here.

  Args:
    requires: its requirements, as in its metadata.
    extra: one of its extras, the packages of which count as well.

  Returns:
    Normal name -> versions that fit.
  """
  found: dict[str, SpecifierSet] = {}
  for text in requires or ():
    one = Requirement(text)
    if one.marker is None or one.marker.evaluate({"extra": extra}):
      name = canonicalize_name(one.name)
      found[name] = found.get(name, SpecifierSet()) & one.specifier
  return found


def version_of(find: Find, name: str) -> str:
  """The version of what is installed; "" where it is not."""
  found = _found(find, name)
  return found.version if found else ""


def _found(find: Find, name: str) -> Any:
  try:
    return find(name)
  except metadata.PackageNotFoundError:
    return None


def _own(own: Any) -> Line:
  code = esper_jax.__version__
  if own is None:
    found = f"{code}, not installed: what it asks for is not known"
    return Line(OWN, Level.WARN, found, f"{commands.pip()} install -e .")
  if own.version != code:
    found = f"the code is {code}, what is installed is {own.version}"
    return Line(OWN, Level.WARN, found, f"{commands.pip()} install -e . again")
  return Line(OWN, Level.OK, code)


def _package(name: str, version: str, specifier: SpecifierSet) -> Line:
  remedy = f"{commands.pip()} install '{name}{specifier}'"
  if version:
    return _line(name, version, specifier, remedy)
  return Line(name, Level.FAIL, "not installed", remedy)


def _line(
  name: str, version: str, specifier: SpecifierSet, remedy: str
) -> Line:
  wanted = f" (asked: {specifier})" if specifier else ""
  if specifier.contains(version, prereleases=True):
    return Line(name, Level.OK, f"{version}{wanted}")
  return Line(name, Level.FAIL, f"{version}{wanted}", remedy)
