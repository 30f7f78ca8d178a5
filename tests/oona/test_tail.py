"""What is new in a log that another process writes, cuts and writes again."""

import pytest

from esper_jax.oona import jsonl
from esper_jax.oona.jsonl import JsonlWriter
from esper_jax.oona.tail import Tail
from esper_jax.types import InputError


def line(time, **fields):
  return {"time": float(time), **fields}


@pytest.fixture
def log(tmp_path):
  with_log = JsonlWriter(tmp_path / "events.jsonl", fsync=False)
  yield with_log
  with_log.close()


def test_each_line_comes_once(tmp_path):
  tail = Tail(tmp_path / "events.jsonl")
  assert tail.new() == []  # there is no log yet
  log = JsonlWriter(tmp_path / "events.jsonl", fsync=False)
  assert tail.new() == []
  for time in (1, 2):
    log.append(line(time))
  assert tail.new() == [line(1), line(2)]
  assert tail.new() == []
  log.append(line(1.5))  # the clock was set back
  assert tail.new() == [line(1.5)]
  log.close()


def test_a_line_that_is_being_written_comes_when_it_is_whole(tmp_path):
  path = tmp_path / "events.jsonl"
  first, second = jsonl.encode(line(1)), jsonl.encode(line(2))
  path.write_bytes(first + second[:7])
  tail = Tail(path)
  assert tail.new() == [line(1)]
  assert tail.new() == []
  path.write_bytes(first + second)
  assert tail.new() == [line(2)]


@pytest.mark.parametrize("text", ["", "longer than all that was cut off"])
def test_what_a_resumed_run_writes_anew_comes_and_nothing_twice(log, text):
  tail = Tail(log.path)
  log.append(line(1))
  kept = log.offset
  log.append(line(2))
  log.append(line(3))
  assert len(tail.new()) == 3
  log.truncate_to(kept)
  log.append(line(4, text=text))
  assert tail.new() == [line(4, text=text)]
  log.append(line(5))
  assert tail.new() == [line(5)]


def test_a_log_that_was_emptied_is_read_from_its_start(log):
  tail = Tail(log.path)
  log.append(line(1))
  assert tail.new() == [line(1)]
  log.truncate_to(0)
  assert tail.new() == []
  log.append(line(2))
  assert tail.new() == [line(2)]


def test_a_damaged_line_is_named(log):
  tail = Tail(log.path)
  log.append(line(1))
  tail.new()
  with open(log.path, "ab") as file:
    file.write(b"{}\n7\n")
  with pytest.raises(InputError, match="events.jsonl, line 3: not a JSON obj"):
    tail.new()


def test_a_folder_in_place_of_a_log_is_named(tmp_path):
  with pytest.raises(InputError, match="cannot read .*: Is a directory"):
    Tail(tmp_path).new()
