"""Hosts by name: what is valid, and what is said about what is not."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from esper_jax.hosts import host_names, make_host, slot_names
from esper_jax.kasmina.slot import observe_slots
from esper_jax.types import InputError


def announced(host, x=None):
  x = jnp.zeros((2, 8, 8, 1)) if x is None else x
  with observe_slots() as trace:
    jax.eval_shape(host.init, jax.random.key(0), x)
  return trace.specs


def example(name):
  if name == "gpt":
    return jnp.zeros((2, 6), jnp.int32)
  return jnp.zeros((1, 8, 8, 3))


@pytest.mark.parametrize("name", host_names())
def test_slot_names_are_what_the_host_announces(name):
  host = make_host(name, num_classes=3, width=4)
  assert tuple(announced(host, example(name))) == slot_names(name)


def test_slot_names_of_known_hosts():
  assert slot_names("resnet8") == ("slot1_1", "slot2_1", "slot3_1")
  assert slot_names("resnet34")[3:5] == ("slot2_1", "slot2_2")
  assert len(slot_names("resnet34")) == 16
  assert slot_names("mlp", depth=3) == ("slot1", "slot2", "slot3")
  assert slot_names("gpt", depth=1) == ("slot1",)


def test_chosen_slots_alone_are_placed():
  host = make_host(
    "resnet20", num_classes=3, width=4, slots=("slot3_1", "slot1_2")
  )
  assert tuple(announced(host)) == ("slot1_2", "slot3_1")
  assert not announced(make_host("mlp", num_classes=3, slots=()))


@pytest.mark.parametrize(
  ("name", "width"),
  [
    ("resnet18", 64),
    ("resnet34", 64),
    ("resnet20", 16),
    ("mlp", 128),
    ("gpt", 64),
  ],
)
def test_width_zero_is_the_host_s_own(name, width):
  specs = announced(make_host(name, num_classes=10), example(name))
  assert next(iter(specs.values())).channels == width


def test_make_host_returns_a_linen_module():
  assert isinstance(make_host("mlp", num_classes=2), nn.Module)


@pytest.mark.parametrize(
  ("name", "change", "parts"),
  [
    ("resnet19", {}, ["'resnet19'", "did you mean 'resnet18'", "mlp"]),
    ("zzz", {}, ["host named 'zzz'; valid: resnet8, resnet18"]),
    ("resnet8", {"slots": ("slot1_2",)}, ["'slot1_2'", "slot1_1, slot2_1"]),
    ("mlp", {"slots": ("slot3",)}, ["host 'mlp'", "valid: slot1, slot2"]),
    ("mlp", {"slots": "slot1"}, ["slots is 'slot1'", "('slot1',)"]),
    ("resnet8", {"norm": "layer"}, ["norm named 'layer'", "batch, group"]),
    ("resnet8", {"width": -1}, ["width is -1", "at least 0"]),
    ("resnet8", {"num_classes": 1}, ["num_classes is 1", "at least 2"]),
    ("mlp", {"depth": 0}, ["depth is 0", "at least 1"]),
    ("resnet8", {"inner_widths": (1, 1, 1, 1)}, ["3 stages", "at most 3"]),
    ("resnet8", {"inner_widths": (0, -1)}, ["(0, -1)", "at least 0"]),
    ("mlp", {"inner_widths": (1,)}, ["inner_widths", "'mlp'"]),
    ("gpt", {"inner_widths": (1,)}, ["inner_widths", "'gpt'"]),
    ("gpt", {"heads": 5}, ["host.heads is 5", "width 64", "host.width"]),
    ("gpt", {"heads": 0}, ["heads is 0", "at least 1"]),
    ("gpt", {"context": 0}, ["context is 0", "at least 1"]),
  ],
)
def test_bad_input_is_named_in_one_line(
  name: str, change: dict[str, Any], parts: list[str]
):
  arguments: dict[str, Any] = {"num_classes": 10, **change}
  with pytest.raises(InputError) as error:
    make_host(name, **arguments)
  message = str(error.value)
  assert "\n" not in message
  assert all(part in message for part in parts), message


def test_slot_names_refuses_an_unknown_host():
  with pytest.raises(InputError, match="no host named 'vgg'"):
    slot_names("vgg")
