"""What training minimizes and what counts as right: arguments of every program.

A loss and a metric are (outputs [batch, ...], labels [batch, ...]) -> float32
[batch], one figure per example.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from esper_jax.types import InputError, form, uncallable

PerExample = Callable[[Any, jax.Array], jax.Array]


class Objective(NamedTuple):
  """The figures of a batch.

  Attributes:
    train_loss: per example, what is minimized: its mean over the batch.
    loss: per example, what evaluation, ablation and probe report.
    hits: per example, 0 to 1 (or bool): what is reported as accuracy.
    metrics: name -> per example; read once, when the run is over.
  """

  train_loss: PerExample
  loss: PerExample
  hits: PerExample
  metrics: Mapping[str, PerExample] = {}


def classification(*, label_smoothing: float = 0.0) -> Objective:
  """Softmax cross-entropy in nats, and accuracy.

  Outputs are logits float [batch, ..., classes], labels int [batch, ...]; axes
  between batch and classes (time, for one) are averaged over.

  Args:
    label_smoothing: share of the target spread over the classes in training.
  """

  def train_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    target = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing
    )
    return _by_example(optax.softmax_cross_entropy(logits, target))

  return Objective(train_loss, cross_entropy, accuracy)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy, nats: float32 [batch]; see `classification`."""
  return _by_example(
    optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  )


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Share of right guesses: bool or float32 [batch]; see `classification`."""
  right = logits.argmax(-1) == labels
  return right if right.ndim == 1 else _by_example(right.astype(jnp.float32))


def _by_example(values: jax.Array) -> jax.Array:
  """The mean over all axes but the first."""
  return values if values.ndim == 1 else values.mean(range(1, values.ndim))


CLASSIFICATION = classification()


def spare_logits(objective: Objective, outputs: Any, num_classes: int) -> str:
  """Says where a network tells apart more classes than there are; else "".

  That may be meant: a pretrained head, classes that are to come.

  Args:
    objective: of the run.
    outputs: of the network for a batch; an array or its shape.
    num_classes: of the labels; 0 where they are no classes.
  """
  standard = cross_entropy in objective or accuracy in objective
  logits = outputs.shape[-1] if standard and num_classes else 0
  if logits <= num_classes:
    return ""
  return (
    f"the model gives {logits} logits, and the data has {num_classes} classes:"
    f" give its last layer {num_classes}, unless more classes are meant to come"
  )


def check(
  objective: Objective,
  outputs: Any,
  labels: jax.Array,
  *,
  num_classes: int,
  doubt: Callable[[], str] = str,
) -> None:
  """Tries an objective on shapes.

  Args:
    objective: tried.
    outputs: of the network for a batch; arrays or shapes.
    labels: of the batch; an array or its shape.
    num_classes: of the labels; 0 where they are no classes.
    doubt: says what may be wrong with the labels where they do not fit.

  Raises:
    InputError: the outputs do not fit the labels, or a function cannot be
      called with both, or does not give one number per example.
  """
  standard = cross_entropy in objective or accuracy in objective
  shape = getattr(outputs, "shape", None)
  if standard and (
    shape is None
    or not num_classes
    or shape[:-1] != labels.shape
    or shape[-1] < num_classes
  ):
    wanted = ", ".join(map(str, (*labels.shape[1:], num_classes or "classes")))
    why = doubt()
    raise InputError(
      f"the model gives {form(outputs)} for labels {form(labels)};"
      f" {why + '. Otherwise ' if why else ''}classification needs logits"
      f" [batch, {wanted}]: change the model's last layer, or give grow(...,"
      " loss=, metrics={'accuracy': ...})"
    )
  named = {
    "loss": objective.train_loss,
    "metrics['accuracy']": objective.hits,
    **{f"metrics['{k}']": f for k, f in objective.metrics.items()},
  }
  for name, function in named.items():
    problem = uncallable(function, outputs, labels)
    if problem:
      raise InputError(
        f"{name} cannot be called with (outputs, labels): {problem}; give a"
        " function of these two"
      )
    out = jax.eval_shape(function, outputs, labels)
    if getattr(out, "shape", None) == labels.shape[:1] and (
      out.dtype == jnp.float32 or (name != "loss" and out.dtype == jnp.bool_)
    ):
      continue
    raise InputError(
      f"{name} gives {form(out)} for a batch of {labels.shape[0]} examples;"
      " give one float32 per example, [batch], not their mean"
    )
