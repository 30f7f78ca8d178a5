"""The residual hosts: sizes known from the literature, shapes, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts import make_host
from esper_jax.hosts.resnet import BasicBlock
from esper_jax.kasmina.slot import observe_slots

CIFAR = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
DIGITS = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)


def abstract(host, images):
  """Variables, logits and slot specs, without computing anything."""
  with observe_slots() as trace:
    logits, variables = jax.eval_shape(
      host.init_with_output, jax.random.key(0), images
    )
  return variables, logits, trace.specs


def size(tree):
  return sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ("name", "millions", "digits"),
  [  # He et al. 2016, table 6; shortcuts there have no parameters
    ("resnet20", 0.27, 2),
    ("resnet32", 0.46, 2),
    ("resnet56", 0.85, 2),
    # the common CIFAR versions with projections
    ("resnet18", 11.17, 2),
    ("resnet34", 21.28, 2),
  ],
)
def test_parameter_counts(name, millions, digits):
  variables, _, _ = abstract(make_host(name, num_classes=10), CIFAR)
  shortcuts = {
    module: {k: v for k, v in block.items() if k[-1] == "3"}
    for module, block in variables["params"].items()
    if module.startswith("block")
  }
  count = size(variables["params"])
  if int(name.removeprefix("resnet")) % 6 == 2 and name != "resnet18":
    count -= size(shortcuts)
  assert round(count / 1e6, digits) == millions


@pytest.mark.parametrize("layers", [8, 18, 20, 32, 34, 56])
def test_the_name_counts_the_weighted_layers(layers):
  host = make_host(f"resnet{layers}", num_classes=10, width=4)
  params = abstract(host, DIGITS)[0]["params"]
  convs = [m for block in params.values() for m in block if m[:4] == "conv"]
  main_path = [m for m in convs if m != "conv3"]
  assert len(main_path) + 2 == layers  # with the stem and the head


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
  ("images", "shapes"),
  [
    (CIFAR, [(32, 32, 4), (16, 16, 8), (8, 8, 16)]),
    (DIGITS, [(8, 8, 4), (4, 4, 8), (2, 2, 16)]),
  ],
)
def test_stages_double_channels_and_halve_the_image(norm, images, shapes):
  host = make_host("resnet8", num_classes=7, width=4, norm=norm)
  variables, logits, specs = abstract(host, images)
  assert [spec.shape for spec in specs.values()] == shapes
  assert {spec.kind for spec in specs.values()} == {"nhwc"}
  assert logits.shape == (2, 7)
  assert ("batch_stats" in variables) == (norm == "batch")


def test_bfloat16_computes_in_it_and_keeps_float32_around():
  host = make_host("resnet8", num_classes=7, width=4, dtype=jnp.bfloat16)
  images = jnp.ones((2, 8, 8, 1), jnp.bfloat16)
  variables, logits, specs = abstract(host, images)
  assert {a.dtype.name for a in jax.tree.leaves(variables)} == {"float32"}
  assert logits.dtype == jnp.float32
  assert {spec.dtype for spec in specs.values()} == {"bfloat16"}


def test_leaves_are_strongly_typed():
  host = make_host("resnet8", num_classes=7, width=4)
  variables, _, _ = abstract(host, DIGITS)
  assert not any(a.weak_type for a in jax.tree.leaves(variables))


def test_inner_widths_narrow_one_stage_alone():
  own = abstract(make_host("resnet8", num_classes=7, width=4), DIGITS)
  narrow = abstract(
    make_host("resnet8", num_classes=7, width=4, inner_widths=(0, 1)), DIGITS
  )
  assert narrow[2] == own[2]
  a, b = own[0]["params"], narrow[0]["params"]
  assert a["block1_1"] == b["block1_1"]
  assert a["block3_1"] == b["block3_1"]
  assert b["block2_1"]["conv1"]["kernel"].shape == (3, 3, 4, 1)
  assert b["block2_1"]["conv2"]["kernel"].shape == (3, 3, 1, 8)


def test_a_block_whose_convolutions_are_zero_is_its_relu_shortcut():
  block = BasicBlock(3, 2, norm="group")
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  variables = block.init(jax.random.key(1), x, train=False)
  zero = jax.tree.map(jnp.zeros_like, variables)
  np.testing.assert_array_equal(
    block.apply(zero, x, train=False), jnp.maximum(x, 0)
  )


@pytest.mark.full
def test_it_learns_and_tracks_batch_statistics():
  host = make_host("resnet8", num_classes=2, width=4)
  images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1))
  labels = jnp.arange(16, dtype=jnp.int32) % 2
  variables = jax.jit(host.init)(jax.random.key(1), images)

  @jax.jit
  def step(variables):
    params = variables["params"]
    rest = {k: v for k, v in variables.items() if k != "params"}

    def loss_of(params):
      logits, new = host.apply(
        {"params": params, **rest}, images, train=True, mutable=["batch_stats"]
      )
      chosen = jnp.take_along_axis(
        jax.nn.log_softmax(logits), labels[:, None], axis=1
      )
      return -chosen.mean(), new

    (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    return {"params": params, **new}, loss

  first = variables
  losses = []
  for _ in range(30):
    variables, loss = step(variables)
    losses.append(float(loss))
  assert losses[-1] < 0.5 * losses[0]
  for before, after in zip(
    jax.tree.leaves(first), jax.tree.leaves(variables), strict=True
  ):
    assert (before != after).any()
