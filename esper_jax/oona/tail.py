"""Follows a log of one JSON object a line while another process writes it."""

import os
import pathlib
from typing import Any, BinaryIO

from esper_jax.oona import jsonl
from esper_jax.types import InputError


class Tail:
  """Reads what is new in a log at each call; the log need not exist yet.

  A run that is resumed moves the end of its logs aside. The log is then read
  anew, without what was read before: each line bears the `time` at which it
  was written.
  """

  def __init__(self, path: os.PathLike | str):
    """Starts before the first line of a log."""
    self._path = pathlib.Path(path)
    self._end = 0  # byte after the last line that was read
    self._count = 0  # lines up to there
    self._last = b""  # the last of them
    self._newest = 0.0  # time of the newest line that was read

  def new(self) -> list[dict[str, Any]]:
    """Returns the whole lines that were added since the last call.

    Raises:
      InputError: the log cannot be read, or a whole line is not a JSON object.
    """
    try:
      with open(self._path, "rb") as file:
        again = not self._is_where_it_was(file)
        data = file.read()
    except FileNotFoundError:
      return []
    except OSError as error:
      raise InputError(f"cannot read {self._path}: {error.strerror}") from error
    data = data[: data.rfind(b"\n") + 1]
    records = jsonl.parse(data, self._path, before=self._count)
    if records:
      self._end += len(data)
      self._count += len(records)
      self._last = data[data.rfind(b"\n", 0, -1) + 1 :]
    if again:
      records = [r for r in records if r.get("time", 0.0) > self._newest]
    self._newest = max((self._newest, *(r.get("time", 0.0) for r in records)))
    return records

  def _is_where_it_was(self, file: BinaryIO) -> bool:
    """Goes to where the last read ended, or where that is gone to the start."""
    file.seek(self._end - len(self._last))
    if file.read(len(self._last)) == self._last:
      return True
    self._end, self._count, self._last = 0, 0, b""
    file.seek(0)
    return False
