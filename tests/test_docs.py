"""What the documents show runs, block after block, as it stands there."""

import ast
import importlib
import json
import re
import runpy
import shlex
import shutil
import xml.etree.ElementTree as xml
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esper_jax
from benchmarks.evidence import __main__ as evidence
from esper_jax import command_line
from esper_jax import config as config_lib
from esper_jax.kasmina import blueprints
from esper_jax.kasmina.builtin_blueprints import BUILT_IN
from esper_jax.kasmina.records import REASONS, Reason
from esper_jax.knobs import KNOBS
from esper_jax.nissa import command_line as nissa
from esper_jax.nissa.table import format_slots
from esper_jax.oona import jsonl
from esper_jax.tamiyo import observation as obs
from esper_jax.tamiyo import policy as policies
from esper_jax.tolaria.overview import slot_table
from esper_jax.types import Action, SlotSpec, Stage

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "nissa" / "recorded"  # runs of the demo


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


def commands(name: str) -> list[list[str]]:
  """The commands of Python in a document's other blocks, as argument lists."""
  text = (ROOT / name).read_text()
  fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
  shell = "".join(block for language, block in fenced if not language)
  lines = shell.replace("\\\n", " ").replace("$seed", "0").splitlines()
  start = ".venv/bin/python "
  return [
    shlex.split(line)[1:] for line in lines if line.lstrip().startswith(start)
  ]


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
  right = (names["guesses"] == names["data"].validation_labels).mean()
  assert float(right) == pytest.approx(grown["val_accuracy"])
  predicted = names["loaded"](names["images"][:5])
  np.testing.assert_allclose(names["logits"], predicted, atol=1e-4)
  assert "0:dense" in names["further"].variables["seeds"]["middle"]
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
  result = names["grown"].result
  assert result["status"] == "completed"
  assert result["slots"].keys() == {"middle"}
  recorded = json.loads((RECORDED / "grown" / "result.json").read_text())
  assert result.keys() == recorded.keys()
  assert result["compilation"].keys() == recorded["compilation"].keys()


@pytest.mark.full
def test_the_readmes_network_grows(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  ((_, source),) = blocks("README.md")
  names: dict = {"__name__": "document"}
  exec(source, names)
  assert names["grown"].result["germinated"]


def test_own_host_and_policy(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  sources = [source for _, source in blocks("docs/own_host_and_policy.md")]
  (module,) = [source for source in sources if "register(" in source]
  try:
    exec(module, {"__name__": "last_slot"})  # a file of its own
  finally:
    policies.unregister("last_slot")
  try:
    names = run("docs/own_host_and_policy.md")
  finally:
    policies.unregister("last_slot")
  out = capsys.readouterr().out
  assert "first (8,) features\nsecond (8,) features\n" in out
  assert "['WAIT', 'GERMINATE']\n" in out
  assert "1 second germinate second is the last slot that is free\n" in out
  grown = names["grown"].result
  assert (grown["status"], grown["germinated"]) == ("completed", 1)
  seen = obs.unknown(rows=1, blueprints=1).replace(
    epoch=jnp.int32(8), growths_left=jnp.int32(1)
  )
  seen = seen.replace(legal=seen.legal.at[:].set(True))
  key = jax.random.key(0)
  decide = jax.jit(names["modest"].decide)
  for accuracy, action in ((0.5, Action.GERMINATE), (0.96, Action.WAIT)):
    now = seen.replace(val_accuracy=seen.val_accuracy.at[-1].set(accuracy))
    _, chosen = decide(names["modest"].init(key), now, key)
    assert int(chosen.action[0]) == action
    assert int(chosen.blueprint[0]) == (0 if action else -1)


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


def _runs_of_the_experiment() -> None:
  """Five pairs, gains of 1 to 5 points; the first is a recorded run."""
  for kind, folder in (("grown", "0"), ("control", "0-control")):
    shutil.copytree(RECORDED / kind, Path("runs", "my_digits", folder))
  for seed in range(5):
    for gain, folder in ((seed + 1, f"{seed}"), (0, f"{seed}-control")):
      path = Path("runs", "my_digits", folder, "result.json")
      path.parent.mkdir(exist_ok=True)
      result = json.loads(path.read_text()) if path.exists() else {}
      result["val_accuracy"] = 0.9 + 0.01 * gain
      path.write_text(json.dumps(result))


def _names(value, known=()) -> set[str]:
  """The keys of a document, those of what it maps names to included."""
  found = set()
  for key, inner in value.items():
    found |= set() if key in known else {key}
    rows = inner if isinstance(inner, list) else [inner]
    for row in rows:
      if isinstance(row, dict):
        found |= _names(row, known)
  return found


@pytest.mark.parametrize("run", ["grown", "control"])
def test_every_key_of_a_result_is_told(run):
  """A recorded run's; `test_readme` has a run of today write the same keys."""
  result = json.loads((RECORDED / run / "result.json").read_text())
  text = (ROOT / "docs" / "read_a_run.md").read_text()
  text = text.split("## result.json")[1].split("\n## ")[0]
  told = set(re.findall(r"`([a-z_0-9]+)`", text))
  inside = result.pop("compilation")
  assert _names(result, result["slots"]) - told == set()
  bill = (ROOT / "docs" / "performance.md").read_text()
  assert set(inside) <= set(re.findall(r"`(\w+)`", bill))


def test_experiment(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  _runs_of_the_experiment()
  _, source = blocks("docs/experiment.md")[0]
  Path("my_digits.py").write_text(source)
  names = run("docs/experiment.md")
  out = capsys.readouterr().out
  assert re.search(r"^\d+ slot\d_1 0\.\d+$", out, re.M)
  assert "+3.00 points [+1.04, +4.96]\n" in out
  config = config_lib.validate(names["get_config"]())
  assert (config.host.width, config.train.epochs) == (6, 20)
  shown = format_slots(slot_table(config))
  text = (ROOT / "docs" / "experiment.md").read_text()
  assert f"```\n{shown}\n```" in text
  programs = []
  for program, *argv in commands("docs/experiment.md"):
    programs.append(program if program == "main.py" else argv[0])
    if program == "main.py":
      options = command_line.parse([program, *argv])
      assert options is not None and options.config.train.epochs == 20
    elif argv[0] == "esper_jax.nissa":
      assert nissa.main(argv[1:]) == 0
    elif "--list" in argv:
      assert evidence.main(argv[1:]) == 0
    else:  # tests/benchmarks/test_evidence_runner.py runs such commands
      assert argv[0] == "benchmarks.evidence"
      evidence._parser().parse_known_args(argv[1:])
  assert [programs.count(name) for name in sorted(set(programs))] == [4, 2, 7]
  out = capsys.readouterr().out
  assert "decision (action germinate" in out and "B4/9\tready\n" in out
  page = Path("comparison.html").read_text()
  assert "Comparison of 2 runs" in page


def test_the_figures_that_the_idea_quotes_are_those_of_the_results():
  text = " ".join((ROOT / "docs" / "idea.md").read_text().split())
  quoted = re.findall(r"[-+]?\d+\.\d+[a-zA-Z ]* \[[^\]]+\](?!\()", text)
  assert len(quoted) == 11
  names = ("RESULTS.md", "README.md")
  told = " ".join((ROOT / "benchmarks" / n).read_text() for n in names)
  for figure in quoted:
    assert figure in " ".join(told.split()), figure


def test_pictures_are_shown_and_have_a_title():
  pages = "".join(path.read_text() for path in PAGES)
  pictures = sorted((ROOT / "docs" / "figures").glob("*.svg"))
  assert pictures
  for path in pictures:
    assert f"](figures/{path.name})" in pages, path.name
    title = xml.parse(path).getroot().find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text, path.name


def _defined(path: Path) -> set[str]:
  """Functions and classes of a file, methods as Class.method."""
  found = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(node.name)
    if isinstance(node, ast.ClassDef):
      methods = (n for n in node.body if isinstance(n, ast.FunctionDef))
      found |= {f"{node.name}.{method.name}" for method in methods}
  return found


def test_what_the_architecture_names_exists():
  text = (ROOT / "docs" / "architecture.md").read_text()
  named = re.findall(r"`([\w/]+\.py)(?:::?([\w.]+))?`", text)
  assert len(named) > 100
  for name, inside in named:
    path = ROOT / ("" if name.startswith("tests/") else "esper_jax") / name
    assert path.is_file(), name
    assert not inside or inside in _defined(path), f"{name}:{inside}"


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
def test_commands_of_main_can_be_read(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  absent = ("--config=my_digits.py", "--config.host.from=exported")
  for program, *argv in commands(str(page)):
    if program == "main.py" and not set(argv) & set(absent):
      assert command_line.parse([program, *argv]) is not None, argv


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
