"""What is known not to go together. New knowledge is a new row here."""

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from esper_jax import commands
from esper_jax.doctor.packages import Find, version_of
from esper_jax.doctor.report import Level, Line
from esper_jax.doctor.settings import Settings

PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
_PIP = commands.pip()
_CUDA = f"{_PIP} install --upgrade -e '.[cuda12]'"


class Clash(NamedTuple):
  """Packages that fail together.

  Attributes:
    versions: package -> those that fail, where all of them are installed.
    why: what happens.
    remedy: what to do.
  """

  versions: Mapping[str, str]
  why: str
  remedy: str


class Pair(NamedTuple):
  """Packages that must have the same version, where both are installed."""

  first: str
  second: str
  level: Level
  why: str
  remedy: str


class WithoutGpu(NamedTuple):
  """Why JAX sees no GPU; the first that fits holds.

  Attributes:
    driver: whether an NVIDIA driver is here.
    plugin: whether a CUDA plugin of JAX is installed.
    hidden: whether the environment keeps GPUs from JAX; None: either way.
    level, found, remedy: see `Line`.
  """

  driver: bool
  plugin: bool
  hidden: bool | None
  level: Level
  found: str
  remedy: str


CLASHES = (
  Clash(
    {"jax-triton": "==0.4.1", "jax": ">=0.12"},
    "every kernel call fails: _triton_kernel_call_dce_rule() takes 2"
    " positional arguments",
    f"{_PIP} install 'jax<0.12'",
  ),
)
PAIRS = (
  # JAX refuses what it cannot use; an older jaxlib lacks what jax was made for.
  Pair(
    "jaxlib",
    "jax",
    Level.WARN,
    "they are released and tested together",
    f"{_PIP} install --upgrade 'jax<0.12' jaxlib",
  ),
  *(
    Pair(name, "jaxlib", Level.FAIL, "JAX does not use such a plugin", _CUDA)
    for cuda in PLUGINS
    for name in (cuda, cuda.replace("plugin", "pjrt"))
  ),
)
WITHOUT_GPU = (
  WithoutGpu(
    True,
    False,
    None,
    Level.WARN,
    "an NVIDIA driver is here, but JAX has no CUDA plugin and sees only the"
    " CPU",
    f"{_PIP} install -e '.[cuda12]'",
  ),
  WithoutGpu(
    True,
    True,
    True,
    Level.WARN,
    "JAX_PLATFORMS or CUDA_VISIBLE_DEVICES keeps the GPU from JAX",
    "unset them to use it",
  ),
  WithoutGpu(
    True,
    True,
    False,
    Level.FAIL,
    "a driver and a CUDA plugin are here, but JAX sees no GPU",
    "see that nvidia-smi lists one and that the driver is new enough for the"
    " plugin's CUDA",
  ),
  WithoutGpu(
    False,
    True,
    None,
    Level.WARN,
    "a CUDA plugin is installed, but no NVIDIA driver is here",
    "install the driver; without a GPU there is nothing to do",
  ),
)


def check(
  settings: Settings, *, find: Find = metadata.distribution
) -> Iterator[Line]:
  """Yields a line for each known combination that is here, or one for none.

  Args:
    settings: not looked at.
    find: finds what is installed.
  """
  del settings
  bad = [*_clashes(find), *_pairs(find)]
  yield from bad
  if not bad:
    count = len(CLASHES) + len(PAIRS)
    found = f"none of the {count} that are known to be bad"
    yield Line("combinations", Level.OK, found)


def without_gpu(*, driver: bool, plugin: bool, hidden: bool) -> Line | None:
  """What is odd where JAX sees no GPU; None where nothing is."""
  for row in WITHOUT_GPU:
    if (row.driver, row.plugin) == (driver, plugin):
      if row.hidden in (None, hidden):
        return Line("gpu", row.level, row.found, row.remedy)
  return None


def _clashes(find: Find) -> Iterator[Line]:
  for clash in CLASHES:
    here = {name: version_of(find, name) for name in clash.versions}
    if all(
      version and SpecifierSet(clash.versions[name]).contains(version, True)
      for name, version in here.items()
    ):
      names = " with ".join(f"{name} {here[name]}" for name in here)
      found = f"{names}: {clash.why}"
      yield Line("combinations", Level.FAIL, found, clash.remedy)


def _pairs(find: Find) -> Iterator[Line]:
  for first, second, level, why, remedy in PAIRS:
    versions = [version_of(find, name) for name in (first, second)]
    # As JAX compares them: 0.10.2.post1 goes with 0.10.2.
    if all(versions) and len({Version(v).release for v in versions}) > 1:
      found = f"{first} {versions[0]} with {second} {versions[1]}: {why}"
      yield Line("combinations", level, found, remedy)
