"""Learned policies in live runs, and what happens to their files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.oona import jsonl
from esper_jax.oona.health import Health
from esper_jax.tamiyo import features, network, policy_file
from esper_jax.tamiyo.learned import State
from esper_jax.tamiyo.network import Sizes
from esper_jax.tolaria import learned_policy, policy_fallback
from esper_jax.types import InputError, RunFailedError
from esper_jax.urza.registry import open_registry

SIZES = Sizes(width=8, layers=1, heads=2, hidden=8)


def make_params(spoiled_after=0):
  """A network that likes to grow; it overflows once so many epochs are over."""
  params = network.init(jax.random.key(0), SIZES)
  params["stay"]["bias"] = np.full(1, -9.0, np.float32)
  if spoiled_after:
    kernel = np.array(params["run"]["kernel"])
    flag = f"val_fall_{spoiled_after}?"
    kernel[features.RUN.index(flag)] = 3e38
    params["run"]["kernel"] = kernel
  return params


@pytest.fixture(scope="module")
def weights():
  return make_params()


@pytest.fixture
def path(tmp_path, weights):
  path = tmp_path / "p.safetensors"
  policy_file.save(path, weights, sizes=SIZES)
  return path


@pytest.fixture
def learn(watch, path):
  """Makes a short run of the learned policy."""

  def make(**more):
    stops, stop = more.pop("stops", None), more.pop("stop", False)
    options = {
      "tamiyo.policy": "learned",
      "tamiyo.policy_path": str(path),
      "tezzeret.guesses": 0,
      **more,
    }
    callbacks = []
    if stops:  # after so many epochs
      callbacks = [lambda t, m: t.stop() if m.epoch == stops else None]
    if stop:
      options["tamiyo.on_policy_error"] = "stop"
    return watch(callbacks=callbacks, **options)

  return make


def fallbacks(run):
  return [e for e in run.events if e["type"] == "policy_fallback"]


def logged(run):
  events = jsonl.read(run.path / "events.jsonl")
  return [e for e in events if e["type"] == "policy_fallback"]


def decided(run):
  return [e["reason"] for e in run.events if e["type"] == "decision"]


def test_it_drives_a_run_and_is_resumed_to_the_bit(learn, path):
  whole = learn(name="whole").train()
  assert whole.result["policy_used"] == "learned"
  assert whole.result["policy_sha256"] == policy_file.load(path).sha256
  assert not logged(whole)
  reasons = decided(whole)
  assert reasons and all("the learned policy gives it" in r for r in reasons)
  learn(name="cut", stops=2).train()
  resumed = learn(name="cut").train()
  a, b = whole.arrays(), resumed.arrays()
  assert a.keys() == b.keys() and not logged(resumed)
  assert all(a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.mark.parametrize("damage", ["missing", "bit", "schema"])
def test_a_file_that_cannot_be_used_at_the_start(learn, path, watch, damage):
  says = {
    "missing": "no such policy file",
    "bit": "is damaged",
    "schema": "policy schema",
  }[damage]
  if damage == "missing":
    path.unlink()
  elif damage == "bit":
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
  else:
    path.write_bytes(
      path.read_bytes().replace(b'"schema":"1"', b'"schema":"2"')
    )
  with pytest.raises(InputError, match=says):
    learn(name="stopped", stop=True)
  run = learn(name="fell").train()
  (event,) = logged(run)
  assert says in event["reason"] and event["policy"] == "heuristic"
  assert event["epoch"] == 0
  assert run.result["policy_used"] == "heuristic"
  if damage == "missing":
    plain = watch(**{"tamiyo.policy": "heuristic", "tezzeret.guesses": 0})
    plain.train()
    assert run.result["policy_sha256"] is None
    assert plain.result["policy_sha256"] is None
    assert decided(run) == decided(plain)
    state, other = run.arrays(), plain.arrays()
    assert all(state[k].tobytes() == other[k].tobytes() for k in other)


def test_a_file_that_is_lost_before_the_run_is_resumed(learn, path, weights):
  learn(name="run", stops=2).train()
  path.unlink()
  with pytest.raises(InputError, match="no such policy file"):
    learn(name="run", stop=True)
  halfway = learn(name="run", stops=3).train()
  (event,) = logged(halfway)
  assert event["epoch"] == 2
  # It is back, but what fell back stays so, and is not told of again.
  policy_file.save(path, weights, sizes=SIZES)
  run = learn(name="run").train()
  assert run.result["policy_used"] == "learned, heuristic from epoch 2"
  assert len(logged(run)) == 1


def test_another_policy_in_the_place_of_the_first(learn, path, weights):
  learn(name="run", stops=2).train()
  policy_file.save(path, weights, sizes=SIZES, provenance={"another": True})
  with pytest.raises(InputError, match="names another policy than the one"):
    learn(name="run", stop=True)
  run = learn(name="run").train()
  assert "names another policy" in logged(run)[0]["reason"]
  assert run.result["policy_used"] == "learned, heuristic from epoch 2"


def test_a_network_that_overflows_under_way(learn, path, weights):
  policy_file.save(path, make_params(spoiled_after=2), sizes=SIZES)
  run = learn(name="fell").train()
  (event,) = fallbacks(run)
  assert "is not finite" in event["reason"] and event["epoch"] == 3
  assert run.result["policy_used"] == "learned, heuristic from epoch 3"
  failing = learn(name="stopped", stop=True)
  with pytest.raises(RunFailedError, match="network is not finite; another"):
    failing.train()
  learn(name="cut", stops=4).train()
  resumed = learn(name="cut").train()
  assert len(logged(resumed)) == 1
  a, b = run.arrays(), resumed.arrays()
  assert all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_after_a_rollback_what_fell_back_stays_so():
  def state(failed):
    digest = jnp.zeros(8, jnp.uint32)
    return State(jnp.int32(failed), digest, ())

  for failed, restored, found in ((3, -1, 3), (3, 2, 2), (-1, -1, -1)):
    kept = policy_fallback.kept(state(failed), state(restored))
    assert int(kept.failed) == found
  assert policy_fallback.kept((), ()) == ()
  assert policy_fallback.since(()) == -1


def test_a_policy_that_fell_back_is_degraded():
  digest = jnp.zeros(8, jnp.uint32)
  for well in ((), State(jnp.int32(-1), digest, ())):
    assert policy_fallback.health(well) == Health()
  health = policy_fallback.health(State(jnp.int32(3), digest, ()))
  assert health.state == "degraded"
  assert health.error == "heuristic decides, from epoch 3"


def options_of(make_config, folder, **changes):
  config = make_config(
    **{"tamiyo.policy": "learned", "urza.dir": str(folder), **changes}
  )
  return learned_policy._load(config)


def test_a_policy_is_found_by_path_by_name_or_in_the_package(
  make_config, tmp_path, path, weights, monkeypatch
):
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
  folder = tmp_path / "urza"
  registry = open_registry(str(folder))
  blob = policy_file.to_bytes(weights, sizes=SIZES)
  registry.keep("policies", "mine", {"from": "a test"}, blob)

  def found(name):
    return options_of(make_config, folder, **{"tamiyo.policy_path": name})

  assert found(str(path)).sha256 == found("mine").sha256
  with pytest.raises(
    InputError, match="keeps no policy of that name .it keeps mine"
  ):
    found("yours")
  for blob in (folder / "blobs").iterdir():
    blob.write_bytes(b"no")
  with pytest.raises(InputError, match="policy_path=mine: damaged in Urza"):
    found("mine")
  shipped = tmp_path / "shipped.safetensors"
  monkeypatch.setattr(policy_file, "SHIPPED", shipped)
  with pytest.raises(InputError, match="shipped.safetensors: no such policy"):
    found("")
  policy_file.save(shipped, weights, sizes=SIZES)
  assert found("").sizes == SIZES
