"""A host with dormant slots is, as a program, the host without slots.

Equal means: the StableHLO text of a training and of an evaluation program,
after removing `jax.result_info`, locations and the module's name.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from esper_jax.hosts import host_names, make_host

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
LABELS = jax.ShapeDtypeStruct((2,), jnp.int32)
TOKENS = jax.ShapeDtypeStruct((2, 6), jnp.int32)


def program_text(function, *args):
  text = jax.jit(function).lower(*args).as_text()
  text = re.sub(r'jax\.result_info = "[^"]*"', "", text)
  text = re.sub(r"loc\([^)]*\)|#loc.*", "", text)
  return re.sub(r"module @\S+", "module", text)


def train_step(host, variables, images, labels):
  """Loss, gradients and the new batch statistics."""
  rest = {k: v for k, v in variables.items() if k != "params"}

  def loss_of(params):
    logits, new = host.apply(
      {"params": params, **rest, "seeds": {}},
      images,
      train=True,
      mutable=["batch_stats", "seeds"],
    )
    picked = jnp.take_along_axis(
      jax.nn.log_softmax(logits), labels[..., None], axis=-1
    )
    return -picked.mean(), new

  return jax.value_and_grad(loss_of, has_aux=True)(variables["params"])


def eval_step(host, variables, images):
  return host.apply({**variables, "seeds": {}}, images, train=False)


def programs(host, variables, x=IMAGES, y=LABELS):
  train = program_text(
    lambda v, x, y: train_step(host, v, x, y), variables, x, y
  )
  evaluate = program_text(lambda v, x: eval_step(host, v, x), variables, x)
  return train, evaluate


# The mlp and the gpt ignore the norm, so one of the two is enough there.
# Deeper ResNets are more of the same blocks.
DEEP = ("resnet32", "resnet34", "resnet56")
CASES = [
  pytest.param(name, norm, marks=[pytest.mark.full] if name in DEEP else [])
  for name in host_names()
  for norm in ("batch", "group")
  if name.startswith("resnet") or norm == "batch"
]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_dormant_host_is_the_plain_host(name, norm):
  def build(slots):
    return make_host(name, num_classes=3, width=4, norm=norm, slots=slots)

  plain, grown = build(()), build("all")
  data = (TOKENS, TOKENS) if name == "gpt" else (IMAGES, LABELS)
  variables = jax.eval_shape(plain.init, jax.random.key(0), data[0])
  for a, b in zip(
    programs(plain, variables, *data),
    programs(grown, variables, *data),
    strict=True,
  ):
    assert a == b


def test_the_comparison_tells_programs_apart():
  narrow, wide = (
    make_host("mlp", num_classes=3, width=w, slots=()) for w in (4, 5)
  )
  texts = [
    programs(h, jax.eval_shape(h.init, jax.random.key(0), IMAGES))
    for h in (narrow, wide)
  ]
  assert texts[0][0] != texts[1][0]
  assert texts[0][1] != texts[1][1]
  assert "stablehlo" in texts[0][0]
