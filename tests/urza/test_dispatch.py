"""What is done when there is no kernel, and what is told of it."""

import shutil
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from esper_jax.urza import dispatch
from esper_jax.urza.dispatch import Dispatcher, Fallback
from esper_jax.urza.kernel import Unsuitable
from esper_jax.urza.registry import Registry, open_registry
from tests.urza import handmade
from tests.urza.choosing import ARGS, Probe, Verdict, chosen, put, why
from tests.urza.handmade import H100
from tests.urza.sample_kernel import KERNEL


@pytest.fixture
def registry(tmp_path) -> Registry:
  return open_registry(layers=(tmp_path / "urza",))


# --- what can be wrong ----------------------------------------------------


def test_an_empty_registry(registry):
  assert why(Dispatcher(registry, H100)) == "missing: it is not stored"


def test_a_registry_that_was_deleted(registry, tmp_path):
  put(registry, handmade.gpu())
  shutil.rmtree(tmp_path / "urza")
  assert "missing" in why(Dispatcher(registry, H100))


@pytest.mark.parametrize("what", ["ptx", "ttir", "manifest", "evidence"])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_damage_of_any_file(registry, tmp_path, what, how):
  put(registry, handmade.gpu())
  folder = tmp_path / "urza"
  files = handmade.artefact(KERNEL, *ARGS)[0].files
  patterns = {"manifest": "artefacts/*", "evidence": "evidence/*/*"}
  if what in files:
    patterns[what] = f"blobs/{files[what].sha256}"
  (path,) = folder.glob(patterns[what])
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  if how == "delete":
    path.unlink()
  else:
    path.write_bytes(data if how == "flip" else data[:-1])
  reason = why(Dispatcher(registry, H100))
  if how != "delete":
    assert "damaged" in reason


class Broken:
  """A registry whose disk fails, or that returns another's artefact."""

  def __init__(self, registry: Registry, error: Exception | None, other=None):
    self.registry, self.error, self.other = registry, error, other

  def find(self, handle):
    return self.registry.find(handle)

  def record(self, key):
    return self.registry.record(key)

  def load(self, key):
    if self.error:
      raise self.error
    return self.other


@pytest.mark.parametrize(
  ("error", "reason"),
  [
    (OSError(5, "Input/output error"), "OSError: [Errno 5]"),
    (KeyError("abc"), "missing: 'abc'"),
    (RuntimeError("no idea"), "RuntimeError: no idea"),
  ],
)
def test_whatever_a_registry_raises(registry, error, reason):
  put(registry, handmade.gpu())
  broken = Broken(registry, error)
  assert reason in why(Dispatcher(broken, H100))


def test_an_artefact_in_anothers_place(registry):
  put(registry, handmade.gpu())
  other = ARGS[0].update(dtype=jnp.bfloat16), ARGS[1]
  broken = Broken(registry, None, handmade.artefact(KERNEL, *other))
  assert "another kernel" in why(Dispatcher(broken, H100))


# --- what has no kernel ---------------------------------------------------


def test_arguments_without_a_form_are_told_once(registry):
  dispatcher = Dispatcher(registry, H100)
  odd = jax.ShapeDtypeStruct((4, 5), jnp.float32), ARGS[1]
  for _ in range(2):
    assert dispatcher.choose(KERNEL, odd) is None
  reason = "5 channels are no power of two"
  assert dispatcher.fallbacks() == [Fallback("scale_rows", "", reason)]
  assert dispatcher.choices == {}


class Size(NamedTuple):
  size: int


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"grid": (0, 1, 1)}, "a grid of (0, 1, 1) programs"),
    ({"grid": (1, 2**16, 1)}, "a grid of (1, 65536, 1) programs"),
    ({"scalars": (2**31,)}, "a size does not fit in 31 bits"),
    ({"outputs": (Size(2**31),)}, "an array has 2^31 elements or more"),
    ({"raises": Unsuitable("a Tuesday")}, "a Tuesday"),
  ],
)
def test_arguments_that_are_too_large(registry, change, reason):
  def plan(args, tiles):
    if "raises" in change:
      raise change["raises"]
    return KERNEL.plan(args, tiles)._replace(**change)

  key = put(registry, handmade.gpu())
  dispatcher = Dispatcher(registry, H100)
  for _ in range(2):
    assert dispatcher.choose(KERNEL._replace(plan=plan), ARGS) is None
  (fallback,) = dispatcher.fallbacks()
  assert reason in fallback.reason
  assert chosen(dispatcher) == key  # others keep their kernel


# --- threads, the process, the device -------------------------------------


def test_threads_look_up_once(registry):
  put(registry)
  started, go = threading.Barrier(9), threading.Event()

  def probe(key, device):
    del key, device
    assert go.wait(10)
    return Verdict(True)

  dispatcher = Dispatcher(
    registry, H100, require="probed", probe=Probe(Verdict(True))
  )
  slow = Dispatcher(registry, H100, require="probed", probe=probe)
  found: list[str | None] = []

  def work():
    started.wait(10)
    found.append(chosen(dispatcher))
    found.append(chosen(slow))

  threads = [threading.Thread(target=work) for _ in range(8)]
  for thread in threads:
    thread.start()
  started.wait(10)
  # A probe that takes its time keeps nobody from reporting.
  assert slow.fallbacks() == [] and slow.choices == {}
  go.set()
  for thread in threads:
    thread.join(10)
  assert len(found) == 16 and len({*found}) == 1 and None not in found


def test_a_dispatcher_is_installed_for_the_whole_process(registry):
  first, second = (Dispatcher(registry, H100) for _ in range(2))
  seen = []
  assert dispatch.installed() is None
  with dispatch.using(first):
    with dispatch.using(second):
      thread = threading.Thread(
        target=lambda: seen.append(dispatch.installed())
      )
      thread.start()
      thread.join()
    assert dispatch.installed() is first
  assert seen == [second]
  assert dispatch.installed() is None


def test_serves(registry):
  assert not dispatch.serves(KERNEL, *ARGS)
  with dispatch.using(Dispatcher(registry, H100)):
    assert not dispatch.serves(KERNEL, *ARGS)
  put(registry, handmade.gpu())
  with dispatch.using(Dispatcher(registry, H100)):
    assert dispatch.serves(KERNEL, *ARGS)
