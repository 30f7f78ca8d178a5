"""The forge: compiled programs, kept by topology, made ahead of need.

A program's key is its name and the tree structure, shapes and dtypes of its
arguments; the structure of the state is the topology. Programs are lowered
from abstract shapes. `prepare` has one compiled in the background; `program`
returns it, waiting where it must. What is compiled when never changes what a
program computes.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import jax

from esper_jax.tezzeret import disk
from esper_jax.tezzeret.lowering import (
  Place,
  bringing,
  code_size,
  compile_lowered,
  lower_on_cpu,
  placed,
  program_key,
)
from esper_jax.tezzeret.program import (
  Compiled,
  CompileError,
  Interrupted,
  Job,
  Limits,
  Program,
  first_line,
)
from esper_jax.tezzeret.workers import Workers

_NEEDED, _LIKELY, _GUESSED = 0, 1, 2  # priorities; a guess adds its rank
_FAST_COMPILATION: Mapping[str, Any] = {"xla_backend_optimization_level": 0}
_POLL = 0.05  # seconds between two looks at whether the run was asked to stop
_STALE = 2**16  # rank of a guess that was made in an epoch before


class Forge:
  """Owns the compiled programs of a run. Its methods have one caller thread.

  Attributes:
    traces: name -> number of times the function was traced.
    compiles: number of programs compiled and reported.
    seconds: spent lowering and compiling these.
    limits: see `Limits`.
  """

  def __init__(
    self,
    *,
    cost: Callable[[Any], float],
    on_compile: Callable[[Compiled], None] = lambda compiled: None,
    on_use: Callable[[float], None] = lambda seconds: None,
    options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    stopping: Callable[[], bool] = lambda: False,
    place: Place | None = None,
  ):
    """Makes an empty forge.

    Args:
      cost: FLOPs of a program lowered for the CPU.
      on_compile: told of each compilation, from the caller's thread.
      on_use: told when a guess came true, with its compile seconds.
      options: of the compiler, for every program.
      limits: see `Limits`; its defaults where None.
      stopping: whether the run was asked to stop; ends waiting.
      place: where the arguments of programs lie; None: on the default device.
    """
    self.traces: dict[str, int] = {}
    self.compiles, self.seconds = 0, 0.0
    self._cost = cost
    self._on_compile = on_compile
    self._on_use = on_use
    self.limits = limits = limits or Limits()
    self._stopping, self._place = stopping, place
    self._options = dict(options or {})
    self._options_of: dict[str, Mapping[str, Any]] = {}
    self._kept: set[str] = set()
    self._jitted: dict[str, Any] = {}
    self._jobs: dict[Hashable, Job] = {}  # least recently used first
    self._pins: dict[str, frozenset[Hashable]] = {}
    self._warm: set[str] = set()
    self._workers = Workers(limits.threads)
    self._lock = threading.Lock()  # who takes a job, and the guesses' budget
    self._allowance = 0.0  # seconds for what is spare; below 0 a debt
    self._longest = 0.0  # seconds of a compilation
    self._epoch = 0.0  # seconds of the last epoch
    self._waiting = False  # whether the caller stands still
    self._finished: list[Job] = []
    self._making = 0

  @property
  def may_guess(self) -> bool:
    """Whether a guess can pay: what is decided might come too late."""
    ahead = self.limits.lead_epochs * self._epoch
    return ahead <= self._longest and self._can_spare()

  @property
  def making(self) -> int:
    """How many programs are being made, in whatever thread."""
    return self._making

  def add(
    self,
    name: str,
    function: Callable[..., Any],
    *,
    donate: tuple[int, ...] = (),
    rare: bool = False,
    keep: bool = False,
  ) -> None:
    """Makes a pure function known; a name already known stays as it is.

    Args:
      name: of the function, for `program`.
      function: of arrays.
      donate: positions of arguments whose buffers the program may reuse.
      rare: whether a fast compilation matters more than a fast program. On CPU
        it compiles about four times faster.
      keep: whether its programs stay for good, whatever the limits.
    """
    if name in self._jitted:
      return
    self.traces[name] = 0

    def counted(*args):
      self.traces[name] += 1
      return function(*args)

    counted.__name__ = name
    self._jitted[name] = jax.jit(counted, donate_argnums=donate)
    if keep:
      self._kept.add(name)
    if rare and jax.default_backend() == "cpu":
      self._options_of[name] = _FAST_COMPILATION

  def shapes(self, name: str, *args: Any) -> Any:
    """What a function returns, as shapes; traces it if it is new.

    Args:
      name: as given to `add`.
      *args: arrays or their abstract shapes.
    """
    return self._jitted[name].eval_shape(*args)

  def prepare(
    self,
    name: str,
    *args: Any,
    guess: int | None = None,
    likely: bool = False,
  ) -> Hashable:
    """Has a program compiled in the background, unless it is there already.

    Args:
      name: as given to `add`.
      *args: arrays or their abstract shapes; they are not used up.
      guess: None for a program that will be needed; else the rank of a guess,
        0 being the likeliest.
      likely: whether it may not be needed after all; it comes after those
        that will, and out of the guesses' budget.

    Returns:
      The program's key, for `pin`.
    """
    key = program_key(name, args)
    if not self.limits.threads:
      return key
    job, spare = self._jobs.get(key), likely or guess is not None
    if job is None or (guess is None and job.failed_guess):
      job = self._new_job(key, name, args, guess, spare)
    elif job.used or (guess is not None and job.rank is None):
      return key  # it is there, or needed for sure
    else:
      job.rank = guess
      job.spare &= spare
    self._submit(job)
    return key

  def ready(self, keys: Collection[Hashable]) -> bool:
    """Whether none of these programs, by `prepare`'s keys, makes one wait."""
    jobs = [self._jobs.get(key) for key in keys]
    return all(job is not None and job.done.is_set() for job in jobs)

  def warm(self, name: str, work: Callable[[], object]) -> None:
    """Runs something in the background, for what JAX then keeps of it.

    Its operations are compiled and wait in JAX's own caches; what it returns
    is dropped, and so is an error, which will come again where it is needed.

    Args:
      name: the work is done once per name.
      work: takes and changes nothing.
    """
    if not self.limits.threads or name in self._warm:
      return
    self._warm.add(name)

    def run() -> None:
      with contextlib.suppress(Exception):
        work()

    self._workers.submit(_NEEDED, run)

  def program(self, name: str, *args: Any, timeout: float = 0.0) -> Program:
    """The program for arguments of these shapes, compiled if it is new.

    Args:
      name: as given to `add`.
      *args: arrays or their abstract shapes; they are not used up.
      timeout: seconds to wait; 0 waits as long as it takes.

    Raises:
      CompileError: XLA cannot compile it, or not in time; asking again tries
        again. What tracing raises passes through.
      Interrupted: the run was asked to stop while it waited.
    """
    key = program_key(name, args)
    job = self._jobs.pop(key, None)
    if job is None or job.failed_guess:
      job = self._new_job(key, name, args)
    self._jobs[key] = job  # the most recently used
    if not job.done.is_set():
      self._obtain(job, timeout or math.inf)
    if self._finished:
      self.report()
    if job.error is not None:
      del self._jobs[key]
      raise job.error
    if not job.used:
      job.used, job.rank = True, None
      if job.guessed:
        self._on_use(job.seconds)
      self._evict()
    assert job.program is not None
    return job.program

  def pin(self, owner: str, keys: Collection[Hashable]) -> None:
    """Keeps these programs, in place of those that the owner kept before."""
    self._pins[owner] = frozenset(keys)

  def new_epoch(self, seconds: float) -> None:
    """Forgets guesses that nobody has begun with, and renews their budget.

    Args:
      seconds: that the epoch took. Where epochs are short guesses get little,
        as they would take the processor from training.
    """
    limit, self._epoch = self.limits.guess_seconds, seconds
    with self._lock:
      self._allowance = min(limit, self._allowance + min(limit, seconds))
      guesses = [(k, j) for k, j in self._jobs.items() if j.rank is not None]
      for key, job in guesses:
        job.rank = _STALE
        if not job.taken:
          job.taken = True  # whoever finds it in the queue leaves it
          del self._jobs[key]
      waiting = [j for j in self._jobs.values() if j.spare and not j.queued]
    for job in waiting:
      self._submit(job)
    self.report()
    self._evict()

  def report(self) -> None:
    """Tells `on_compile` of what was finished since the last call."""
    with self._lock:
      finished, self._finished = self._finished, []
    for job in finished:
      self.compiles += 1
      self.seconds += job.seconds
      self._on_compile(job.compiled)

  def close(self) -> None:
    """Drops what waits to be compiled; does not wait for what is compiled."""
    self._workers.close()

  def _new_job(
    self,
    key: Hashable,
    name: str,
    args: Any,
    rank: int | None = None,
    spare: bool = False,
  ) -> Job:
    shapes = placed(name, args, self._place)
    job = Job(name, self._jitted[name], shapes, rank, spare=spare)
    job.guessed = rank is not None
    self._jobs[key] = job
    return job

  def _obtain(self, job: Job, timeout: float) -> None:
    """Waits for a program; has it made if nobody has begun with it."""
    start = time.monotonic()
    self._waiting = True
    try:
      if self._take(job):
        if not self.limits.threads and timeout == math.inf:
          self._make(job)
          return
        self._workers.start(lambda: self._make(job))
      while not job.done.wait(_POLL):
        if self._stopping():
          raise Interrupted
        if time.monotonic() - start > timeout:
          raise CompileError(
            f"'{job.name}' was not compiled within"
            f" tezzeret.timeout_seconds={timeout:g}",
            timed_out=True,
          )
    finally:
      job.held_up += time.monotonic() - start
      self._waiting = False

  def _submit(self, job: Job) -> None:
    job.queued = not job.taken
    if job.queued:
      priority = _LIKELY if job.spare else _NEEDED
      if job.rank is not None:
        priority = _GUESSED + job.rank
      self._workers.submit(priority, lambda: self._work(job))

  def _work(self, job: Job) -> None:
    """What a thread of the background does with a job."""
    job.queued = False
    spare = job.spare
    if spare and (self._waiting or not self._can_spare()):
      return  # until `new_epoch`, unless it is needed before
    if self._take(job):
      job.background = True
      self._make(job, spare)

  def _can_spare(self) -> bool:
    """Whether the budget has room for the longest compilation."""
    longest = min(self._longest, self.limits.guess_seconds)
    return self._allowance > 0 and self._allowance >= longest

  def _take(self, job: Job) -> bool:
    with self._lock:
      mine = not job.taken
      job.taken = True
    return mine

  def _make(self, job: Job, spare: bool = False) -> None:
    start = time.monotonic()
    with self._lock:
      self._making += 1
    try:
      jitted = job.jitted
      lowered = jitted.lower(*job.shapes)
      options = {**self._options, **self._options_of.get(job.name, {})}
      with disk.watch() as seen:
        compiled = compile_lowered(lowered, options)
      if jax.default_backend() != "cpu":
        lowered = lower_on_cpu(jitted, *job.shapes)
      job.on_disk = seen.hit
      call, size = bringing(compiled, job.shapes), code_size(compiled)
      job.program = Program(call, self._cost(lowered), size)
    except jax.errors.JaxRuntimeError as error:
      why = first_line(error)
      job.error = CompileError(f"'{job.name}' cannot be compiled: {why}")
    except BaseException as error:  # a mistake in what is compiled
      job.error = error
    job.shapes = None
    job.seconds = time.monotonic() - start
    with self._lock:
      self._making -= 1
      self._longest = max(self._longest, job.seconds)
      self._allowance -= job.seconds if spare else 0.0
      self._finished.append(job)
    job.done.set()

  def _evict(self) -> None:
    """Lets go of programs beyond the limits, the least likely first."""
    pinned = self._pins.values()
    loose = [
      (key, job)
      for key, job in self._jobs.items()
      if job.done.is_set()
      and job.name not in self._kept
      and not any(key in keys for keys in pinned)
    ]
    count = len(loose)
    size = sum(job.program.size for _, job in loose if job.program)
    # Guesses by falling rank, then what was used by age: the sort is stable.
    loose.sort(key=lambda item: (item[1].rank is None, -(item[1].rank or 0)))
    for key, job in loose:
      if count <= self.limits.max_programs and size <= self.limits.max_bytes:
        return
      del self._jobs[key]
      count -= 1
      size -= job.program.size if job.program else 0
