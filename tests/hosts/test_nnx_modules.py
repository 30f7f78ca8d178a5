"""NNX modules as hosts and as blueprints, beside the same module at work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esper_jax.hosts.nnx_modules import from_nnx, nnx_blueprint, nnx_slot
from esper_jax.kasmina import blueprints, surgery
from esper_jax.kasmina.slot import with_seeds_at
from esper_jax.types import InputError

BATCH, FEATURES, WIDTH, CLASSES = 4, 3, 8, 2
X = jax.random.normal(jax.random.key(1), (BATCH, FEATURES))


class Net(nnx.Module):
  """Batch statistics, dropout, a list of layers and a slot."""

  def __init__(self, rngs):
    self.first = nnx.Linear(FEATURES, WIDTH, rngs=rngs)
    self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.rest = nnx.List([nnx.Linear(WIDTH, CLASSES, rngs=rngs)])

  def __call__(self, x):
    x = self.norm(self.first(x))
    x = nnx_slot("middle", jax.nn.relu(x))
    return self.rest[0](self.drop(x))


HOST = from_nnx(Net)


def drawn():
  return HOST.init(jax.random.key(0), X)


def forward(seeds=None, *, train=False, key=None):
  return HOST.apply(*drawn(), seeds or {}, X, train=train, key=key)


def test_a_host_computes_what_its_module_does():
  module = Net(nnx.Rngs(jax.random.key(0)))
  module.eval()
  logits, collections, seeds = forward()
  np.testing.assert_allclose(logits, module(X), rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, collections, drawn()[1])
  assert seeds == {}
  params, _ = drawn()
  assert sorted(params) == ["first", "norm", "rest"]
  assert params["rest"]["0"]["kernel"].shape == (WIDTH, CLASSES)


def test_training_drops_by_the_key_and_moves_the_statistics():
  one, two = jax.random.split(jax.random.key(3))
  first, moved, _ = forward(train=True, key=one)
  again, _, _ = forward(train=True, key=one)
  other, _, _ = forward(train=True, key=two)
  assert (first == again).all()
  assert (first != other).any()
  before = drawn()[1]["state"]["norm"]
  after = moved["state"]["norm"]
  assert after.keys() == before.keys()
  assert all((after[k] != before[k]).any() for k in after)


@pytest.fixture
def branch():
  class Branch(nnx.Module):
    def __init__(self, spec, rngs):
      c = spec.channels
      self.calls = nnx.BatchStat(jnp.zeros((), jnp.float32))
      self.out = nnx.Linear(c, c, dtype=spec.dtype, rngs=rngs)

    def __call__(self, x):
      self.calls.set_value(self.calls.get_value() + 1)
      return self.out(x)

  blueprint = nnx_blueprint(
    "nnx_test_branch", Branch, ("features",), ("out", "kernel")
  )
  blueprints.register(blueprint)  # which tries it in both dtypes
  yield blueprint
  blueprints.unregister(blueprint.name)


def test_an_nnx_seed_grows_in_an_nnx_host(branch):
  slots = surgery.slot_table(forward)
  assert [(s.name, s.shape, s.kind) for s in slots.values()] == [
    ("middle", (WIDTH,), "features")
  ]
  seed = surgery.make_seed(
    slots["middle"], branch.name, key=jax.random.key(0), initializer="random"
  )
  joined = seed.replace(alpha=jnp.float32(1), isolation=jnp.float32(0))
  plain = forward()[0]

  def tree(seed):
    return with_seeds_at({}, "middle", {branch.name: seed})

  surgery.check_consumed(lambda: forward(tree(seed)), tree(seed))
  assert (forward(tree(seed))[0] == plain).all()  # isolated
  assert (forward(tree(joined))[0] != plain).any()
  _, _, seeds = forward(tree(joined), train=True, key=jax.random.key(0))
  new = seeds["middle"][branch.name]
  assert jax.tree.structure(new) == jax.tree.structure(joined)
  assert (joined.state["calls"], new.state["calls"]) == (0, 1)


class Sized(nnx.Module):
  """Takes more than rngs."""

  def __init__(self, width, rngs):
    self.out = nnx.Linear(FEATURES, width, rngs=rngs)

  def __call__(self, x):
    return self.out(x)


class Named(nnx.Module):
  """Takes rngs by name."""

  def __init__(self, *, rngs):
    self.out = nnx.Linear(FEATURES, 2, rngs=rngs)


class Told(Sized):
  """Must be told of training."""

  def __call__(self, x, train):
    return self.out(x)


class Asked(Sized):
  """May be told of training."""

  def __call__(self, x, train=False):
    return self.out(x)


def test_a_host_has_the_name_of_its_class():
  sized = functools.partial(Sized, 5)
  assert from_nnx(sized).init(jax.random.key(0), X)[0]["out"]["bias"].size == 5
  assert (HOST.title, from_nnx(sized).title) == ("Net", "Sized")
  assert from_nnx(lambda rngs: Sized(5, rngs=rngs)).title == "host"


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (Net(nnx.Rngs(0)), "was given Net itself, not what builds it; give the cl"),
    ("Net", "from_nnx was given str itself"),
    (Sized, r"calls Sized\(rngs\): it takes \(self, width, rngs\), missing a"),
    (Named, r"calls Named\(rngs\): .*lambda rngs: Named\(..., rngs=rngs\)"),
    (functools.partial(Sized, height=2), r"calls Sized\(rngs\): it takes"),
    (lambda: None, r"it takes \(\), too many"),
    (lambda rngs: 3, "needs an NNX module, and was built a int"),
    (lambda rngs: Named(rngs=rngs), "Named.__call__ is called with x alone"),
    (
      functools.partial(Told, 2),
      r"Told.__call__ .*: it takes \(x, train\), ",
    ),
    (functools.partial(Asked, 2), "Asked.__call__ .*: it takes train; write"),
  ],
)
def test_what_cannot_be_built_or_called_is_refused(make, says):
  with pytest.raises(InputError, match=says) as caught:
    from_nnx(make).init(jax.random.key(0), X)
  assert "\n" not in str(caught.value)


def test_outside_a_host_a_slot_is_the_identity():
  assert nnx_slot("middle", X) is X
