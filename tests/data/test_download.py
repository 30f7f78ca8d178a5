"""Downloads from a server on this machine that misbehaves in every way."""

import concurrent.futures
import dataclasses
import gzip
import hashlib
import http.server
import io
import os
import socket
import tarfile
import threading

import numpy as np
import pytest

from esper_jax.data import download
from esper_jax.types import InputError

SIZES = {"a.bin": 300_000, "b.bin": 7}


def _pack(extra=(), sizes=SIZES, folder="data-bin", prefix=""):
  """A .tar.gz with random members and, before them, the `extra` ones."""
  generator = np.random.default_rng(0)
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
    for member in extra:
      tar.addfile(member, io.BytesIO(b"x" * member.size))
    for name, size in sizes.items():
      member = tarfile.TarInfo(f"{prefix}{folder}/{name}")
      member.size = size
      tar.addfile(member, io.BytesIO(generator.bytes(size)))
  return buffer.getvalue()


def _member(name, size=1, kind=tarfile.REGTYPE, link=""):
  member = tarfile.TarInfo(name)
  member.type, member.linkname = kind, link
  member.size = size if kind == tarfile.REGTYPE else 0
  return member


@dataclasses.dataclass
class _Web:
  """What the server does, and what it was asked."""

  content: bytes
  url: str = ""
  ranges: bool = True  # whether it understands them
  cuts: list[int] = dataclasses.field(default_factory=list)  # bytes, then close
  status: int = 0  # sent instead of anything else
  length: bool = True  # whether it announces the length
  pause: float = 0.0  # seconds after the headers
  hang_up: bool = False  # before the headers
  asked: list[str | None] = dataclasses.field(default_factory=list)

  def archive(self):
    digest = hashlib.sha256(self.content).hexdigest()
    return download.Archive(self.url, digest, "data-bin", SIZES)


@pytest.fixture
def web(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  state = _Web(_pack())
  over = threading.Event()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked = self.headers.get("Range")
      state.asked.append(asked)
      if state.hang_up:
        return
      if state.status:
        self.send_error(state.status)
        return
      start = 0
      if asked and state.ranges:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(state.content):
          self.send_error(416)
          return
      body = state.content[start:]
      self.send_response(206 if start else 200)
      if state.length:
        self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      over.wait(state.pause)
      self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

    def log_message(self, format, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  state.url = f"http://127.0.0.1:{server.server_port}/data-binary.tar.gz"
  yield state
  over.set()
  server.shutdown()
  thread.join()
  server.server_close()


def _check(folder):
  assert {f.name: f.stat().st_size for f in folder.iterdir()} == SIZES


def test_a_download_arrives_whole_and_once(web, tmp_path):
  lines = []
  cache = tmp_path / "new" / "cache"
  folder = download.obtain(web.archive(), cache, report=lines.append)
  assert folder == cache / "data-bin"
  _check(folder)
  assert lines and "0 of 0 MB" in lines[-1]
  assert download.obtain(web.archive(), cache) == folder
  assert web.asked == [None]
  # Neither the archive nor half-written files stay behind.
  assert sorted(p.name for p in cache.iterdir()) == [
    "data-bin",
    "data-binary.tar.gz.lock",
  ]


def test_a_server_that_hides_the_length_will_do(web, tmp_path):
  web.length = False
  _check(download.obtain(web.archive(), tmp_path))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_resumed_at_once(web, tmp_path, ranges):
  web.ranges, web.cuts = ranges, [1000, 2000]
  _check(download.obtain(web.archive(), tmp_path))
  offset = 3000 if ranges else 2000
  assert web.asked == [None, "bytes=1000-", f"bytes={offset}-"]


def test_the_next_run_continues_an_interrupted_download(web, tmp_path):
  (tmp_path / "data-binary.tar.gz.part").write_bytes(web.content[:5000])
  _check(download.obtain(web.archive(), tmp_path))
  assert web.asked == ["bytes=5000-"]


def test_a_part_that_is_whole_already_is_used(web, tmp_path):
  (tmp_path / "data-binary.tar.gz.part").write_bytes(web.content)
  _check(download.obtain(web.archive(), tmp_path))
  assert web.asked == [f"bytes={len(web.content)}-"]


def test_the_part_of_another_file_is_dropped(web, tmp_path):
  (tmp_path / "data-binary.tar.gz.part").write_bytes(b"other" * 100)
  _check(download.obtain(web.archive(), tmp_path))
  assert web.asked == ["bytes=500-", None]


def test_an_archive_that_was_not_yet_unpacked_is_used(web, tmp_path):
  (tmp_path / "data-binary.tar.gz").write_bytes(web.content)
  _check(download.obtain(web.archive(), tmp_path))
  assert web.asked == []


def test_a_damaged_archive_is_fetched_again(web, tmp_path):
  (tmp_path / "data-binary.tar.gz").write_bytes(web.content[:-1])
  (tmp_path / "data-bin.partial").mkdir()
  (tmp_path / "data-bin.partial" / "left.bin").touch()
  _check(download.obtain(web.archive(), tmp_path))
  assert web.asked == [None]


def test_a_wrong_checksum_leaves_nothing(web, tmp_path):
  digest = hashlib.sha256(web.content).hexdigest()
  with pytest.raises(InputError, match="SHA-256") as caught:
    download.obtain(web.archive()._replace(sha256="0" * 64), tmp_path)
  for text in (web.url, digest, "0" * 64, "run again", "--config.data.dir"):
    assert text in str(caught.value)
  assert [p.name for p in tmp_path.iterdir()] == ["data-binary.tar.gz.lock"]


def _refuse(web, cache, text, **kwargs):
  with pytest.raises(InputError, match=text) as caught:
    download.obtain(web.archive(), cache, **kwargs)
  message = str(caught.value)
  assert "\n" not in message
  assert "cannot be downloaded" in message and "--config.data.dir" in message
  assert not (cache / "data-bin").exists()


@pytest.mark.parametrize("status", [404, 503])
def test_an_http_error_is_named(web, tmp_path, status):
  web.status = status
  _refuse(web, tmp_path, f"HTTP status {status}")
  assert len(web.asked) == 1


def test_no_server(web, tmp_path):
  with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
    web.url = f"http://127.0.0.1:{unused.getsockname()[1]}/x.tar.gz"
    _refuse(web, tmp_path, "Connection refused")


def test_a_server_that_hangs_up(web, tmp_path):
  web.hang_up = True
  _refuse(web, tmp_path, "closed connection without response")


def test_a_server_that_falls_silent(web, tmp_path):
  web.pause = 30
  _refuse(web, tmp_path, "timed out", timeout=0.2)


def test_a_server_that_talks_nonsense(web, tmp_path, monkeypatch):
  with socket.create_server(("127.0.0.1", 0)) as server:

    def answer():
      connection, _ = server.accept()
      with connection:
        connection.recv(1000)
        connection.sendall(b"nonsense\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    web.url = f"http://127.0.0.1:{server.getsockname()[1]}/x.tar.gz"
    _refuse(web, tmp_path, "nonsense")
    thread.join()


def test_endless_cuts_end_and_what_came_is_kept(web, tmp_path):
  web.cuts = [100] * 50
  _refuse(web, tmp_path, "connection was cut off")
  part = tmp_path / "data-binary.tar.gz.part"
  assert part.stat().st_size == 100 * len(web.asked) == 500


@pytest.mark.parametrize("prefix", ["", "./"])
def test_only_expected_members_are_written(web, tmp_path, prefix):
  outside = tmp_path / "outside"
  extra = [
    _member("../outside"),
    _member(str(outside)),
    _member("data-bin/readme.html"),
    _member("data-bin/../../outside"),
    _member("other/a.bin"),
    _member("data-bin/a.bin", kind=tarfile.SYMTYPE, link=str(outside)),
    _member("data-bin", kind=tarfile.DIRTYPE),
  ]
  web.content = _pack(extra, prefix=prefix)
  folder = download.obtain(web.archive(), tmp_path / "cache")
  _check(folder)
  assert not any(f.is_symlink() for f in folder.iterdir())
  assert [p.name for p in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
  ("sizes", "text"),
  [
    ({"a.bin": 300_001, "b.bin": 7}, "300001 bytes, expected 300000"),
    ({"a.bin": 300_000}, "lacks b.bin"),
  ],
)
def test_another_content_is_refused(web, tmp_path, sizes, text):
  web.content = _pack(sizes=sizes)
  with pytest.raises(InputError, match=text) as caught:
    download.obtain(web.archive(), tmp_path)
  assert "--config.data.dir" in str(caught.value)
  assert not (tmp_path / "data-bin").exists()


def _stop_half_way(content, rest):
  return gzip.compress(gzip.decompress(content)[:150_000]) + rest


_BAD_BLOCK = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x00\x07" + bytes(99)


@pytest.mark.parametrize(
  "damage",
  [
    lambda content: b"no archive",
    lambda content: content[:-1000],
    lambda content: _stop_half_way(content, b""),
    lambda content: _stop_half_way(content, b"nonsense"),
    lambda content: _stop_half_way(content, _BAD_BLOCK),
  ],
)
def test_an_unreadable_archive_is_refused(web, tmp_path, damage):
  web.content = damage(web.content)
  with pytest.raises(InputError, match="not a readable .tar.gz") as caught:
    download.obtain(web.archive(), tmp_path)
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "data-bin").exists()


@pytest.mark.parametrize("cache", ["file/below", "file"])
def test_a_cache_that_cannot_be_written(web, tmp_path, cache):
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="cannot be written") as caught:
    download.obtain(web.archive(), tmp_path / cache)
  assert "--config.data.cache_dir" in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.skipif(
  not os.path.exists("/dev/full"), reason="needs the device /dev/full"
)
def test_a_full_disk_is_not_taken_for_the_network(web, tmp_path):
  (tmp_path / "data-binary.tar.gz.part").symlink_to("/dev/full")
  with pytest.raises(InputError, match="No space left") as caught:
    download.obtain(web.archive(), tmp_path)
  assert "--config.data.cache_dir" in str(caught.value)


def test_two_at_once_wait_for_one_another(web, tmp_path):
  web.pause = 0.3
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    started = [
      pool.submit(download.obtain, web.archive(), tmp_path) for _ in range(2)
    ]
    folders = [run.result() for run in started]
  assert folders == [tmp_path / "data-bin"] * 2
  assert web.asked == [None]
  _check(tmp_path / "data-bin")
