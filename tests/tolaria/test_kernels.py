"""Kernels in a run: opened, told of, chosen again; never in the way."""

import shutil
import stat

import jax
import jax.numpy as jnp
import pytest

from esper_jax.oona import jsonl
from esper_jax.tolaria import overview
from esper_jax.tolaria.kernels import Kernels, describe
from esper_jax.types import InputError
from esper_jax.urza import dispatch
from esper_jax.urza.kernels import blend_forward, layer_norm_backward
from esper_jax.urza.registry import open_registry
from tests.urza import handmade
from tests.urza.handmade import H100

WIDE = 16  # channels of a host whose seeds have kernels
GROW = {
  "host.width": WIDE,
  "kasmina.blueprints": ("dense",),
  "kasmina.training_gain_sigmas": -1e6,
  "tamiyo.policy": "schedule",
  "tamiyo.schedule": ((1, "slot1", "dense"),),
  "tezzeret.threads": 0,
}


@pytest.fixture(autouse=True)
def _user_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
  """A registry with the kernels of a dense seed's step, judged as good."""
  path = tmp_path / "urza"
  fill(path)
  return path


def fill(path):
  registry = open_registry(str(path))
  x = jax.ShapeDtypeStruct((64, WIDE), jnp.float32)
  channels = jax.ShapeDtypeStruct((WIDE,), jnp.float32)
  one = jax.ShapeDtypeStruct((), jnp.float32)
  for kernel, args in (
    (layer_norm_backward.KERNEL, (x, channels, channels, x)),
    (blend_forward.KERNEL, (x, x, one, one)),
  ):
    key = registry.put(*handmade.artefact(kernel, *args))
    registry.append(key, handmade.gpu())
    registry.append(key, handmade.probe(ok=True))


def options(make_config, folder, **changes):
  """What `watch` takes for a run beside an absent H100."""
  changes = {**GROW, "urza.dir": str(folder), **changes}
  return {"kernels": Kernels.of(make_config(**changes), H100), **changes}


def told(run):
  return [
    (e["kernel"], e["reason"])
    for e in run.events
    if e["type"] == "kernel_fallback"
  ]


@pytest.fixture(scope="module")
def plain(watch_shared):
  """The same run where nobody asks for kernels."""
  return watch_shared(**GROW).train()


def test_nothing_is_opened_on_a_cpu(make_config, tmp_path):
  kernels = Kernels.of(make_config())
  kernels.take_up({})
  assert dispatch.installed() is None
  kernels.close()
  assert not (tmp_path / "share").exists()


def test_the_start_says_where_kernels_may_run(make_config):
  config = make_config()
  assert describe(config) == "no GPU: the reference code runs"
  assert describe(config, H100) == f"kernels on {H100.kind}: " + (
    "urza.require=validated"
  )


@pytest.mark.parametrize("device", [None, H100], ids=["cpu", "gpu"])
@pytest.mark.parametrize("made", ["nothing", "a file"])
def test_a_folder_that_is_none_is_refused_on_every_device(
  make_config, tmp_path, made, device
):
  path = tmp_path / "new"
  if made == "a file":
    path.write_text("")
  config = make_config(**{"urza.dir": str(path)})
  what = {"nothing": "no such folder", "a file": "not a folder"}[made]
  with pytest.raises(InputError, match=f"{what}: {path}; .* build --dir="):
    Kernels.of(config, device)
  with pytest.raises(InputError, match=what):  # --dry_run
    overview.slot_table(config)
  assert path.is_file() == (made == "a file") and not path.is_dir()


def test_a_run_uses_the_kernels_and_notes_which(
  watch, make_config, folder, plain
):
  run = watch(**options(make_config, folder)).train()
  # The gradient of what joins the slot has no artefact here.
  assert [kernel for kernel, _ in told(run)] == ["blend_backward"]
  stored = open_registry(layers=(folder,))
  chosen = run.trainer.run.kernels
  keys = {key for key in chosen.values() if key != dispatch.REFERENCE}
  assert keys == set(stored.keys())
  assert dispatch.installed() is None  # once the run has ended
  # On this CPU the references ran: another way to the same figures.
  assert plain.trainer.run.kernels == {} and told(plain) == []
  assert run.lines() == pytest.approx(plain.lines(), rel=1e-5)


def test_what_was_chosen_is_chosen_again(watch, make_config, folder):
  def stop(trainer, metrics):
    if metrics.epoch == 3:
      trainer.stop()

  first = watch(name="a", callbacks=[stop], **options(make_config, folder))
  first.train()
  shutil.copytree(first.path, first.path.with_name("b"))
  chosen = dict(first.trainer.run.kernels)
  assert len(chosen) == 3
  shutil.rmtree(folder)  # and what is there now was not there then
  fill(folder)
  again = watch(name="a", **options(make_config, folder))
  assert again.trainer.run.kernels == chosen
  again.train()
  assert again.result["status"] == "completed"
  assert again.trainer.run.kernels == chosen
  assert told(again) == []  # it was told before

  shutil.rmtree(folder)
  folder.mkdir()
  gone = watch(name="b", **options(make_config, folder))
  gone.train()
  reasons = {reason for _, reason in told(gone)}
  assert len(reasons) == 2 and all("is gone" in text for text in reasons)


@pytest.mark.parametrize("fault", ["deleted", "damaged"])
def test_a_registry_that_fails_costs_nothing_but_speed(
  watch, make_config, folder, plain, fault
):
  given = options(make_config, folder)
  if fault == "deleted":
    shutil.rmtree(folder)
  else:
    for path in (folder / "blobs").iterdir():
      path.write_bytes(path.read_bytes()[:-1])
  run = watch(**given).train()
  assert sorted(kernel for kernel, _ in told(run)) == [
    "blend_forward",
    "layer_norm_backward",
  ]
  assert run.lines() == plain.lines()  # to the bit
  assert set(run.trainer.run.kernels.values()) == {dispatch.REFERENCE}


def test_a_registry_that_cannot_be_read_is_told_of_once(watch):
  def refuse():
    raise PermissionError(13, "Permission denied", "/data/urza")

  run = watch(kernels=Kernels(H100, refuse), **{"train.max_steps": 1}).train()
  events = jsonl.read(run.path / "events.jsonl")
  (event,) = [e for e in events if e["type"] == "kernel_fallback"]
  assert event["kernel"] == "all"
  assert event["reason"].startswith("the registry cannot be read: [Errno 13]")
  assert run.result["status"] == "completed"
  health = run.trainer.roster.health()["urza"]
  assert (health["state"], health["error"]) == ("degraded", event["reason"])


def test_a_folder_of_others_is_refused_before_the_run(make_config, tmp_path):
  shared = tmp_path / "shared"
  shared.mkdir()
  shared.chmod(0o777)
  assert shared.stat().st_mode & stat.S_IWOTH
  config = make_config(**{"urza.dir": str(shared)})
  for device in (None, H100):
    with pytest.raises(InputError, match="urza.trusted"):
      Kernels.of(config, device)
  trusted = make_config(
    **{"urza.dir": str(shared), "urza.trusted": (str(shared),)}
  )
  Kernels.of(trusted, H100).close()


def test_a_failing_start_leaves_no_dispatcher(watch, make_config, folder):
  short = {"train.max_steps": 1}
  watch(name="a", **options(make_config, folder, **short)).train()
  changed = {**short, "optimizer.learning_rate": 1.0}
  with pytest.raises(InputError, match="holds a run of another config"):
    watch(name="a", **options(make_config, folder, **changed))
  assert dispatch.installed() is None


def test_closing_leaves_anothers_dispatcher(make_config, folder):
  first, second = (
    Kernels.of(make_config(**{"urza.dir": str(folder)}), H100) for _ in "12"
  )
  first.take_up({})
  mine = dispatch.installed()
  second.take_up({})
  other = dispatch.installed()
  assert mine is not other and other is not None
  first.close()
  assert dispatch.installed() is other
  second.close()
  second.close()
  assert dispatch.installed() is None
