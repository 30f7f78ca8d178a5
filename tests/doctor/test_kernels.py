"""The registry: whole or not, and what of it runs here."""

import pytest

from esper_jax.doctor import kernels
from esper_jax.doctor.report import Level
from esper_jax.doctor.settings import Settings
from esper_jax.types import InputError
from esper_jax.urza import registry as registry_lib
from esper_jax.urza.device import Device
from tests.urza import making

H100 = Device(making.DEVICE, 90, "580.1", "0.11.2")


@pytest.fixture
def store(tmp_path, monkeypatch):
  """A layer with two artefacts; there is no other."""
  monkeypatch.setattr(registry_lib, "PACKAGE", tmp_path / "no package")
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nothing"))
  making.filled(tmp_path / "r", 2)
  return tmp_path / "r"


def check(store, here=None, **options):
  return [*kernels.check(Settings(registry=str(store), **options), here=here)]


def test_a_whole_registry(store):
  whole, count = check(store)
  assert whole[:3] == ("registry", Level.OK, f"whole: {store}")
  assert count.level is Level.OK
  assert count.found == "2 artefacts: 0 run here (no GPU)"


def test_what_fits_a_gpu_is_counted(store):
  assert "2 fit this device (NVIDIA H100" in check(store, H100)[1].found


def test_damage_fails_and_is_not_counted(store):
  (store / "artefacts" / "stray").write_text("")
  first, *_ = sorted((store / "artefacts").glob("*.json"))
  first.write_bytes(b"{}")
  failed, count = check(store)
  assert failed.level is Level.FAIL
  assert str(first) in failed.found and "problems in " in failed.found
  assert f"verify --dir={store}`" in failed.remedy
  assert count.found.startswith("1 artefact and 1 damaged: ")


def test_one_problem_in_the_users_own_layer(store, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
  own = tmp_path / "esper_jax" / "urza" / "blobs"
  own.mkdir(parents=True, mode=0o700)
  (own / "x").write_text("")
  failed, _ = kernels.check(Settings())
  assert failed.found.startswith("1 problem in ")
  assert "esper_jax.urza verify`" in failed.remedy


def test_a_folder_that_cannot_be_read_fails(store):
  artefacts = store / "artefacts"
  artefacts.chmod(0o777)
  with pytest.raises(InputError, match="can be written by others"):
    check(store)
  assert check(store, trusted=(str(store),))[0].level is Level.OK


def test_a_layer_that_is_damaged_as_a_whole_is_passed_over(store, monkeypatch):
  (store / "artefacts").rename(store / "elsewhere")
  (store / "artefacts").symlink_to("artefacts")  # a loop
  failed, count = check(store)
  assert failed.level is Level.FAIL
  assert count.found.startswith("0 artefacts: ")


def test_nothing_is_made(store, tmp_path):
  before = sorted(tmp_path.rglob("*"))
  check(store)
  assert sorted(tmp_path.rglob("*")) == before
  with pytest.raises(InputError, match="no such folder"):
    check(tmp_path / "absent")
