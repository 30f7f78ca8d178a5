"""A short name for the server that these tests are about."""

import pytest


@pytest.fixture
def server(small_redis):
  return small_redis
