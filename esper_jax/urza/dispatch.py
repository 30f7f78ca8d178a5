"""Which kernel runs where: the stored machine code, or its reference.

`call` is what everything else calls. Without a dispatcher it is the reference
and nothing else, so that a program is what it would be without Urza. With one,
it looks the kernel up while the program is traced, and whatever is wrong with
what it finds (missing, damaged, rejected, not for this device, not for these
arguments) leaves the reference in the program and one `Fallback` to be told.

What a program was traced with stays in it: a dispatcher is installed before
the programs that should use it are traced.
"""

import contextlib
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax

from esper_jax.urza import evidence, wire
from esper_jax.urza.artefact import Artefact, Damaged
from esper_jax.urza.assembler import SHARED_MEMORY
from esper_jax.urza.device import Device as Device
from esper_jax.urza.kernel import Form, Kernel, Plan, Unsuitable, handle_of

REQUIREMENTS = ("validated", "probed", "nothing")
REFERENCE = ""  # among the choices: the reference instead of an artefact
# Targets whose PTX runs on later devices too; that of a later target is for
# its own devices alone.
LAST_PORTABLE = 89
_MAX_ELEMENTS = 2**31 - 1  # of an array: kernels count in int32
_MAX_GRID = (2**31 - 1, 65535, 65535)


class Fallback(NamedTuple):
  """A kernel that does not run where it was asked for.

  Attributes:
    kernel: its name.
    handle: see `kernel.handle_of`; empty where the arguments have no form.
    reason: why, in a few words.
  """

  kernel: str
  handle: str
  reason: str


class Choice(NamedTuple):
  """A stored kernel, verified, and how it is launched on given arguments."""

  artefact: Artefact
  files: Mapping[str, bytes]
  plan: Plan


class Store(Protocol):
  """What a dispatcher asks of a registry."""

  def find(self, handle: str, /) -> tuple[Any, Any]: ...
  def record(self, key: str, /) -> Any: ...
  def load(self, key: str, /) -> tuple[Artefact, Mapping[str, bytes]]: ...


class _Refused(Exception):
  """There is no artefact to run; the text says why."""


_Loaded = tuple[Artefact, Mapping[str, bytes]]


class Dispatcher:
  """Chooses artefacts for one device. All methods can be called by any thread.

  Attributes:
    device: what the artefacts are chosen for.
  """

  def __init__(
    self,
    registry: Store,
    device: Device,
    *,
    require: str = "validated",
    probe: Callable[[str, Device], Any] | None = None,
    prefer: Mapping[str, str] | None = None,
  ):
    """Makes a dispatcher; nothing is looked up yet.

    Args:
      registry: where artefacts and evidence are.
      device: see the attribute.
      require: "validated" runs only what is VALIDATED on this kind of device;
        "probed" also what is PENDING; "nothing" all that is not REJECTED, and
        without a probe.
      probe: (key, device) -> verdict with `ok` and `reason`; called before an
        artefact is first used where no verdict for this device is recorded.
      prefer: handle -> key that must be taken if any is, or REFERENCE; as
        `choices` of an earlier dispatcher returned it.
    """
    if require not in REQUIREMENTS:
      raise ValueError(f"require must be one of {', '.join(REQUIREMENTS)}")
    self.device = device
    self._registry = registry
    self._require = require
    self._probe = probe
    self._prefer = dict(prefer or {})
    # Held while a kernel is looked up and probed, which may take minutes.
    self._looking = threading.Lock()
    self._lock = threading.Lock()  # of what follows
    self._loaded: dict[str, _Loaded | None] = {}
    self._told: set[tuple[str, str]] = set()
    self._untold: list[Fallback] = []

  def choose(self, kernel: Kernel, args: tuple[Any, ...]) -> Choice | None:
    """The artefact for a call, or None where the reference must run."""
    try:
      form = kernel.form(*args)
    except Unsuitable as error:
      self._refuse(kernel.name, "", str(error))
      return None
    handle = handle_of(kernel, form)
    loaded = self._look_up_once(kernel, form, handle)
    if loaded is None:
      return None
    artefact, files = loaded
    try:
      plan = kernel.plan(args, dict(artefact.spec.tiles))
      _check_size(args, plan)
    except Unsuitable as error:
      self._refuse(kernel.name, handle, str(error))
      return None
    return Choice(artefact, files, plan)

  @property
  def choices(self) -> dict[str, str]:
    """handle -> key of the artefact, or REFERENCE, of all asked for so far.

    Those that were preferred and not asked for yet are kept.
    """
    with self._lock:
      made = {
        handle: loaded[0].key if loaded else REFERENCE
        for handle, loaded in self._loaded.items()
      }
    return self._prefer | made

  def fallbacks(self) -> list[Fallback]:
    """Those that were not returned before, in the order they came up."""
    with self._lock:
      told, self._untold = self._untold, []
    return told

  def _refuse(self, kernel: str, handle: str, reason: str) -> None:
    """Notes a fallback, once for each kernel and handle."""
    with self._lock:
      mark = (kernel, handle or reason)
      if mark not in self._told:
        self._told.add(mark)
        self._untold.append(Fallback(kernel, handle, reason))

  def _look_up_once(
    self, kernel: Kernel, form: Form, handle: str
  ) -> _Loaded | None:
    if handle not in self._loaded:
      with self._looking:
        if handle not in self._loaded:
          loaded = self._look_up(kernel, form, handle)
          with self._lock:
            self._loaded[handle] = loaded
    return self._loaded[handle]

  def _look_up(self, kernel: Kernel, form: Form, handle: str) -> _Loaded | None:
    if self._prefer.get(handle) == REFERENCE:
      return None  # it was told when it was decided
    try:
      artefact = self._find(kernel, form, handle)
      loaded = self._registry.load(artefact.key)
      if loaded[0].spec.handle != handle:
        raise Damaged("an artefact of another kernel is in its place")
      return loaded
    except _Refused as error:
      reason = str(error)
    except Damaged as error:
      reason = f"damaged: {error}"
    except KeyError as error:
      reason = f"missing: {error}"
    except Exception as error:  # a registry must not end a run
      reason = f"{type(error).__name__}: {error}"
    self._refuse(kernel.name, handle, reason)
    return None

  def _find(self, kernel: Kernel, form: Form, handle: str) -> Artefact:
    """The best artefact that may run."""
    artefacts, damages = self._registry.find(handle)
    if damages:
      raise Damaged("; ".join(damages))
    wanted = self._prefer.get(handle)
    if wanted is not None:
      artefacts = [a for a in artefacts if a.key == wanted]
    if not artefacts:
      lacking = f"{wanted[:12]} is gone" if wanted else "it is not stored"
      raise _Refused(f"missing: {lacking}")
    running = [a for a in artefacts if runs_on(a.spec.target, self.device)]
    if not running:
      stored = ", ".join(f"sm_{n}" for n in sorted(_targets(artefacts)))
      raise _Refused(f"stored for {stored}, not for sm_{self.device.target}")
    room = SHARED_MEMORY.get(self.device.target, min(SHARED_MEMORY.values()))
    fitting = [a for a in running if a.launch.shared <= room]
    if not fitting:
      raise _Refused(f"needs more than {room} bytes of shared memory")
    order = [tuple(sorted(tiles.items())) for tiles in kernel.tiles(form)]
    ranked = sorted(self._rank(a, order) for a in fitting)
    refusals = []
    by_key = {a.key: a for a in fitting}
    for *_, key in ranked:
      refusal = self._refusal(key)
      if refusal is None:
        return by_key[key]
      refusals.append(refusal)
    raise _Refused(refusals[0])

  def _rank(
    self, artefact: Artefact, order: list[tuple[tuple[str, int], ...]]
  ) -> tuple[bool, int, float, int, str]:
    """Lowest first: validated, newest target, fastest, first in the list."""
    records = self._registry.record(artefact.key).evidence
    kind = self.device.kind
    valid = evidence.status(records, kind) is evidence.Status.VALIDATED
    latency = evidence.latency(records, kind)
    tiles = artefact.spec.tiles
    place = order.index(tiles) if tiles in order else len(order)
    target = artefact.spec.target
    time = float("inf") if latency is None else latency
    return not valid, -target, time, place, artefact.key

  def _refusal(self, key: str) -> str | None:
    """Why an artefact may not run on this device; None where it may."""
    records = self._registry.record(key).evidence
    kind, _, driver, jaxlib = self.device
    status = evidence.status(records, kind)
    if status is evidence.Status.REJECTED:
      return f"rejected on {kind} by its evidence"
    if self._require == "validated" and (
      status is not evidence.Status.VALIDATED
    ):
      return f"not validated on {kind}"
    verdict = evidence.probed(records, kind, driver, jaxlib)
    if verdict is None and self._require != "nothing":
      return self._first_use(key, status)
    return "its probe on this device failed" if verdict is False else None

  def _first_use(self, key: str, status: evidence.Status) -> str | None:
    if self._probe is None:
      valid = status is evidence.Status.VALIDATED
      return None if valid else "not probed on this device"
    verdict = self._probe(key, self.device)
    return None if verdict.ok else f"its probe failed: {verdict.reason}"


def runs_on(target: int, device: Device) -> bool:
  """Whether PTX for a target runs on a device."""
  portable = target <= min(device.target, LAST_PORTABLE)
  return portable or target == device.target


def _targets(artefacts: Any) -> set[int]:
  return {artefact.spec.target for artefact in artefacts}


def _check_size(args: tuple[Any, ...], plan: Plan) -> None:
  arrays = (*args, *plan.outputs)
  if any(a.size > _MAX_ELEMENTS for a in arrays):
    raise Unsuitable("an array has 2^31 elements or more")
  if not all(1 <= n <= m for n, m in zip(plan.grid, _MAX_GRID, strict=True)):
    raise Unsuitable(f"a grid of {plan.grid} programs cannot be launched")
  if not all(0 <= n <= _MAX_ELEMENTS for n in plan.scalars):
    raise Unsuitable("a size does not fit in 31 bits")


_lock = threading.Lock()
_installed: Dispatcher | None = None


def install(dispatcher: Dispatcher | None) -> None:
  """Sets the dispatcher of the whole process; None removes it."""
  global _installed
  with _lock:
    _installed = dispatcher


def installed() -> Dispatcher | None:
  """The dispatcher of the process."""
  return _installed


@contextlib.contextmanager
def using(dispatcher: Dispatcher | None) -> Iterator[None]:
  """Installs a dispatcher for the length of a block, in all threads."""
  before = installed()
  install(dispatcher)
  try:
    yield
  finally:
    install(before)


def serves(kernel: Kernel, *args: Any) -> bool:
  """Whether `call` would put machine code for these arguments in a program.

  Args:
    kernel: the kernel.
    args: arrays, or their shapes.
  """
  dispatcher = installed()
  return dispatcher is not None and dispatcher.choose(kernel, args) is not None


def call(kernel: Kernel, *args: jax.Array) -> tuple[jax.Array, ...]:
  """What the kernel's reference returns, by the best way there is.

  A program that is lowered for another platform than CUDA gets the reference.
  Under `jax.vmap` the reference is batched and the machine code is called for
  one example after another. It cannot be differentiated: the operations that
  call it have a gradient of their own.
  """
  dispatcher = installed()
  choice = dispatcher.choose(kernel, args) if dispatcher else None
  if choice is None:
    return kernel.reference(*args)
  launch = wire.message(
    choice.artefact,
    choice.files,
    choice.plan.grid,
    choice.plan.scalars,
    len(args) + len(choice.plan.outputs),
    kernel.name,
  )
  opaque = zlib.compress(launch)

  def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    code = jax.ffi.ffi_call(
      wire.CALL_TARGET, choice.plan.outputs, vmap_method="sequential"
    )
    outputs = _vary(code(*arrays, opaque=opaque), _axes(args))
    return _vary(kernel.finish(outputs, arrays), _axes(args))

  def reference(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return _vary(kernel.reference(*arrays), _axes(args))

  return lax.platform_dependent(
    *_vary(args, _axes(args)), cuda=run, default=reference
  )


def level(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """The arrays, each varying over all mesh axes that any of them varies over.

  Inside `jax.shard_map` an operation with a gradient of its own needs this of
  its arguments: what every device holds alike, such as a seed's parameters,
  then gets the sum of all devices' gradients. Elsewhere, and without a
  dispatcher, it does nothing.
  """
  return arrays if installed() is None else _vary(arrays, _axes(arrays))


def _axes(arrays: Sequence[jax.Array]) -> frozenset[str]:
  return frozenset().union(*map(_axes_of, arrays))


def _axes_of(array: jax.Array) -> frozenset[str]:
  return jax.typeof(array).manual_axis_type.varying


def _vary(
  arrays: Sequence[jax.Array], axes: frozenset[str]
) -> tuple[jax.Array, ...]:
  lacking = [(a, tuple(sorted(axes - _axes_of(a)))) for a in arrays]
  return tuple(
    lax.pcast(a, missing, to="varying") if missing else a
    for a, missing in lacking
  )
