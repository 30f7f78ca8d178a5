"""What the tests of this folder share: real runs, see lab.py."""

import pytest

from tests.integration.lab import Lab, check_same, environment


@pytest.fixture(scope="session")
def env():
  return environment()


@pytest.fixture
def lab(tmp_path, env):
  """Starts runs; their directories are gone after the test."""
  return Lab(tmp_path, env)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, env):
  """The profile "grow", run without interruption."""
  return Lab(tmp_path_factory.mktemp("whole"), env).run("grow")


@pytest.fixture(scope="session")
def same():
  """Asserts that two runs came to the same end, bit for bit."""
  return check_same
