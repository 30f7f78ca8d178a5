"""How a process finds the others; see tests/integration for several."""

import jax
import pytest

from esper_jax.tolaria import processes
from esper_jax.types import InputError

ASYNC = "jax_cpu_enable_async_dispatch"
WHOLE = dict(zip(processes.VARIABLES, ("host:1234", "2", "1"), strict=True))


@pytest.fixture
def joined(monkeypatch):
  """What `jax.distributed.initialize` was given."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *told: calls.append(told)
  )
  before = jax.config.values[ASYNC]
  yield calls
  jax.config.update(ASYNC, before)


def test_the_environment_tells_who_they_are(joined):
  processes.start(WHOLE)
  processes.start({"JAX_PROCESS_ID": ""})  # the cluster tells
  assert joined == [("host:1234", 2, 1), (None, None, None)]
  assert not jax.config.values[ASYNC]


@pytest.mark.parametrize("name", processes.VARIABLES)
def test_half_an_environment_is_told(name, joined):
  with pytest.raises(InputError, match=f"needs {name} too"):
    processes.start({k: v for k, v in WHOLE.items() if k != name})
  assert joined == []


def test_numbers_that_are_none_are_told(joined):
  with pytest.raises(InputError, match="JAX_NUM_PROCESSES is two and JAX_PRO"):
    processes.start(WHOLE | {"JAX_NUM_PROCESSES": "two"})
  assert joined == []


@pytest.mark.parametrize(
  "error", [RuntimeError("no one\nanswers"), ValueError()]
)
def test_processes_that_do_not_meet_are_told(error, joined, monkeypatch):
  def fail(*told):
    raise error

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  with pytest.raises(InputError, match=r"not find each other \((no one|Value)"):
    processes.start(WHOLE)


def test_one_process_agrees_with_itself():
  value = object()
  assert processes.gather(value) == [value]
  assert processes.agree(value) is processes.agree_on(value) is value
  assert processes.leads() and not processes.several()
