"""The forge compiles once per name, structure, shape and dtype."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tezzeret import forge as forge_lib
from esper_jax.tezzeret.forge import Forge
from esper_jax.tezzeret.lowering import (
  code_size,
  compile_lowered,
  lower_on_cpu,
)
from esper_jax.tezzeret.program import CompileError, Interrupted, Limits
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
  forge = make_forge(on_compile=told.append)
  forge.add("total", total)
  assert forge.traces == {"total": 0}
  assert forge.compiles == 0
  x = jnp.arange(3.0)
  program = forge.program("total", {"a": x})
  assert forge.program("total", {"a": x + 1}) is program
  assert program.call({"a": x + 1}) == 6
  assert forge.traces == {"total": 1}
  assert forge.compiles == 1
  (compiled,) = told
  assert compiled.program == "total"
  assert 0 < compiled.seconds == forge.seconds
  assert 0 < compiled.seconds <= compiled.waited
  assert not (compiled.background or compiled.guessed)


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


def test_a_backend_need_not_tell_the_size_of_its_code():
  forge = make_forge()
  forge.add("total", total)
  assert forge.program("total", jnp.ones(2)).size == 0  # as on CPU
  assert code_size(object()) == 0


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


# --- ahead of need ---------------------------------------------------------


class Slow:
  """A compiler that waits until it may go on."""

  def __init__(self):
    self.may = threading.Event()
    self.asked = []

  def __call__(self, lowered, options):
    self.asked.append(threading.current_thread().name)
    assert self.may.wait(30)
    return compile_lowered(lowered, options)


@pytest.fixture
def compiler(monkeypatch):
  """Puts another compiler in the place of XLA's."""

  def replace(compile):
    monkeypatch.setattr(forge_lib, "compile_lowered", compile)
    return compile

  return replace


def until(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.001)


def idle(forge):
  """Waits until the background has gone through all that was asked for."""
  done = threading.Event()
  forge._workers.submit(10**6, done.set)
  until(done.is_set)


def made(forge, count):
  """Waits until so many programs were compiled and told of."""
  until(lambda: forge.report() or forge.compiles >= count)
  assert forge.compiles == count


def test_a_prepared_program_is_compiled_in_the_background():
  told = []
  forge = make_forge(on_compile=told.append)
  forge.add("total", total)
  x = jnp.arange(3.0)
  key = forge.prepare("total", {"a": x})
  assert key == forge.prepare("total", {"a": x})
  made(forge, 1)
  assert forge.program("total", {"a": x}).call({"a": x}) == 3
  (compiled,) = told
  assert compiled.background
  assert compiled.waited == 0
  assert forge.compiles == forge.traces["total"] == 1


def test_a_program_that_is_late_is_waited_for(compiler):
  slow, told = compiler(Slow()), []
  forge = make_forge(on_compile=told.append)
  forge.add("total", total)
  x = jnp.ones(2)
  forge.prepare("total", x)
  until(lambda: slow.asked)
  assert forge.making
  threading.Timer(0.2, slow.may.set).start()
  assert forge.program("total", x).call(x) == 2
  assert not forge.making
  (compiled,) = told
  assert compiled.background
  assert 0.1 < compiled.waited < compiled.seconds + 0.1  # it looks now and then
  assert slow.asked == ["tezzeret"]


def test_what_nobody_has_begun_with_does_not_wait_for_others(compiler):
  slow = Slow()
  compiler(
    lambda lowered, options: (
      slow(lowered, options)
      if threading.current_thread().name == "tezzeret"
      else compile_lowered(lowered, options)
    )
  )
  forge = make_forge()
  forge.add("total", total)
  forge.add("other", total)
  x = jnp.ones(2)
  forge.prepare("other", x)
  until(lambda: slow.asked)  # the only thread is busy
  forge.prepare("total", x)
  assert forge.program("total", x).call(x) == 2
  slow.may.set()
  assert forge.program("other", x).call(x) == 2
  assert forge.compiles == 2


def test_without_threads_nothing_is_prepared():
  forge = make_forge(limits=Limits(threads=0))
  forge.add("total", total)
  key = forge.prepare("total", jnp.ones(2))
  forge.warm("nothing", lambda: pytest.fail("this was not to run"))
  assert forge.traces == {"total": 0}
  forge.program("total", jnp.ones(2))
  assert forge.prepare("total", jnp.ones(2)) == key


@pytest.mark.parametrize("prepared", [False, True])
def test_waiting_ends_when_the_run_is_to_stop(compiler, prepared):
  slow, stop = compiler(Slow()), []
  forge = make_forge(stopping=lambda: bool(stop))
  forge.add("total", total)
  if prepared:
    forge.prepare("total", jnp.ones(2))
    until(lambda: slow.asked)
  threading.Timer(0.1, lambda: stop.append(True)).start()
  with pytest.raises(Interrupted):
    forge.program("total", jnp.ones(2))
  forge.close()  # does not wait for the compiler
  slow.may.set()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_program_that_takes_too_long_is_an_error_until_it_is_there(
  compiler, threads
):
  slow = compiler(Slow())
  forge = make_forge(limits=Limits(threads=threads))
  forge.add("total", total)
  x = jnp.ones(2)
  forge.prepare("total", x)
  with pytest.raises(CompileError, match="not compiled within .*=0.1") as e:
    forge.program("total", x, timeout=0.1)
  assert e.value.timed_out
  slow.may.set()
  assert forge.program("total", x).call(x) == 2
  assert forge.traces == {"total": 1}


def broken(lowered, options):
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room\nsecond line")


@pytest.mark.parametrize("prepared", [False, True])
def test_a_failure_is_one_line_and_may_be_tried_again(compiler, prepared):
  compiler(broken)
  forge = make_forge()
  forge.add("total", total)
  x = jnp.ones(2)
  if prepared:
    forge.prepare("total", x)
  with pytest.raises(CompileError) as caught:
    forge.program("total", x)
  assert str(caught.value) == (
    "'total' cannot be compiled: RESOURCE_EXHAUSTED: no room"
  )
  assert not caught.value.timed_out
  compiler(compile_lowered)
  assert forge.program("total", x).call(x) == 2


@pytest.mark.parametrize("prepared", [False, True])
def test_a_guess_that_fails_is_made_again_when_it_is_needed(compiler, prepared):
  compiler(broken)
  forge = make_forge()
  forge.add("total", total)
  x = jnp.ones(2)
  forge.new_epoch(1.0)
  forge.prepare("total", x, guess=0)
  made(forge, 1)
  compiler(compile_lowered)
  if prepared:
    forge.prepare("total", x)
  assert forge.program("total", x).call(x) == 2
  assert forge.compiles == 2


def test_a_mistake_in_a_function_passes_through():
  forge = make_forge()
  forge.add("total", lambda x: x + undefined)  # noqa: F821
  with pytest.raises(NameError, match="undefined"):
    forge.program("total", jnp.ones(2))


def test_what_is_warmed_runs_once_per_name_and_may_fail():
  ran = []

  def work():
    ran.append(threading.current_thread().name)
    raise ValueError

  forge = make_forge()
  for name in ("a", "a", "b"):
    forge.warm(name, work)
  until(lambda: len(ran) == 2)
  assert ran == ["tezzeret", "tezzeret"]
  forge.add("total", total)
  assert forge.program("total", jnp.ones(2)).call(jnp.ones(2)) == 2


# --- guesses and memory ----------------------------------------------------


def test_a_guess_that_comes_true_is_told_of_once():
  told, used = [], []
  limits = Limits(max_programs=1)
  forge = make_forge(on_compile=told.append, on_use=used.append, limits=limits)
  forge.add("total", total)
  forge.new_epoch(9.0)
  for n in (2, 3):
    forge.prepare("total", jnp.ones(n), guess=n)
  made(forge, 2)
  assert [c.guessed for c in told] == [True, True]
  for _ in range(2):
    forge.program("total", jnp.ones(3))
  assert used == [told[1].seconds]
  forge.program("total", jnp.ones(2))  # gone, so compiled again
  assert forge.compiles == 3
  assert not told[-1].guessed


def test_a_guess_that_is_decided_is_needed_no_less(compiler):
  slow = compiler(Slow())
  forge = make_forge()
  forge.add("total", total)
  x, y, z = (jnp.ones(n) for n in (2, 3, 4))
  forge.new_epoch(9.0)
  forge.prepare("total", x, guess=0)
  until(lambda: slow.asked)
  for guess in (y, z):
    forge.prepare("total", guess, guess=1)
    forge.prepare("total", guess, guess=2)
  forge.prepare("total", y)  # decided now
  forge.prepare("total", y, guess=0)  # which a guess does not take back
  forge.new_epoch(9.0)  # forgets what nobody has begun with
  slow.may.set()
  made(forge, 2)
  forge.program("total", y)
  assert forge.traces["total"] == 2
  forge.program("total", z)
  assert forge.traces["total"] == 3


@pytest.mark.parametrize(
  "limit, epochs, allowed",
  [(60.0, [], False), (60.0, [1.0], True), (0.0, [1.0], False)],
)
def test_guesses_take_no_longer_than_epochs_do(limit, epochs, allowed):
  forge = make_forge(limits=Limits(guess_seconds=limit))
  forge.add("total", total)
  for seconds in epochs:
    forge.new_epoch(seconds)
  forge.prepare("total", jnp.ones(2), guess=0)
  idle(forge)
  until(lambda: forge.report() or not forge.making)
  if allowed:
    made(forge, 1)
  assert forge.traces == {"total": int(allowed)}


def test_guesses_that_took_too_long_are_a_debt():
  forge = make_forge(limits=Limits(guess_seconds=1e-6))
  forge.add("total", total)
  forge.new_epoch(1.0)
  forge.prepare("total", jnp.ones(2), guess=0)  # it is begun, so it is ended
  made(forge, 1)
  for n in (3, 4):
    forge.new_epoch(1.0)  # too little to be quits
    forge.prepare("total", jnp.ones(n), guess=0)
    idle(forge)
  forge.report()
  assert forge.compiles == 1


def test_what_may_not_be_needed_comes_out_of_the_budget_of_guesses():
  forge = make_forge(limits=Limits(guess_seconds=1e-6))
  forge.add("total", total)
  first, second = jnp.ones(2), jnp.ones(3)
  keys = [forge.prepare("total", x, likely=True) for x in (first, second)]
  idle(forge)
  assert forge.traces == {"total": 0}  # no epoch has earned anything
  assert not forge.ready(keys)
  forge.new_epoch(1.0)  # asks again for what waits
  made(forge, 1)  # which leaves a debt
  assert not forge.may_guess
  idle(forge)
  assert forge.traces == {"total": 1}
  assert forge.ready(keys[:1]) and not forge.ready(keys)
  forge.prepare("total", second)  # it is needed for sure now
  made(forge, 2)
  assert forge.ready(keys)
  assert forge.program("total", second).call(second) == 3


def test_a_guess_needs_room_for_the_longest_compilation(compiler):
  slow = compiler(Slow())
  forge = make_forge()
  forge.add("total", total)
  forge.prepare("total", jnp.ones(2))
  until(lambda: slow.asked)
  time.sleep(0.2)
  slow.may.set()
  made(forge, 1)
  forge.new_epoch(0.1)
  assert not forge.may_guess
  forge.new_epoch(9.0)
  assert forge.may_guess


@pytest.mark.parametrize("lead, pays", [(0, True), (1, False)])
def test_no_guess_pays_where_what_is_decided_comes_in_time(lead, pays):
  forge = make_forge(limits=Limits(lead_epochs=lead))
  forge.add("total", total)
  forge.program("total", jnp.ones(2))
  forge.new_epoch(50.0)  # longer than any compilation here
  assert forge.may_guess == pays
  forge.new_epoch(0.0)
  assert forge.may_guess


def test_nothing_spare_is_begun_while_somebody_waits(compiler):
  slow = compiler(Slow())
  forge = make_forge()
  forge.add("total", total)
  x, y = jnp.ones(2), jnp.ones(3)
  forge.new_epoch(9.0)

  def then():
    until(lambda: slow.asked)
    forge.prepare("total", y, likely=True)
    idle(forge)
    assert forge.traces == {"total": 1}
    slow.may.set()

  other = threading.Thread(target=then)
  other.start()
  forge.program("total", x)
  other.join()
  forge.new_epoch(9.0)
  made(forge, 2)


def test_pinned_and_kept_programs_stay():
  forge = make_forge(limits=Limits(max_programs=1))
  forge.add("total", total)
  forge.add("small", total, keep=True)
  small = forge.program("small", jnp.ones(1))
  pinned = forge.program("total", jnp.ones(1))
  forge.pin("current", [forge.prepare("total", jnp.ones(1))])
  second = forge.program("total", jnp.ones(2))
  forge.program("total", jnp.ones(3))
  assert forge.program("total", jnp.ones(1)) is pinned
  assert forge.program("small", jnp.ones(1)) is small
  assert forge.program("total", jnp.ones(2)) is not second


def test_the_least_likely_guesses_go_first(monkeypatch):
  monkeypatch.setattr(forge_lib, "code_size", lambda compiled: 10)
  limits = Limits(max_programs=9, max_bytes=35)
  forge = make_forge(limits=limits)
  forge.add("total", total)
  forge.new_epoch(9.0)
  forge.prepare("total", jnp.ones(2), guess=0)  # of an epoch before: stale
  made(forge, 1)
  forge.new_epoch(9.0)
  forge.program("total", jnp.ones(3))  # used
  for rank, n in enumerate((4, 5)):
    forge.prepare("total", jnp.ones(n), guess=rank)
    made(forge, 3 + rank)
  forge.program("total", jnp.ones(6))  # two must go: the stale one and 5
  for n in (3, 4, 6):
    forge.program("total", jnp.ones(n))
  assert forge.compiles == 5
  for n in (2, 5):
    forge.program("total", jnp.ones(n))
  assert forge.compiles == 7


def test_guesses_that_nobody_uses_do_not_pile_up():
  forge = make_forge(limits=Limits(max_programs=2))
  forge.add("total", total)
  for n in range(2, 7):
    forge.new_epoch(9.0)
    forge.prepare("total", jnp.ones(n), guess=0)
    made(forge, n - 1)
  forge.new_epoch(9.0)
  assert len(forge._jobs) == 2
