"""The Redis server that a config names: does it answer?"""

import contextlib
from collections.abc import Iterator

from esper_jax.doctor.report import Level, Line, reason
from esper_jax.doctor.settings import Settings
from esper_jax.oona import redis_url

ITEM = "redis"


def check(settings: Settings) -> Iterator[Line]:
  """Yields a line on the server and the stream, where a config names them.

  Args:
    settings: name them, or not.

  Raises:
    InputError: the URL is not valid, or the package is not installed.
  """
  if settings.redis is None:
    return
  url, stream = settings.redis
  shown = redis_url.without_password(url)
  client = redis_url.connect(url)
  try:
    with contextlib.closing(client):
      version = client.info("server")["redis_version"]
      entries = client.xlen(stream)
  except redis_url.failures() as error:
    if redis_url.refused(error):
      found = f"{shown} refuses: {reason(error)}"
      remedy = f"mend --config.oona.redis_url (${redis_url.PASSWORD} may hold"
      remedy += " the password) or --config.oona.redis_stream"
      yield Line(ITEM, Level.FAIL, found, remedy)
    else:
      found = f"{shown} does not answer: {reason(error)}"
      remedy = "start it; a run goes on without, and sends events once it is up"
      yield Line(ITEM, Level.WARN, found, remedy)
    return
  found = f"{shown}, version {version}, stream {stream} has {entries} entries"
  yield Line(ITEM, Level.OK, found)
