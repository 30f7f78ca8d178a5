"""Versions, beside what metadata asks for."""

from esper_jax import commands
from esper_jax.doctor import packages
from esper_jax.doctor.report import Level, Line
from esper_jax.doctor.settings import Settings
from tests.doctor.installed import GOOD, finder

PIP = commands.pip()


def lines(python="3.12.1", **changes):
  found = packages.check(Settings(), find=finder(**changes), python=python)
  return {line.item: line for line in found}


def bad(found):
  return {n: x for n, x in found.items() if x.level is not Level.OK}


def test_all_is_well():
  found = lines()
  assert [*found] == ["python", "esper-jax", *list(GOOD)[:-1]]
  assert not bad(found)
  assert found["jax"].found == "0.11.2 (asked: <0.12,>=0.10)"
  assert found["flax"].found == "0.12.8"  # nothing is asked of it


def test_a_python_that_is_too_old():
  assert bad(lines(python="3.10.4")) == {
    "python": Line(
      "python",
      Level.FAIL,
      "3.10.4 (asked: >=3.11)",
      "make the environment with another Python",
    )
  }


def test_a_package_that_is_too_new_too_old_or_missing():
  found = bad(lines(jax="0.12.0", rich="12", numpy=None, flax=None))
  assert found["jax"].found == "0.12.0 (asked: <0.12,>=0.10)"
  assert found["rich"].remedy == f"{PIP} install 'rich>=13'"
  assert found["numpy"][1:] == (
    Level.FAIL,
    "not installed",
    f"{PIP} install 'numpy>=2'",
  )
  assert found["flax"].remedy == f"{PIP} install 'flax'"
  assert {*found} == {"jax", "rich", "numpy", "flax"}


def test_jaxlib_must_be_what_jax_asks_for():
  assert bad(lines(jaxlib="0.11.0"))["jaxlib"].found.startswith("0.11.0 (ask")
  assert "jaxlib" not in bad(lines(jaxlib="0.11.0", jax=None))


def test_a_version_before_the_release_counts():
  assert not bad(lines(numpy="2.5.0rc1"))


def test_what_is_optional_is_told_where_it_is():
  assert "triton" not in lines()
  assert lines(triton="3.9.0")["triton"].level is Level.OK
  assert bad(lines(triton="3.8.1"))["triton"].found == (
    "3.8.1 (asked: <3.10,>=3.9)"
  )
  assert lines(jax_triton="0.4.1")["jax-triton"].found == "0.4.1"
  assert "pytest" not in lines(pytest="7")


def test_without_metadata_the_versions_are_told():
  found = lines(esper_jax=None, numpy="1.0")
  assert {*bad(found)} == {"esper-jax"}
  assert found["esper-jax"].level is Level.WARN
  assert found["numpy"].found == "1.0"


def test_metadata_of_another_version_is_told():
  (line,) = bad(lines(esper_jax="0.0.9")).values()
  assert line.level is Level.WARN and "0.0.9" in line.found
