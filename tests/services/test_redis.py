"""A real redis-server that is killed while runs write to it."""

import contextlib
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import redis

from esper_jax.doctor import redis as doctor
from esper_jax.doctor.settings import Settings
from esper_jax.oona import jsonl, redis_url
from esper_jax.oona.bus import Bus
from esper_jax.oona.redis_stream import RedisSink, follow
from esper_jax.types import InputError
from tests.integration.lab import Lab, check_same, environment
from tests.oona.sample_events import publish

pytestmark = pytest.mark.services
SECONDS = 60.0  # within which what must happen happens


class Server:
  """A redis-server on a free port of this machine."""

  def __init__(self, folder: Path, *options: str):
    self.folder, self.options = folder, options
    with socket.create_server(("127.0.0.1", 0)) as probe:
      self.port = probe.getsockname()[1]
    self.url = f"redis://127.0.0.1:{self.port}"
    self.start()

  def start(self) -> None:
    self.process = subprocess.Popen(
      [
        *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
        *("--save", "", "--dir", str(self.folder), *self.options),
      ],
      stdout=subprocess.DEVNULL,
    )
    wait_until(self.answers)

  def answers(self) -> bool:
    with contextlib.suppress(OSError):
      socket.create_connection(("127.0.0.1", self.port)).close()
      return True
    return False

  def kill(self) -> None:
    self.process.kill()  # kill -9
    self.process.wait()

  def entries(self, run: str) -> dict[int, bytes]:
    """at -> line, once each, of a run's entries."""
    with contextlib.closing(redis.Redis(port=self.port)) as client:
      entries = [fields for _, fields in client.xrange("esper")]
    return {
      int(e[b"at"]): e[b"event"] for e in entries if e[b"run"].decode() == run
    }


@pytest.fixture
def serve(tmp_path, monkeypatch):
  """Starts servers, which are killed after the test."""
  monkeypatch.delenv(redis_url.PASSWORD, raising=False)
  with contextlib.ExitStack() as stack:

    def start(*options):
      server = Server(tmp_path, *options)
      stack.callback(server.kill)
      return server

    yield start


def wait_until(holds) -> None:
  deadline = time.monotonic() + SECONDS
  while not holds():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def lines_of(path: Path) -> dict[int, bytes]:
  """at -> line of an events.jsonl."""
  found, at = {}, 0
  for line in path.read_bytes().splitlines(keepends=True):
    found[at] = line[:-1]
    at += len(line)
  return found


def test_a_run_is_untouched_by_a_server_that_is_killed(serve, tmp_path):
  server = serve()
  lab = Lab(tmp_path, environment())
  plain = lab.run("plain")
  followed = []

  def listen():
    for entry in follow(server.url):
      followed.append(entry)
      if entry.event["type"] == "run_finished":
        return

  listener = threading.Thread(target=listen, daemon=True)
  listener.start()
  process = lab.start(
    "copied",
    "grow",
    f"oona.redis_url={server.url}",
    f"oona.redis_flush_seconds={SECONDS}",
  )
  log = process.left.path / "events.jsonl"

  def lines(count):
    return lambda: log.exists() and log.read_bytes().count(b"\n") >= count

  for kill in range(3):
    assert process.wait_until(lines(8 * kill + 4))
    server.kill()
    assert process.wait_until(lines(8 * kill + 8))  # of which it knows nothing
    server.start()  # empty
  code, out, err = process.end()
  assert code == 0, err
  check_same(process.left, plain)
  assert "have not reached Redis" not in out
  copied = lines_of(log)
  (run,) = {entry.run for entry in followed}
  assert server.entries(run) == copied
  listener.join(SECONDS)
  assert [entry.event for entry in followed] == jsonl.read(log)
  assert [entry.at for entry in followed] == list(copied)


@pytest.mark.parametrize("saves", ["no", "yes"])
def test_every_event_gets_there_though_the_server_is_killed(
  serve, tmp_path, saves
):
  server = serve("--appendonly", saves)
  log = jsonl.JsonlWriter(tmp_path / "events.jsonl", fsync=False)
  bus = Bus()
  bus.subscribe(log.append, required=True)
  sink = RedisSink(log.path, run="one", url=server.url, stream="esper")
  bus.subscribe(sink)
  for part in range(3):
    for step in range(2000):
      publish(bus, "decision", epoch=part, step=step)
      if step % 100 == 0:
        time.sleep(0.002)  # or the sink would send all at once
    server.kill()
    publish(bus, "culled", epoch=part, step=2000)
    wait_until(lambda: sink.health().state == "degraded")
    server.start()
  assert sink.close(SECONDS) == 0
  log.close()
  copied = server.entries("one")
  assert copied == lines_of(log.path) and len(copied) == 3 * 2001


def test_a_server_that_is_frozen_holds_nobody_up(serve, tmp_path):
  server = serve()
  log = jsonl.JsonlWriter(tmp_path / "events.jsonl", fsync=False)
  sink = RedisSink(log.path, run="one", url=server.url, stream="esper")
  subprocess.run(["kill", "-STOP", str(server.process.pid)], check=True)
  log.append({"step": 1})
  start = time.monotonic()
  sink({})
  assert sink.close(0.5) == 1
  assert time.monotonic() - start < 2
  subprocess.run(["kill", "-CONT", str(server.process.pid)], check=True)
  log.append({"step": 2})
  again = RedisSink(log.path, run="one", url=server.url, stream="esper")
  assert again.close(SECONDS) == 0
  log.close()
  assert server.entries("one") == lines_of(log.path)


def test_a_password_and_tls(serve, tmp_path, monkeypatch):
  subprocess.run(
    [
      *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
      *("-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=127.0.0.1"),
      *("-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
    ],
    cwd=tmp_path,
    check=True,
    capture_output=True,
  )
  with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
  server = serve(
    *("--requirepass", "secret", "--tls-port", str(port)),
    *("--tls-cert-file", str(tmp_path / "cert.pem")),
    *("--tls-key-file", str(tmp_path / "key.pem")),
    *("--tls-auth-clients", "no"),
  )
  url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/cert.pem"
  log = jsonl.JsonlWriter(tmp_path / "events.jsonl", fsync=False)
  log.append({"type": "culled"})
  log.close()
  with pytest.raises(InputError, match="refuses to show the stream"):
    RedisSink(log.path, run="one", url=url, stream="esper")
  monkeypatch.setenv(redis_url.PASSWORD, "secret")
  sink = RedisSink(log.path, run="one", url=url, stream="esper")
  assert sink.close(SECONDS) == 0
  plain = server.url.replace("//", "//:secret@")
  with contextlib.closing(follow(plain)) as events:
    assert next(events).event == {"type": "culled"}
  (line,) = doctor.check(Settings(redis=(url, "esper")))
  assert line.level == "ok" and "stream esper has 1 entries" in line.found
  # A certificate that nobody vouches for: as a server that is down.
  stranger = RedisSink(
    log.path, run="one", url=url.partition("?")[0], stream="esper"
  )
  assert "certificate verify failed" in stranger.health().error
  assert stranger.close(0.1) == 1
  wait_until(lambda: stranger.health().state == "failed")


def test_a_key_of_another_kind_is_refused(serve, tmp_path):
  server = serve()
  with contextlib.closing(redis.Redis(port=server.port)) as client:
    client.set("esper", "a text")
  with pytest.raises(InputError, match="WRONGTYPE"):
    RedisSink(tmp_path / "x", run="one", url=server.url, stream="esper")
