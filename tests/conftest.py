"""Strictness for every test: no silent promotion of dtypes or ranks.

Programs are compiled once for all tests, their processes included: that is
most of what the tests would do otherwise.
"""

import atexit
import gc
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _programs = tempfile.mkdtemp(prefix="esper-jax-tests-")
  atexit.register(shutil.rmtree, _programs, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Tests leave many objects that stay. Looking them through as often as Python
# does by default took 6 % of the time of three files, and more of a whole run.
gc.set_threshold(50_000, 20, 100)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
  for name, variable, reason in (
    ("full", "ESPER_TEST_FULL", "long; make test-all runs it"),
    ("services", "ESPER_TEST_SERVICES", "make test-services runs it"),
  ):
    if os.environ.get(variable) == "1":
      continue
    for item in items:
      if item.get_closest_marker(name):
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
  """Lets go of compiled programs before the system runs out of mappings.

  Each program that XLA compiles for the CPU holds several of the memory
  mappings that Linux grants a process, 65,530; beyond it, it crashes.
  """
  yield
  if _mappings() > 20_000:
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def no_program_cache():
  """As in a process whose user has told JAX of no folder of programs."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()


@pytest.fixture
def small_redis(monkeypatch):
  """A server of streams in this process; see tests/oona/small_redis.py."""
  from tests.oona.small_redis import SmallRedis

  monkeypatch.delenv("ESPER_REDIS_PASSWORD", raising=False)
  server = SmallRedis()
  yield server
  server.stop()


def _mappings() -> int:
  try:
    with open("/proc/self/maps", "rb") as lines:
      return sum(1 for _ in lines)
  except OSError:  # not Linux
    return 0
