"""Data sets: is a config's there, or which of those for download are?"""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from esper_jax import commands
from esper_jax.data import cifar, datasets, folder
from esper_jax.doctor.report import Level, Line, without_paths
from esper_jax.doctor.settings import Settings
from esper_jax.knobs import FOLDER
from esper_jax.types import counted

ITEM = "data"


def check(
  settings: Settings, *, cache: Path = Path(datasets.CACHE)
) -> Iterator[Line]:
  """Yields a line on the data of a config, or for each data set on the web.

  Nothing is downloaded.

  Args:
    settings: name the data, or not.
    cache: folder of downloads, where there is no config.

  Raises:
    InputError: the data is absent, damaged or not what its name says.
  """
  if settings.data is not None:
    yield _configured(settings.data)
    return
  for name, layout in cifar.FORMATS.items():
    if _is_kept(layout, cache):
      yield Line(name, Level.OK, f"in {cache}")
    else:
      found = f"not in {cache}: a run that needs it downloads it"
      yield Line(name, Level.OK, found)


def _configured(options: Mapping[str, Any]) -> Line:
  name, source = options["name"], options["source"]
  if source.startswith(FOLDER):
    return _images(Path(source.removeprefix(FOLDER)).expanduser())
  layout = None if source else cifar.FORMATS.get(name)
  cache = Path(options["cache_dir"] or datasets.CACHE)
  if layout and not options["dir"] and not _is_kept(layout, cache):
    if options["download"]:
      found = f"{layout.title} is not here: the run will download it"
      remedy = "have network then, or set --config.data.dir"
      return Line(ITEM, Level.WARN, found, remedy)
  arguments: dict[str, Any] = {**options, "download": False}
  data = datasets.load(**arguments)
  found = f"{data.source}: {len(data.train_labels)} train"
  found += f", {len(data.validation_labels)} validation"
  found += f", {len(data.test_labels)} test"
  return Line(ITEM, Level.OK, without_paths(found))


def _images(place: Path) -> Line:
  """Images are found but not decoded: that takes long, and fills a cache."""
  count, classes = folder.count(place)
  found = f"{counted(count, 'image')} in {classes} classes"
  if importlib.util.find_spec("PIL") is None:
    remedy = f"{commands.pip()} install -e '.[images]'"
    return Line(ITEM, Level.FAIL, f"{found}, but no Pillow", remedy)
  return Line(ITEM, Level.OK, f"{found}, not decoded")


def _is_kept(layout: cifar.CifarFormat, cache: Path) -> bool:
  """Whether it was downloaded: its folder appears when it is whole."""
  return (cache.expanduser() / layout.archive.folder).is_dir()
