"""What XLA counts, against hand counts, and the ledger."""

import dataclasses
import json

import hypothesis
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import strategies as st

from esper_jax.hosts.registry import make_host
from esper_jax.tezzeret.forge import lower_on_cpu
from esper_jax.tolaria import accounting
from esper_jax.tolaria.accounting import Ledger


def shape_of(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def make_step(module, x):
  """(SGD step of a dormant host, abstract variables)."""
  variables = jax.eval_shape(module.init, jax.random.key(0), x)

  def loss_fn(params, rest, x, labels):
    logits, rest = module.apply(
      {"params": params, **rest}, x, train=True, mutable=list(rest)
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), rest

  def step(variables, x, labels):
    rest = {k: v for k, v in variables.items() if k != "params"}
    gradients, rest = jax.grad(loss_fn, has_aux=True)(
      variables["params"], rest, x, labels
    )
    params = jax.tree.map(
      lambda p, g: p - 0.1 * g, variables["params"], gradients
    )
    return {"params": params, **rest}

  return step, variables


def conv_flops(size, stride, kernel, inputs, outputs):
  """FLOPs per example of a SAME convolution, padding left out.

  Along each axis the kernel meets size / stride * kernel positions, less
  those outside: one at either end with stride 1, one in all with stride 2.
  """
  taps = size // stride * kernel
  if kernel == 3:
    taps -= 2 if stride == 1 else 1
  return 2 * taps**2 * inputs * outputs


def test_dense_host_agrees_with_a_hand_count():
  batch, features, width, classes = 32, 64, 128, 10
  module = make_host("mlp", num_classes=classes, width=width, slots=())
  step, variables = make_step(module, shape_of(batch, 8, 8, 1))
  got = accounting.flops(
    lower_on_cpu(
      jax.jit(step),
      variables,
      shape_of(batch, 8, 8, 1),
      shape_of(batch, dtype=jnp.int32),
    )
  )
  layers = [features * width, width * width, width * classes]
  # Forward and the kernel's gradient everywhere, the input's but in the first.
  by_hand = 2 * batch * (3 * sum(layers) - layers[0])
  # The rest is element-wise: biases, ReLU, softmax, the update.
  assert by_hand < got < 1.05 * by_hand


def test_convolutional_host_agrees_with_a_hand_count():
  batch, size, classes, width = 4, 16, 10, 64
  module = make_host("resnet8", num_classes=classes, width=width, slots=())
  step, variables = make_step(module, shape_of(batch, size, size, 3))
  got = accounting.flops(
    lower_on_cpu(
      jax.jit(step),
      variables,
      shape_of(batch, size, size, 3),
      shape_of(batch, dtype=jnp.int32),
    )
  )
  stem = conv_flops(size, 1, 3, 3, width)
  by_hand = 3 * (stem + 2 * 4 * width * classes) - stem
  inputs = width
  for stage in range(3):
    outputs, stride = width * 2**stage, 1 if stage == 0 else 2
    block = conv_flops(size, stride, 3, inputs, outputs)
    if stage:
      block += conv_flops(size, stride, 1, inputs, outputs)
    size, inputs = size // stride, outputs
    by_hand += 3 * (block + conv_flops(size, 1, 3, outputs, outputs))
  by_hand *= batch
  # The rest is element-wise, chiefly batch norm and the update.
  assert by_hand < got < 1.05 * by_hand, got / by_hand


def test_conv_flops_by_enumeration():
  """The hand count's own closed form, against counting taps."""
  for size, stride, kernel in [(8, 1, 3), (8, 2, 3), (8, 2, 1), (4, 1, 1)]:
    out = size // stride
    low = max((out - 1) * stride + kernel - size, 0) // 2
    taps = sum(
      0 <= o * stride + k - low < size
      for o in range(out)
      for k in range(kernel)
    )
    assert conv_flops(size, stride, kernel, 5, 7) == 2 * taps**2 * 35


def test_a_scan_counts_one_step_and_chunks_charge_alike():
  module = make_host("mlp", num_classes=10, width=32, slots=())
  step, variables = make_step(module, shape_of(8, 8, 8, 1))

  def chunk(variables, x, labels):
    return jax.lax.scan(
      lambda v, batch: (step(v, *batch), None), variables, (x, labels)
    )[0]

  def scanned(length):
    return accounting.flops(
      lower_on_cpu(
        jax.jit(chunk),
        variables,
        shape_of(length, 8, 8, 8, 1),
        shape_of(length, 8, dtype=jnp.int32),
      )
    )

  single = accounting.flops(
    lower_on_cpu(
      jax.jit(step),
      variables,
      shape_of(8, 8, 8, 1),
      shape_of(8, dtype=jnp.int32),
    )
  )
  # Hence the count of the chunk is no basis for the bill: it ignores length.
  assert scanned(8) == scanned(2) == pytest.approx(single, rel=0.01)
  one_by_one, by_eight = Ledger(), Ledger()
  for _ in range(16):
    one_by_one = one_by_one.charge("train", single)
  for _ in range(2):
    by_eight = by_eight.charge("train", single, times=8)
  assert one_by_one == by_eight
  assert by_eight.train_flops == 16 * single and by_eight.steps == 16


def test_lowering_adds_no_trace_and_keeps_types():
  traces = []

  @jax.jit
  def program(tree, key):
    traces.append(tree["x"].dtype)
    noise = jax.random.normal(key, (4, 4))
    return tree["x"] @ tree["x"] + noise

  tree, key = {"x": jnp.ones((4, 4))}, jax.random.key(0)
  program(tree, key)
  lowered = lower_on_cpu(program, tree, key)
  again = lower_on_cpu(program, {"x": shape_of(4, 4)}, key)
  assert traces == [jnp.float32]
  assert accounting.flops(lowered) == accounting.flops(again) > 2 * 4**3


def test_kernels_by_platform_count_as_their_reference():
  @jax.jit
  def program(x):
    return jax.lax.platform_dependent(
      x, cpu=lambda x: x @ x, cuda=lambda x: x + x
    )

  counted = accounting.flops(lower_on_cpu(program, shape_of(16, 16)))
  assert counted == 2 * 16**3


def test_a_program_without_arithmetic_counts_nothing():
  assert (
    accounting.flops(lower_on_cpu(jax.jit(lambda x: x.T), shape_of(4, 2))) == 0
  )


@pytest.mark.parametrize("answer", [{"flops": 8.0}, [{"flops": 8.0}]])
def test_both_forms_of_cost_analysis(answer):
  class Lowered:
    def cost_analysis(self):
      return answer

  assert accounting.flops(Lowered()) == 8


def test_parameters():
  module = make_host("mlp", num_classes=10, width=4, depth=1, slots=())
  variables = module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
  assert accounting.parameters(variables["params"]) == 4 * 4 + 4 + 40 + 10
  assert accounting.parameters({}) == 0


def test_totals_include_everything_but_redone_work():
  ledger = Ledger()
  assert ledger.measurement_share == 0.0
  for n, kind in enumerate(
    ("train", "evaluation", "ablation", "probe", "policy")
  ):
    ledger = ledger.charge(kind, 10**n, times=2)
  ledger = ledger.redo(3, 777)
  assert ledger.train_flops == 2 and ledger.steps == 2
  assert ledger.total_flops == 22222
  assert ledger.measurement_share == (200 + 2000) / 2
  assert (ledger.redone_steps, ledger.redone_flops) == (3, 777)


def test_counts_are_exact_beyond_floating_point():
  ledger = Ledger().charge("train", 2**53 + 1).charge("train", 1)
  assert ledger.train_flops == 2**53 + 2


def test_seconds_accumulate_over_resumes():
  first = Ledger().book(wall_seconds=2.0, compile_seconds=0.5)
  first = first.book(stall_seconds=0.25)
  resumed = Ledger.from_dict(json.loads(json.dumps(first.to_dict())))
  resumed = resumed.book(
    wall_seconds=3.0, compile_seconds=0.5, stall_seconds=0.25
  )
  assert resumed.wall_seconds == 5.0
  assert resumed.compile_seconds == 1.0
  assert resumed.stall_seconds == 0.5


def test_rewind_moves_lost_work_out_of_the_total():
  saved = Ledger().charge("train", 10, times=4).book(wall_seconds=1.0)
  now = (
    saved.charge("train", 10, times=3).charge("probe", 5).book(wall_seconds=2.0)
  )
  back = now.rewind(saved)
  assert (back.steps, back.total_flops) == (4, 40)
  assert (back.redone_steps, back.redone_flops) == (3, 35)
  assert back.wall_seconds == 3.0
  again = (
    back.charge("train", 10)
    .book(compile_seconds=1.0, stall_seconds=0.5)
    .rewind(saved)
  )
  assert (again.redone_steps, again.redone_flops) == (4, 45)
  assert (again.compile_seconds, again.stall_seconds) == (1.0, 0.5)
  assert again.total_flops == 40


COUNT, SECONDS = st.integers(0, 2**70), st.floats(0, 1e9)


@hypothesis.given(
  st.builds(
    Ledger,
    **{
      field.name: COUNT if field.type is int else SECONDS
      for field in dataclasses.fields(Ledger)
    },
  )
)
def test_record_survives_json(ledger):
  text = json.dumps(ledger.to_dict(), allow_nan=False)
  assert Ledger.from_dict(json.loads(text)) == ledger


def test_summary_names_the_keys_of_the_result():
  ledger = Ledger().charge("train", 10, times=2).charge("probe", 1)
  summary = ledger.book(
    wall_seconds=1.0, compile_seconds=0.5, stall_seconds=0.25
  ).summary()
  assert summary == {
    "train_flops": 20,
    "total_flops": 21,
    "evaluation_flops": 0,
    "ablation_flops": 0,
    "probe_flops": 1,
    "policy_flops": 0,
    "measurement_share": 0.05,
    "wall_seconds": 1.0,
    "compile_seconds": 0.5,
    "stall_seconds": 0.25,
    "redone_steps": 0,
    "redone_flops": 0,
    "compilation": {
      "background_seconds": 0.0,
      "blocking_seconds": 0.0,
      "compiles": 0,
      "disk_hits": 0,
      "guesses": 0,
      "guesses_used": 0,
      "guess_seconds": 0.0,
      "guess_seconds_used": 0.0,
      "memory_hits": 0,
      "overlapped_steps": 0,
    },
  }
