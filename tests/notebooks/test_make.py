"""What the notebooks have in common: badge, install cell, no outputs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from esper_jax import commands
from notebooks import make

ROOT = Path(__file__).parents[2]
GITHUB = "https://github.com/someone/esper"
COLAB = "https://colab.research.google.com"
LINKS = "- [one.ipynb](notebooks/one.ipynb): first\n"
# What a kernel that lacks esper_jax is, and what it asks of pip.
KERNEL = """\
import importlib.util, sys, types, zipfile

importlib.util.find_spec = lambda name: None
get_ipython().register_magic_function(
  lambda line: print("pip", line), magic_name="pip"
)
"""
IN_COLAB = """\
sys.modules["google"] = google = types.ModuleType("google")
google.colab = sys.modules["google.colab"] = types.ModuleType("google.colab")
google.colab.files = types.SimpleNamespace(upload=lambda: {"esper.zip": b""})
"""


def project(folder: Path, url: str = "") -> Path:
  """One notebook as an editor leaves it, with what `make` reads."""
  set_url(folder, url)
  (folder / "README.md").write_text(LINKS)
  notebook = nbformat.v4.new_notebook(
    cells=[
      nbformat.v4.new_markdown_cell("# One", id="title"),
      nbformat.v4.new_code_cell("old", id="install"),
      nbformat.v4.new_code_cell(
        "1 + 1",
        id="sum",
        metadata={"scrolled": True},
        execution_count=7,
        outputs=[nbformat.v4.new_output("stream", text="2")],
      ),
    ],
    metadata={"colab": {"provenance": []}},
  )
  (folder / "notebooks").mkdir()
  nbformat.write(notebook, folder / "notebooks/one.ipynb")
  return folder


def set_url(folder: Path, url: str) -> None:
  urls = f'[project.urls]\nRepository = "{url}"\n' if url else ""
  (folder / "pyproject.toml").write_text(f'[project]\nname = "x"\n{urls}')


def cells(folder: Path) -> dict[str, dict]:
  document = json.loads((folder / "notebooks/one.ipynb").read_text())
  nbformat.validate(document)
  return {cell["id"]: cell for cell in document["cells"]}


def contents(folder: Path) -> dict[Path, bytes]:
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_notebooks_are_as_make_leaves_them(capsys):
  assert make.main(["--check"]) == 0, capsys.readouterr().out


def test_outputs_counts_and_metadata_go(tmp_path, capsys):
  assert make.main([], root=project(tmp_path)) == 0
  assert capsys.readouterr().out == "notebooks/one.ipynb: written\n"
  assert list(cells(tmp_path)) == ["title", "install", "sum"]
  assert cells(tmp_path)["sum"] == {
    "cell_type": "code",
    "execution_count": None,
    "id": "sum",
    "metadata": {},
    "outputs": [],
    "source": ["1 + 1"],
  }
  document = json.loads((tmp_path / "notebooks/one.ipynb").read_text())
  assert document["metadata"].keys() == {"kernelspec", "language_info"}


def test_check_writes_nothing_and_fails_until_it_is_done(tmp_path, capsys):
  before = contents(project(tmp_path))
  assert make.main(["--check"], root=tmp_path) == 1
  assert contents(tmp_path) == before
  told = f"notebooks/one.ipynb: run {commands.python()} -m notebooks.make\n"
  assert capsys.readouterr().out == told
  assert make.main([], root=tmp_path) == 0
  capsys.readouterr()
  assert make.main(["--check"], root=tmp_path) == 0
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("ending", ["", ".git"])
def test_a_github_url_gives_badges_and_goes_again(tmp_path, ending):
  make.main([], root=project(tmp_path))
  without = contents(tmp_path)
  set_url(tmp_path, GITHUB + ending)
  assert make.main([], root=tmp_path) == 0
  badge = (
    f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
    f"({COLAB}/github/someone/esper/blob/main/notebooks/one.ipynb)"
  )
  first, *_ = cells(tmp_path).values()
  assert first["source"] == [badge]
  linked = f"- [one.ipynb](notebooks/one.ipynb) {badge}: first\n"
  assert (tmp_path / "README.md").read_text() == linked
  with_badges = contents(tmp_path)
  make.main([], root=tmp_path)
  assert contents(tmp_path) == with_badges
  set_url(tmp_path, "")
  make.main([], root=tmp_path)
  assert contents(tmp_path) == without


def test_another_host_is_installed_from_without_a_badge(tmp_path):
  make.main([], root=project(tmp_path, "https://git.example.org/a/b"))
  assert list(cells(tmp_path)) == ["title", "install", "sum"]
  source = "".join(cells(tmp_path)["install"]["source"])
  assert "esper-jax[notebooks] @ git+https://git.example.org/a/b" in source
  assert (tmp_path / "README.md").read_text() == LINKS


@pytest.mark.parametrize(
  "text, reason",
  [
    ("{", "is no notebook: Expecting property name"),
    ("[]", "is no notebook: "),
    ('{"nbformat": 4, "nbformat_minor": 5}', "is no notebook: "),
    (
      nbformat.writes(nbformat.v4.new_notebook()),
      "needs one code cell with the id 'install'",
    ),
  ],
)
def test_what_is_no_notebook_is_one_line(tmp_path, capsys, text, reason):
  project(tmp_path)
  (tmp_path / "notebooks/two.ipynb").write_text(text)
  before = contents(tmp_path)
  assert make.main([], root=tmp_path) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1
  assert f"error: {tmp_path}/notebooks/two.ipynb {reason}" in err
  assert contents(tmp_path) == before


def test_a_url_that_pip_cannot_use_is_one_line(tmp_path, capsys):
  assert make.main([], root=project(tmp_path, "TODO")) == 2
  err = capsys.readouterr().err
  assert "Repository is 'TODO'; give a URL such as https://github.com/" in err


def run_install_cell(folder: Path, *, before: str, url: str = "") -> str:
  """What the cell prints in a kernel, pip's arguments among it."""
  cell = folder / "cell.ipy"
  cell.write_text(before + make.install_cell(url) + "\n")
  env = dict(os.environ) | {"IPYTHONDIR": str(folder), "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "IPython", "--quick", "--colors=nocolor"]
  done = subprocess.run(
    [*command, cell], cwd=folder, env=env, capture_output=True, text=True
  )
  return done.stdout + done.stderr


def checkout(folder: Path) -> Path:
  (folder / "esper_jax").mkdir(parents=True)
  (folder / "esper_jax/api.py").touch()
  return folder


def test_where_it_is_there_nothing_is_installed(tmp_path):
  assert run_install_cell(tmp_path, before="", url=GITHUB) == ""
  assert run_install_cell(tmp_path, before="") == ""


@pytest.mark.parametrize("url", ["", GITHUB])
def test_where_only_matplotlib_is_missing_it_alone_is_installed(tmp_path, url):
  there = 'lambda name: None if name == "matplotlib" else 1'
  before = KERNEL.replace("lambda name: None", there)
  told = run_install_cell(tmp_path, before=before, url=url)
  assert told == "pip install --quiet matplotlib\n"


def test_it_is_installed_from_the_repository(tmp_path):
  told = run_install_cell(tmp_path, before=KERNEL, url=GITHUB)
  wanted = f"esper-jax[notebooks] @ git+{GITHUB}"
  assert told == f'pip install --quiet "{wanted}"\n'


@pytest.mark.parametrize("place", ["around", "beside"])
def test_it_is_installed_from_a_checkout(tmp_path, place):
  folder = tmp_path / "notebooks"
  found = checkout(tmp_path if place == "around" else folder / "a b")
  folder.mkdir(exist_ok=True)
  told = run_install_cell(folder, before=KERNEL)
  assert told == f'pip install --quiet "{found}[notebooks]"\n'


def test_in_colab_it_is_installed_from_a_zip(tmp_path):
  with zipfile.ZipFile(tmp_path / "esper.zip", "w") as file:
    file.writestr("esper-main/esper_jax/api.py", "")
  told = run_install_cell(tmp_path, before=KERNEL + IN_COLAB)
  found = tmp_path / "checkout/esper-main"
  assert told == f'pip install --quiet "{found}[notebooks]"\n'


def test_where_there_is_no_checkout_it_says_so(tmp_path):
  told = run_install_cell(tmp_path, before=KERNEL)
  assert "there is no checkout of it to install; put one beside" in told
  assert "pip install" not in told
