"""The server that a config names."""

import pytest

from esper_jax.doctor import redis
from esper_jax.doctor.report import Level
from esper_jax.doctor.settings import Settings
from esper_jax.types import InputError


def check(url):
  (line,) = redis.check(Settings(redis=(url, "esper")))
  return line


def test_without_a_server_nothing_is_said():
  assert [*redis.check(Settings())] == []


def test_a_server_that_answers(small_redis):
  small_redis.password = "secret"
  small_redis.streams[b"esper"] = [(1, []), (2, [])]
  line = check(small_redis.url.replace("//", "//:secret@"))
  assert line.level is Level.OK
  shown = small_redis.url.replace("//", "//:***@")
  assert line.found == f"{shown}, version 7.9.9, stream esper has 2 entries"


def test_a_server_that_refuses(small_redis):
  small_redis.password = "secret"
  line = check(small_redis.url)
  assert line.level is Level.FAIL
  assert line.found.startswith(f"{small_redis.url} refuses: Authentication")
  assert "ESPER_REDIS_PASSWORD" in line.remedy


def test_a_server_that_is_down(small_redis):
  small_redis.stop()
  line = check(small_redis.url)
  assert line.level is Level.WARN and "does not answer" in line.found
  assert "once it is up" in line.remedy


def test_a_url_that_is_none():
  with pytest.raises(InputError, match="names no host"):
    check("redis://")
