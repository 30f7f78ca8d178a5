"""The documentation's site: what it brings in, and that every link in it leads
somewhere."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = runpy.run_path(str(ROOT / "docs" / "make_site.py"))


def _python_with_mkdocs() -> Path | None:
  own = ROOT / ".venv-docs" / "bin" / "python"  # of `make site`
  if importlib.util.find_spec("mkdocs"):
    return Path(sys.executable)
  return own if own.is_file() else None


def test_links_that_leave_docs_stay_in_the_site():
  told = "[a](../README.md#results), [b](idea.md), [c](../examples/own_loop.py)"
  assert SITE["relinked"]("docs/index.md", told) == (
    "[a](repository/README.md#results), [b](idea.md),"
    " [c](repository/examples/own_loop.py)"
  )
  assert SITE["relinked"]("benchmarks/RESULTS.md", "[x](README.md)") == (
    "[x](README.md)"
  )
  assert SITE["relinked"]("README.md", "[x](docs/idea.md)") == "[x](../idea.md)"
  other = "[x](no/such.md), names[0](images), [y](#here)"
  assert SITE["relinked"]("README.md", other) == other


def test_what_a_page_outside_links_to_comes_along():
  found = SITE["outside"](["docs/idea.md"])
  assert {"README.md", "benchmarks/RESULTS.md", "CONTRIBUTING.md"} < set(found)
  assert "benchmarks/results/digits/figures/forest.svg" in found
  assert not [path for path in found if path.startswith("docs/")]
  for path in (*found, "docs/idea.md"):
    assert SITE["original"](SITE["place"](path)) == path


def test_a_dead_link_is_found(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "b.html").write_text(
    '<h1 id="top"></h1><a href="../c.html#there">x</a><a href="#top">x</a>'
    '<img src="none.png"><a href="/c.html">x</a><a href="http://x.org">x</a>'
    '<a href="../c.html#gone">x</a>'
  )
  (tmp_path / "c.html").write_text('<a name="there"></a><a href="a/b.html">')
  assert SITE["dead_links"](tmp_path) == [
    "a/b.html: none.png",
    "a/b.html: /c.html",
    "a/b.html: ../c.html#gone",
  ]


def test_every_link_of_the_site_leads_somewhere(tmp_path):
  python = _python_with_mkdocs()
  if python is None:
    pytest.skip("MkDocs is not installed: `make site` installs it")
  command = [python, "-m", "mkdocs", "build", "--strict", "--quiet"]
  built = subprocess.run(
    [*command, f"--site-dir={tmp_path / 'site'}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert built.returncode == 0, built.stdout + built.stderr
  pages = {path.name for path in (tmp_path / "site").rglob("*.html")}
  assert {"index.html", "RESULTS.html", "CHANGELOG.html"} < pages
  assert "404.html" not in pages
  assert SITE["dead_links"](tmp_path / "site") == []
