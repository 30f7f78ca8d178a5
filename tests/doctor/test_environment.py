"""A Python that is not the project's is told so, first of all."""

from esper_jax.doctor import environment
from esper_jax.doctor.command_line import CHECKS
from esper_jax.doctor.report import Level, Line
from esper_jax.doctor.settings import Settings


def lines(*missing, **options):
  def find(name):
    return None if name in missing else object()

  return list(environment.check(Settings(), find=find, **options))


def test_another_python_is_told_which_to_use():
  assert lines("jax", "rich", prefix="/usr") == [
    Line(
      "environment",
      Level.FAIL,
      "not the project's: this Python lacks jax, rich",
      "use .venv/bin/python, which `make install` makes",
    )
  ]
  assert CHECKS[0] == "environment"


def test_nothing_is_said_where_all_is_there_or_it_is_the_projects_own():
  assert not lines(prefix="/usr")
  assert not lines("jax", prefix=str(environment._OWN))
  assert not list(environment.check(Settings()))
