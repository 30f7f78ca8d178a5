"""A kernel's first use is judged apart; whatever happens there is a verdict."""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.urza import evidence, launching, numerics, probe
from esper_jax.urza.kernels import blend_backward
from esper_jax.urza.probe import Verdict
from esper_jax.urza.registry import open_registry
from tests.urza import handmade, sample_kernel
from tests.urza.handmade import H100

SAMPLE = sample_kernel.KERNEL
# One that the package has, so that its artefacts are known.
KERNEL = blend_backward.KERNEL
CONSTANTS = KERNEL.shipped[0]
right = jax.jit(SAMPLE.reference)
right_blend = jax.jit(KERNEL.reference)


def check(launch, dtype="float32"):
  return numerics.check(launch, SAMPLE, dtype, {"C": 16})


@pytest.fixture
def registry(tmp_path):
  return open_registry(layers=(tmp_path / "urza",))


@pytest.fixture
def artefact(registry):
  made = handmade.artefact(
    KERNEL, *KERNEL.arguments("float32", CONSTANTS, 1, 1, 1)
  )
  registry.put(*made)
  return made[0]


# --- what is compared ------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_kernel_passes(dtype):
  found = check(right, dtype)
  assert found.ok and found.reason == ""
  assert found.error <= found.tolerance == SAMPLE.tolerance[dtype]


def test_one_wrong_element_of_one_shape_fails():
  def launch(*args):
    (y,) = right(*args)
    if y.shape[1:3] == (13, 11):
      y = y.at[-1, -1, -1, -1].add(0.1)
    return (y,)

  found = check(launch)
  assert not found.ok
  assert found.reason.startswith("at 3x13x11: result 0 has an error of")
  assert found.tolerance < found.error < 0.2


def test_an_error_of_more_than_a_rounding_fails_in_bfloat16():
  def launch(*args):
    return (right(*args)[0] * jnp.bfloat16(1.05),)

  assert "result 0 has an error of" in check(launch, "bfloat16").reason


def test_nan_must_pass_through():
  def launch(*args):
    return tuple(map(jnp.nan_to_num, right(*args)))

  reason = check(launch).reason
  assert "with NaN and infinities: result 0 is not finite where it" in reason


def test_nan_must_not_appear():
  def launch(*args):
    return (right(*args)[0].at[..., 0].set(jnp.nan),)

  assert "at 1x1x1: result 0 is not finite" in check(launch).reason


def test_shape_dtype_and_number_must_be_right():
  cut = check(lambda *a: (right(*a)[0][..., 1:],)).reason
  assert "result 0 is float32[1, 1, 1, 15], not float32[1, 1, 1, 16]" in cut
  half = check(lambda *a: (right(*a)[0].astype(jnp.bfloat16),)).reason
  assert "result 0 is bfloat16[1, 1, 1, 16], not float32" in half
  assert "0 results, not 1" in check(lambda *a: ()).reason


def test_what_is_raised_is_the_reason():
  def launch(*args):
    raise RuntimeError("INTERNAL: an illegal address\nand much more")

  reason = "at 1x1x1 it raised RuntimeError: INTERNAL: an illegal address"
  assert check(launch).reason == reason


def test_results_that_vary_are_found():
  args = [np.ones(3, np.float32)]
  assert numerics.deterministic(lambda x: (x, x + 1), args)
  turns = iter((0.0, 0.0, np.finfo(np.float32).tiny))
  assert not numerics.deterministic(lambda x: (x * next(turns),), args)


# --- the artefact ----------------------------------------------------------


def test_an_artefact_is_judged_by_its_own_kernel(artefact):
  def wrong(*args):
    return tuple(x + 0.1 for x in right_blend(*args))

  assert probe.judge(artefact, right_blend) == Verdict(True, "")
  found = probe.judge(artefact, wrong)
  assert not found.ok and found.ran and "result 0 has an error" in found.reason


def test_an_artefact_of_another_text_cannot_be_judged():
  shape = jnp.zeros((1, 16)), jnp.zeros(16)
  other, _ = handmade.artefact(sample_kernel.KERNEL, *shape)
  found = probe.judge(other, right)
  assert not found.ok and not found.ran
  assert found.reason.startswith("no such kernel here")


def test_a_full_memory_says_nothing_about_a_kernel(artefact):
  def launch(*args):
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

  found = probe.judge(artefact, launch)
  assert not found.ok and not found.ran


def test_machine_code_for_another_device_is_not_launched(artefact):
  files = handmade.artefact(
    KERNEL, *KERNEL.arguments("float32", CONSTANTS, 1, 1, 1)
  )[1]
  old = H100._replace(target=75)

  def judge(launch):
    return probe.judge(artefact, launch)

  loaded = launching.Loaded(artefact, files)
  reason = judge(launching.launcher(KERNEL, loaded, old)).reason
  assert reason == "at 1x1x1: blend_backward: stored for sm_90, not for sm_75"
  # Here, without a GPU, the launch itself is the reference.
  assert judge(launching.launcher(KERNEL, loaded, H100)).ok


# --- the process apart -----------------------------------------------------


def says(code, *, key=None, **document):
  """Python that prints a verdict on the last argument but five, and ends."""
  given = "sys.argv[1]" if key is None else repr(key)
  text = (
    "import json, sys; print('noise');"
    f" print(json.dumps({document!r} | dict(key={given}))); sys.exit({code})"
  )
  return (sys.executable, "-c", text)


def run(registry, artefact, command, timeout=60.0):
  ask = probe.make_probe(registry, timeout=timeout, command=command)
  return ask(artefact.key, H100)


def records(registry, artefact):
  return registry.record(artefact.key).evidence


def test_a_good_verdict_is_recorded(registry, artefact):
  command = says(probe.PASSED, ok=True, ran=True, reason="")
  assert run(registry, artefact, command) == Verdict(True, "")
  (record,) = records(registry, artefact)
  assert record["kind"] == "probe" and record["ok"] is True
  assert evidence.probed([record], H100.kind, H100.driver, H100.jaxlib)
  assert record["by"]["jaxlib"]
  assert evidence.status([record], H100.kind) is evidence.Status.PENDING


def test_a_bad_verdict_is_recorded(registry, artefact):
  command = says(probe.FAILED, ok=False, ran=True, reason="off by 2")
  assert run(registry, artefact, command) == Verdict(False, "off by 2")
  (record,) = records(registry, artefact)
  assert record["ok"] is False and record["reason"] == "off by 2"


BEGIN = f"print({probe.LAUNCHING!r}, flush=True);"
CRASHES = {
  "SIGSEGV": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
  "SIGABRT": "import os; os.abort()",
  "exit code 7 without a verdict": "raise SystemExit(7)",
  "exit code 0 without a verdict": "print('all is well')",
  "without a verdict": "print('[1, 2]')",
}


@pytest.mark.parametrize("reason", CRASHES)
def test_a_crash_is_a_verdict(registry, artefact, reason):
  text = CRASHES[reason]
  found = run(registry, artefact, (sys.executable, "-c", BEGIN + text))
  assert not found.ok and found.ran and reason in found.reason
  (record,) = records(registry, artefact)
  assert record["ok"] is False and record["reason"] == found.reason
  # Before the launch it is no news about the kernel.
  early = run(registry, artefact, (sys.executable, "-c", text))
  assert early == found._replace(ran=False)
  assert len(records(registry, artefact)) == 1


def test_a_verdict_that_its_exit_code_denies_is_none(registry, artefact):
  for code, fields in (
    (0, {"ok": False}),
    (1, {"ok": True}),
    (0, {"key": "another"}),
    (0, {"ok": 1}),
    (0, {"reason": None}),
  ):
    whole = {"ok": True, "ran": True, "reason": ""} | fields
    found = run(registry, artefact, says(code, **whole))
    assert found.reason == f"exit code {code} without a verdict"


def test_a_process_that_hangs_is_ended_with_what_it_started(
  registry, artefact, tmp_path
):
  mark = tmp_path / "mark"
  child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
  text = (
    "import subprocess, sys, time;"
    f" {BEGIN} subprocess.Popen([sys.executable, '-c', {child!r}]);"
    " time.sleep(60)"
  )
  start = time.monotonic()
  found = run(registry, artefact, (sys.executable, "-c", text), timeout=1.0)
  assert time.monotonic() - start < 20
  assert not found.ok and found.reason == "no verdict within 1 seconds"
  assert len(records(registry, artefact)) == 1
  time.sleep(max(0.0, start + 4.5 - time.monotonic()))
  assert not mark.exists()


def test_who_stops_a_probe_from_outside_does_not_condemn_a_kernel(
  registry, artefact
):
  text = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
  found = run(registry, artefact, (sys.executable, "-c", text))
  assert not found.ok and not found.ran and "SIGTERM" in found.reason
  assert records(registry, artefact) == ()


def test_the_process_gets_the_artefact_alone_and_leaves_memory(
  registry, artefact
):
  text = (
    "import json, os, pathlib, sys;"
    "dir = pathlib.Path(sys.argv[sys.argv.index('--dir') + 1]);"
    "names = [p.name for p in dir.rglob(sys.argv[1] + '*')];"
    "good = names and os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false';"
    "good = good and '--alone' in sys.argv;"
    "print(json.dumps(dict(key=sys.argv[1], ok=bool(good), ran=True,"
    " reason=str(names)))); sys.exit(not good)"
  )
  assert run(registry, artefact, (sys.executable, "-c", text)).ok


def test_here_without_a_gpu_nothing_is_judged(registry, artefact):
  found = probe.make_probe(registry)(artefact.key, H100)
  assert found == Verdict(False, "no GPU", ran=False)
  assert records(registry, artefact) == ()


def test_a_verdict_that_cannot_be_recorded_holds_all_the_same(
  registry, artefact, capsys, monkeypatch
):
  monkeypatch.setattr(registry, "writable", None)
  command = says(probe.FAILED, ok=False, ran=True, reason="off by 2")
  assert run(registry, artefact, command) == Verdict(False, "off by 2")
  assert records(registry, artefact) == ()
  assert "The probe cannot be recorded" in capsys.readouterr().err


def test_a_damaged_artefact_is_not_run(registry, artefact, tmp_path):
  for blob in (tmp_path / "urza" / "blobs").rglob("*"):
    if blob.is_file():
      blob.chmod(0o644)
      blob.write_bytes(b"x")
  found = run(registry, artefact, says(0, ok=True, ran=True, reason=""))
  assert not found.ok and not found.ran
  assert found.reason.startswith("it cannot be read")


def test_the_verdict_is_a_line_of_json(capsys, registry, artefact, tmp_path):
  parser = argparse.ArgumentParser()
  probe.add_arguments(parser)
  folder = str(tmp_path / "urza")
  args = parser.parse_args([artefact.key[:12], "--dir", folder, "--alone"])
  assert probe.main(args) == probe.NOT_RUN
  document = json.loads(capsys.readouterr().out)
  assert document == {
    "key": artefact.key,
    "ok": False,
    "reason": "no GPU",
    "ran": False,
  }
