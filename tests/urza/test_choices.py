"""Which artefact is chosen, and what must be known of it."""

import jax
import jax.numpy as jnp
import pytest

from esper_jax.urza import dispatch
from esper_jax.urza.dispatch import Dispatcher
from esper_jax.urza.registry import Registry, open_registry
from tests.urza import handmade
from tests.urza.choosing import ARGS, HANDLE, Probe, Verdict, chosen, put, why
from tests.urza.handmade import H100
from tests.urza.sample_kernel import KERNEL


@pytest.fixture
def registry(tmp_path) -> Registry:
  return open_registry(layers=(tmp_path / "urza",))


# --- what is chosen --------------------------------------------------------


def test_a_validated_artefact_is_chosen(registry):
  key = put(registry, handmade.gpu())
  dispatcher = Dispatcher(registry, H100)
  choice = dispatcher.choose(KERNEL, ARGS)
  assert choice is not None
  assert choice.artefact.key == key
  assert choice.files == handmade.artefact(KERNEL, *ARGS)[1]
  assert choice.plan.scalars == (24,)
  assert dispatcher.choices == {HANDLE: key}
  assert dispatcher.fallbacks() == []


def test_an_artefact_serves_every_number_of_rows(registry):
  put(registry, handmade.gpu())
  dispatcher = Dispatcher(registry, H100)
  more = (jax.ShapeDtypeStruct((100, 16), jnp.float32), ARGS[1])
  choice = dispatcher.choose(KERNEL, more)
  assert choice is not None and choice.plan.grid == (4, 1, 1)
  assert len(dispatcher.choices) == 1


@pytest.mark.parametrize(
  ("stored", "device", "target"),
  [
    ((75, 80, 90), 90, 90),
    ((75, 80), 90, 80),
    ((75, 80, 90), 86, 80),
    ((75, 80, 90), 100, 80),  # sm_90's code is for Hopper alone
    ((75, 80, 90), 120, 80),
    ((75, 80, 90, 100), 100, 100),
    ((75, 80, 90), 75, 75),
    ((80, 90), 75, None),
    ((90,), 80, None),
    ((90, 100), 120, None),
  ],
)
def test_the_target(registry, stored, device, target):
  for one in stored:
    put(registry, target=one)
  dispatcher = Dispatcher(
    registry, H100._replace(target=device), require="nothing"
  )
  choice = dispatcher.choose(KERNEL, ARGS)
  assert (choice and choice.artefact.spec.target) == target
  if target is None:
    names = ", ".join(f"sm_{n}" for n in stored)
    (fallback,) = dispatcher.fallbacks()
    assert fallback.reason == f"stored for {names}, not for sm_{device}"


def test_code_that_needs_more_shared_memory_than_the_device_has(registry):
  put(registry, target=80, shared=120_000)
  a100 = H100._replace(target=80)
  dispatcher = Dispatcher(registry, a100, require="nothing")
  assert dispatcher.choose(KERNEL, ARGS) is not None
  for target in (86, 120):  # of the second nothing is known
    device = H100._replace(target=target)
    reason = why(Dispatcher(registry, device, require="nothing"))
    assert "bytes of shared memory" in reason


def test_the_first_tiles_of_the_list_are_chosen_where_none_was_timed(registry):
  first, second = KERNEL.tiles(KERNEL.form(*ARGS))
  put(registry, tiles={"BM": 512, "num_stages": 1, "num_warps": 4})
  put(registry, tiles=second)
  key = put(registry, tiles=first)
  assert chosen(Dispatcher(registry, H100, require="nothing")) == key


def test_the_fastest_tiles_are_chosen_where_they_were_timed(registry):
  first, second = KERNEL.tiles(KERNEL.form(*ARGS))
  put(registry, handmade.gpu(kernel_us=9.0), tiles=first)
  key = put(registry, handmade.gpu(kernel_us=8.0), tiles=second)
  assert chosen(Dispatcher(registry, H100)) == key


def test_what_is_validated_goes_before_what_is_newer(registry):
  key = put(registry, handmade.gpu(), target=80)
  put(registry, target=90)
  assert chosen(Dispatcher(registry, H100, require="nothing")) == key


def test_a_rejected_artefact_makes_room_for_another(registry):
  first, second = KERNEL.tiles(KERNEL.form(*ARGS))
  put(registry, handmade.gpu(ratio=1.1), tiles=first)
  key = put(registry, handmade.gpu(), tiles=second)
  assert chosen(Dispatcher(registry, H100)) == key


def test_a_key_that_was_chosen_before_is_chosen_again(registry):
  first, second = KERNEL.tiles(KERNEL.form(*ARGS))
  put(registry, handmade.gpu(kernel_us=1.0), tiles=first)
  key = put(registry, handmade.gpu(kernel_us=9.0), tiles=second)
  prefer = {HANDLE: key, "another": "key"}
  dispatcher = Dispatcher(registry, H100, prefer=prefer)
  assert dispatcher.choices == prefer
  assert chosen(dispatcher) == key
  assert dispatcher.choices == prefer


def test_a_reference_that_ran_before_runs_again_in_silence(registry):
  put(registry, handmade.gpu())
  dispatcher = Dispatcher(registry, H100, prefer={HANDLE: dispatch.REFERENCE})
  assert chosen(dispatcher) is None
  assert dispatcher.fallbacks() == []
  assert dispatcher.choices == {HANDLE: dispatch.REFERENCE}


def test_a_key_that_is_gone_is_not_replaced(registry):
  put(registry, handmade.gpu())
  dispatcher = Dispatcher(registry, H100, prefer={HANDLE: 64 * "0"})
  assert why(dispatcher) == "missing: 000000000000 is gone"


# --- what must be known of it ---------------------------------------------


def test_what_was_never_run_does_not_run(registry):
  put(registry)
  reason = why(Dispatcher(registry, H100))
  assert reason == "not validated on NVIDIA H100 80GB HBM3"


def test_a_run_on_another_kind_of_device_does_not_count(registry):
  other = H100._replace(kind="NVIDIA A100-SXM4-40GB")
  put(registry, handmade.gpu(other))
  assert "not validated" in why(Dispatcher(registry, H100))


@pytest.mark.parametrize(
  "record",
  [
    handmade.gpu(ratio=1.1),
    handmade.gpu(max_error=1.0),
    handmade.gpu(deterministic=False),
  ],
)
@pytest.mark.parametrize("require", dispatch.REQUIREMENTS)
def test_what_is_rejected_never_runs(registry, record, require):
  put(registry, record)
  probe = Probe()
  reason = why(Dispatcher(registry, H100, require=require, probe=probe))
  assert reason == "rejected on NVIDIA H100 80GB HBM3 by its evidence"
  assert probe.asked == []


@pytest.mark.parametrize("records", [(), (handmade.gpu(),)])
def test_the_first_use_is_probed(registry, records):
  key = put(registry, *records)
  probe = Probe(Verdict(True))
  dispatcher = Dispatcher(registry, H100, require="probed", probe=probe)
  assert chosen(dispatcher) == chosen(dispatcher) == key
  assert probe.asked == [(key, H100)]


def test_a_probe_that_fails_leaves_the_reference(registry):
  put(registry)
  probe = Probe(Verdict(False, "off by 2"))
  dispatcher = Dispatcher(registry, H100, require="probed", probe=probe)
  assert why(dispatcher) == "its probe failed: off by 2"
  assert len(probe.asked) == 1


def test_a_probe_that_raises_leaves_the_reference(registry):
  put(registry)
  dispatcher = Dispatcher(registry, H100, require="probed", probe=Probe())
  assert why(dispatcher) == "IndexError: pop from empty list"


@pytest.mark.parametrize("require", ["probed", "nothing"])
def test_a_recorded_verdict_is_not_asked_for_again(registry, require):
  key = put(registry, handmade.probe(ok=True))
  probe = Probe()
  dispatcher = Dispatcher(registry, H100, require=require, probe=probe)
  assert chosen(dispatcher) == key
  registry.append(key, handmade.probe(ok=False, second=1))
  again = Dispatcher(registry, H100, require=require, probe=probe)
  assert why(again) == "its probe on this device failed"
  assert probe.asked == []


def test_a_verdict_on_another_driver_does_not_count(registry):
  put(registry, handmade.probe(H100._replace(driver="1.0"), ok=True))
  dispatcher = Dispatcher(registry, H100, require="probed")
  assert why(dispatcher) == "not probed on this device"


def test_what_is_validated_needs_no_probe_where_there_is_none(registry):
  key = put(registry, handmade.gpu())
  assert chosen(Dispatcher(registry, H100, require="probed")) == key


def test_an_unknown_requirement_is_refused(registry):
  with pytest.raises(ValueError, match="validated, probed, nothing"):
    Dispatcher(registry, H100, require="all")
