"""Building into a registry, and checking what it holds.

ESPER_TEST_FULL=1 compiles again everything that the package brings, instead of
one small artefact of each kernel.
"""

import dataclasses
import hashlib
import importlib.util
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esper_jax.types import InputError
from esper_jax.urza import (
  assembler,
  author,
  comparison,
  compile,
  evidence,
  orders,
)
from esper_jax.urza.artefact import Artefact, File, to_document
from esper_jax.urza.evidence import Status
from esper_jax.urza.kernel import Unsuitable, canonical, handle_of
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.registry import PACKAGE, Registry, open_registry
from tests.urza import odd_kernels, sample_kernel

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

FULL = os.environ.get("ESPER_TEST_FULL") == "1"
ROOT = Path(__file__).parents[2]
KERNEL = sample_kernel.KERNEL._replace(shipped=({"C": 16},))
# Where it is compiled only to look at the registry, one is enough.
ONE = {"targets": (80,), "dtypes": ("float32",)}


class Log(list[str]):
  """Takes lines."""

  __call__ = list.append


def registry_in(path: Path) -> Registry:
  return open_registry(layers=[path])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A registry with one artefact, not to be changed."""
  registry = registry_in(tmp_path_factory.mktemp("built"))
  assert author.build(registry, [KERNEL], **ONE, report=Log()) == []
  return registry


@pytest.fixture
def own(built, tmp_path):
  """A copy of it."""
  (key,) = built.keys()
  registry = registry_in(tmp_path)
  registry.put(*built.load(key))
  for record in built.record(key).evidence:
    registry.append(key, record)
  return registry


def check(registry, **changes):
  return comparison.differences(
    registry, [KERNEL], **(ONE | changes), report=Log()
  )


def test_requests_are_all_that_a_kernel_ships():
  kernel = KERNEL._replace(shipped=({"C": 16}, {"C": 64}))
  asked = [
    (r.constants["C"], r.dtype, r.target) for r in orders.requests([kernel])
  ]
  assert asked == [
    (16, "float32", 75),
    (16, "bfloat16", 80),
    (16, "bfloat16", 90),
    (64, "float32", 75),
    (64, "bfloat16", 80),
    (64, "bfloat16", 90),
  ]
  newest = orders.requests([KERNEL], (100, 90), ("float32", "bfloat16"))
  assert [(r.dtype, r.target) for r in newest] == [
    ("float32", 90),
    ("bfloat16", 90),
    ("bfloat16", 100),
  ]


def test_what_is_asked_for_is_built_and_found(tmp_path):
  registry, log = registry_in(tmp_path), Log()
  assert author.build(registry, [KERNEL], report=log) == []
  found = set()
  for request in orders.requests([KERNEL]):
    artefacts, damages = registry.find(handle_of(KERNEL, request.form))
    assert not damages
    found |= {(a.spec.handle, a.spec.target) for a in artefacts}
    assert request.target in [a.spec.target for a in artefacts]
  assert len(found) == len(registry.keys()) == len(log) == 3
  assert re.fullmatch(
    r"scale_rows float32 C=16 sm_75: [0-9a-f]{12} built, \d+ registers,"
    r" no spills, 0 bytes shared, \d+ kB of PTX \(\d+\.\d s\)",
    log[0],
  )


def test_each_artefact_has_static_evidence_and_waits_for_a_gpu(built):
  (key,) = built.keys()
  (record,) = built.record(key).evidence
  assert record["kind"] == "static" and record["ok"]
  assert record["assembled_for"] == [80, 86, 89, 90, 100]
  assert record["by"]["triton"] == compile.triton_version()
  assert evidence.status([record], "NVIDIA H100 80GB HBM3") is Status.PENDING


def test_what_is_there_is_not_built_again(own):
  before = own.record(*own.keys())
  log = Log()
  assert author.build(own, [KERNEL], **ONE, report=log) == []
  assert "is there" in log[0]
  assert own.record(*own.keys()) == before


def test_what_is_damaged_is_built_again(own):
  (key,) = own.keys()
  artefact, files = own.load(key)
  blob = own.folders[0].path / "blobs" / artefact.files["ptx"].sha256
  blob.write_bytes(b"not what was stored")
  assert author.build(own, [KERNEL], **ONE, report=Log()) == []
  assert own.load(key) == (artefact, files)
  assert len(own.record(key).evidence) == 1


def test_one_failure_keeps_no_other_kernel_from_being_built(tmp_path):
  def refuse(x, scale):
    raise Unsuitable("it is not for 16 channels")

  mistaken = odd_kernels.made_of(odd_kernels.does_not_add_up)
  kernels = [
    mistaken._replace(shipped=({"C": 16},)),
    KERNEL._replace(name="refuses", form=refuse),
    KERNEL._replace(name="has_no_tiles", tiles=lambda form: ()),
    KERNEL,
  ]
  registry, log = registry_in(tmp_path), Log()
  failures = author.build(registry, kernels, **ONE, report=log)
  assert [line.split(": ")[0] for line in failures] == [
    "does_not_add_up float32 C=16 sm_80",
    "refuses float32 C=16 sm_80",
    "has_no_tiles float32 C=16 sm_80",
  ]
  assert log[:3] == [f"FAILED {line}" for line in failures]
  assert "16 and 32, at 'tl.store" in failures[0]
  assert failures[1].endswith("Unsuitable: it is not for 16 channels")
  assert failures[2].endswith("it has no tiles")
  assert len(registry.keys()) == 1


def test_the_first_tiles_that_fit_the_target_are_taken(tmp_path):
  large, small = (
    {"BM": rows, "num_warps": 32, "num_stages": 1} for rows in (2**15, 2**10)
  )
  kernel = odd_kernels.made_of(odd_kernels.gathers)._replace(
    shipped=({"C": 16},), tiles=lambda form: (large, small)
  )
  registry = registry_in(tmp_path)
  for _ in range(2):
    author.build(registry, [kernel], (75, 80), report=Log())
    specs = [registry.record(key).artefact.spec for key in registry.keys()]
    assert {(s.target, dict(s.tiles)["BM"]) for s in specs} == {
      (75, 2**10),
      (80, 2**15),
    }
  kernel = kernel._replace(tiles=lambda form: (large,))
  failures = author.build(registry, [kernel], (75,), report=Log())
  assert "no tiles fit sm_75" in failures[0]


def test_without_triton_nothing_is_built(tmp_path, monkeypatch):
  def missing(name):
    raise compile.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(compile.importlib.metadata, "version", missing)
  registry = registry_in(tmp_path)
  with pytest.raises(InputError, match="pip install -e '..triton.'"):
    author.build(registry, [KERNEL], report=Log())


def test_a_check_finds_nothing_where_all_is_as_built(own):
  assert check(own) == []


def test_a_check_misses_what_is_not_there(own, tmp_path):
  (line,) = check(own, targets=(75, 80))
  assert line == "scale_rows float32 C=16 sm_75: missing"


def test_a_check_finds_damage(own):
  (key,) = own.keys()
  sha256 = own.load(key)[0].files["ttir"].sha256
  (own.folders[0].path / "blobs" / sha256).unlink()
  (line,) = check(own)
  assert "sm_80: " in line and sha256 in line


def forged(artefact: Artefact, files, **changes: bytes):
  """Another artefact of the same key that describes its files as well."""
  files = dict(files) | changes
  described = {
    name: File(hashlib.sha256(data).hexdigest(), len(data))
    for name, data in files.items()
  }
  return dataclasses.replace(artefact, files=described), files


@pytest.mark.parametrize("name", ["ptx", "ttir"])
def test_a_check_finds_code_that_no_build_makes(built, tmp_path, name):
  artefact, files = built.load(*built.keys())
  other = files[name].replace(b"32", b"33", 1)
  registry = registry_in(tmp_path)
  registry.put(*forged(artefact, files, **{name: other}))
  (line,) = check(registry)
  assert line.endswith(f"the {name} is not what a build makes")


def test_a_check_finds_another_launch(built, tmp_path):
  artefact, files = built.load(*built.keys())
  launch = dataclasses.replace(artefact.launch, shared=64)
  registry = registry_in(tmp_path)
  registry.put(dataclasses.replace(artefact, launch=launch), files)
  (line,) = check(registry)
  assert "it is launched with Launch(entry='scale_rows'" in line


def test_a_check_finds_figures_that_are_not_so(built, tmp_path):
  (key,) = built.keys()
  registry = registry_in(tmp_path)
  registry.put(*built.load(key))
  (record,) = built.record(key).evidence
  registry.append(key, {**record, "registers": record["registers"] - 1})
  (line,) = check(registry)
  assert line.endswith("no static record has its figures")


def test_a_check_finds_what_no_kernel_explains(own):
  changed = KERNEL._replace(
    source=odd_kernels.gathers,
    form=odd_kernels.made_of(odd_kernels.gathers).form,
  )
  problems = comparison.differences(own, [changed], **ONE, report=Log())
  assert [line.split(": ")[1] for line in problems] == [
    "missing",
    "scale_rows was compiled from a source that is not here any more",
  ]
  others = [KERNEL._replace(name="other")]
  problems = comparison.differences(own, others, **ONE, report=Log())
  assert problems[1].endswith("there is no such kernel")
  problems = comparison.differences(
    own, others, **ONE, strangers=False, report=Log()
  )
  assert len(problems) == 1


def test_pruning_leaves_what_would_be_built(own, built):
  (key,) = own.keys()
  author.prune(own, [KERNEL], report=Log())
  assert own.load(key) == built.load(key)
  author.prune(own, [KERNEL._replace(name="other")], report=Log())
  assert own.keys() == (key,)


@pytest.mark.parametrize(
  "change",
  [
    {"shipped": ({"C": 64},)},
    {
      "source": odd_kernels.gathers,
      "form": odd_kernels.made_of(odd_kernels.gathers).form,
    },
  ],
)
def test_pruning_deletes_what_would_not_be_built(own, change):
  log = Log()
  author.prune(own, [KERNEL._replace(**change)], report=log)
  assert own.keys() == () and log[0].endswith("deleted")
  assert not [p for p in own.folders[0].path.rglob("*") if p.is_file()]


def command(*words: str, **environment: str):
  done = subprocess.run(
    [sys.executable, "-m", "esper_jax.urza", "build", *words],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout.splitlines(), done.stderr


def test_the_command_builds_into_the_folder_of_the_user(tmp_path):
  # Targets for which the package brings nothing; one for each of two threads.
  words = ("--kernel=blend_backward", "--targets=86,89", "--dtypes=bfloat16")
  code, lines, errors = command(*words, XDG_DATA_HOME=str(tmp_path))
  assert (code, errors) == (0, "")
  assert re.match("blend_backward bfloat16 LANES=16 sm_86: .* built", lines[0])
  assert re.match("blend_backward bfloat16 LANES=16 sm_89: .* built", lines[1])
  folder = tmp_path / "esper_jax" / "urza"
  assert lines[2:] == [f"all built; written to {folder}"]
  first, second = registry_in(folder).keys()

  artefact, _ = registry_in(folder).load(first)
  launch = dataclasses.replace(artefact.launch, num_warps=8)
  altered = to_document(dataclasses.replace(artefact, launch=launch))
  (folder / "artefacts" / f"{first}.json").write_bytes(canonical(altered))
  code, lines, errors = command(*words, "--check", f"--dir={folder}")
  assert (code, errors) == (1, "")
  assert lines[0].startswith("DIFFERENT blend_backward bfloat16 ")
  assert lines[1].endswith("fine")
  assert lines[2] == f"1 differences; looked at {folder}"
  code, lines, errors = command(*words, "--check", f"--dir={tmp_path}/none")
  assert (code, lines) == (2, [])
  assert errors.startswith(f"error: no such folder: {tmp_path}/none; ")
  assert errors.count("\n") == 1 and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
  ("words", "reason"),
  [
    (["--kernel=warp"], "unknown kernel 'warp'; there are .*blend_forward"),
    (["--targets=80,70"], "unknown target '70'; there are 75, 80, 86"),
    (["--dtypes=int8"], "unknown dtype 'int8'; there are float32, bfloat16"),
  ],
)
def test_unknown_names_list_those_there_are(words, reason, tmp_path):
  parser = author.argparse.ArgumentParser()
  author.add_arguments(parser)
  with pytest.raises(InputError, match=reason):
    author.main(parser.parse_args([*words, f"--dir={tmp_path}"]))


# What the package brings.


def shipped() -> dict[str, Artefact]:
  registry = open_registry(layers=[PACKAGE])
  return {key: registry.record(key).artefact for key in registry.keys()}


def test_the_package_brings_every_kernel_for_every_target():
  found = {(a.spec.handle, a.spec.target) for a in shipped().values()}
  wanted = {
    (handle_of(request.kernel, request.form), request.target)
    for request in orders.requests(KERNELS.values())
  }
  assert found >= wanted


def test_what_the_package_brings_has_static_evidence_and_is_small():
  registry = open_registry(layers=[PACKAGE])
  for key in shipped():
    records = registry.record(key).evidence
    static = [r for r in records if r["kind"] == "static"]
    assert static and all(r["ok"] for r in static)
    assert {r["ptx_version"] for r in static} == {"8.7"}
  files = [p for p in PACKAGE.rglob("*") if p.is_file()]
  assert sum(p.stat().st_size for p in files) < 5e6


def test_the_package_brings_what_a_build_makes():
  registry = open_registry(layers=[PACKAGE])
  if FULL:
    assert comparison.differences(registry, KERNELS.values()) == []
    return
  for kernel in KERNELS.values():
    own = [a for a in shipped().values() if a.spec.kernel == kernel.name]
    own.sort(key=lambda artefact: artefact.files["ptx"].size)
    chosen = random.choice(own[: len(own) // 3 + 1])
    name = orders.name_of(chosen.spec)
    assert comparison.difference(registry, chosen.key, kernel) == "", name


@pytest.mark.skipif(not FULL, reason="assembles hundreds of times")
def test_what_the_assembler_takes_it_assembles():
  registry = open_registry(layers=[PACKAGE])
  for key in shipped():
    ptx = registry.load(key)[1]["ptx"]
    (static, *_) = [
      r for r in registry.record(key).evidence if r["kind"] == "static"
    ]
    for target in static["assembled_for"]:
      assembler.assemble(ptx, target)
