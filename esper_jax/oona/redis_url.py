"""Where a Redis server is: what its URL may say, and a connection to it."""

import os
from typing import Any
from urllib.parse import parse_qs, urlsplit

from esper_jax import commands
from esper_jax.types import InputError

PASSWORD = "ESPER_REDIS_PASSWORD"  # of the environment; a URL's own wins
_CONNECT_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
_SCHEMES = ("redis", "rediss", "unix")
_OPTIONS = (
  "db",
  "ssl_ca_certs",
  "ssl_certfile",
  "ssl_keyfile",
  "ssl_cert_reqs",
  "ssl_check_hostname",
)
_VALID = (
  "must be redis://[USER[:PASSWORD]@]HOST[:PORT][/DB], rediss:// for TLS, or"
  f" unix://PATH; a password is better kept in ${PASSWORD}"
)


def check(url: str, *, name: str = "the URL of Redis") -> None:
  """Refuses a URL that can be of no server; asks none.

  The URL is not repeated, as it may hold a password.

  Args:
    url: such as "redis://localhost:6379/0".
    name: what an error calls it.

  Raises:
    InputError: says what is wrong with it and what is valid.
  """
  if wrong := _wrong(url):
    raise InputError(f"{name}: {wrong}; it {_VALID}")


def _wrong(url: str) -> str:
  """What is wrong with a URL; "" where nothing is."""
  if not url.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
    return f"it begins with none of {', '.join(_SCHEMES)} and ://"
  try:
    parts = urlsplit(url)
    host, _ = parts.hostname, parts.port  # which checks the latter
    (host or "").encode("idna")
  except ValueError:
    return (
      "its host or port cannot be read (in a password, write % and the code in"
      " place of / ? # @ :)"
    )
  options = parse_qs(parts.query, keep_blank_values=True)
  for key in options:
    if key not in _OPTIONS:
      return f"an option after ? is none of {', '.join(_OPTIONS)}"
    if key != "db" and parts.scheme != "rediss":
      return f"{key} is for rediss://"
  database = options.get("db", ["0"])[0]
  if parts.scheme == "unix":
    if host or len(parts.path) < 2:
      return "it names no socket, such as unix:///run/redis.sock"
  elif not host:
    return "it names no host"
  else:
    database = parts.path.removeprefix("/") or database
  if not (database.isascii() and database.isdigit()) or parts.fragment:
    return "after the host it has other than the number of a database"
  return ""


def without_password(url: str) -> str:
  """The URL, for people: *** in place of a password.

  Args:
    url: one that `check` lets pass, or "".
  """
  parts = urlsplit(url)
  user, _, server = parts.netloc.rpartition("@")
  name, colon, _ = user.partition(":")
  if not colon:
    return url
  return parts._replace(netloc=f"{name}:***@{server}").geturl()


def connect(url: str) -> Any:
  """Makes a client, which connects with its first command.

  It connects once: where the connection breaks, every later command raises,
  so that whoever uses it notices that the server may have lost something.

  Args:
    url: of the server; the environment may hold its password, see PASSWORD.

  Returns:
    A `redis.Redis`; close it.

  Raises:
    InputError: the URL is not valid, or the package is not installed.
  """
  check(url)
  try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
  except ImportError as error:
    raise InputError(
      "a Redis server was named, but the package for it is missing; in the"
      f" repository: {commands.pip()} install -e '.[redis]'; or leave"
      " --config.oona.redis_url empty"
    ) from error
  connected = False

  def once(connection: Any) -> None:
    nonlocal connected
    if connected:
      raise redis.ConnectionError("the connection broke")
    connection.on_connect()
    connected = True

  return redis.Redis.from_url(
    url,
    password=os.environ.get(PASSWORD) or None,
    protocol=2,  # or answers have another form
    retry=Retry(NoBackoff(), 0),
    redis_connect_func=once,
    socket_connect_timeout=_CONNECT_SECONDS,
    socket_timeout=_ANSWER_SECONDS,
  )


def failures() -> tuple[type[Exception], ...]:
  """What commands of a client raise."""
  import redis

  return redis.RedisError, OSError


def refused(error: BaseException) -> bool:
  """Whether a server said no, rather than nothing: it waits for no mending.

  Args:
    error: of a command.
  """
  import redis  # it raised the error

  passing = (redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError)
  if isinstance(error, passing):
    return False
  return isinstance(error, redis.ResponseError | redis.AuthenticationError)
