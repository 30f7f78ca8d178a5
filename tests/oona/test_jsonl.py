"""Logs: whole lines or none, repaired, truncated, readable by strict JSON."""

import contextlib
import enum
import errno
import json
import os
import pathlib
import resource
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_jax.oona import jsonl
from esper_jax.types import InputError, RunFailedError


@contextlib.contextmanager
def file_size_limit(num_bytes):
  """A full disk for files that would grow beyond num_bytes."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("fsync", [True, False])
def test_lines_come_back_and_offset_counts_their_bytes(tmp_path, fsync):
  path = tmp_path / "events.jsonl"
  log = jsonl.JsonlWriter(path, fsync=fsync)
  assert log.offset == 0
  log.append({"a": 1})
  log.append({"text": "höher\n"})
  assert log.offset == path.stat().st_size
  log.close()
  log.close()  # twice is fine
  again = jsonl.JsonlWriter(path, fsync=fsync)
  assert (again.offset, again.repaired) == (path.stat().st_size, 0)
  again.append({"b": [1, 2]})
  again.sync()
  again.close()
  assert jsonl.read(path) == [{"a": 1}, {"text": "höher\n"}, {"b": [1, 2]}]


def test_plain_covers_what_a_run_logs():
  class Code(enum.IntEnum):
    ON = 3

  record = {
    "np": np.float32(0.5),
    "array": np.arange(2, dtype=np.int64),
    "jax": jnp.ones((2,), jnp.bfloat16),
    "scalar": jnp.int32(7),
    "bad": [float("nan"), float("inf"), np.float32("-inf")],
    "enum": Code.ON,
    "flag": np.bool_(True),
    "none": None,
    "path": pathlib.PurePosixPath("a/b"),
    "tuple": (1.5, True, "x"),
    "keys": {1: 2},
  }
  assert json.loads(jsonl.encode(record)) == {
    "np": 0.5,
    "array": [0, 1],
    "jax": [1.0, 1.0],
    "scalar": 7,
    "bad": ["NaN", "Infinity", "-Infinity"],
    "enum": 3,
    "flag": True,
    "none": None,
    "path": "a/b",
    "tuple": [1.5, True, "x"],
    "keys": {"1": 2},
  }
  assert [float(x) for x in ("Infinity", "-Infinity")] == [
    float("inf"),
    float("-inf"),
  ]


def test_plain_names_what_it_cannot_convert():
  with pytest.raises(TypeError, match="object .* has no JSON form"):
    jsonl.encode({"x": object()})


WHOLE = b'{"a": 1}\n{"b": 2}\n'


@pytest.mark.parametrize(
  ("torn", "kept"),
  [
    (b"", WHOLE),
    (b'{"c": 3}', WHOLE),  # whole but for its newline
    (b'{"c"', WHOLE),
    (b"\x00\x00\x00\n", WHOLE),  # a power cut leaves zeros
    (b"\xff\xfe\n", WHOLE),
    (b"7\n", WHOLE),
    (b"\x00\n\x00\n{", WHOLE),
    (b"x" * 10_000, WHOLE),  # longer than one read
  ],
)
def test_repair_cuts_only_what_is_torn(tmp_path, torn, kept):
  path = tmp_path / "log.jsonl"
  path.write_bytes(WHOLE + torn)
  log = jsonl.JsonlWriter(path)
  log.close()
  assert log.repaired == len(torn)
  assert path.read_bytes() == kept


@pytest.mark.parametrize("data", [b"", b"{", b"\n", b"x" * 9000])
def test_repair_of_a_log_without_a_whole_line_empties_it(tmp_path, data):
  path = tmp_path / "log.jsonl"
  path.write_bytes(data)
  assert jsonl.repair(path) == len(data)
  assert path.read_bytes() == b""


@settings(max_examples=60, deadline=None)
@given(
  sizes=st.lists(st.integers(0, 6000), min_size=1, max_size=4),
  data=st.data(),
)
def test_a_crash_at_any_byte_loses_at_most_the_last_line(
  tmp_path_factory, sizes, data
):
  lines = [jsonl.encode({"x": "y" * n}) for n in sizes]
  whole = b"".join(lines)
  cut = data.draw(st.integers(0, len(whole)))
  path = tmp_path_factory.mktemp("crash") / "log.jsonl"
  path.write_bytes(whole[:cut])
  jsonl.repair(path)
  ends = [0, *np.cumsum([len(line) for line in lines]).tolist()]
  assert path.stat().st_size == max(e for e in ends if e <= cut)


def test_read_leaves_a_line_that_is_being_written(tmp_path):
  path = tmp_path / "log.jsonl"
  path.write_bytes(WHOLE + b'{"c"')
  assert jsonl.read(path) == [{"a": 1}, {"b": 2}]


def test_read_refuses_damage_and_absence(tmp_path):
  path = tmp_path / "log.jsonl"
  path.write_bytes(b'{"a": 1}\nnonsense\n{"b": 2}\n')
  with pytest.raises(InputError, match="log.jsonl, line 2: not a JSON object"):
    jsonl.read(path)
  with pytest.raises(InputError, match="cannot read .*absent"):
    jsonl.read(tmp_path / "absent")


def test_truncate_moves_later_lines_and_appends_to_earlier_ones(tmp_path):
  path = tmp_path / "events.jsonl"
  aside = tmp_path / "events.discarded.jsonl"
  log = jsonl.JsonlWriter(path)
  log.append({"n": 0})
  offset = log.offset
  log.append({"n": 1})
  log.append({"n": 2})
  assert log.truncate_to(offset) == 2
  assert log.truncate_to(offset) == 0
  log.append({"n": 3})
  assert log.truncate_to(offset) == 1
  log.append({"n": 4})
  log.close()
  assert jsonl.read(path) == [{"n": 0}, {"n": 4}]
  assert jsonl.read(aside) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_truncate_killed_half_way_is_completed_without_a_copy(tmp_path):
  path = tmp_path / "events.jsonl"
  aside = tmp_path / "events.discarded.jsonl"
  path.write_bytes(WHOLE)
  aside.write_bytes(WHOLE)  # moved, but the log was not yet cut
  log = jsonl.JsonlWriter(path)
  assert log.truncate_to(0) == 2
  assert aside.read_bytes() == WHOLE
  path.write_bytes(WHOLE)
  aside.write_bytes(b'{"z": 0}\n{"a": ')  # killed while it moved
  log.close()
  log = jsonl.JsonlWriter(path)
  log.truncate_to(0)
  log.close()
  assert aside.read_bytes() == b'{"z": 0}\n' + WHOLE


def test_truncate_refuses_a_log_that_is_not_the_checkpoints(tmp_path):
  path = tmp_path / "events.jsonl"
  path.write_bytes(WHOLE)
  log = jsonl.JsonlWriter(path)
  with pytest.raises(InputError, match="has 18 bytes .* byte 99: lines are"):
    log.truncate_to(99)
  with pytest.raises(InputError, match="byte 3, .* not the end of a line"):
    log.truncate_to(3)
  log.close()
  assert path.read_bytes() == WHOLE


def test_open_names_a_path_that_cannot_be_written(tmp_path):
  with pytest.raises(InputError, match="cannot write .*/no/log.jsonl: No such"):
    jsonl.JsonlWriter(tmp_path / "no" / "log.jsonl")
  with pytest.raises(InputError, match="Is a directory"):
    jsonl.JsonlWriter(tmp_path)


def test_open_of_what_is_no_file_fails_in_one_line(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(InputError, match="cannot write .*/pipe: .*not seekable"):
    jsonl.JsonlWriter(tmp_path / "pipe")


@pytest.mark.parametrize("fsync", [True, False])
def test_a_full_disk_keeps_whole_lines(tmp_path, fsync):
  path = tmp_path / "events.jsonl"
  log = jsonl.JsonlWriter(path, fsync=fsync)
  log.append({"n": 0})
  before = path.read_bytes()
  with file_size_limit(len(before) + 5):  # the first 5 bytes still fit
    with pytest.raises(RunFailedError) as caught:
      log.append({"n": 1, "text": "long enough"})
  assert path.read_bytes() == before
  assert log.offset == len(before)
  text = str(caught.value)
  assert f"cannot write {path}: File too large; free some space" in text
  assert "\n" not in text
  log.append({"n": 2})  # room again
  log.close()
  assert jsonl.read(path) == [{"n": 0}, {"n": 2}]


def test_lines_reach_the_disk_without_being_waited_for(tmp_path, monkeypatch):
  may, synced = threading.Event(), []

  def slow(fd):
    assert may.wait(10)
    synced.append(os.fstat(fd).st_size)

  monkeypatch.setattr(os, "fsync", slow)
  log = jsonl.JsonlWriter(tmp_path / "events.jsonl")
  for n in range(5):
    log.append({"n": n})
  size = log.offset
  assert synced == []
  may.set()
  log.close()
  # The first line alone or with others, then the rest, then the last word.
  assert 2 <= len(synced) <= 3
  assert synced[-1] == size


@pytest.mark.parametrize("late", [False, True])
def test_a_disk_that_fails_while_syncing_stops_the_run(
  tmp_path, monkeypatch, late
):
  def failing(fd):
    raise OSError(errno.EIO, "Input/output error")

  log = jsonl.JsonlWriter(tmp_path / "events.jsonl")
  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", failing)
    log.append({"n": 0})
    while not log._syncer._pending[0].done():
      time.sleep(0.001)
  with pytest.raises(RunFailedError, match="events.jsonl: Input/output error"):
    if late:
      log.close()
    else:
      log.append({"n": 1})
  log.close()
  assert jsonl.read(log.path)[0] == {"n": 0}


def test_a_full_disk_while_truncating_loses_no_line(tmp_path):
  path = tmp_path / "events.jsonl"
  aside = tmp_path / "events.discarded.jsonl"
  path.write_bytes(WHOLE)
  aside.write_bytes(b'{"z": 0}\n')
  log = jsonl.JsonlWriter(path)
  with file_size_limit(12):
    with pytest.raises(RunFailedError, match="events.discarded.jsonl: File"):
      log.truncate_to(0)
  log.close()
  assert path.read_bytes() == WHOLE
  assert aside.read_bytes() == b'{"z": 0}\n'


@pytest.mark.parametrize(
  ("error", "text"),
  [
    (OSError(28, "No space left on device"), "No space left on device; free"),
    (OSError(122, "Disk quota exceeded"), "Disk quota exceeded; free some"),
    (
      ValueError('RESOURCE_EXHAUSTED: "/x"\nNo space left on device [28]'),
      "No space left on device; free some space",
    ),
    (PermissionError(13, "Permission denied"), "denied; make it writable"),
    (OSError("odd"), "odd; make it writable"),
    (ValueError("first\nsecond"), "first; mend that"),
    (ValueError(), "ValueError(); mend that"),
  ],
)
def test_write_errors_are_one_line(error, text):
  line = jsonl.write_error_text("/run/x", error)
  assert line.startswith("cannot write /run/x: ") and text in line
  assert "\n" not in line and "another --workdir" in line
