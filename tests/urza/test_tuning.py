"""Every way to cut the work is stored and measured; the best one is named.

Kernels are compiled for a GPU that is not here, and references run in their
place: times are those of this CPU.
"""

import argparse
import importlib.util
import itertools

import jax
import pytest

from esper_jax.types import InputError
from esper_jax.urza import compile, evidence, judging, measurement, tuning
from esper_jax.urza.compile import CompilationError
from esper_jax.urza.judging import Measured
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.launching import Loaded
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.handmade import H100

KERNEL = KERNELS["blend_backward"]
CONSTANTS = KERNEL.shipped[0]
FORM = KERNEL.form(*KERNEL.arguments("float32", CONSTANTS, 1, 1, 1))
TILES = KERNEL.tiles(FORM)


@pytest.fixture
def registry(tmp_path):
  return open_registry(layers=(tmp_path / "urza",))


def by_hand(kernel, form, tiles, target):
  """What the compiler returns, without Triton."""
  args = kernel.arguments("float32", CONSTANTS, 1, 1, 1)
  made = handmade.artefact(kernel, *args, tiles=tiles, target=target)
  facts = {
    "registers": 32,
    "spills": 0,
    "shared": 0,
    "ptx_version": "8.7",
    "assembled_for": [target],
    "ok": True,
  }
  return compile.Compiled(*made, facts, b"")


def timed(kernel_us, step_us, **changes):
  record = handmade.gpu(kernel_us=kernel_us, **changes)
  apart = ("kind", "made", "by", "device_kind", "driver", "jaxlib")
  found = {name: value for name, value in record.items() if name not in apart}
  bare = [1.0, 1.0, 1.0]
  seconds = {"kernel": [1 + 1e-6 * step_us] * 3, "bare": bare}
  return Measured({"wrong": "", "step_seconds": seconds, **found})


def tune(registry, found, compile=by_hand, device=H100):
  answers = iter(found)
  return tuning.tune(
    registry,
    KERNEL,
    "float32",
    CONSTANTS,
    device,
    judge=lambda artefact, device: next(answers),
    compile=compile,
  )


def gpu_records(registry, key):
  return [r for r in registry.record(key).evidence if r["kind"] == "gpu"]


def test_the_quickest_is_named_in_a_table_that_all_get(registry):
  found = [timed(9, 20), timed(7, 21), timed(8, 19), timed(10, 25)]
  table = tune(registry, found)
  assert [row.tiles for row in table.rows] == [dict(t) for t in TILES]
  assert [row.kernel_us for row in table.rows] == [9, 7, 8, 10]
  steps = [row.step_us for row in table.rows]
  assert steps == pytest.approx([20, 21, 19, 25])
  assert table.winner == table.rows[1].key
  assert len({row.key for row in table.rows}) == len(TILES)
  for row in table.rows:
    (record,) = gpu_records(registry, row.key)
    assert [r["key"] for r in record["table"]] == [r.key for r in table.rows]
    assert record["winner"] == table.winner
    assert record["kernel_us"] == row.kernel_us
    kinds = sorted(r["kind"] for r in registry.record(row.key).evidence)
    assert kinds == ["gpu", "static"]
  text = table.text().splitlines()
  assert text[1].endswith("7.0 us alone, 21.0 us in the step  <- quickest")
  assert sum("quickest" in line for line in text) == 1


def test_what_is_wrong_varies_or_fails_does_not_win(registry):
  found = [
    timed(1, 2, max_error=0.5, wrong="result 0"),
    timed(2, 3, deterministic=False),
    Measured(None, "exit code -11 without figures"),
    timed(9, 20),
  ]
  table = tune(registry, found)
  assert table.winner == table.rows[3].key
  assert [row.right for row in table.rows] == [False, False, False, True]
  lines = table.text().splitlines()
  assert lines[0].endswith("wrong: result 0")
  assert lines[1].endswith("wrong: its results vary")
  assert lines[2].endswith("exit code -11 without figures")
  (failed,) = (
    r
    for r in registry.record(table.rows[2].key).evidence
    if r["kind"] == "probe"
  )
  assert failed["ok"] is False
  for row in table.rows[:2]:
    status = evidence.status(registry.record(row.key).evidence, H100.kind)
    assert status is evidence.Status.REJECTED


def test_without_a_good_one_there_is_no_winner(registry):
  noise = Measured(None, "noise", ran=False)
  table = tune(registry, [noise] * 4)
  assert table.winner == "" and "quickest" not in table.text()
  kinds = {
    r["kind"] for row in table.rows for r in registry.record(row.key).evidence
  }
  assert kinds == {"static"}


def test_tiles_that_do_not_compile_are_told(registry):
  def compile(kernel, form, tiles, target):
    if tiles == TILES[0]:
      raise CompilationError("it needs scratch memory")
    return by_hand(kernel, form, tiles, target)

  table = tune(registry, [timed(1, 2)] * 3, compile=compile)
  assert table.rows[0].key == "" and len(registry.keys()) == 3
  assert "it needs scratch memory" in table.text().splitlines()[0]


@pytest.mark.parametrize(
  "target, best", [(75, 75), (86, 86), (87, 86), (90, 90), (100, 100)]
)
def test_code_is_for_the_newest_target_that_the_device_runs(target, best):
  assert tuning.target_for(H100._replace(target=target)) == best


def test_a_device_that_is_too_old_is_bad_input():
  with pytest.raises(InputError, match="compute capability 61"):
    tuning.target_for(H100._replace(target=61))


@pytest.mark.skipif(
  importlib.util.find_spec("triton") is None, reason="needs Triton"
)
def test_from_the_compiler_to_the_table_with_times_of_this_machine(
  registry, monkeypatch, capsys
):
  two = KERNEL._replace(tiles=lambda form: TILES[:2])
  monkeypatch.setitem(KERNELS, "blend_backward", two)
  reference = jax.jit(KERNEL.reference)
  kinds = itertools.count()

  def judge(artefact, device):
    next(kinds)
    kernel, dtype, constants = judging.parts_of(artefact)
    args = kernel.arguments(dtype, constants, 4, 8, 8)
    arrays = tuple(jax.numpy.ones(a.shape, a.dtype) for a in args)
    seconds = measurement.time_alone(
      kernel, arrays, lambda *a: reference(*a), measurement.Effort(5, 3)
    )
    assert Loaded(*registry.load(artefact.key)).files["ptx"]
    return timed(1e6 * sum(seconds["kernel"]) / 5, 20)

  (table,) = tuning.tune_all(
    registry, ["blend_backward"], ["float32"], H100, judge=judge
  )
  assert next(kinds) == 2
  assert table.winner == min(table.rows, key=lambda row: row.kernel_us).key
  assert {
    a.spec.target for a in map(artefact_of(registry), registry.keys())
  } == {90}
  assert capsys.readouterr().out.startswith(
    f"blend_backward float32 LANES=16 on {H100.kind}\n"
  )


def artefact_of(registry):
  return lambda key: registry.record(key).artefact


def test_without_a_gpu_it_is_one_line_and_code_2(capsys):
  parser = argparse.ArgumentParser()
  tuning.add_arguments(parser)
  assert tuning.main(parser.parse_args([])) == 2
  out, err = capsys.readouterr()
  assert out == "" and err == f"{tuning.NO_GPU}\n"
