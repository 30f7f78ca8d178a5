"""Loss and hits as arguments: what the standard ones are, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper_jax.tolaria import objective as lib
from esper_jax.types import InputError

BATCH, TIME, CLASSES = 4, 3, 5


def draw(*shape):
  keys = jax.random.split(jax.random.key(0))
  logits = jax.random.normal(keys[0], (*shape, CLASSES))
  return logits, jax.random.randint(keys[1], shape, 0, CLASSES, jnp.int32)


@pytest.mark.parametrize("name", ["train_loss", "loss", "hits"])
def test_axes_between_batch_and_classes_are_averaged(name):
  function = getattr(lib.classification(label_smoothing=0.1), name)
  logits, labels = draw(BATCH, TIME)
  whole = function(logits, labels)
  steps = [function(logits[:, t], labels[:, t]) for t in range(TIME)]
  assert (whole.shape, whole.dtype) == ((BATCH,), jnp.float32)
  mean = np.mean([np.asarray(s, np.float32) for s in steps], axis=0)
  np.testing.assert_allclose(whole, mean, rtol=1e-6)


def test_smoothing_is_of_training_alone():
  logits, labels = draw(BATCH)
  smooth = lib.classification(label_smoothing=0.3)
  plain = lib.CLASSIFICATION
  assert (smooth.loss(logits, labels) == plain.loss(logits, labels)).all()
  np.testing.assert_allclose(
    plain.train_loss(logits, labels), plain.loss(logits, labels), rtol=1e-5
  )
  assert (
    smooth.train_loss(logits, labels) != plain.train_loss(logits, labels)
  ).any()


def squared(outputs, labels):
  return ((outputs - labels) ** 2).mean(-1)


def near(outputs, labels):
  return (jnp.abs(outputs - labels) < 0.1).all(-1)


@pytest.mark.parametrize(
  "classes, says",
  [(CLASSES, ""), (CLASSES - 2, "gives 5 logits, and the data has 3 classes:")],
)
def test_logits_that_no_class_has_are_said(classes, says):
  logits, _ = draw(BATCH)
  told = lib.spare_logits(lib.CLASSIFICATION, logits, classes)
  assert says in told and bool(says) == bool(told)
  assert lib.spare_logits(OWN, logits, classes) == ""


OWN = lib.Objective(squared, squared, near, {"mse": squared})


def test_an_objective_that_fits_is_taken():
  lib.check(lib.CLASSIFICATION, *draw(BATCH), num_classes=CLASSES)
  lib.check(lib.CLASSIFICATION, *draw(BATCH, TIME), num_classes=CLASSES - 1)
  numbers = jnp.zeros((BATCH, 2))
  lib.check(OWN, numbers, numbers, num_classes=0)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"train_loss": lambda o, y: jnp.mean(o)}, r"loss gives float32\[\] for a"),
    ({"train_loss": lambda o, y: o}, r"loss gives float32\[4, 2\]"),
    ({"train_loss": lambda o, y: (o,)}, "loss gives a tuple for a batch"),
    ({"train_loss": near}, r"loss gives bool\[4\]"),
    (
      {"hits": lambda o, y: jnp.argmax(o, -1)},
      r"metrics\['accuracy'\] gives i",
    ),
    ({"train_loss": lambda o: o}, r"loss cannot be called with \(outputs, la"),
    ({"metrics": {"f1": 3}}, r"metrics\['f1'\] cannot.*: it is a int; give"),
    ({"metrics": {"f1": lambda o, y: o}}, r"metrics\['f1'\] gives float32"),
    ({"hits": lib.accuracy}, r"gives float32\[4, 2\] for labels float32\[4, 2"),
  ],
)
def test_what_gives_no_figure_per_example_is_refused(changes, says):
  numbers = jnp.zeros((BATCH, 2))
  with pytest.raises(InputError, match=says) as caught:
    lib.check(OWN._replace(**changes), numbers, numbers, num_classes=0)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "outputs",
  [jnp.zeros((BATCH, CLASSES - 1)), jnp.zeros((BATCH, 2, CLASSES)), ()],
)
def test_a_model_whose_outputs_are_no_logits_is_refused(outputs):
  labels = jnp.zeros((BATCH,), jnp.int32)
  with pytest.raises(InputError, match=r"needs logits \[batch, 5\]: change"):
    lib.check(lib.CLASSIFICATION, outputs, labels, num_classes=CLASSES)
  doubt = "; they are odd. Otherwise classification needs logits"
  with pytest.raises(InputError, match=doubt):
    lib.check(
      lib.CLASSIFICATION,
      outputs,
      labels,
      num_classes=CLASSES,
      doubt=lambda: "they are odd",
    )
