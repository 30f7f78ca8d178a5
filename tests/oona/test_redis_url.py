"""What names a Redis server, and what must not be shown of it."""

import sys

import pytest

from esper_jax.oona import redis_url
from esper_jax.types import InputError


@pytest.mark.parametrize(
  ("url", "shown"),
  [
    ("redis://host", "redis://host"),
    ("redis://host:1/3", "redis://host:1/3"),
    ("redis://[::1]:6379", "redis://[::1]:6379"),
    ("redis://user@host", "redis://user@host"),
    ("redis://:secret@host", "redis://:***@host"),
    ("rediss://me:sec%2Fret@host:1/0", "rediss://me:***@host:1/0"),
    ("redis://:sec@ret@host", "redis://:***@host"),
    (
      "rediss://host?ssl_ca_certs=/ca.pem",
      "rediss://host?ssl_ca_certs=/ca.pem",
    ),
    ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
    ("unix://:secret@/run/redis.sock", "unix://:***@/run/redis.sock"),
  ],
)
def test_a_url_is_shown_without_its_password(url, shown):
  redis_url.check(url)
  assert redis_url.without_password(url) == shown
  redis_url.check(shown)  # as config.json has it


def test_no_url_is_shown_as_none():
  assert redis_url.without_password("") == ""


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("http://secret", "begins with none of redis, rediss, unix"),
    ("redis:/:secret@host", "begins with none"),
    ("redis://", "names no host"),
    ("redis://:secret@", "names no host"),
    ("redis://host:secret", "port cannot be read"),
    ("redis://host:99999", "port cannot be read"),
    ("redis://:se/cret@host", "port cannot be read"),
    ("redis://:se?cret@host", "port cannot be read"),
    ("redis://secret..host", "port cannot be read"),
    ("redis://user:12?secret@host", "an option after"),
    ("redis://host?password=secret", "an option after"),
    ("redis://host?ssl_certfile=secret", "ssl_certfile is for rediss"),
    ("redis://user:12/secret@host", "other than the number"),
    ("redis://user:12#secret@host", "other than the number"),
    ("redis://host/0/1", "other than the number"),
    ("redis://host?db=", "other than the number"),
    ("unix://secret/run/redis.sock", "names no socket"),
    ("unix://", "names no socket"),
  ],
)
def test_what_can_be_no_server_is_refused_and_not_repeated(url, message):
  with pytest.raises(InputError) as caught:
    redis_url.check(url, name="--config.oona.redis_url")
  said = str(caught.value)
  assert message in said and said.startswith("--config.oona.redis_url: ")
  assert "secret" not in said and "\n" not in said


def test_without_the_package_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "redis", None)
  with pytest.raises(InputError, match=r"pip install -e '\.\[redis\]'"):
    redis_url.connect("redis://host")


@pytest.mark.parametrize("in_url", [True, False])
def test_the_password_comes_from_the_url_or_the_environment(
  server, monkeypatch, in_url
):
  server.password = "secret"
  url = server.url
  monkeypatch.setenv(redis_url.PASSWORD, "wrong" if in_url else "secret")
  if in_url:
    url = url.replace("//", "//:secret@")
  client = redis_url.connect(url)
  assert client.xlen("esper") == 0
  client.close()


def test_a_connection_that_broke_is_not_made_again(server):
  client = redis_url.connect(server.url)
  client.xadd("esper", {"a": 1})
  server.stop()
  server.streams.clear()
  server.start()
  for _ in range(2):
    with pytest.raises(redis_url.failures()) as caught:
      client.xadd("esper", {"a": 2})
    assert not redis_url.refused(caught.value)
  client.close()
  assert server.streams == {}


@pytest.mark.parametrize(
  ("answer", "refused"),
  [
    ("WRONGTYPE it holds another kind of value", True),
    ("NOAUTH Authentication required.", True),
    ("NOPERM this user may not", True),
    ("LOADING the data", False),
    ("MASTERDOWN no master", False),
    ("TRYAGAIN later", False),
  ],
)
def test_what_a_server_will_always_refuse(server, answer, refused):
  server.refuses[b"XLEN"] = answer
  client = redis_url.connect(server.url)
  with pytest.raises(redis_url.failures()) as caught:
    client.xlen("esper")
  assert redis_url.refused(caught.value) is refused
  client.close()
