"""What the documents show runs, block after block, as it stands there."""

import importlib
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import esper_jax
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.builtin_blueprints import BUILT_IN
from esper_jax.kasmina.records import REASONS, Reason
from esper_jax.knobs import KNOBS
from esper_jax.oona import jsonl
from esper_jax.types import SlotSpec, Stage

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_a_reader_runs_it():
  with jax.numpy_dtype_promotion("standard"):
    with jax.numpy_rank_promotion("allow"):
      yield


def blocks(name: str) -> list[tuple[int, str]]:
  """(line, source) of each Python block of a document."""
  text = (ROOT / name).read_text()
  found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
  return [(text[: m.start()].count("\n") + 2, m[1]) for m in found]


def run(name: str) -> dict:
  """Runs a document's blocks in one namespace, as a reader would."""
  names: dict = {"__name__": "document"}
  for line, source in blocks(name):
    padded = "\n" * (line - 1) + source  # or a traceback shows another line
    exec(compile(padded, ROOT / name, "exec"), names)
  return names


@pytest.mark.full
def test_own_model(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  names = run("docs/own_model.md")
  out = capsys.readouterr().out
  grown = names["grown"].result
  assert (grown["status"], grown["germinated"]) == ("completed", 1)
  assert f"{grown['test_accuracy']} " in out
  assert names["grown"].workdir.parent == Path("runs")
  np.testing.assert_allclose(names["logits"], names["same"], atol=1e-5)
  predicted = names["loaded"](names["images"][:5])
  np.testing.assert_allclose(names["logits"], predicted, atol=1e-4)
  assert "do not fit the model: missing: params/Dense_1/bias" in out
  stopped = names["stopped"].result
  assert stopped["status"] == "interrupted"
  assert stopped["epochs"] < 50
  assert {e["type"] for e in names["seen"]} >= {"run_started", "interrupted"}
  assert f"8x8 gray images in {tmp_path}/shapes (bright, dark)" in out
  assert set(names["fit"].result["metrics"]) == {"validation", "test"}
  for own in ("scale", "branch"):
    blueprints.check_blueprint(
      names[own], SlotSpec("slot", (8,), "float32", "features")
    )


def test_readme(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  ((line, source),) = blocks("README.md")
  shorter = source.replace('"train.epochs": 20', '"train.epochs": 1')
  assert shorter != source, f"README.md:{line}"
  names: dict = {"__name__": "document"}
  exec(shorter, names)
  assert names["grown"].result["status"] == "completed"
  assert names["grown"].result["slots"].keys() == {"middle"}


def test_read_a_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  log = {"v": 1, "id": 0, "epoch": 2, "step": 20, "slot": "a", "attempt": 0}
  Path("runs/digits").mkdir(parents=True)
  for name, line in (
    ("events", {"type": "culled"}),
    ("metrics", {"val/loss": 0.5, "val/accuracy": 0.75}),
  ):
    path = Path(f"runs/digits/{name}.jsonl")
    path.write_bytes(jsonl.encode(log | line))
  names = run("docs/read_a_run.md")
  assert capsys.readouterr().out == "2 0.75\n"
  assert names["culls"][0]["slot"] == "a"


def test_the_configuration_reference_is_up_to_date(capsys):
  names = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))
  assert names["main"](["--check"]) == 0, capsys.readouterr().out
  text = (ROOT / "docs" / "configuration.md").read_text()
  told = re.findall(r"^\| `([\w.]+)`", text, re.M)
  assert sorted(told) == sorted(KNOBS)


def test_gates_say_what_the_documents_say():
  text = (ROOT / "docs" / "lifecycle.md").read_text()
  bits = [
    Reason.TOO_YOUNG,
    Reason.GRADIENT_UNKNOWN,
    Reason.NOT_FINITE,
    Reason.EXPLODING,
    Reason.CONTRIBUTION_UNKNOWN,
    Reason.NO_GAIN,
    Reason.STILL_BLENDING,
  ]
  for bit in bits:
    assert f"| {REASONS[int(bit)]}" in text, bit


def test_the_table_of_blueprints_is_right():
  text = (ROOT / "docs" / "blueprints.md").read_text()
  rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| ([\d,]+) \|", text, re.M)
  words = {"nhwc": "images", "features": "vectors", "tokens": "tokens"}
  shapes = {"nhwc": (8, 8, 64), "features": (64,), "tokens": (16, 64)}
  told = {name: (kinds, int(n.replace(",", ""))) for name, kinds, n in rows}
  assert set(told) == set(BUILT_IN)
  for name, (kinds, parameters) in told.items():
    own = BUILT_IN[name].kinds
    assert kinds == ", ".join(words[kind] for kind in own), name
    kind = own[0]
    spec = SlotSpec("s", shapes[kind], "float32", kind, causal=True)
    assert blueprints.cost(name, spec)[0] == parameters, name


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)#]*)[^)]*\)", page.read_text()):
    if target and "://" not in target:
      assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_exist(page):
  """In code, what looks like a key of a section of the config is one."""
  sections = {key.partition(".")[0] for key in KNOBS if "." in key}
  text = page.read_text()
  for word in re.findall(r"`(?:--config\.)?(\w+\.\w+)(?:=[^`]*)?`", text):
    section, _, name = word.partition(".")
    if section in sections and name not in ("py", "md"):
      assert word in KNOBS, word


def test_every_public_name_has_a_place_in_the_api_pages():
  told = re.findall(
    r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.M
  )
  public = {getattr(esper_jax, name) for name in esper_jax.__all__}
  found = set()
  for path in told:
    module, _, name = path.rpartition(".")
    found.add(getattr(importlib.import_module(module), name))
  assert found == public
  assert all(thing.__doc__ for thing in public)


def test_every_page_is_in_the_sites_navigation():
  pages = {page.name for page in PAGES} - {"README.md"}
  text = (ROOT / "mkdocs.yml").read_text()
  assert set(re.findall(r": (\w+\.md)$", text, re.M)) == pages


def test_own_loop():
  names = runpy.run_path(str(ROOT / "examples" / "own_loop.py"))
  stages, state = names["main"]()
  assert stages[1] == Stage.TRAINING
  assert stages[-1] in (Stage.FOSSILIZED, Stage.EMBARGOED)
  kept = stages[-1] == Stage.FOSSILIZED
  assert bool(state.seeds) == kept
  assert set(state.optimizer) == set(state.age)
