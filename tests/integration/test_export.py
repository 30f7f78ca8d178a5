"""A finished run is taken home, and used without our code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esper_jax.oona import lineage
from esper_jax.types import InputError

ROOT = Path(__file__).parents[2]
TIMEOUT = 300  # seconds

# A user's program: ours cannot be imported in it.
USER = """
import sys
sys.modules["esper_jax"] = None
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from jax import export
import model

images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
program = (Path(sys.argv[1]) / "network.stablehlo").read_bytes()
first = model.Network().apply(model.load(), images)
second = export.deserialize(bytearray(program)).call(images)
assert first.shape == (3, 10) and first.dtype == "float32"
print(float(np.abs(first - second).max()))
"""


def python(env, *arguments):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=env,
    text=True,
    capture_output=True,
    timeout=TIMEOUT,
  )


@pytest.fixture(scope="module")
def exported(whole, env, tmp_path_factory):
  """The folder, from the command."""
  to = tmp_path_factory.mktemp("export") / "out"
  done = python(env, "-m", "esper_jax.export", str(whole.path), f"--to={to}")
  assert done.returncode == 0, done.stderr
  return to


def test_the_network_of_the_run_is_there(exported, whole):
  topology = json.loads((exported / lineage.TOPOLOGY).read_text())
  report = json.loads((exported / lineage.REPORT).read_text())
  permanent = {
    (event["slot"], event["key"])
    for event in whole.events("germinated")
    if event["blueprint"] == "dense"
  }
  assert {(s["slot"], s["key"]) for s in topology["seeds"]} == permanent
  assert topology["parameters"] == whole.result["params_final"]
  assert report["status"] == "completed"
  assert set(report["max_abs_difference"]) == {
    "load_grown",
    lineage.MODULE,
    lineage.PROGRAM,
  }
  story = json.loads((exported / lineage.LINEAGE).read_text())["entries"]
  kinds = [entry["type"] for entry in story]
  assert kinds[0] == "began" and kinds[-1] == "exported"
  assert kinds.count("germinated") == whole.result["germinated"]
  assert kinds.count("culled") == whole.result["culled"]


def test_a_user_needs_none_of_our_code(exported, env):
  done = python(env, "-c", USER, str(exported))
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) < 1e-4


@pytest.mark.parametrize(
  "name", [*sorted({*lineage.FILES} - {lineage.SEEDS}), lineage.LINEAGE]
)
def test_what_was_tampered_with_is_refused_by_name(exported, name, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(exported, copy)
  lineage.verify(copy)
  data = bytearray((copy / name).read_bytes())
  middle = len(data) // 2
  data[middle] = ord("7") if data[middle] != ord("7") else ord("8")
  (copy / name).write_bytes(data)
  with pytest.raises(InputError, match=name):
    lineage.verify(copy)


def test_the_command_that_verifies_needs_no_jax(exported, env):
  code = (
    "import sys; from esper_jax.export import command_line;"
    "code = command_line.main(sys.argv[1:]);"
    "sys.exit(9 if 'jax' in sys.modules else code)"
  )
  done = python(env, "-c", code, "verify", str(exported))
  assert done.returncode == 0, done.stderr
