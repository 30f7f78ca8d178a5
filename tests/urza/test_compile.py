"""Compiling without a GPU: equal bytes, no traces, and what is refused."""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys

import pytest

from esper_jax import commands
from esper_jax.types import InputError
from esper_jax.urza import compile as compiling
from esper_jax.urza.artefact import from_document, to_document
from esper_jax.urza.compile import CompilationError, compile_kernel
from esper_jax.urza.kernel import handle_of
from tests.urza import odd_kernels, sample_kernel

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

KERNEL = sample_kernel.KERNEL
SHAPE = (2, 3, 5)


def form(dtype="float32", channels=64):
  return KERNEL.form(*KERNEL.arguments(dtype, {"C": channels}, *SHAPE))


def fresh(target=80, dtype="float32", tile=0, kernel=KERNEL):
  tiles = kernel.tiles(form(dtype))[tile]
  return compile_kernel(kernel, form(dtype), tiles, target)


made = functools.cache(fresh)


def odd(source, target=90, x="*fp32", **tiles):
  kernel = odd_kernels.made_of(source, **tiles)
  form = odd_kernels.form(x, C=16)
  return compile_kernel(kernel, form, kernel.tiles(form)[0], target)


@pytest.mark.parametrize("target", [75, 80, 86, 89, 90, 100])
def test_every_target_gets_ptx_that_old_assemblers_know(target):
  compiled = made(target)
  assert compiled.facts["ptx_version"] == "8.7"
  assert b"\n.version 8.7\n" in compiled.files["ptx"]
  assert re.search(rb"^\.target sm_%da?$" % target, compiled.files["ptx"], re.M)
  assert compiled.facts["ok"]
  assert target in compiled.facts["assembled_for"]
  assert compiled.cubin.startswith(b"\x7fELF")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_spec_gives_the_same_bytes(dtype):
  first, second = fresh(90, dtype), fresh(90, dtype)
  assert first.files == second.files
  assert first.artefact == second.artefact
  assert first.facts == second.facts


def elsewhere(tmp_path, monkeypatch, *replacements):
  """The sample kernel's module again, at another place, with other text."""
  text = inspect.getsource(sample_kernel)
  for old, new in (*replacements, ("\n@jit\n", "\n# A remark.\n\n\n@jit\n")):
    text = text.replace(old, new)
  place = tmp_path / "elsewhere.py"
  place.write_text(text)
  spec = importlib.util.spec_from_file_location("elsewhere", place)
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, "elsewhere", module)
  spec.loader.exec_module(module)
  return module


def test_where_the_source_stands_changes_nothing(tmp_path, monkeypatch):
  shared = (
    "\n@jit\ndef doubled(value):\n  return value + value\n",
    "\nfrom tests.urza.sample_kernel import doubled\n",
  )
  moved = elsewhere(tmp_path, monkeypatch, shared).KERNEL
  assert moved.source is not KERNEL.source
  assert fresh(kernel=moved).files == made().files
  assert fresh(kernel=moved).artefact.key == made().artefact.key


def test_where_a_helper_stands_is_part_of_the_identity(tmp_path, monkeypatch):
  # Triton writes the name of a helper's module.
  moved = elsewhere(tmp_path, monkeypatch).KERNEL
  assert b"elsewhere.doubled" in fresh(kernel=moved).files["ttir"]
  assert fresh(kernel=moved).artefact.key != made().artefact.key


def test_a_file_that_changes_under_a_kernel_is_noticed(tmp_path, monkeypatch):
  moved = elsewhere(tmp_path, monkeypatch).KERNEL
  before = moved.source.digest
  place = tmp_path / "elsewhere.py"
  place.write_text(place.read_text().replace("* 0.5", "* 0.25"))
  assert moved.source.digest == before
  with pytest.raises(InputError, match="changed after it was imported"):
    fresh(kernel=moved)


def test_no_path_and_no_line_is_in_the_files():
  for data in made().files.values():
    assert b".py" not in data
    assert b"/" not in re.sub(rb"^//.*|\s// .*", b"", data, flags=re.M)
    assert b".loc" not in data and b".file" not in data


def test_the_artefact_describes_what_was_made():
  compiled = made(tile=1)
  artefact = compiled.artefact
  assert from_document(to_document(artefact)) == artefact
  assert artefact.spec.handle == handle_of(KERNEL, form())
  assert dict(artefact.spec.tiles)["BM"] == 64
  assert artefact.launch.num_warps == 4
  assert artefact.launch.entry == "scale_rows"
  assert artefact.launch.shared == compiled.facts["shared"] == 0
  assert made(tile=0).artefact.key != artefact.key


def test_pointers_are_aligned_and_scalars_hold_any_value():
  ttir = made().files["ttir"].decode()
  signature = next(x for x in ttir.splitlines() if "tt.func public" in x)
  parameters = re.findall(r"%(\w+): (\S+) ?(\{[^}]*\})?", signature)
  aligned = "{tt.divisibility = 16 : i32}"
  assert parameters == [
    ("x", "!tt.ptr<f32>", aligned),
    ("scale", "!tt.ptr<f32>", aligned),
    ("y", "!tt.ptr<f32>", aligned),
    ("rows", "i32", ""),
  ]


def test_the_launch_passes_every_pointer_and_scalar_and_two_of_its_own():
  # jaxlib adds two pointers to scratch memory, which are null.
  ptx = made().files["ptx"].decode()
  entry = ptx[ptx.index(".visible .entry") : ptx.index(")\n")]
  kinds = re.findall(r"\.param \.(u\d+)", entry)
  assert kinds == ["u64", "u64", "u64", "u32", "u64", "u64"]


def test_multiplying_and_adding_is_fused():
  assert dict(compiling.OPTIONS)["enable_fp_fusion"] is True


def test_the_process_is_left_as_it_was():
  import triton

  before = dict(os.environ)
  fresh()
  assert dict(os.environ) == before
  assert not triton.knobs.compilation.disable_line_info


def test_the_cache_of_triton_is_not_asked(tmp_path, monkeypatch):
  monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
  monkeypatch.setenv("TRITON_HOME", str(tmp_path))
  fresh()
  assert not [*tmp_path.iterdir()]


def test_threads_compile_what_one_thread_does():
  targets = [75, 80, 90, 80]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    parallel = list(pool.map(fresh, targets))
  for target, compiled in zip(targets, parallel, strict=True):
    assert compiled.files == made(target).files


@pytest.mark.parametrize(
  "name", ["TRITON_INTERPRET", "DISABLE_LLVM_OPT", "TRITON_F32_DEFAULT"]
)
def test_an_environment_that_changes_the_code_is_refused(name, monkeypatch):
  monkeypatch.setenv(name, "1")
  with pytest.raises(InputError, match=f"{name} would change .* unset it"):
    fresh()


def test_an_unknown_target_lists_those_there_are():
  with pytest.raises(InputError, match="target 70; .* 75, 80, 86, 89, 90, 100"):
    fresh(70)


def test_without_triton_it_says_how_to_install_it(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "version", missing)
  with pytest.raises(InputError, match=r"pip install -e '\.\[triton\]'"):
    fresh()


@pytest.mark.parametrize(
  ("source", "reason"),
  [
    (odd_kernels.wants_scratch, "needs scratch memory"),
    (odd_kernels.uses_a_global, "uses FACTOR of its module"),
    (
      odd_kernels.does_not_add_up,
      r"^ValueError: .*16 and 32, at 'tl.store\(y \+ tl.arange.*'$",
    ),
  ],
)
def test_what_cannot_be_launched_or_compiled_says_why(source, reason):
  with pytest.raises(CompilationError, match=reason) as caught:
    odd(source)
  assert "\n" not in str(caught.value)


def test_tensor_descriptors_are_refused():
  with pytest.raises(CompilationError, match="needs tensor descriptors"):
    odd(odd_kernels.wants_a_descriptor, x="tensordesc<fp32[16,16]>")


def test_a_kernel_that_is_too_large_for_a_target_says_so():
  facts = odd(odd_kernels.gathers, 75, BM=2**15, num_warps=32).facts
  assert facts["shared"] == 2**17
  assert not facts["ok"]
  assert facts["assembled_for"] == [80, 90, 100]


def test_tiles_that_do_not_fit_the_source_are_refused():
  tiles = {"num_warps": 4, "num_stages": 1, "ROWS": 8}
  with pytest.raises(CompilationError, match="ROWS; its parameters are x, sc"):
    compile_kernel(KERNEL, form(), tiles, 80)


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"source": "0" * 64}, "from a source that is not here any more"),
    (
      {"triton": "3.8.0"},
      rf"with Triton 3.8.0, and .* {commands.pip()} install triton==3",
    ),
    ({"options": (("num_ctas", 2),)}, "with options"),
  ],
)
def test_a_spec_is_compiled_again_only_by_what_made_it(change, reason):
  spec = dataclasses.replace(made().artefact.spec, **change)
  with pytest.raises(InputError, match=reason):
    compiling.compile_spec(KERNEL, spec)
