"""How a process finds the others; see tests/integration for several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from esper_jax.oona.bus import Bus
from esper_jax.tolaria import (
  assembly,
  following,
  layout,
  processes,
  vectors,
)
from esper_jax.tolaria.stopping import Stopping
from esper_jax.types import InputError

ASYNC = "jax_cpu_enable_async_dispatch"
WHOLE = dict(zip(processes.VARIABLES, ("host:1234", "2", "1"), strict=True))


@pytest.fixture
def joined(monkeypatch):
  """What `jax.distributed.initialize` was given."""
  calls = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda *told: calls.append(told)
  )
  before = jax.config.values[ASYNC]
  yield calls
  jax.config.update(ASYNC, before)


def test_the_environment_tells_who_they_are(joined):
  processes.start(WHOLE)
  processes.start({"JAX_PROCESS_ID": ""})  # the cluster tells
  assert joined == [("host:1234", 2, 1), (None, None, None)]
  assert not jax.config.values[ASYNC]


@pytest.mark.parametrize("name", processes.VARIABLES)
def test_half_an_environment_is_told(name, joined):
  with pytest.raises(InputError, match=f"needs {name} too"):
    processes.start({k: v for k, v in WHOLE.items() if k != name})
  assert joined == []


def test_numbers_that_are_none_are_told(joined):
  with pytest.raises(InputError, match="JAX_NUM_PROCESSES is two and JAX_PRO"):
    processes.start(WHOLE | {"JAX_NUM_PROCESSES": "two"})
  assert joined == []


@pytest.mark.parametrize(
  "error", [RuntimeError("no one\nanswers"), ValueError()]
)
def test_processes_that_do_not_meet_are_told(error, joined, monkeypatch):
  def fail(*told):
    raise error

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  with pytest.raises(InputError, match=r"not find each other \((no one|Value)"):
    processes.start(WHOLE)


def test_one_process_agrees_with_itself():
  value = object()
  assert processes.gather(value) == [value]
  assert processes.agree(value) is processes.agree_on(value) is value
  assert processes.leads() and not processes.several()


@pytest.fixture
def two(monkeypatch):
  """As in process 0 of two that hold the same; `two.rank = 1` is the other.

  What process 0 broadcasts is what process 1 gets next.
  """

  class Two:
    rank = 0
    sent: list = []

    def allgather(self, x):
      return np.stack([x, x])

    def broadcast(self, x):
      if not self.rank:
        self.sent.append(np.asarray(x))
        return x
      return self.sent.pop(0)

  faked = Two()
  faked.sent = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: faked.rank)
  utils = processes.multihost_utils
  monkeypatch.setattr(utils, "process_allgather", faked.allgather)
  monkeypatch.setattr(utils, "broadcast_one_to_all", faked.broadcast)
  return faked


def test_every_process_is_heard(two):
  assert processes.gather({"a": 1}) == [{"a": 1}, {"a": 1}]


def test_process_0_is_followed(two):
  tree = {"x": jnp.arange(3), "y": (np.float32(2),)}
  assert processes.leads() and processes.several()
  assert processes.agree("yes") == "yes"
  processes.agree_on(tree)
  two.rank = 1
  assert not processes.leads()
  assert processes.agree("no") == "yes"
  other = processes.agree_on(jax.tree.map(jnp.zeros_like, tree))
  assert list(other["x"]) == [0, 1, 2] and other["y"][0] == 2


def test_a_stop_is_agreed_on(two, monkeypatch):
  asked = Stopping()
  asked.request()
  assert not asked.requested
  asked.consult()
  assert asked.requested
  other = Stopping()
  other.consult()
  assert not other.requested
  monkeypatch.setattr(processes, "gather", lambda value: [value, True])
  other.consult()
  assert other.requested


def test_several_processes_compile_when_needed(two, make_config):
  assert assembly.compile_limits(make_config()).threads == 0


def test_all_devices_take_part_and_hold_all_parameters(
  two, make_config, monkeypatch
):
  monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 3)
  with pytest.raises(InputError, match="2 processes have 3 devices, and all"):
    layout.count_devices(make_config(**{"mesh.data": 1}))
  sharded = make_config(**{"mesh.data": 0, "mesh.parameters": "sharded"})
  with pytest.raises(InputError, match="sharded: not with 2 processes"):
    layout.count_devices(sharded)
  told = layout.describe(make_config(**{"mesh.data": 0}))
  assert told == (
    "; 3 devices of 2 processes share each batch, parameters replicated"
  )


class Elsewhere:
  """A sharding over a device of this process and one of another."""

  is_fully_addressable = False

  def __init__(self, replicated):
    self.is_fully_replicated = replicated
    self.addressable_devices = jax.local_devices()[:1]


def test_arrays_are_brought_to_all_processes(monkeypatch):
  made = []
  monkeypatch.setattr(
    jax,
    "make_array_from_single_device_arrays",
    lambda shape, sharding, copies: made.append((shape, len(copies))),
  )
  monkeypatch.setattr(
    jax,
    "make_array_from_callback",
    lambda shape, sharding, cut: made.append((shape, list(cut(slice(2))))),
  )
  x = jnp.arange(4)
  layout._bring(x, Elsewhere(replicated=True))
  layout._bring(x, Elsewhere(replicated=False))
  assert made == [((4,), 1), ((4,), [0, 1])]


def test_a_layout_of_several_processes_places_what_reads_examples():
  mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
  own = layout.Layout(mesh, 0, several=True)
  x = jnp.ones((4, 2))
  assert own.place("decide", ({"a": x},)) == ({"a": None},)
  args = own.bring("metrics", ({}, {}, {}, x, x[:, 0]))
  assert args[3].sharding.spec == PartitionSpec("data")
  assert own.home({"a": args[3]})["a"].sharding.device_set == {*x.devices()}
  summed = jax.jit(own.whole(lambda x: x.sum()))(args[3])
  assert float(summed) == 8.0


def test_vectors_are_written_by_one(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "several", lambda: True)
  held = {"float32": np.arange(5, dtype=np.float32)}
  vectors.save(tmp_path / "a", held)
  (found,) = vectors.load(tmp_path / "a").values()
  assert found.tobytes() == held["float32"].tobytes()


def test_one_has_the_directory_and_the_other_follows(
  two, make_config, tmp_path, monkeypatch
):
  config = make_config()
  parts = assembly.assemble(config, assembly.load_data(config))
  store = following.open_store(tmp_path / "run", config, parts)
  before = sorted(p.name for p in (tmp_path / "run").iterdir())
  two.rank = 1
  follower = following.open_store(tmp_path / "run", config, parts)
  assert follower.path == store.path and follower.hash == store.hash
  assert follower.redone == store.redone and follower.finished is None
  bus = Bus(next_id=7)
  follower.attach(bus)
  assert bus.next_id == 0
  follower.log({"step": 1})
  follower.save(None, 0, kind="scheduled")
  follower.write_result({})
  follower.wait()
  follower.close()
  two.rank = 0
  loaded = store.last_scheduled()
  two.rank = 1
  assert follower.last_scheduled() == loaded == (None, [])
  assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before
  two.rank = 0
  with pytest.raises(InputError, match="in use") as first:
    following.open_store(tmp_path / "run", config, parts)
  two.rank = 1
  with pytest.raises(InputError) as second:
    following.open_store(tmp_path / "run", config, parts)
  assert str(first.value) == str(second.value)
  store.close()
  monkeypatch.setattr(processes, "gather", lambda value: [value, "other"])
  with pytest.raises(InputError, match="not with the same config and data"):
    following.open_store(tmp_path / "run", config, parts)
