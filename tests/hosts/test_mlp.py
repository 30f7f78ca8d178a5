"""The dense host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts import make_host
from esper_jax.kasmina.slot import observe_slots


def test_it_is_dense_relu_dense():
  host = make_host("mlp", num_classes=3, width=5, depth=1)
  x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
  variables = host.init(jax.random.key(1), x)
  p = jax.tree.map(np.asarray, variables["params"])
  hidden = np.asarray(x).reshape(4, 64) @ p["hidden1"]["kernel"]
  hidden = np.maximum(hidden + p["hidden1"]["bias"], 0)
  logits = hidden @ p["head"]["kernel"] + p["head"]["bias"]
  for train in (False, True):
    y: Any = host.apply(variables, x, train=train)
    np.testing.assert_allclose(y, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_slot_follows_every_hidden_layer(depth):
  host = make_host("mlp", num_classes=3, width=5, depth=depth)
  with observe_slots() as trace:
    variables = jax.eval_shape(
      host.init, jax.random.key(0), jnp.zeros((2, 8, 8, 1))
    )
  assert list(trace.specs) == [f"slot{n + 1}" for n in range(depth)]
  assert {s.shape for s in trace.specs.values()} == {(5,)}
  assert {s.kind for s in trace.specs.values()} == {"features"}
  assert set(variables) == {"params"}
  assert len(variables["params"]) == depth + 1


def test_bfloat16_computes_in_it_and_keeps_float32_around():
  host = make_host("mlp", num_classes=3, dtype=jnp.bfloat16)
  x = jnp.ones((2, 8, 8, 3), jnp.bfloat16)
  with observe_slots() as trace:
    logits, variables = jax.eval_shape(
      host.init_with_output, jax.random.key(0), x
    )
  assert {a.dtype.name for a in jax.tree.leaves(variables)} == {"float32"}
  assert not any(a.weak_type for a in jax.tree.leaves(variables))
  assert {s.dtype for s in trace.specs.values()} == {"bfloat16"}
  assert logits.dtype == jnp.float32
