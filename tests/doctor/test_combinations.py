"""What does not go together is found; the table is whole."""

import pytest

from esper_jax import commands
from esper_jax.doctor import combinations
from esper_jax.doctor.report import Level
from esper_jax.doctor.settings import Settings
from tests.doctor.installed import finder

PIP = commands.pip()


def check(**changes):
  return [*combinations.check(Settings(), find=finder(**changes))]


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"jax_triton": "0.4.1"},
    {"jax": "0.12.0", "jaxlib": "0.12.0", "jax_triton": "0.5.0"},
    {"jax": "0.12.0", "jaxlib": "0.12.0"},
    {"jax_cuda12_plugin": "0.11.2.post1", "jax_cuda12_pjrt": "0.11.2"},
  ],
)
def test_what_goes_together(changes):
  (line,) = check(**changes)
  assert line.level is Level.OK and "none of the 6" in line.found


def test_jax_triton_and_a_jax_that_is_too_new():
  (line,) = check(jax="0.12.0", jaxlib="0.12.0", jax_triton="0.4.1")
  assert line.level is Level.FAIL
  assert line.found.startswith("jax-triton 0.4.1 with jax 0.12.0: every kernel")
  assert line.remedy == f"{PIP} install 'jax<0.12'"


def test_another_jaxlib_than_jax():
  (line,) = check(jaxlib="0.11.1")
  assert line.level is Level.WARN
  assert line.found.startswith("jaxlib 0.11.1 with jax 0.11.2: ")


@pytest.mark.parametrize("name", ["cuda12_plugin", "cuda13_pjrt"])
def test_a_plugin_of_another_version_than_jaxlib(name):
  (line,) = check(**{f"jax_{name}": "0.11.1"})
  assert line.level is Level.FAIL and "with jaxlib 0.11.2: " in line.found
  assert line.remedy == f"{PIP} install --upgrade -e '.[cuda12]'"


def test_each_that_is_bad_has_its_line():
  assert len(check(jaxlib="0.11.1", jax_cuda12_plugin="0.10.2")) == 2


@pytest.mark.parametrize(
  ("driver", "plugin", "hidden", "level", "word"),
  [
    (True, False, False, Level.WARN, "'.[cuda12]'"),
    (True, False, True, Level.WARN, "'.[cuda12]'"),
    (True, True, True, Level.WARN, "unset"),
    (True, True, False, Level.FAIL, "nvidia-smi"),
    (False, True, False, Level.WARN, "install the driver"),
  ],
)
def test_why_no_gpu_is_seen(driver, plugin, hidden, level, word):
  line = combinations.without_gpu(driver=driver, plugin=plugin, hidden=hidden)
  assert line is not None and line.level is level
  assert word in line.remedy


def test_without_driver_and_plugin_nothing_is_odd():
  for hidden in (True, False):
    assert not combinations.without_gpu(
      driver=False, plugin=False, hidden=hidden
    )
