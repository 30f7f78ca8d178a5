"""The GPT: what it computes, that no output sees a later token, its slots."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.hosts import make_host
from esper_jax.hosts.host import from_linen
from esper_jax.kasmina import blueprints, surgery
from esper_jax.kasmina.slot import observe_slots
from esper_jax.types import InputError, SlotSpec

CLASSES, WIDTH, TIME = 5, 16, 6
TOKENS = jnp.asarray(
  np.random.default_rng(0).integers(0, CLASSES, (2, TIME)), jnp.int32
)
SPEC = SlotSpec("slot1", (TIME, WIDTH), "float32", "tokens", causal=True)


def gpt(**options):
  options = {"depth": 1, "heads": 2, "context": TIME, **options}
  return make_host("gpt", num_classes=CLASSES, width=WIDTH, **options)


def drawn(host):
  """Variables none of which is zero, so that every part counts."""
  shapes = jax.eval_shape(host.init, jax.random.key(0), TOKENS)
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype),
    shapes,
  )


def test_it_is_a_pre_norm_transformer():
  host = gpt()
  variables = drawn(host)
  p: Any = jax.tree.map(np.asarray, variables["params"])

  def norm(x, own):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-6
    )
    return x * own["scale"] + own["bias"]

  def dense(x, own):
    return x @ own["kernel"] + own["bias"]

  block = p["block1"]
  x = p["tokens"]["embedding"][np.asarray(TOKENS)] + p["positions"]
  qkv = dense(norm(x, block["norm1"]), block["query_key_value"])
  q, k, v = np.moveaxis(qkv.reshape(2, TIME, 3, 2, 8), 2, 0)
  scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8)
  scores = np.where(np.tril(np.ones((TIME, TIME), bool)), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  seen = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
  x = x + dense(seen, block["attention_out"])
  hidden = dense(norm(x, block["norm2"]), block["mlp_in"])
  x = x + dense(np.asarray(jax.nn.gelu(hidden)), block["mlp_out"])
  logits = dense(norm(x, p["norm"]), p["head"])
  for train in (False, True):
    y: Any = host.apply(variables, TOKENS, train=train)
    np.testing.assert_allclose(y, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_causal_slot_follows_every_block(depth):
  with observe_slots() as trace:
    variables = jax.eval_shape(gpt(depth=depth).init, jax.random.key(0), TOKENS)
  assert list(trace.specs) == [f"slot{n + 1}" for n in range(depth)]
  assert {s.form for s in trace.specs.values()} == {SPEC.form}
  assert set(variables) == {"params"}


def test_bfloat16_computes_in_it_and_keeps_float32_around():
  with observe_slots() as trace:
    logits, variables = jax.eval_shape(
      gpt(dtype=jnp.bfloat16).init_with_output, jax.random.key(0), TOKENS
    )
  assert {a.dtype.name for a in jax.tree.leaves(variables)} == {"float32"}
  assert not any(a.weak_type for a in jax.tree.leaves(variables))
  assert {s.dtype for s in trace.specs.values()} == {"bfloat16"}
  assert (logits.dtype, logits.shape) == (jnp.float32, (2, TIME, CLASSES))


def test_fewer_tokens_than_the_context_are_the_beginning_of_more():
  host = gpt()
  variables = drawn(host)
  whole: Any = host.apply(variables, TOKENS)
  part: Any = host.apply(variables, TOKENS[:, :4])
  np.testing.assert_allclose(part, whole[:, :4], rtol=1e-5, atol=1e-5)
  with pytest.raises(InputError, match="7 tokens but the host's context is 6"):
    host.apply(variables, jnp.zeros((1, TIME + 1), jnp.int32))


@pytest.mark.parametrize("name", [None, *blueprints.fitting(SPEC)])
def test_no_output_depends_on_a_later_token(name):
  """Of the host, and of the host with a seed of each blueprint blended in."""
  host = from_linen(gpt())
  params = drawn(gpt())["params"]
  seeds = {}
  if name:
    seed = surgery.make_seed(
      SPEC, name, key=jax.random.key(0), initializer="random"
    )
    on, off = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    seeds = {"slot1": {name: seed.replace(alpha=on, isolation=off)}}

  @jax.jit
  def logits(tokens):
    return host.apply(params, {}, seeds, tokens, train=False, key=None)[0]

  before = logits(TOKENS)
  for time in range(TIME):
    changed = TOKENS.at[:, time].set((TOKENS[:, time] + 1) % CLASSES)
    moved = np.any(np.asarray(before != logits(changed)), axis=(0, 2))
    assert not moved[:time].any(), f"token {time} is seen before its time"
    assert moved[time]
