"""Arrays as Triton's interpreter takes them."""

from typing import Any

import numpy as np


class Buffer:
  """A numpy array with what Triton's interpreter asks of a torch tensor."""

  def __init__(self, array: np.ndarray):
    self.array = np.ascontiguousarray(array) if array.ndim else array
    if not np.shares_memory(self.array, array):
      raise ValueError("an output must be contiguous")
    self.dtype = str(array.dtype)

  def data_ptr(self) -> int:
    return self.array.ctypes.data

  def untyped_storage(self) -> "Buffer":
    return self

  def cpu(self) -> "Buffer":
    return self

  def new_empty(self, *_: Any, **__: Any) -> "Buffer":
    return Buffer(self.array)

  def storage_offset(self) -> int:
    return 0

  def size(self) -> tuple[int, ...]:
    return self.array.shape

  def stride(self) -> tuple[int, ...]:
    return ()

  def set_(self, storage: "Buffer", *_: Any) -> None:
    self.array = storage.array

  def copy_(self, _: "Buffer") -> None:
    """The kernel wrote into the array itself."""
