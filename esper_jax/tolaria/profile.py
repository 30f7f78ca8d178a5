"""A trace of some steps of a run by JAX's profiler, for TensorBoard or XProf.

workdir/profile     is there once the trace is whole
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax

from esper_jax.oona.health import Health, State
from esper_jax.tolaria import workdir

FOLDER = "profile"
STEP = "train"  # what a step is called in the trace

T = TypeVar("T")


class Profile:
  """Traces the steps that a run was asked to trace, once.

  Where the profiler cannot trace or the disk takes no trace, the run goes on
  without, and `health` says why.
  """

  def __init__(self, steps: Sequence[int], run: str | os.PathLike):
    """Traces nothing yet.

    Args:
      steps: the first, and the one before which the trace ends; () = none.
      run: the run directory, taken before the first of these steps.
    """
    self._first, self._end = steps or (0, 0)
    self._folder = Path(run).absolute() / FOLDER
    self._unfinished: Path | None = None  # while the profiler is on
    self._over = not steps
    self._error = ""

  def steps(self, first: int, count: int, work: Callable[[], T]) -> T:
    """Returns what `work` returns, which makes steps of the run.

    Args:
      first: steps that the run has made before.
      count: steps that `work` makes: all are traced if one shall be.
      work: called once.
    """
    if self._over:
      return work()
    if not (first < self._end and first + count > self._first):
      self.close()  # where a rollback has led out of what is traced
      return work()
    if self._unfinished is None and not self._begin():
      return work()
    with jax.profiler.StepTraceAnnotation(STEP, step_num=first):
      made = jax.block_until_ready(work())
    if first + count >= self._end:
      self.close()
    return made

  def close(self) -> None:
    """Writes what was traced; a second call does nothing."""
    if self._unfinished is None:
      return
    unfinished, self._unfinished, self._over = self._unfinished, None, True
    try:
      jax.profiler.stop_trace()
      os.replace(unfinished, self._folder)
      workdir.sync_path(self._folder.parent)
    except (OSError, RuntimeError) as error:
      self._fail(error)
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)

  def health(self) -> Health:
    """Says whether there is a trace to expect."""
    state = State.DEGRADED if self._error else State.READY
    return Health(state, error=self._error)

  def _begin(self) -> bool:
    """Turns the profiler on, unless the run has its trace."""
    self._over = self._folder.exists()
    if self._over:
      return False
    unfinished = workdir.temporary_name(self._folder)
    try:
      jax.profiler.start_trace(unfinished)
    except RuntimeError as error:  # this process traces already
      self._fail(error)
      return False
    self._unfinished = unfinished
    return True

  def _fail(self, error: Exception) -> None:
    self._over = True
    self._error = f"no trace: {' '.join(str(error).split())}"
