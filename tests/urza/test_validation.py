"""Evidence is made from what was found, here and on a GPU, and no other."""

import argparse
import importlib.util
import re

import pytest

from esper_jax import commands
from esper_jax.types import InputError
from esper_jax.urza import (
  aot,
  cli,
  compile,
  evidence,
  launching,
  orders,
  upkeep,
  validation,
  wire,
)
from esper_jax.urza.evidence import Status
from esper_jax.urza.judging import Measured
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.probe import Verdict
from esper_jax.urza.registry import open_registry
from tests.urza import crash_kernel, handmade, sample_kernel, wrong_kernel
from tests.urza.handmade import H100

KERNEL = KERNELS["blend_backward"]
ARGS = KERNEL.arguments("float32", KERNEL.shipped[0], 1, 1, 1)
# What XLA needs to know of an H100 SXM to compile for it.
H100_CONFIG = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  name: "NVIDIA H100 80GB HBM3"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def has(name):
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:
    return False


needs_triton = pytest.mark.skipif(not has("triton"), reason="needs Triton")
plugin = has("jax_plugins.xla_cuda12") or has("jax_plugins.xla_cuda13")


@pytest.fixture
def registry(tmp_path):
  return open_registry(layers=(tmp_path / "urza",))


def put(registry, kernel=KERNEL, args=ARGS, **options):
  artefact, files = handmade.artefact(kernel, *args, **options)
  registry.put(artefact, files)
  return artefact


def records(registry, artefact):
  return registry.record(artefact.key).evidence


# --- what is judged --------------------------------------------------------


def test_what_this_code_cannot_judge_is_left_out(registry):
  mine = put(registry)
  other = sample_kernel.KERNEL
  put(registry, other, other.arguments("float32", {"C": 16}, 1, 1, 1))
  assert validation.select(registry) == [mine]
  assert validation.select(registry, ["blend_backward"]) == [mine]
  assert validation.select(registry, ["blend_forward"]) == []


def test_a_name_says_what_it_is():
  args = KERNEL.arguments("bfloat16", KERNEL.shipped[0], 1, 1, 1)
  artefact, _ = handmade.artefact(KERNEL, *args, target=80)
  name = orders.name_of(artefact.spec)
  assert name.startswith("blend_backward bfloat16 LANES=16 ")
  assert "num_warps=" in name and name.endswith(" sm_80")


# --- the interpreter -------------------------------------------------------


@needs_triton
def test_the_interpreters_evidence_is_for_all_targets(registry):
  both = [put(registry), put(registry, target=80)]
  report = validation.interpret_all(registry, both)
  assert report == validation.Report("interpret", 2)
  for artefact in both:
    (record,) = records(registry, artefact)
    assert record["kind"] == "interpret" and record["ok"] is True
    assert len(record["cases"]) == 4  # two shapes, with and without NaN
    assert record["by"]["triton"] and record["by"]["jaxlib"]
    assert evidence.status([record], H100.kind) is Status.PENDING
  again = validation.interpret_all(registry, both)
  assert again.done == 0 and len(records(registry, both[0])) == 1
  assert again.text() == (
    "interpret: 2 already there (--again makes them anew)"
  )
  put(registry, target=75)
  mixed = validation.interpret_all(registry, validation.select(registry))
  assert mixed.text() == (
    "interpret: 1 record, 0 failures, 2 already there (--again makes them anew)"
  )


@needs_triton
def test_a_kernel_that_computes_something_else_is_rejected(
  registry, monkeypatch
):
  monkeypatch.setitem(KERNELS, "wrong_rows", wrong_kernel.KERNEL)
  args = wrong_kernel.KERNEL.arguments("float32", {"C": 16}, 1, 1, 1)
  artefact = put(registry, wrong_kernel.KERNEL, args)
  report = validation.interpret_all(registry, [artefact])
  ((name, reason),) = report.wrong
  assert name == orders.name_of(artefact.spec)
  assert re.fullmatch(
    r"at \dx\dx\d.*: result 0 has an error of .* \(allowed: 1.00e-06\)", reason
  )
  (record,) = records(registry, artefact)
  assert record["ok"] is False and record["reason"] == reason
  assert evidence.status([record], H100.kind) is Status.REJECTED


@needs_triton
def test_a_kernel_that_crashes_the_interpreter_is_rejected(
  tmp_path, monkeypatch, capsys
):
  kernel = crash_kernel.KERNEL
  monkeypatch.setitem(KERNELS, kernel.name, kernel)
  folder = tmp_path / "mine"
  registry = open_registry(layers=[folder])
  args = kernel.arguments("float32", {"C": 16}, 1, 1, 1)
  bad, good = put(registry, kernel, args), put(registry)
  assert validation.main(parse("--dir", str(folder))) == validation.REJECTED
  out = capsys.readouterr().out
  assert "interpret: 2 records, 1 failure\n" in out
  assert "the interpreter crashed (signal 11) on this kernel: are its" in out
  (record,) = records(registry, bad)
  assert record["ok"] is False and "signal 11" in record["reason"]
  assert evidence.status([record], H100.kind) is Status.REJECTED
  assert records(registry, good)[0]["ok"] is True


# --- a GPU that is not here ------------------------------------------------


def test_without_a_target_nothing_is_compiled(registry):
  report = validation.aot_all(registry, [put(registry)], None)
  assert report.text() == "xla_aot: skipped: no --target-config"


@pytest.mark.skipif(plugin, reason="jaxlib's CUDA plugin is installed")
def test_without_the_plugin_nothing_is_compiled(registry, tmp_path):
  file = tmp_path / "h100.txtpb"
  file.write_text(H100_CONFIG)
  report = validation.aot_all(registry, [put(registry)], file)
  assert report.done == 0
  assert report.skipped == "jaxlib's CUDA plugin is not installed"


def test_a_target_that_cannot_be_read_is_bad_input(registry, tmp_path):
  with pytest.raises(InputError, match="cannot read the target"):
    validation.aot_all(registry, [], tmp_path / "missing")


@needs_triton
@pytest.mark.skipif(not plugin, reason="needs jaxlib's CUDA plugin and PJRT")
def test_xla_compiles_kernels_for_an_absent_h100(registry, tmp_path):
  file = tmp_path / "h100.txtpb"
  file.write_text(H100_CONFIG)
  form = KERNEL.form(*ARGS)
  made = compile.compile_kernel(KERNEL, form, KERNEL.tiles(form)[0], 90)
  registry.put(made.artefact, made.files)
  broken = put(registry)  # its PTX is a comment
  report = validation.aot_all(registry, [made.artefact, broken], file)
  assert report.done == 2
  ((name, reason),) = report.wrong
  assert name == orders.name_of(broken.spec) and reason
  good, bad = (records(registry, a)[0] for a in (made.artefact, broken))
  assert (good["ok"], bad["ok"]) == (True, False)
  assert good["target"] == "NVIDIA H100 80GB HBM3" and good["by"]["jaxlib"]
  assert evidence.status([good], H100.kind) is Status.PENDING
  loaded = launching.Loaded(*registry.load(made.artefact.key))
  target = aot.described_device(file)
  args = KERNEL.arguments("float32", KERNEL.shipped[0], 2, 4, 4)
  text = aot.compile_for(target, KERNEL, loaded, args)
  assert text.count(wire.CALL_TARGET) == 1
  file.write_text("no GPU")
  with pytest.raises(InputError, match="describes no GPU"):
    aot.described_device(file)


# --- a GPU -----------------------------------------------------------------


def figures(**changes):
  made = handmade.gpu(**changes)
  apart = ("kind", "made", "by", "device_kind", "driver", "jaxlib")
  found = {name: value for name, value in made.items() if name not in apart}
  return Measured({"wrong": "", **found})


def judge_all(registry, artefacts, found, verdict=None):
  asked = []

  def first_use(key, device):
    asked.append(key)
    return verdict or Verdict(True, "")

  def judge(artefact, device):
    assert artefact.key in asked and device == H100
    return found

  return validation.gpu_all(
    registry, artefacts, H100, judge=judge, first_use=first_use
  )


def test_a_measured_kernel_is_validated_for_that_kind_alone(registry):
  artefact = put(registry)
  report = judge_all(registry, [artefact], figures(ratio=1.5))
  assert report == validation.Report("gpu", 1)
  found = records(registry, artefact)
  assert evidence.status(found, H100.kind) is Status.VALIDATED
  assert evidence.status(found, "another") is Status.PENDING
  assert found[0]["driver"] == H100.driver
  again = judge_all(registry, [artefact], figures())
  assert again.done == 0 and len(records(registry, artefact)) == 1


@pytest.mark.parametrize(
  "changes, reason",
  [
    ({"ratio": 1.1}, "too slow"),
    ({"max_error": 0.5, "wrong": "result 0"}, "result 0"),
    ({"deterministic": False}, "its results vary"),
  ],
)
def test_what_is_slow_or_wrong_is_rejected(registry, changes, reason):
  artefact = put(registry)
  report = judge_all(registry, [artefact], figures(**changes))
  assert report.done == 1
  found = records(registry, artefact)
  assert evidence.status(found, H100.kind) is Status.REJECTED
  slow = reason == "too slow"  # which is no failure
  assert len(report.slow) == slow and len(report.wrong) == (not slow)
  ((name, text),) = report.slow or report.wrong
  assert name == orders.name_of(artefact.spec) and text.startswith(reason)
  assert f"{name}: {'rejected, ' if slow else ''}{reason}" in report.text()


def test_what_fails_its_probe_is_not_measured(registry):
  artefact = put(registry)
  failed = Verdict(False, "off by 2")
  report = judge_all(registry, [artefact], None, verdict=failed)
  assert report.done == 0
  assert report.wrong == ((orders.name_of(artefact.spec), "off by 2"),)


def test_a_kernel_that_ends_its_process_is_not_used_again(registry):
  artefact = put(registry)
  crash = Measured(None, "exit code -11 without figures")
  report = judge_all(registry, [artefact], crash)
  assert report.wrong[0][1] == crash.failure
  (record,) = records(registry, artefact)
  assert record["kind"] == "probe" and record["ok"] is False
  noise = Measured(None, "noise", ran=False)
  judge_all(registry, [artefact], noise)
  assert len(records(registry, artefact)) == 1


def test_code_for_another_device_is_passed_by(registry):
  artefact = put(registry, target=100)
  assert judge_all(registry, [artefact], None).done == 0


# --- the command -----------------------------------------------------------


def parse(*argv):
  parser = argparse.ArgumentParser()
  validation.add_arguments(parser)
  return parser.parse_args(argv)


@needs_triton
def test_without_a_gpu_it_says_what_is_left_to_do(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
  folder = tmp_path / "mine"
  artefact = put(open_registry(str(folder)))
  args = parse("--dir", str(folder), "--kernel", "blend_backward")
  code = validation.main(args)
  out = capsys.readouterr().out
  assert code == validation.OK, out
  assert "xla_aot: skipped" in out
  assert out.endswith(
    "gpu: compiled, not run: no GPU here; to finish, on a GPU machine with"
    f" '.[cuda12]' installed: {commands.python()} -m esper_jax.urza validate &&"
    f" {commands.python()} -m benchmarks.kernels --json=kernels.json\n"
  )
  assert out.startswith(f"1 artefact; evidence goes to {folder}\n")
  kinds = {r["kind"] for r in records(open_registry(str(folder)), artefact)}
  assert kinds == {"interpret"}


@needs_triton
def test_a_folder_that_is_named_is_judged_by_itself(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
  folder = tmp_path / "mine"
  here = put(open_registry(layers=[folder]), target=80)
  home = open_registry()
  known = put(home, target=80)  # what is known of it elsewhere does not count
  assert known == here
  validation.interpret_all(home, [known])
  put(home, target=75)  # and what is only there is not judged
  assert validation.main(parse("--dir", str(folder))) == validation.OK
  assert "interpret: 1 record, 0 failures\n" in capsys.readouterr().out
  alone = open_registry(layers=[folder])
  assert [r["kind"] for r in records(alone, here)] == ["interpret"]
  assert upkeep.verify(alone) == ()
  # On another machine, where there is no such home.
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "fresh"))
  assert cli.main(["verify", "--dir", str(folder)]) == cli.OK


@needs_triton
def test_without_a_folder_the_users_gets_evidence_about_the_packages(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr("esper_jax.urza.registry.PACKAGE", tmp_path / "package")
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
  put(open_registry(layers=[tmp_path / "package"]))
  assert validation.main(parse()) == validation.OK
  assert f"evidence goes to {tmp_path}/home/" in capsys.readouterr().out
  assert list((tmp_path / "home").rglob("evidence/*/*.json"))
  assert not (tmp_path / "package" / "evidence").exists()
  assert cli.main(["verify"]) == cli.OK


def test_nothing_to_judge_is_bad_input(tmp_path):
  folder = tmp_path / "mine"
  with pytest.raises(InputError, match=f"no such folder: {folder}"):
    validation.main(parse("--dir", str(folder)))
  assert not folder.exists()
  folder.mkdir()
  with pytest.raises(
    InputError, match=f"no artefact to judge in {folder}; .* --dir={folder}"
  ):
    validation.main(parse("--dir", str(folder)))
  with pytest.raises(
    InputError, match="unknown kernel 'nope'; there are .*blend_forward"
  ):
    validation.main(parse("--kernel", "nope"))
