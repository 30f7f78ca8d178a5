"""The train step of a ResNet with seeds, lowered for a GPU that is not here."""

import collections
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from esper_jax.hosts import make_host
from esper_jax.hosts.host import from_linen
from esper_jax.kasmina import surgery
from esper_jax.tezzeret.lowering import lower_on_cpu
from esper_jax.tolaria import accounting, steps
from esper_jax.tolaria.optimizers import make_optimizer
from esper_jax.tolaria.state import init_state
from esper_jax.urza import dispatch
from esper_jax.urza.dispatch import Dispatcher
from esper_jax.urza.kernels.catalogue import KERNELS
from esper_jax.urza.registry import PACKAGE, open_registry
from tests.urza import handmade
from tests.urza.lowered import for_cuda, launches

BATCH, WIDTH = 4, 16
SEEDS = {
  "slot1_1": ("lowrank", "lowrank", "norm"),
  "slot2_1": ("depthwise",),
  "slot3_1": ("lowrank", "conv3x3"),
}


@pytest.fixture(scope="module")
def step():
  """(the train step, its arguments), as shapes."""
  module = make_host("resnet8", num_classes=10, width=WIDTH)
  host, optimizer = from_linen(module), make_optimizer("sgd", momentum=0.0)
  images = jax.ShapeDtypeStruct((BATCH, 8, 8, 3), jnp.float32)
  labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)

  def forward(x):
    variables = host.init(jax.random.key(0), x)
    return host.apply(*variables, {}, x, train=False, key=None)

  slots = surgery.slot_table(lambda: forward(jnp.zeros(images.shape)))

  def build(x):
    state = init_state(host, optimizer, x, seed=0, average=False)
    for path, names in SEEDS.items():
      for n, name in enumerate(names):
        seed = surgery.make_seed(slots[path], name, key=jax.random.key(n))
        born = optimizer.init(seed.params)
        state = surgery.plant(state, path, f"{name}_{n}", seed, born)
    return state, steps.empty_sums(state)

  options = steps.StepOptions(
    preprocess=lambda x, key: x,
    optimizer=optimizer,
    learning_rate=lambda n: jnp.float32(0.1),
    newborn_factor=lambda age: jnp.float32(1),
    ema_decay=0.0,
  )
  train = steps.make_train_step(host, options)
  return train, (*jax.eval_shape(build, images), images, labels, labels)


def lowered(step) -> jax.stages.Lowered:
  train, args = step
  return for_cuda(lambda *a: train(*a), *args)  # traced anew each time


def text(program: jax.stages.Lowered) -> str:
  return re.sub(r"loc\(.*?\)", "", program.as_text())


@pytest.fixture
def registry(tmp_path):
  """All shipped kernels, as if they had been compiled; name -> codes."""
  registry = open_registry(layers=(tmp_path / "urza",))
  code = collections.defaultdict(list)
  for kernel in KERNELS.values():
    for constants in kernel.shipped:
      args: Any = kernel.arguments("float32", constants, BATCH, 8, 8)
      artefact, files = handmade.artefact(kernel, *args)
      registry.put(artefact, files)
      code[kernel.name].append(files["ptx"])
  return registry, code


def test_a_step_contains_the_stored_code(step, registry):
  stored, code = registry
  dispatcher = Dispatcher(stored, handmade.H100, require="nothing")
  with dispatch.using(dispatcher):
    found = launches(lowered(step))
  counts = {
    name: sum(any(ptx in m for ptx in codes) for m in found)
    for name, codes in code.items()
  }
  assert counts == {
    "lowrank_forward": 2,  # the two of slot1_1 go together
    "lowrank_backward": 2,
    "lowrank_weights": 2,
    "blend_forward": 3,  # norm, depthwise and conv3x3
    "blend_backward": 3,
    "depthwise_forward": 1,
    "depthwise_backward": 1,
    "group_norm_backward": 3,
    "layer_norm_backward": 0,
  }
  assert len(found) == sum(counts.values())
  assert dispatcher.fallbacks() == []


def test_a_step_takes_what_the_package_ships(step):
  shipped = open_registry(layers=(PACKAGE,))
  for target in (80, 90):
    device = handmade.H100._replace(target=target)
    dispatcher = Dispatcher(shipped, device, require="nothing")
    with dispatch.using(dispatcher):
      found = launches(lowered(step))
    assert dispatcher.fallbacks() == []
    codes = [shipped.load(key)[1]["ptx"] for key in dispatcher.choices.values()]
    # That of float32, which later devices run as well.
    assert all(b".target sm_75" in ptx for ptx in codes)
    assert {ptx for ptx in codes for m in found if ptx in m} == {*codes}
    assert len(found) == 17


def test_damage_leaves_the_step_as_it_was_and_is_told_once(
  step, registry, tmp_path
):
  for path in (tmp_path / "urza" / "blobs").iterdir():
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
  dispatcher = Dispatcher(registry[0], handmade.H100, require="nothing")
  with dispatch.using(dispatcher):
    damaged = text(lowered(step))
  assert damaged == text(lowered(step))
  fallbacks = dispatcher.fallbacks()
  assert all("damaged" in fallback.reason for fallback in fallbacks)
  told = collections.Counter(fallback[:2] for fallback in fallbacks)
  assert set(told.values()) == {1}
  assert {kernel for kernel, _ in told} == {
    "lowrank_forward",
    "blend_forward",
    "depthwise_forward",
    "depthwise_backward",
    "group_norm_backward",
  }


def test_operations_are_counted_on_the_references(step, registry):
  train, args = step
  plain = accounting.flops(lower_on_cpu(jax.jit(lambda *a: train(*a)), *args))
  dispatcher = Dispatcher(registry[0], handmade.H100, require="nothing")
  with dispatch.using(dispatcher):
    program = lower_on_cpu(jax.jit(lambda *a: train(*a)), *args)
  assert launches(program) == []
  # References compute again what a gradient without a kernel would keep.
  assert plain <= accounting.flops(program) < 1.2 * plain
