"""Checkpoints: exact, atomic, verified; damage falls back to the one before.

ESPER_TEST_FULL=1 runs the full number of damaged files and kills.
"""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from esper_jax.tolaria import checkpoints
from esper_jax.tolaria.workdir import acquire
from esper_jax.types import InputError, RunFailedError

FULL = os.environ.get("ESPER_TEST_FULL") == "1"
NUM_DAMAGES = 200 if FULL else 20
NUM_KILLS = 20 if FULL else 3


def make_arrays(value=0.0):
  return {
    "params/kernel": np.full((3, 4), value, np.float32),
    "step": np.int32(7),
    "empty": np.zeros((0, 3), np.float32),
  }


def newest(folder, **options):
  """What the newest checkpoint held; none may be damaged."""
  loaded, damaged = checkpoints.latest_good(folder, **options)
  assert damaged == []
  assert loaded is not None
  return loaded


def steps(folder):
  return [c.step for c in checkpoints.available(folder)]


def test_arrays_and_meta_come_back_exactly(tmp_path):
  nan = np.array([0x7FC00001, 0x80000000], np.uint32).view(np.float32)
  arrays = {
    "nan": nan,
    "f64": np.array([1e-300, -0.0]),
    "i64": np.arange(-2, 2),
    "u8": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
    "bool": np.array([True, False]),
    "bf16": np.array([[1.5, -0.0]], ml_dtypes.bfloat16),
    "scalar": np.float32(3.25),
    "strided": np.arange(8, dtype=np.float32)[::2],
    "none": np.zeros((2, 0), np.int8),
    "f32": np.ones((5,), np.float32),
  }
  meta = {"inf": float("inf"), "n": np.int64(3), "list": (1, "x", None)}
  saved = checkpoints.save(tmp_path, 12, arrays, meta, metric=0.5)
  loaded = newest(tmp_path)
  assert loaded.checkpoint == saved
  assert (saved.number, saved.step, saved.kind, saved.metric) == (
    0,
    12,
    "scheduled",
    0.5,
  )
  assert saved.path == tmp_path / "000000-step-12"
  assert loaded.meta == {"inf": float("inf"), "n": 3, "list": [1, "x", None]}
  assert list(loaded.arrays) == list(arrays)
  for name, value in arrays.items():
    back = loaded.arrays[name]
    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    assert back.tobytes() == value.tobytes()
    assert back.flags.writeable


@pytest.mark.parametrize("arrays", [{}, {"empty": np.zeros((0,), np.int32)}])
def test_a_checkpoint_may_hold_no_element(tmp_path, arrays):
  checkpoints.save(tmp_path, 0, arrays, {})
  loaded = newest(tmp_path)
  assert list(loaded.arrays) == list(arrays)


def test_saving_is_quiet(tmp_path, capfd, caplog):
  with caplog.at_level(logging.DEBUG):
    checkpoints.save(tmp_path, 0, make_arrays(), {})
    checkpoints.latest_good(tmp_path)
  assert capfd.readouterr() == ("", "")
  assert [r for r in caplog.records if r.levelno > logging.DEBUG] == []


def test_the_sums_are_those_of_sha256sum(tmp_path):
  saved = checkpoints.save(tmp_path, 0, make_arrays(), {})
  command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
  done = subprocess.run(command, cwd=saved.path, capture_output=True)
  assert done.returncode == 0
  assert b"checkpoint.json: OK" in done.stdout


def test_an_empty_or_absent_folder_holds_nothing(tmp_path):
  assert checkpoints.available(tmp_path / "absent") == []
  (tmp_path / "notes.txt").write_text("mine")
  (tmp_path / ".incomplete-000003-step-9-abc").mkdir()
  assert checkpoints.latest_good(tmp_path) == (None, [])


def test_the_newest_save_wins_even_at_an_earlier_step(tmp_path):
  for step in (10, 20, 10):
    checkpoints.save(tmp_path, step, make_arrays(step), {"step": step})
  assert steps(tmp_path) == [10, 20, 10]
  loaded = newest(tmp_path)
  assert (loaded.checkpoint.number, loaded.checkpoint.step) == (2, 10)


def test_retention_keeps_the_last_the_last_scheduled_and_the_best(tmp_path):
  plan = [
    (1, "scheduled", 0.9),
    (2, "scheduled", float("nan")),
    (3, "scheduled", 0.1),
    (4, "scheduled", 0.2),
    (5, "scheduled", None),
    (6, "interrupt", 0.99),
    (7, "interrupt", None),
  ]
  for step, kind, metric in plan:
    checkpoints.save(
      tmp_path,
      step,
      make_arrays(),
      {},
      kind=kind,
      metric=metric,
      keep_last=2,
      keep_best=1,
    )
  assert steps(tmp_path) == [1, 4, 5, 6, 7]
  found = checkpoints.available(tmp_path)
  assert [c.kind for c in found][-2:] == ["interrupt", "interrupt"]
  assert [c.metric for c in found] == [0.9, 0.2, None, 0.99, None]
  loaded = newest(tmp_path, kinds=("scheduled",))
  assert loaded.checkpoint.step == 5
  checkpoints.save(
    tmp_path, 8, make_arrays(), {}, metric=0.9, keep_last=1, keep_best=0
  )
  assert steps(tmp_path) == [8]
  assert not list(tmp_path.glob(".*"))


def test_more_best_than_there_are_keeps_all(tmp_path):
  for step in range(3):
    checkpoints.save(
      tmp_path,
      step,
      make_arrays(),
      {},
      metric=step,
      keep_last=1,
      keep_best=5,
    )
  assert steps(tmp_path) == [0, 1, 2]


def test_no_checkpoint_of_the_wanted_kind(tmp_path):
  checkpoints.save(tmp_path, 1, make_arrays(), {}, kind="interrupt")
  assert checkpoints.latest_good(tmp_path, kinds=("scheduled",)) == (None, [])


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
  folder = tmp_path_factory.mktemp("two")
  for step in (1, 2):
    checkpoints.save(folder, step, make_arrays(step), {"step": step})
  return folder


def damage(folder, rng):
  """Flips a bit of, truncates or deletes one file below a folder."""
  files = sorted(p for p in folder.rglob("*") if p.is_file())
  how = rng.choice(("flip", "truncate", "delete"))
  if how != "delete":  # an empty file has no bit and nothing to cut
    files = [p for p in files if p.stat().st_size]
  path = rng.choice(files)
  data = bytearray(path.read_bytes())
  if how == "delete":
    path.unlink()
  elif how == "truncate":
    path.write_bytes(data[: rng.randrange(len(data))])
  else:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
  return path


@pytest.mark.parametrize("case", range(NUM_DAMAGES))
def test_damage_is_detected_and_falls_back(two_checkpoints, tmp_path, case):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two_checkpoints, folder)
  target = checkpoints.available(folder)[-1]
  path = damage(target.path, random.Random(case))
  loaded, damaged = checkpoints.latest_good(folder)
  assert loaded is not None and loaded.checkpoint.step == 1
  assert loaded.meta == {"step": 1}
  np.testing.assert_array_equal(
    loaded.arrays["params/kernel"], np.full((3, 4), 1, np.float32)
  )
  assert [d.checkpoint.step for d in damaged] == [2]
  name = path.relative_to(target.path).as_posix()
  if name != "SHA256SUMS":
    assert name in damaged[0].reason
  # The run goes on: the next save is the newest.
  checkpoints.save(folder, 3, make_arrays(3), {"step": 3})
  loaded, _ = checkpoints.latest_good(folder)
  assert loaded is not None and loaded.meta == {"step": 3}


def test_an_added_file_is_damage(two_checkpoints, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two_checkpoints, folder)
  target = checkpoints.available(folder)[-1]
  (target.path / "arrays" / "more").write_text("")
  with pytest.raises(checkpoints.DamagedError, match="SHA256SUMS: arrays/more"):
    checkpoints.load(target)


def test_when_all_are_damaged_all_are_reported(two_checkpoints, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two_checkpoints, folder)
  for checkpoint in checkpoints.available(folder):
    (checkpoint.path / "checkpoint.json").write_text("{")
  loaded, damaged = checkpoints.latest_good(folder)
  assert loaded is None
  assert [d.checkpoint.step for d in damaged] == [2, 1]
  assert [d.checkpoint.kind for d in damaged] == ["", ""]


def resum(path):
  """Makes the sums right again after a change."""
  lines = (path / "SHA256SUMS").read_text().splitlines()
  names = [line.partition("  ")[2] for line in lines]
  present = [name for name in names if (path / name).exists()]
  command = ["sha256sum", *present]
  text = subprocess.run(command, cwd=path, capture_output=True, check=True)
  (path / "SHA256SUMS").write_bytes(text.stdout)


def test_what_orbax_cannot_read_is_damage(two_checkpoints, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two_checkpoints, folder)
  target = checkpoints.available(folder)[-1]
  shutil.rmtree(target.path / "arrays" / "state")
  resum(target.path)
  with pytest.raises(checkpoints.DamagedError, match="Orbax cannot read it"):
    checkpoints.load(target)


def test_another_schema_is_refused_not_skipped(two_checkpoints, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two_checkpoints, folder)
  target = checkpoints.available(folder)[-1]
  document = json.loads((target.path / "checkpoint.json").read_text())
  document["schema"] = 99
  (target.path / "checkpoint.json").write_text(json.dumps(document))
  resum(target.path)
  with pytest.raises(InputError, match="schema 99, this version reads 1"):
    checkpoints.latest_good(folder)


def test_a_writer_copies_before_it_returns(tmp_path):
  writer = checkpoints.Writer(tmp_path, keep_last=2)
  arrays, meta = make_arrays(1), {"step": 1}
  writer.save(1, arrays, meta, kind="interrupt", metric=2)
  arrays["params/kernel"][:] = -1
  meta["step"] = -1
  saved = writer.wait()
  assert saved is not None
  assert (saved.step, saved.kind, saved.metric) == (1, "interrupt", 2.0)
  assert writer.wait() is None
  for step in (2, 3, 4):
    writer.save(step, make_arrays(step), {"step": step})
  saved = writer.close()
  assert saved is not None and saved.step == 4
  assert writer.close() is None
  assert steps(tmp_path) == [3, 4]
  loaded = newest(tmp_path)
  assert loaded.arrays["params/kernel"][0, 0] == 4


def test_a_writer_syncs_the_logs_before_the_checkpoint_counts(tmp_path):
  seen = []
  writer = checkpoints.Writer(tmp_path)
  writer.save(1, make_arrays(), {}, before=lambda: seen.append(steps(tmp_path)))
  writer.wait()
  assert (seen, steps(tmp_path)) == ([[]], [1])

  def fail():
    raise RunFailedError("cannot write metrics.jsonl")

  writer.save(2, make_arrays(), {}, before=fail)
  with pytest.raises(RunFailedError, match="^cannot write metrics.jsonl$"):
    writer.close()
  assert steps(tmp_path) == [1]


def test_a_writer_s_failure_surfaces_at_the_next_call(tmp_path):
  (tmp_path / "file").write_text("")
  writer = checkpoints.Writer(tmp_path / "file" / "checkpoints")
  writer.save(1, make_arrays(), {})
  with pytest.raises(RunFailedError, match="cannot write .*Not a directory"):
    writer.save(2, make_arrays(), {})
  writer.save(3, make_arrays(), {})
  with pytest.raises(RunFailedError):
    writer.wait()
  writer.save(4, make_arrays(), {})
  with pytest.raises(RunFailedError):
    writer.close()
  assert writer.close() is None


@pytest.mark.parametrize("limit", [60, 2_000, 150_000])
def test_a_full_disk_keeps_the_old_and_nothing_of_the_new(
  tmp_path, file_size_limit, limit
):
  arrays = {"x": np.random.default_rng(0).random(50_000, np.float32)}
  checkpoints.save(tmp_path, 1, arrays, {})
  with file_size_limit(limit):
    with pytest.raises(RunFailedError) as caught:
      checkpoints.save(tmp_path, 2, arrays, {"text": "x" * 3_000})
  text = str(caught.value)
  assert f"cannot write {tmp_path}: File too large; free some" in text
  assert "\n" not in text
  assert [p.name for p in tmp_path.iterdir()] == ["000000-step-1"]
  assert newest(tmp_path).checkpoint.step == 1


def test_a_full_disk_that_is_one(tiny_disk):
  small = {"x": np.zeros((1000,), np.float32)}
  large = {"x": np.zeros((30_000,), np.float32)}
  checkpoints.save(tiny_disk, 1, small, {})
  with pytest.raises(RunFailedError, match="No space left on device; free"):
    checkpoints.save(tiny_disk, 2, large, {})
  assert steps(tiny_disk) == [1]
  assert len(list(tiny_disk.iterdir())) == 1
  assert newest(tiny_disk).checkpoint.step == 1


CHILD = """
import sys
import numpy as np
from esper_jax.tolaria import checkpoints, workdir

with workdir.acquire(sys.argv[1]) as own:
  writer = checkpoints.Writer(own.checkpoints, keep_last=2)
  step = int(sys.argv[2])
  while True:
    step += 1
    writer.save(step, {"x": np.full((500,), step, np.float32)}, {"step": step})
    print(writer.wait().step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
  rng = random.Random(0)
  last = 0
  for _ in range(NUM_KILLS):
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(last)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
      assert child.stdout is not None
      assert int(child.stdout.readline()) == last + 1
      time.sleep(rng.uniform(0, 0.2))
      child.kill()
      told = [int(line) for line in child.stdout.read().splitlines()]
    told = max([last + 1, *told])
    loaded = newest(tmp_path / "checkpoints")
    last = loaded.checkpoint.step
    assert last >= told  # what was reported done is there
    assert loaded.meta == {"step": last}
    np.testing.assert_array_equal(
      loaded.arrays["x"], np.full((500,), last, np.float32)
    )
  with acquire(tmp_path) as own:
    assert not list(own.checkpoints.glob(".*"))
