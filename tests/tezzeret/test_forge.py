"""The forge compiles once per name, structure, shape and dtype."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tezzeret.forge import Forge, lower_on_cpu
from esper_jax.types import InputError


def make_forge(**options):
  return Forge(cost=lambda lowered: float(len(lowered.as_text())), **options)


def total(tree):
  return sum(leaf.sum() for leaf in jax.tree.leaves(tree))


def test_an_empty_forge():
  forge = make_forge()
  assert (forge.compiles, forge.traces, forge.seconds) == (0, {}, 0.0)


def test_a_program_is_compiled_when_first_asked_for():
  told = []
  forge = make_forge(on_compile=lambda *args: told.append(args))
  forge.add("total", total)
  assert forge.traces == {"total": 0}
  assert forge.compiles == 0
  x = jnp.arange(3.0)
  program = forge.program("total", {"a": x})
  assert forge.program("total", {"a": x + 1}) is program
  assert program.call({"a": x + 1}) == 6
  assert forge.traces == {"total": 1}
  assert forge.compiles == 1
  ((name, seconds),) = told
  assert name == "total"
  assert 0 < seconds == forge.seconds


def test_nobody_need_listen():
  forge = make_forge()
  forge.add("total", total)
  assert forge.program("total", jnp.ones(2)).call(jnp.ones(2)) == 2


@pytest.mark.parametrize(
  "other",
  [
    {"b": jnp.ones(2)},  # structure
    {"a": jnp.ones(3)},  # shape
    {"a": jnp.ones(2, jnp.int32)},  # dtype
    {"a": jnp.ones(2), "b": jnp.ones(2)},
  ],
)
def test_another_form_is_another_program(other):
  forge = make_forge()
  forge.add("total", total)
  first = forge.program("total", {"a": jnp.ones(2)})
  second = forge.program("total", other)
  assert second is not first
  assert forge.program("total", {"a": jnp.zeros(2)}) is first
  assert forge.traces == {"total": 2}
  assert forge.compiles == 2
  assert second.call(other) == sum(v.size for v in other.values())


def test_typed_keys_and_abstract_shapes_are_arguments():
  forge = make_forge()
  forge.add("draw", lambda key, x: x + jax.random.normal(key, x.shape))
  key, x = jax.random.key(0), jnp.ones(2)
  shapes = jax.eval_shape(lambda: (key, x))
  program = forge.program("draw", *shapes)
  assert forge.program("draw", key, x) is program
  np.testing.assert_allclose(
    program.call(key, x), x + jax.random.normal(key, (2,)), rtol=1e-6
  )


def test_the_cost_is_that_of_the_lowered_program():
  texts = []

  def cost(lowered):
    texts.append(lowered.as_text())
    return 7.0

  forge = Forge(cost=cost)
  forge.add("total", total)
  assert forge.program("total", jnp.ones(2)).flops == 7.0
  assert len(texts) == 1
  assert "@jit_total" in texts[0]  # profiles show the given name


def test_on_an_accelerator_the_cost_is_counted_on_the_cpu(monkeypatch):
  costs = []
  forge = Forge(cost=lambda lowered: costs.append(lowered.cost_analysis()) or 1)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  forge.add("product", lambda x: x @ x)
  program = forge.program("product", jnp.ones((4, 4)))
  assert program.flops == 1
  assert costs[0]["flops"] == 2 * 4**3
  assert forge.traces == {"product": 1}


def test_a_hidden_cpu_is_said_in_one_line(monkeypatch):
  def devices(platform):
    raise RuntimeError(f"no {platform}")

  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.setattr(jax, "devices", devices)
  with pytest.raises(InputError, match="set it to cuda,cpu or unset it"):
    lower_on_cpu(jax.jit(jnp.sin), jnp.ones(2))


def test_a_name_stays_with_its_first_function():
  forge = make_forge()
  forge.add("f", lambda x: x + 1)
  first = forge.program("f", jnp.ones(()))
  forge.add("f", lambda x: x + 2)
  assert forge.traces == {"f": 1}
  assert forge.program("f", jnp.ones(())) is first
  assert first.call(jnp.ones(())) == 2


def test_names_do_not_share_programs():
  forge = make_forge()
  forge.add("plus", lambda x: x + 1)
  forge.add("minus", lambda x: x - 1)
  x = jnp.ones(())
  values = [forge.program(name, x).call(x) for name in ("plus", "minus")]
  assert values == [2, 0]
  assert forge.traces == {"plus": 1, "minus": 1}


def test_donated_arguments_are_gone_after_the_call_alone():
  forge = make_forge()
  forge.add("add", lambda x, y: (x + y, y), donate=(0,))
  x, y = jnp.ones(4), jnp.ones(4)
  program = forge.program("add", x, y)
  assert not x.is_deleted()
  program.call(x, y)
  assert x.is_deleted()
  assert not y.is_deleted()


def test_an_unknown_name_is_an_error():
  with pytest.raises(KeyError, match="nothing"):
    make_forge().program("nothing", jnp.ones(2))


def test_a_rare_program_compiles_faster_and_computes_the_same():
  def chain(x):
    for n in range(8):
      sums = jnp.exp(jnp.tanh(x * n)).mean(axis=n % 2, keepdims=True)
      x = jnp.sin(x) + jnp.broadcast_to(sums, x.shape) * jnp.log1p(x * x)
    return x

  forge = make_forge()
  forge.add("often", chain)
  forge.add("seldom", chain, rare=True)
  x = jnp.linspace(0, 1, 64).reshape(8, 8)
  results, seconds = [], []
  for name in ("often", "seldom"):
    start = time.process_time()  # of the processor: others do not count
    program = forge.program(name, x)
    seconds.append(time.process_time() - start)
    results.append(program.call(x))
  np.testing.assert_allclose(*results, rtol=1e-4)
  assert seconds[1] < seconds[0]
  assert forge.traces == {"often": 1, "seldom": 1}


@pytest.mark.parametrize("rare", [True, False])
def test_compiler_options_reach_every_program(rare):
  def forge_with(options):
    forge = make_forge(options=options)
    forge.add("total", total, rare=rare)
    return forge.program("total", jnp.ones(2)).call(jnp.ones(2))

  assert forge_with({"xla_llvm_disable_expensive_passes": True}) == 2
  with pytest.raises(Exception, match="xla_there_is_no_such_option"):
    forge_with({"xla_there_is_no_such_option": True})
