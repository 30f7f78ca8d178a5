"""The run directory: one owner, one config, whole files."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from esper_jax.oona.jsonl import read
from esper_jax.tolaria import workdir
from esper_jax.types import InputError, RunFailedError


def refuse(old, new):
  if old != new:
    raise InputError("differs")


def one_line(caught):
  text = str(caught.value)
  assert "\n" not in text
  return text


def test_acquire_creates_and_release_frees(tmp_path):
  path = tmp_path / "runs" / "one"
  own = workdir.acquire(path)
  assert own.path == path and own.path.is_absolute()
  assert own.checkpoints == path / "checkpoints"
  assert own.events.name == "events.jsonl"
  with pytest.raises(InputError) as caught:
    workdir.acquire(path)
  assert f"{path} is in use by process {os.getpid()}" in one_line(caught)
  own.release()
  own.release()  # twice is fine
  with workdir.acquire(path):
    pass
  with workdir.acquire(path):
    assert [p.name for p in path.iterdir()] == [".lock"]


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with workdir.acquire("run") as own:
    assert own.path == tmp_path / "run"


CHILD = """
import sys, time
from esper_jax.tolaria import workdir
own = workdir.acquire(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_live_process_keeps_it_and_a_killed_one_does_not(tmp_path):
  command = [sys.executable, "-c", CHILD, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"in use by process {child.pid};"):
      workdir.acquire(tmp_path)
    child.kill()
  workdir.acquire(tmp_path).release()


def test_acquire_removes_what_a_dead_process_left(tmp_path):
  unfinished = tmp_path / "checkpoints" / ".incomplete-000004-step-8-abc"
  (unfinished / "arrays").mkdir(parents=True)
  (unfinished / "arrays" / "x").write_text("half")
  (tmp_path / ".incomplete-result.json-abc").write_text("{")
  (tmp_path / "result.json").write_text("{}")
  with workdir.acquire(tmp_path) as own:
    assert list(own.checkpoints.iterdir()) == []
    names = sorted(p.name for p in own.path.iterdir())
    assert names == [".lock", "checkpoints", "result.json"]


def test_a_refused_process_removes_nothing(tmp_path):
  with workdir.acquire(tmp_path) as own:
    unfinished = workdir.temporary_name(own.result)
    unfinished.write_text("being written")
    with pytest.raises(InputError):
      workdir.acquire(tmp_path)
    assert unfinished.read_text() == "being written"


def test_a_file_in_the_way_is_named(tmp_path):
  path = tmp_path / "file"
  path.write_text("mine")
  with pytest.raises(InputError) as caught:
    workdir.acquire(path)
  assert one_line(caught) == f"{path} is a file; choose another --workdir"
  with pytest.raises(InputError, match="file/run: Not a directory"):
    workdir.acquire(path / "run")
  assert path.read_text() == "mine"


@pytest.mark.skipif(
  not pathlib.Path("/sys/kernel").is_dir(), reason="needs Linux's sysfs"
)
def test_a_place_that_is_not_writable_is_named():
  with pytest.raises(InputError) as caught:
    workdir.acquire("/sys/kernel/run")
  text = one_line(caught)
  assert text.startswith("cannot write /sys/kernel/run: ")
  assert "make it writable (or choose another --workdir)" in text


@pytest.mark.parametrize("limit", [0, 1_000])
def test_a_full_disk_is_found_before_the_run(tmp_path, file_size_limit, limit):
  with file_size_limit(limit):
    with pytest.raises(InputError, match="File too large; free some space"):
      workdir.acquire(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == [".lock"]
  workdir.acquire(tmp_path).release()  # and the lock is free


def test_a_full_disk_that_is_one_is_found_before_the_run(tiny_disk):
  (tiny_disk / "big").write_bytes(bytes(100_000))
  with pytest.raises(InputError, match="No space left on device; free some"):
    workdir.acquire(tiny_disk)
  assert sorted(p.name for p in tiny_disk.iterdir()) == [".lock", "big"]


def test_claim_writes_then_checks_then_updates(tmp_path):
  with workdir.acquire(tmp_path) as own:
    first = {"config": {"a": {"b": (1, 2)}}, "versions": {"jax": "1"}}
    assert own.claim(first, check=refuse) is None
    assert json.loads(own.config.read_text())["config"] == {"a": {"b": [1, 2]}}
    second = {**first, "versions": {"jax": "2"}}
    assert own.claim(second, check=refuse) == json.loads(json.dumps(first))
    assert json.loads(own.config.read_text())["versions"] == {"jax": "2"}
    unchanged = own.config.stat().st_mtime_ns
    own.claim(second, check=refuse)
    assert own.config.stat().st_mtime_ns == unchanged


def test_claim_of_another_config_changes_nothing(tmp_path):
  with workdir.acquire(tmp_path) as own:
    own.claim({"config": {"a": 1}}, check=refuse)
    with pytest.raises(InputError, match="differs"):
      own.claim({"config": {"a": 2}}, check=refuse)
    assert json.loads(own.config.read_text()) == {"config": {"a": 1}}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{}", "config.json has no entry 'config'"),
    ("[]", "config.json is not a JSON object"),
    ("{", "config.json is not JSON"),
    ("\udcff", "config.json is not JSON"),
  ],
)
def test_a_config_json_that_is_no_runs_is_refused(tmp_path, text, message):
  with workdir.acquire(tmp_path) as own:
    own.config.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
      own.claim({"config": {}}, check=refuse)
    assert "choose another --workdir" in one_line(caught)


def test_claim_on_a_full_disk_is_bad_input(tmp_path, file_size_limit):
  with workdir.acquire(tmp_path) as own:
    with file_size_limit(5):
      with pytest.raises(InputError, match="config.json: File too large"):
        own.claim({"config": {"a": 1}}, check=refuse)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_read_json_tells_absent_from_unreadable(tmp_path):
  assert workdir.read_json(tmp_path / "absent.json") is None
  with pytest.raises(InputError, match="cannot read .*: Is a directory"):
    workdir.read_json(tmp_path)


@pytest.mark.parametrize("fsync", [True, False])
def test_write_json_replaces_as_a_whole(tmp_path, file_size_limit, fsync):
  path = tmp_path / "status.json"
  workdir.write_json(path, {"n": 1, "x": float("nan")}, fsync=fsync)
  assert workdir.read_json(path) == {"n": 1, "x": "NaN"}
  workdir.write_json(path, {"n": 2}, fsync=fsync)
  assert path.read_text() == '{\n  "n": 2\n}\n'
  with file_size_limit(20):
    with pytest.raises(RunFailedError) as caught:
      workdir.write_json(path, {"n": 3, "text": "x" * 100}, fsync=fsync)
  assert f"cannot write {path}: File too large" in one_line(caught)
  assert [p.name for p in tmp_path.iterdir()] == ["status.json"]
  assert workdir.read_json(path) == {"n": 2}


def test_open_log_goes_on_where_the_checkpoint_was(tmp_path):
  path = tmp_path / "metrics.jsonl"
  log = workdir.open_log(path, fsync=False)
  log.append({"n": 1})
  offset = log.offset
  log.append({"n": 2})
  log.close()
  with path.open("ab") as file:
    file.write(b'{"n": 3')  # torn
  log = workdir.open_log(path, offset=offset)
  assert (log.offset, log.repaired) == (offset, 7)
  log.append({"n": 4})
  log.close()
  assert read(path) == [{"n": 1}, {"n": 4}]
  assert read(tmp_path / "metrics.discarded.jsonl") == [{"n": 2}]


def test_open_log_without_a_checkpoint_starts_anew(tmp_path):
  path = tmp_path / "events.jsonl"
  path.write_text('{"n": 1}\n')
  log = workdir.open_log(path)
  log.close()
  assert read(path) == []
  assert read(tmp_path / "events.discarded.jsonl") == [{"n": 1}]


def test_open_log_of_a_shorter_log_is_refused_and_left(tmp_path):
  path = tmp_path / "events.jsonl"
  path.write_text('{"n": 1}\n')
  with pytest.raises(InputError, match="lines are missing"):
    workdir.open_log(path, offset=500)
  assert path.read_text() == '{"n": 1}\n'


def test_runs_beside_a_path_are_named_newest_first(tmp_path, monkeypatch):
  def make(name, age):
    config = pathlib.Path("runs", name, "config.json")
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    os.utime(config, (100 - age, 100 - age))

  monkeypatch.chdir(tmp_path)
  assert workdir.beside("runs/digits") == ""
  make("a", 2)
  make("b", 1)
  pathlib.Path("runs", "no-run").mkdir()
  for path in ("runs/digits", "runs", "runs/no-run", "nowhere", "x/y/z"):
    assert workdir.beside(path) == "; there are runs/b, runs/a", path
  for age, name in enumerate("cdef", start=3):
    make(name, age)
  assert workdir.beside("runs/digits") == (
    "; there are runs/b, runs/a, runs/c, runs/d and 2 older ones"
  )
