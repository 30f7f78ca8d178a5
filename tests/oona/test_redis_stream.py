"""Events in a Redis stream: all of them, whatever the server does."""

import contextlib
import itertools
import json
import threading
import time

import pytest

from esper_jax.oona import jsonl, redis_stream
from esper_jax.oona.bus import Bus
from esper_jax.oona.health import Health
from esper_jax.oona.redis_stream import RedisSink, follow
from esper_jax.types import InputError
from tests.oona.sample_events import publish

STREAM = b"esper"


class Log:
  """An events.jsonl that a bus writes, and its sink."""

  def __init__(self, path, server, run="one", url=""):
    self.path = path
    self.writer = jsonl.JsonlWriter(path, fsync=False)
    self.bus = Bus()
    self.bus.subscribe(self.writer.append, required=True)
    self.sink = RedisSink(
      path, run=run, url=url or server.url, stream=STREAM.decode()
    )
    self.bus.subscribe(self.sink)

  def publish(self, *steps):
    for step in steps:
      publish(self.bus, "decision", step=step)

  def lines(self):
    return self.path.read_bytes().splitlines()

  def close(self, seconds=5.0):
    self.writer.close()
    return self.sink.close(seconds)


@pytest.fixture
def make_log(tmp_path, server):
  with contextlib.ExitStack() as stack:

    def make(name="events.jsonl", **options):
      log = Log(tmp_path / name, server, **options)
      stack.callback(log.close, 0.0)
      return log

    yield make


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
  monkeypatch.setattr(redis_stream, "_FIRST_PAUSE", 0.01)
  monkeypatch.setattr(redis_stream, "_HURRY_SECONDS", 0.01)


def held(server, run=b"one"):
  """What the stream holds of a run: (at, line), in order."""
  found = []
  for _, flat in server.streams.get(STREAM, []):
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if fields.get(b"run") == run:
      found.append((int(fields[b"at"]), fields[b"event"]))
  return found


def wait_until(holds):
  deadline = time.monotonic() + 10
  while not holds():
    assert time.monotonic() < deadline
    time.sleep(0.005)


def test_every_line_becomes_an_entry_at_its_byte(make_log, server):
  log = make_log()
  log.publish(1, 2)
  wait_until(lambda: len(held(server)) == 2)
  log.publish(*range(3, 1200))  # several batches
  assert log.close() == 0
  ats, lines = zip(*held(server), strict=True)
  assert list(lines) == log.lines() and len(lines) == 1199
  data = log.path.read_bytes()
  assert all(
    data[at:].startswith(line + b"\n")
    for at, line in zip(ats, lines, strict=True)
  )
  assert log.sink.health() == Health()


def test_a_line_longer_than_a_batch_and_one_that_is_not_whole(
  make_log, server, monkeypatch
):
  monkeypatch.setattr(redis_stream, "_BATCH_BYTES", 8)
  log = make_log()
  log.publish(1)
  with open(log.path, "ab") as file:
    file.write(b'{"torn')
  log.sink({})
  assert log.close() == 0
  assert [line for _, line in held(server)] == log.lines()[:1]


def test_a_server_that_is_down_is_tried_until_it_is_there(make_log, server):
  server.stop()
  log = make_log()
  log.publish(1, 2, 3)
  assert "it fails now (" in log.sink.describe()
  health = log.sink.health()
  assert (health.state, health.queued, health.dropped) == ("degraded", 3, 0)
  assert "refused" in health.error
  server.start()
  wait_until(lambda: log.sink.health() == Health())
  assert len(held(server)) == 3
  assert log.sink.describe() == (f"Redis at {server.url}, stream esper, as one")


def test_a_server_that_comes_back_empty_gets_all_again(make_log, server):
  log = make_log()
  log.publish(1, 2)
  wait_until(lambda: len(held(server)) == 2)
  server.stop()
  server.streams.clear()
  server.start()
  log.publish(3)
  assert log.close() == 0
  assert [line for _, line in held(server)] == log.lines()


def test_a_stream_that_is_emptied_is_filled_at_the_end(make_log, server):
  log = make_log()
  log.publish(1, 2)
  wait_until(lambda: len(held(server)) == 2)
  server.streams.clear()
  assert log.close() == 0
  assert [line for _, line in held(server)] == log.lines()


def test_an_idle_sink_notices_that_the_server_lost_something(
  make_log, server, monkeypatch
):
  monkeypatch.setattr(redis_stream, "_LOOK_SECONDS", 0.02)
  log = make_log()
  log.publish(1, 2, 3)
  wait_until(lambda: len(held(server)) == 3)
  del server.streams[STREAM][1:]  # as one that saves now and then
  wait_until(lambda: len(held(server)) == 3)
  assert [line for _, line in held(server)] == log.lines()


def test_what_was_trimmed_is_not_sent_again(make_log, server):
  log = make_log()
  log.publish(*range(6))
  assert log.close() == 0
  del server.streams[STREAM][:4]
  again = make_log()
  assert again.close() == 0
  assert [line for _, line in held(server)] == log.lines()[4:]


def test_an_answer_that_is_lost_gives_the_same_id_twice(make_log, server):
  log = make_log()
  wait_until(lambda: log.sink.health() == Health())
  server.breaks = {b"EXEC": 1, b"XREVRANGE": 1}
  log.publish(1, 2, 3)
  assert log.close() == 0
  assert sorted(set(held(server))) == held(server)
  assert [line for _, line in held(server)] == log.lines()


def test_a_batch_is_sent_whole_or_not_at_all(make_log, server):
  log = make_log()
  server.refuses[b"XADD"] = "OOM command not allowed"
  log.publish(1, 2)
  wait_until(lambda: log.sink.health().error)
  assert log.sink.health().error == "command not allowed"
  assert held(server) == []
  server.refuses.clear()
  assert log.close() == 0
  assert len(held(server)) == 2


def test_a_resumed_run_goes_on_behind_what_its_file_still_has(make_log, server):
  log = make_log()
  log.publish(1, 2)
  offset = log.writer.offset
  log.publish(3, 4)
  assert log.close() == 0
  old = log.lines()
  cut = jsonl.JsonlWriter(log.path, fsync=False)
  cut.truncate_to(offset)
  cut.close()
  later = make_log()
  later.publish(5, 6)
  assert later.close() == 0
  assert [line for _, line in held(server)] == old + later.lines()[2:]
  assert held(server)[4][0] == offset


def test_two_runs_share_a_stream(make_log, server):
  logs = [make_log(name, run=name) for name in ("a", "b")]
  for step in range(30):
    for log in logs:
      log.publish(step)
  for log in logs:
    assert log.close() == 0
    mine = held(server, log.path.name.encode())
    assert [line for _, line in mine] == log.lines()
  # Long after, behind what others wrote.
  more = make_log("b", run="b")
  more.publish(*range(20))
  assert more.close() == 0
  last = make_log("a", run="a")
  last.publish(99)
  assert last.close() == 0
  assert len(held(server, b"a")) == 31


def test_entries_of_others_are_passed_over(make_log, server):
  log = make_log()
  log.publish(1)
  assert log.close() == 0
  (line,) = log.lines()
  entry = {b"run": b"one", b"at": b"0", b"event": line}
  for change in (
    {b"at": b"-5"},
    {b"at": b"x"},
    {b"event": b"no json"},
    {b"event": b"[]"},
    {b"run": b"\xff"},
    {b"rum": b"one"},
    {b"at": b"5"},
  ):
    fields = {**entry, **change}
    if b"rum" in change:
      del fields[b"run"]
    flat = list(itertools.chain.from_iterable(fields.items()))
    server.streams[STREAM].append((100, flat))
  before = len(server.streams[STREAM])
  again = make_log()
  assert again.close() == 0
  assert len(server.streams[STREAM]) == before
  with contextlib.closing(follow(server.url, run="one")) as events:
    assert [next(events).at for _ in range(2)] == [0, 5]


def test_publishing_never_waits_for_a_server_that_does_not_answer(
  make_log, server
):
  log = make_log()
  server.mute = True
  start = time.monotonic()
  log.publish(*range(100))
  assert time.monotonic() - start < 1
  assert log.sink.health().queued == 100
  start = time.monotonic()
  assert log.close(0.2) == 100
  assert time.monotonic() - start < 1
  server.stop()  # or the thread waits for its answer


def test_a_run_ends_although_the_server_is_gone(make_log, server):
  log = make_log()
  log.publish(1)
  wait_until(lambda: len(held(server)) == 1)
  server.stop()
  log.publish(2, 3)
  start = time.monotonic()
  assert log.close(0.3) == 2
  assert log.close(0.3) == 2  # again, at once
  assert 0.25 < time.monotonic() - start < 2
  wait_until(lambda: log.sink.health().state == "failed")
  assert log.sink.health().queued == 2


def test_the_end_waits_for_a_server_that_comes_back(make_log, server):
  log = make_log()
  wait_until(lambda: log.sink.health() == Health())
  server.stop()
  log.publish(1, 2)
  timer = threading.Timer(0.2, server.start)
  timer.start()
  assert log.close() == 0
  timer.join()
  assert len(held(server)) == 2


def test_a_log_that_cannot_be_read_stops_nobody(make_log, server):
  log = make_log()
  log.path.unlink()
  log.publish(1)
  wait_until(lambda: "No such file" in log.sink.health().error)
  assert log.close(0.1) == 0


@pytest.mark.parametrize("name", ["wrong password", "wrong key"])
def test_a_server_that_refuses_is_bad_input(make_log, server, name):
  url = server.url.replace("//", "//:secret@")
  if name == "wrong password":
    server.password = "other"
  else:
    server.password = "secret"
    server.refuses[b"XREVRANGE"] = "WRONGTYPE no stream"
  with pytest.raises(InputError, match="refuses to show the str") as caught:
    make_log(url=url)
  assert "secret" not in str(caught.value)
  assert "ESPER_REDIS_PASSWORD" in str(caught.value)


def test_a_url_that_is_none_is_bad_input(make_log):
  with pytest.raises(InputError, match="names no host"):
    make_log(url="redis://")


# --- Following ---------------------------------------------------------------


def test_a_follower_gets_each_event_once(make_log, server):
  log = make_log()
  log.publish(1, 2)
  with contextlib.closing(follow(server.url)) as events:
    first = [next(events), next(events)]
    assert [e.event["step"] for e in first] == [1, 2]
    assert {e.run for e in first} == {"one"} and first[0].at == 0
    server.stop()
    server.streams.clear()
    server.start()
    log.publish(3)
    assert next(events).event["step"] == 3


def test_a_follower_is_told_what_a_resumed_run_does_again(server):
  def add(at, **event):
    text = json.dumps(event).encode()
    flat = [b"run", b"one", b"at", b"%d" % at, b"event", text]
    entries = server.streams.setdefault(STREAM, [])
    entries.append((len(entries) + 1, flat))

  for at, step in ((0, 1), (10, 2), (20, 3), (0, 1), (10, 4), (20, 3)):
    add(at, step=step)
  with contextlib.closing(follow(server.url)) as events:
    told = [next(events) for _ in range(5)]
  assert [(e.at, e.event["step"]) for e in told] == [
    (0, 1),
    (10, 2),
    (20, 3),
    (10, 4),  # the first two of this attempt are those of the one before
    (20, 3),
  ]


def test_a_follower_may_choose_a_run(make_log, server):
  for name in ("a", "b"):
    log = make_log(name, run=name)
    log.publish(1, 2)
    assert log.close() == 0
  with contextlib.closing(follow(server.url, run="b")) as events:
    assert [next(events).run for _ in range(2)] == ["b", "b"]


def test_a_follower_that_can_get_nothing_is_told(server):
  with pytest.raises(InputError, match="names no host"):
    next(follow("redis://"))
  server.refuses[b"XREAD"] = "WRONGTYPE no stream"
  with pytest.raises(InputError, match="cannot follow the stream 'x'.*WRONG"):
    next(follow(server.url, "x"))
  server.stop()
  url = server.url.replace("//", "//:secret@")
  with pytest.raises(InputError, match="cannot follow.*refused") as caught:
    next(follow(url))
  assert "secret" not in str(caught.value)


def test_a_follower_waits_for_a_server_that_comes_back(make_log, server):
  log = make_log()
  log.publish(1)
  with contextlib.closing(follow(server.url)) as events:
    assert next(events).event["step"] == 1
    server.stop()
    timer = threading.Timer(0.2, server.start)
    timer.start()
    log.publish(2)
    assert next(events).event["step"] == 2
    timer.join()
