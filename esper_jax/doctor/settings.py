"""What the checks look at."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Settings(NamedTuple):
  """Of a config; without one, what holds for every run.

  Attributes:
    program_cache: `tezzeret.cache_dir`.
    registry: `urza.dir`.
    trusted: `urza.trusted`.
    data: what `data.datasets.load` takes, "name" among it; None looks for
      the data sets that can be downloaded.
    redis: (`oona.redis_url`, `oona.redis_stream`); None where there is none.
  """

  program_cache: str = ""
  registry: str = ""
  trusted: tuple[str, ...] = ()
  data: Mapping[str, Any] | None = None
  redis: tuple[str, str] | None = None
