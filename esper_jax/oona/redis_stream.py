"""A run's events in a Redis stream, for other processes to follow.

events.jsonl is the truth; a thread copies it, and the run waits for nothing:

  a line is written -> the thread is woken
  it connects and finds the run's last entry in the stream that is still a line
  of the file; it goes on behind it, or from the first line where there is none
  every line becomes an entry {run, at, event}: `at` is the byte at which the
  line begins, so (run, at) is the event's id
  whatever fails is tried again, from "connects" on, after a pause
  at the end the run waits a few seconds; what is left stays in events.jsonl

So an event may come twice, and none is left out, also where the server comes
back with less than it had. A run that was killed goes on from its last
checkpoint: its next event has an `at` that was there before, and that event and
all behind it are void.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from esper_jax.oona import redis_url
from esper_jax.oona.health import Health, State
from esper_jax.types import InputError

_BATCH_BYTES = 1 << 20  # read at once; more where a line is longer
_BATCH_LINES = 500  # sent at once
_LOOK_SECONDS = 5.0  # between two looks at a server when nothing happens
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between two attempts
_HURRY_SECONDS = 0.2  # between them when the run has ended
_FEW, _MANY = 10, 1000  # entries that are looked through at once
_BLOCK_MS = 1000  # for which a follower's question stays with the server

_Fields = Mapping[bytes, bytes]


class RedisSink:
  """Copies events.jsonl to a stream, in a thread of its own.

  Attributes:
    place: where the events go, for people.
  """

  def __init__(self, events: Path, *, run: str, url: str, stream: str):
    """Looks at the server and begins to send.

    A server that is down is asked again later.

    Args:
      events: the run's log of events; lines are only added to it.
      run: what tells the run's events from others in the stream.
      url: see `redis_url.check`.
      stream: name of the stream.

    Raises:
      InputError: the URL is not valid, the package is not installed, or the
        server refuses.
    """
    server = f"Redis at {redis_url.without_password(url)}"
    self.place = f"{server}, stream {stream}, as {run}"
    self._stream = stream
    self._run = run
    self._events = events
    self._connect = lambda: contextlib.closing(redis_url.connect(url))
    self._sent = 0  # bytes of the file that are in the stream
    self._error = ""
    self._deadline = float("inf")  # of the last attempts
    self._wake = threading.Event()
    self._closing = threading.Event()
    try:
      with self._connect() as client:
        client.xrevrange(stream, count=1)
    except InputError:
      raise
    except Exception as error:
      if redis_url.refused(error):
        raise InputError(
          f"{server} refuses to show the stream '{stream}':"
          f" {_words(error)}; mend --config.oona.redis_url or"
          f" --config.oona.redis_stream (${redis_url.PASSWORD} may hold the"
          " password)"
        ) from error
      self._error = _words(error)
    self._thread = threading.Thread(
      target=self._work, name="redis", daemon=True
    )
    self._thread.start()

  def __call__(self, event: Mapping[str, Any]) -> None:
    """Has the thread look at the log; returns at once."""
    self._wake.set()

  def health(self) -> Health:
    """How the copying goes; any thread may ask."""
    queued = self._left()
    if not self._error:
      return Health(queued=queued)
    ended = not self._thread.is_alive()
    state = State.FAILED if ended else State.DEGRADED
    return Health(state, queued=queued, error=self._error)

  def describe(self) -> str:
    """Where the events go, and whether they can now, in a line."""
    if not self._error:
      return self.place
    return f"{self.place}; it fails now ({self._error}) and is tried again"

  def close(self, seconds: float) -> int:
    """Waits until the stream has every event, and stops; idempotent.

    Args:
      seconds: to wait at most.

    Returns:
      How many events the stream lacks.
    """
    self._deadline = min(self._deadline, time.monotonic() + seconds)
    self._closing.set()
    self._wake.set()
    self._thread.join(max(0.0, self._deadline - time.monotonic()))
    return self._left()

  def _left(self) -> int:
    try:
      with open(self._events, "rb") as file:
        file.seek(self._sent)
        return sum(line.endswith(b"\n") for line in file)
    except OSError:
      return 0

  def _work(self) -> None:
    pause = _FIRST_PAUSE
    while True:
      try:
        with self._connect() as client:
          while True:
            self._wake.clear()  # before the rest, or a call is missed
            ending = self._closing.is_set()
            self._catch_up(client)
            pause, self._error = _FIRST_PAUSE, ""
            if ending:
              return
            self._wake.wait(_LOOK_SECONDS)
      except Exception as error:  # whatever it is, the run goes on
        self._error = _words(error)
      if self._closing.wait(pause):
        time.sleep(_HURRY_SECONDS)
      pause = min(2 * pause, _LONGEST_PAUSE)
      if time.monotonic() >= self._deadline:
        return

  def _catch_up(self, client: Any) -> None:
    """Sends every line that the stream lacks."""
    self._sent = self._found(client)
    while lines := _lines(self._events, self._sent):
      # All or none: a gap would never be seen again.
      pipeline = client.pipeline(transaction=True)
      at = self._sent
      for line in lines:
        fields = {"run": self._run, "at": at, "event": line[:-1]}
        pipeline.xadd(self._stream, fields)
        at += len(line)
      pipeline.execute()
      self._sent = at

  def _found(self, client: Any) -> int:
    """The byte behind the last line that the stream has; 0 where it has none.

    Entries of a file that was cut since are passed over.
    """
    newest, count = "+", _FEW
    while True:
      entries = client.xrevrange(self._stream, newest, count=count)
      for _, fields in entries:
        entry = _read(fields)
        if entry and entry.run == self._run:
          line = fields[b"event"] + b"\n"
          if _bytes(self._events, entry.at, len(line)) == line:
            return entry.at + len(line)
      if len(entries) < count:
        return 0
      newest, count = entries[-1][0], _MANY


class Followed(NamedTuple):
  """An event, as another process gets it.

  Attributes:
    run: whose it is.
    at: its place: the event's id is (run, at), and events of a run come in
      this order. Where it was there before, that event and all behind it are
      void.
    event: as in events.jsonl.
  """

  run: str
  at: int
  event: dict[str, Any]


def follow(
  url: str, stream: str = "esper", run: str | None = None
) -> Iterator[Followed]:
  """Yields the events in a stream, once each, and then those that come.

  It ends when its user closes it. A server that goes away is waited for.

  Args:
    url: see `redis_url.check`.
    stream: name of the stream.
    run: the run; None: every one.

  Raises:
    InputError: the URL is not valid, the package is not installed, or the
      server does not answer at first, or refuses.
  """
  seen: dict[str, dict[int, int]] = {}  # run -> at -> hash of the event
  pause, before = _FIRST_PAUSE, False
  while True:
    client = redis_url.connect(url)
    try:
      with contextlib.closing(client):
        last = b"0"  # the server may have come back with less than it had
        while True:
          answer = client.xread({stream: last}, count=_MANY, block=_BLOCK_MS)
          pause, before = _FIRST_PAUSE, True
          for name, fields in answer[0][1] if answer else ():
            last = name
            entry = _read(fields)
            if entry and run in (None, entry.run):
              if _is_new(entry, fields, seen.setdefault(entry.run, {})):
                yield entry
    except redis_url.failures() as error:
      if not before or redis_url.refused(error):
        raise InputError(
          f"cannot follow the stream '{stream}' of Redis at"
          f" {redis_url.without_password(url)}: {_words(error)}"
        ) from error
    time.sleep(pause)
    pause = min(2 * pause, _LONGEST_PAUSE)


def _is_new(entry: Followed, fields: _Fields, seen: dict[int, int]) -> bool:
  """Whether an event was not yielded; notes it, and forgets what is void."""
  mark = hash(fields[b"event"])
  if seen.get(entry.at) == mark:
    return False
  while seen and next(reversed(seen)) >= entry.at:  # they ascend
    seen.popitem()
  seen[entry.at] = mark
  return True


def _read(fields: _Fields) -> Followed | None:
  """What an entry holds; None where it is not one of ours."""
  try:
    at, event = int(fields[b"at"]), json.loads(fields[b"event"])
    entry = Followed(fields[b"run"].decode(), at, event)
  except (KeyError, ValueError):
    return None
  return entry if at >= 0 and isinstance(event, dict) else None


def _lines(path: Path, start: int) -> list[bytes]:
  """Whole lines from a byte on: all, or as many as are sent at once."""
  size = _BATCH_BYTES
  while True:
    data = _bytes(path, start, size)
    whole = data[: data.rfind(b"\n") + 1]
    if whole or len(data) < size:
      return whole.splitlines(keepends=True)[:_BATCH_LINES]
    size *= 2


def _bytes(path: Path, start: int, size: int) -> bytes:
  with open(path, "rb") as file:
    file.seek(start)
    return file.read(size)


def _words(error: BaseException) -> str:
  """The first line of an error, or its kind; of a pipeline's, the reason."""
  line = str(error).partition("\n")[0].rpartition("caused error: ")[2]
  return line.rstrip(".") or type(error).__name__
