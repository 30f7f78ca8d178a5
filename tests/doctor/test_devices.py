"""Devices are told of, and tried."""

import stat
import types

import jax
import pytest

from esper_jax.doctor import devices
from esper_jax.doctor.report import Level
from esper_jax.doctor.settings import Settings
from tests.doctor.installed import finder


def device(platform="gpu", id=0, memory=None):
  return types.SimpleNamespace(
    platform=platform,
    id=id,
    device_kind="NVIDIA H100" if platform == "gpu" else platform,
    memory_stats=lambda: memory,
  )


def check(*found, error=None, environ=None, driver="", run=None, **changes):
  def seen():
    if error:
      raise error
    return found

  lines = devices.check(
    Settings(),
    devices=seen,
    run=run or (lambda device: devices.EXPECTED),
    driver=lambda: driver,
    environ=environ or {},
    find=finder(**changes),
  )
  return {line.item: line for line in lines}


def test_those_of_this_machine_compute():
  lines = [*devices.check(Settings(), environ={}, driver=lambda: "")]
  assert {line.level for line in lines} == {Level.OK}
  assert [line.item for line in lines][:2] == ["devices", "cpu:0"]
  assert "GiB; a program runs and is right" in lines[1].found
  assert devices.run_on(jax.devices()[0]) == devices.EXPECTED


def test_gpus_are_counted_and_their_memory_told():
  gpus = (device(memory={"bytes_limit": 60 * 2**30}), device(id=1))
  found = check(*gpus, driver="580.1")
  assert found["devices"].found == "2 gpu (NVIDIA H100); a run uses the first"
  assert found["gpu:0"].found.startswith("NVIDIA H100, 60.0 GiB; ")
  assert "memory unknown" in found["gpu:1"].found
  assert found["gpu"].found == "JAX uses it; NVIDIA driver 580.1"
  assert "driver unknown" in check(device())["gpu"].found


def test_a_wrong_number_fails():
  found = check(device("cpu"), run=lambda device: 1.0)["cpu:0"]
  assert found.level is Level.FAIL
  assert "gives 1.0, not 3920.0" in found.found and found.remedy


@pytest.mark.parametrize(
  ("message", "shown"),
  [("RESOURCE_EXHAUSTED: all\nmore", ": all"), ("", "runs: RuntimeError")],
)
def test_a_program_that_does_not_run_fails(message, shown):
  def run(device):
    raise RuntimeError(message)

  found = check(device(), run=run)["gpu:0"]
  assert found.level is Level.FAIL
  assert "no program runs: RuntimeError" in found.found
  assert found.found.endswith(shown)


def test_no_device_fails():
  error = RuntimeError("Unknown backend cuda\nmore")
  found = check(error=error, environ={"JAX_PLATFORMS": "cuda"})
  assert [*found] == ["devices"]
  assert found["devices"][1:] == (
    Level.FAIL,
    "JAX finds none: RuntimeError: Unknown backend cuda",
    "set JAX_PLATFORMS, which is cuda, to cpu, or unset it",
  )
  found = check(error=AssertionError(), driver="580.1")
  assert found["devices"].found.endswith("AssertionError")
  assert "JAX_PLATFORMS=cpu" in found["devices"].remedy
  assert found["gpu"].level is Level.WARN


@pytest.mark.parametrize(
  ("environ", "level"),
  [
    ({}, Level.FAIL),
    ({"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "0"}, Level.FAIL),
    ({"JAX_PLATFORMS": "cpu"}, Level.WARN),
    ({"CUDA_VISIBLE_DEVICES": ""}, Level.WARN),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, Level.WARN),
  ],
)
def test_a_gpu_that_is_hidden_is_no_failure(environ, level):
  cpu = device("cpu")
  plugin = {"jax_cuda13_plugin": "0.11.2"}
  found = check(cpu, driver="580.1", environ=environ, **plugin)
  assert found["gpu"].level is level
  assert check(cpu, environ=environ)["gpu"].level is Level.OK


@pytest.mark.parametrize(
  ("body", "version"),
  [("echo 580.1; echo 580.1", "580.1"), ("echo none; exit 9", "")],
)
def test_nvidia_smi_is_asked(tmp_path, body, version):
  program = tmp_path / "nvidia-smi"
  program.write_text(f"#!/bin/sh\n{body}\n")
  program.chmod(stat.S_IRWXU)
  assert devices.ask_driver(str(program)) == version


def test_an_nvidia_smi_that_is_none(tmp_path):
  program = tmp_path / "nvidia-smi"
  assert devices.ask_driver(str(program)) == ""
  program.write_bytes(b"\0")
  program.chmod(stat.S_IRWXU)
  assert devices.ask_driver(str(program)) == ""


def test_the_driver_of_this_machine():
  assert isinstance(devices.driver(), str)
