"""Lines for people: one each, in ASCII, without the user's paths."""

import pytest

from esper_jax.doctor import report
from esper_jax.doctor.report import Level, Line
from esper_jax.types import InputError


def test_a_line_says_what_to_do():
  line = Line("jax", Level.FAIL, "not\ninstalled", "pip install jax")
  assert report.as_text(line) == "fail  jax: not installed; pip install jax"
  assert report.as_text(Line("a", Level.OK, "f\xfcr \udcff")) == (
    "ok    a: f\\xfcr \\udcff"
  )


@pytest.mark.parametrize(
  ("error", "found", "remedy"),
  [
    (InputError("no such folder: make one"), "no such folder: make one", ""),
    (OSError("bad\nmore"), "this check broke: OSError: bad", "mend"),
    (ValueError(), "this check broke: ValueError", "mend"),
    (SystemExit(3), "this check broke: SystemExit: 3", "mend"),
  ],
)
def test_a_check_that_breaks_fails_after_what_it_found(error, found, remedy):
  def check():
    yield Line("first", Level.OK, "fine")
    raise error

  first, second = report.guarded("item", check)
  assert first.item == "first"
  assert second[:3] == ("item", Level.FAIL, found)
  assert second.remedy.startswith(remedy) and bool(second.remedy) == bool(
    remedy
  )


def test_a_check_that_cannot_begin_fails_too():
  (line,) = report.guarded("item", lambda: __import__("no_such_module"))
  assert line.level is Level.FAIL
  assert "ModuleNotFoundError: No module named 'no_such_module'" in line.found


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("[Errno 2] No such file: '/home/me/my data/x'", "'.../x'"),
    ('cannot open "/home/it\'s me/x"', '".../x"'),
    ("libcuda.so: /home/me/lib/libcuda.so: bad", ": .../libcuda.so: bad"),
    ("in /data/cifar (cat, dog)", "in .../cifar (cat, dog)"),
    ("~/.cache/esper_jax and https://a.b/c/d, 1/2", None),
  ],
)
def test_paths_lose_all_but_their_end(text, shown):
  out = report.without_paths(text)
  assert out.endswith(shown or text)
  assert "/home" not in out and "/data" not in out
