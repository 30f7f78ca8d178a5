"""What is known of the device that kernels are to run on."""

from typing import NamedTuple

import jax
import jaxlib.version
import pytest

from esper_jax.urza.device import Device, driver_version
from tests.urza.handmade import H100


class Card(NamedTuple):
  """What JAX says of a device."""

  platform: str = "gpu"
  device_kind: str = "NVIDIA H100 80GB HBM3"
  compute_capability: str = "9.0"


def test_the_device_of_a_gpu():
  device = Device.of(Card())
  assert device is not None
  assert device[:2] == H100[:2]
  assert device.jaxlib == jaxlib.version.__version__
  blackwell = Device.of(Card(compute_capability="12.0"))
  assert blackwell is not None and blackwell.target == 120


@pytest.mark.parametrize(
  "card", [jax.devices("cpu")[0], Card(compute_capability="gfx942")]
)
def test_other_devices_are_none(card):
  assert Device.of(card) is None


def test_the_driver(tmp_path):
  assert driver_version(tmp_path / "version") == ""
  for kind in ("", "Open "):
    (tmp_path / "version").write_text(
      f"NVRM version: NVIDIA UNIX {kind}Kernel Module for x86_64  570.172.08"
      "  Release Build\nGCC version:  gcc version 12.2.0 (Debian 12.2.0)\n"
    )
    assert driver_version(tmp_path / "version") == "570.172.08"
  (tmp_path / "version").write_text("something else")
  assert driver_version(tmp_path / "version") == ""
