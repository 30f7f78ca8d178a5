"""Triton's language where Triton is asked for; without it, a kernel's text.

A kernel is written once, in a file that can be imported on any machine:

  from esper_jax.urza.language import jit, tl

  @jit
  def copy(x, out, rows, C: tl.constexpr): ...

`jit` keeps the function's text, from which its identity is made. Only
`activate` imports Triton, which takes seconds and is not there on every
machine, and puts it in the place of `tl`.
"""

import hashlib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

from esper_jax.types import InputError


class _Language:
  """What stands for triton.language where a kernel is only read."""

  # Triton looks for this word in a parameter's annotation.
  constexpr = "constexpr"


tl: Any = _Language()


class Source:
  """The text of a Triton function.

  Attributes:
    function: the plain Python function; it cannot be called without Triton.
    name: of the function.
    text: of the function, as it was when it was imported.
  """

  def __init__(self, function: Callable[..., Any]):
    self.function = function
    self.name = function.__name__
    # Now, as the file may be another one later in a long run.
    self.text = _text_of(function)
    self._active: Any = None

  def __call__(self, *args: Any) -> Any:
    """Stands in a kernel's text for a helper, which Triton alone calls."""
    raise TypeError(f"'{self.name}' is for Triton to call")

  @property
  def parameters(self) -> tuple[str, ...]:
    """Names of the function's parameters, in order."""
    return tuple(inspect.signature(self.function).parameters)

  @property
  def digest(self) -> str:
    """SHA-256 of the text, and of that of every helper it calls.

    Where the function stands, and what stands beside it, does not count; of
    helpers the modules do, whose names Triton writes into its code.
    """
    text = hashlib.sha256()
    for source in self._with_helpers():
      if source is not self:
        text.update(f"# {source.function.__module__}\n".encode())
      text.update(source.text.encode())
    return text.hexdigest()

  def activate(self) -> Any:
    """The function as Triton's own `JITFunction`; the same one each time.

    Raises:
      ImportError: Triton is not installed.
      InputError: the function's file was changed after it was imported.
    """
    if self._active is None:
      if _text_of(self.function) != self.text:  # Triton would read that one
        raise InputError(
          f"the file of kernel {self.name} was changed after it was imported:"
          " start again"
        )
      triton = importlib.import_module("triton")
      scope = self._scope()
      for name, value in list(vars(scope).items()):
        if value is tl:
          setattr(scope, name, triton.language)
      for helper in self._helpers():
        setattr(scope, helper.name, helper.activate())
      self._active = triton.jit(self.function)
    return self._active

  def _scope(self) -> ModuleType:
    return sys.modules[self.function.__module__]

  def _helpers(self) -> list["Source"]:
    """Other functions that this one names, as they were before activation."""
    found = []
    for name in self.function.__code__.co_names:
      value = _BY_FUNCTION.get(_plain(self.function.__globals__.get(name)))
      if value is not None and value is not self:
        found.append(value)
    return found

  def _with_helpers(self) -> list["Source"]:
    found = [self]
    for source in found:
      found += [h for h in source._helpers() if h not in found]
    return found[:1] + sorted(found[1:], key=lambda s: s.name)


_BY_FUNCTION: dict[Any, Source] = {}


def _text_of(function: Callable[..., Any]) -> str:
  return textwrap.dedent(inspect.getsource(function))


def _plain(value: Any) -> Any:
  """The Python function behind a Source or an activated function."""
  return getattr(value, "function", None) or getattr(value, "fn", None)


def jit(function: Callable[..., Any]) -> Source:
  """Marks a function as a Triton kernel, or as a helper of one."""
  source = Source(function)
  _BY_FUNCTION[function] = source
  return source
