"""As much of a Redis server as the tests need, in this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class SmallRedis:
  """Serves streams on a free port of this machine.

  Attributes:
    port: kept over restarts.
    streams: name -> entries, (number, fields, flat).
    password: that it asks for; "" = none.
    mute: whether it reads and does not answer.
    refuses: command -> the error that it answers.
    breaks: command -> how many times the connection breaks after it, the
      answer unsent.
  """

  def __init__(self):
    self.streams: dict[bytes, list[tuple[int, list[bytes]]]] = {}
    self.password = ""
    self.mute = False
    self.refuses: dict[bytes, str] = {}
    self.breaks: dict[bytes, int] = {}
    self.port = 0
    self._listener: socket.socket | None = None
    self._open: set[socket.socket] = set()
    self._threads: list[threading.Thread] = []
    self.start()

  @property
  def url(self) -> str:
    return f"redis://127.0.0.1:{self.port}"

  def start(self) -> None:
    """Listens; what was there before is there again."""
    self._listener = socket.create_server(("127.0.0.1", self.port))
    self.port = self._listener.getsockname()[1]
    self._spawn(self._accept, self._listener)

  def stop(self) -> None:
    """Breaks every connection, and takes none."""
    if self._listener:
      self._listener.shutdown(socket.SHUT_RDWR)
      self._listener.close()
      self._listener = None
    for connection in list(self._open):
      with contextlib.suppress(OSError):  # its thread has closed it
        connection.shutdown(socket.SHUT_RDWR)
    for thread in self._threads:
      thread.join()
    self._threads.clear()

  def _spawn(self, target, *args) -> None:
    thread = threading.Thread(target=target, args=args, daemon=True)
    self._threads.append(thread)
    thread.start()

  def _accept(self, listener: socket.socket) -> None:
    while True:
      try:
        connection, _ = listener.accept()
      except OSError:
        return
      self._open.add(connection)
      self._spawn(self._serve, connection)

  def _serve(self, connection: socket.socket) -> None:
    queue: list[list[bytes]] | None = None  # of a transaction
    known = False
    try:
      with connection, connection.makefile("rb") as file:
        for command in _commands(file):
          name = command[0].upper()
          if self.mute:
            continue
          if name == b"AUTH":
            known = command[-1].decode() == self.password
            answer = b"+OK\r\n" if known else b"-WRONGPASS invalid\r\n"
          elif self.password and not known:
            answer = b"-NOAUTH Authentication required.\r\n"
          elif name in self.refuses:
            answer = f"-{self.refuses[name]}\r\n".encode()
          elif name == b"MULTI":
            queue, answer = [], b"+OK\r\n"
          elif name == b"EXEC":
            assert queue is not None
            answer = _array([self._answer(c) for c in queue])
            queue = None
          elif queue is not None:
            queue.append(command)
            answer = b"+QUEUED\r\n"
          else:
            answer = self._answer(command)
          if self.breaks.get(name, 0):
            self.breaks[name] -= 1
            return
          connection.sendall(answer)
    except OSError:
      pass
    finally:
      self._open.discard(connection)

  def _answer(self, command: list[bytes]) -> bytes:
    name, *args = command
    if name == b"XADD":
      entries = self.streams.setdefault(args[0], [])
      number = entries[-1][0] + 1 if entries else 1
      entries.append((number, args[2:]))
      return _bulk(b"%d-0" % number)
    if name == b"XLEN":
      return b":%d\r\n" % len(self.streams.get(args[0], []))
    if name == b"XREVRANGE":
      key, newest, _, _, count = args
      top = float("inf") if newest == b"+" else _number(newest)
      entries = [e for e in self.streams.get(key, []) if e[0] <= top]
      return _array([_entry(e) for e in entries[::-1][: int(count)]])
    if name == b"XREAD":
      *_, key, last = args
      after = _number(last)
      entries = [e for e in self.streams.get(key, []) if e[0] > after]
      if not entries:
        time.sleep(0.01)
        return b"*-1\r\n"
      found = _array([_entry(e) for e in entries])
      return _array([_array([_bulk(key), found])])
    if name == b"INFO":
      return _bulk(b"# Server\r\nredis_version:7.9.9\r\n")
    return b"+OK\r\n"


def _commands(file) -> Iterator[list[bytes]]:
  while head := file.readline():
    parts = []
    for _ in range(int(head[1:])):
      size = int(file.readline()[1:])
      parts.append(file.read(size))
      file.readline()
    yield parts


def _number(entry_id: bytes) -> int:
  return int(entry_id.partition(b"-")[0])


def _entry(entry: tuple[int, list[bytes]]) -> bytes:
  number, fields = entry
  return _array([_bulk(b"%d-0" % number), _array([_bulk(f) for f in fields])])


def _bulk(text: bytes) -> bytes:
  return b"$%d\r\n%s\r\n" % (len(text), text)


def _array(parts: list[bytes]) -> bytes:
  return b"*%d\r\n%s" % (len(parts), b"".join(parts))
